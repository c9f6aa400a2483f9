"""The prompts. They ask for what the papers' prompts ask for, in our own words.

Each prompt has a name with a version, which the provenance of every example states; a changed text gets a new version.
A base model can continue the text from ``begin``, and a chat model understands it without ``begin``.
"""

from __future__ import annotations

from collections.abc import Sequence

from spintune.records import Message
from spintune.synthesis.examples import SeedTask
from spintune.text.words import one_line

INSTRUCTIONS = "self-instruct/instructions/1"
CLASSIFICATION = "self-instruct/classification/1"
INPUT_FIRST = "self-instruct/input-first/1"
OUTPUT_FIRST = "self-instruct/output-first/1"
ALPACA = "alpaca/1"

NEW_INSTRUCTIONS = 8
"""New instructions per request of Self-Instruct. The paper's stop text allows seven."""

ALPACA_TASKS = 20
"""Length of Alpaca's list, with its demonstrations."""

NO_INPUT_MARK = "<noinput>"

Prompt = tuple[tuple[Message, ...], str]
"""The conversation, and the beginning of the answer."""


def new_instructions(shown: Sequence[SeedTask]) -> Prompt:
    """Asks for instructions that continue a numbered list of shown ones (paper: 8 shown)."""
    first = len(shown) + 1
    last = len(shown) + NEW_INSTRUCTIONS
    listed = "\n".join(f"{number}. {_listed(task)}" for number, task in enumerate(shown, 1))
    text = (
        f"Below is a list of tasks for a language assistant. Go on with tasks {first} to {last}. Make each new task "
        "different from all others in topic, wording and kind. Write one task a line, with its number, and nothing "
        f"else.\n\n{listed}"
    )
    return _ask(text), f"{first}."


def _listed(task: SeedTask) -> str:
    """The instruction on one line, without a colon at its end."""
    return one_line(task.instruction).rstrip(": ")


def is_classification(task: SeedTask) -> Prompt:
    """Asks whether the answers to a task are a small set of labels."""
    worked = "\n\n".join(f"Task: {text}\nClassification: {'Yes' if labels else 'No'}" for text, labels in _JUDGED)
    text = (
        "A task is a classification task when every answer to it is one of a few labels that are known beforehand. Say "
        f"Yes or No for the last task.\n\n{worked}\n\nTask: {one_line(task.instruction)}"
    )
    return _ask(text), "Classification:"


def instances_input_first(task: SeedTask) -> Prompt:
    """Asks for inputs of a task, each with its output."""
    text = (
        "Write examples of each task: an input that fits it, then the right output. Write up to five different "
        "examples; write the output alone if the task needs no input.\n\n"
        f"{_INPUT_FIRST}\n\nTask: {one_line(task.instruction)}"
    )
    return _ask(text), "Example 1\n"


def instances_output_first(task: SeedTask) -> Prompt:
    """Asks for the labels of a classification task, each with an input, so that no label is left out."""
    text = (
        "For each classification task, name a label and then write an input for which it is right. Do so for every "
        "label; write the labels alone if the task needs no input.\n\n"
        f"{_OUTPUT_FIRST}\n\nTask: {one_line(task.instruction)}"
    )
    return _ask(text), "Class label:"


def alpaca(shown: Sequence[SeedTask]) -> Prompt:
    """Asks for whole examples that continue the list of shown ones (Stanford: a list of 20, 3 of them shown)."""
    listed = "\n".join(_block(number, task) for number, task in enumerate(shown, 1))
    text = f"{_ALPACA.format(count=ALPACA_TASKS)}\n\n{listed}\n###"
    return _ask(text), f"{len(shown) + 1}. Instruction:"


def _block(number: int, task: SeedTask) -> str:
    fields = (
        f"{number}. Instruction: {one_line(task.instruction).rstrip(': ')}",
        f"{number}. Input:\n{task.input or NO_INPUT_MARK}",
        f"{number}. Output:\n{task.output}",
    )
    return "###\n" + "\n".join(fields)


def _ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


_ALPACA = """\
Write a varied list of {count} tasks for a language assistant. Each task has an instruction, an input and an output.

- No verb should lead two instructions, and questions should stand beside commands.
- Cover many kinds of work: open answers, rewriting, sorting into classes, extraction, arithmetic, planning, code.
- A model that only reads and writes text must be able to do each task. It cannot see, hear, open a link, set an alarm \
or remember the user.
- Write in English. An instruction has one or two sentences.
- The input gives the instruction something concrete to work on: real content instead of a placeholder, and at most \
100 words. Where none is needed, as for a general question, write <noinput>.
- The output answers instruction and input well, in less than 100 words.
- Keep the layout of the tasks below.

The list of {count} tasks:"""

_JUDGED: tuple[tuple[str, bool], ...] = (
    ("Tell whether the review is positive, negative or neutral.", True),
    ("Write a birthday card for a colleague who loves chess.", False),
    ("Is the number in the input prime? Answer yes or no.", True),
    ("Explain how a refrigerator keeps food cold.", False),
    ("Which of the two sentences is grammatical, the first or the second?", True),
    ("Turn the recipe into a shopping list.", False),
    ("Label the email as spam or not spam.", True),
    ("Give three arguments for a four-day week.", False),
    ("Translate the sentence into Spanish.", False),
    ("Name the season that the poem describes.", True),
    ("Compute the area of the described room.", False),
    ("Does the second statement follow from the first, contradict it, or neither?", True),
    ("Suggest a name for a small bakery by the sea.", False),
    ("Rate the urgency of the request as low, medium or high.", True),
    ("Find the error in the following function and mend it.", False),
    ("Sort the animals from the smallest to the largest.", False),
)

_INPUT_FIRST = """\
Task: Rewrite the sentence in the past tense.
Example 1
Input: The river carries the boats to the old harbour.
Output: The river carried the boats to the old harbour.
Example 2
Input: She never forgets to water the plants.
Output: She never forgot to water the plants.

Task: Name four things that one needs for a picnic.
Example 1
Output: A blanket, something to drink, sandwiches, and a bag for the rubbish.

Task: Compute the average of the numbers.
Example 1
Input: 4, 8, 15
Output: (4 + 8 + 15) / 3 = 27 / 3 = 9
Example 2
Input: 2.5, 3.5
Output: (2.5 + 3.5) / 2 = 6 / 2 = 3

Task: Answer the question with the help of the passage.
Example 1
Input: Passage: The bridge was closed for two years while its cables were replaced. It opened again in May.
Question: Why was the bridge closed?
Output: Its cables were being replaced.

Task: Why do leaves turn yellow in autumn?
Example 1
Output: As days grow shorter, a tree stops making chlorophyll, the green pigment. When it fades, yellow pigments that \
were there all along become visible.

Task: Write a short message that turns down the invitation politely.
Example 1
Input: We are having a garden party on Saturday and would love to see you there!
Output: Thank you so much for thinking of me! Sadly I am away on Saturday. I hope you have a lovely party, and I would \
be glad to come another time."""

_OUTPUT_FIRST = """\
Task: Tell whether the review is positive or negative.
Class label: positive
Review: The soup was hot, the bread was fresh, and nobody rushed us. We will be back.
Class label: negative
Review: We waited an hour for a cold plate and a wrong bill.

Task: Which of the three words does not belong with the others? Answer with the word.
Class label: hammer
Words: apple, hammer, pear
Class label: violin
Words: train, bus, violin

Task: Is a whale a fish? Answer yes or no.
Class label: no

Task: Decide whether the second sentence follows from the first: yes, no, or unclear.
Class label: yes
Sentence 1: All the lamps in the hall are lit.
Sentence 2: The lamp beside the door of the hall is lit.
Class label: no
Sentence 1: Nobody came to the lecture.
Sentence 2: Three students listened to the lecture.
Class label: unclear
Sentence 1: Marta bought a ticket.
Sentence 2: Marta travelled by train.

Task: Sort the message into one of: question, complaint, praise.
Class label: question
Message: At what time does the pool open on Sundays?
Class label: complaint
Message: The lockers have been broken for three weeks.
Class label: praise
Message: Your swimming teacher is wonderful with shy children."""
