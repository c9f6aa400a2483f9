"""What reads texts of teachers, models and data rows, on long repetitive ones: the time must grow as the text does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from growth import grows_too_fast, repetitive

from spintune import checkers
from spintune.evaluation.ifeval.rules import INSTRUCTION_RULES
from spintune.evaluation.verdicts import read_verdict
from spintune.mixtures.phrasings import Pattern
from spintune.synthesis import parsers
from spintune.synthesis.examples import SeedTask
from spintune.synthesis.filters import FilterRules
from spintune.teachers.protocol import Reply
from spintune.teachers.reasoning import split_reasoning
from spintune.text import answers
from spintune.text.words import split_words

TASK = SeedTask("id", "Name a colour.")
WORDS = {
    "reply": [
        *("1.", "2. **", "Task 3:", "Example", "Example 1", "Output", "Output:", "Input", "Class label"),
        *("Instruction:", "```", "```text\n", "4. Output:\nok\n###", "\n**1", "sure:", "\0", "<think>", "</think>"),
        *("a\n\nLet me know if you want more tasks ", "1. Instruction: a\nInput: b\nOutput: c\n", "Classification:"),
    ],
    "answer": [
        *("answer", "the answer is 7.", "####", "a. ", "the. ", "1 ", "3/", "(B", "option", "1,000", "Mr.", "'"),
        '"a.',
    ],
    "checked": [
        *("####", "\\boxed{", "\\boxed{{}", "\\frac{1}{2}", "\\frac{1", "{,}", "A) ", "(a) b ", "1. ", "OPTIONS:\n- "),
        *("```", "```json\n", '{"a":', "[1,", "[", "rain", "$"),
    ],
}


def _rules() -> dict[str, Callable[[str], object]]:
    values = {"a list of texts": ["a"], "a text": "a", "one character": "a", "'at least' or 'less than'": "at least"}

    def reader(followed: Callable[..., bool], words: dict[str, str]) -> Callable[[str], object]:
        return lambda text: followed(text, **{key: values.get(kind, 1) for key, kind in words.items()})

    return {
        name: reader(rule.followed, {key: kind.words for key, kind in rule.parameters.items()})
        for name, rule in INSTRUCTION_RULES.items()
        if not rule.needs_langdetect  # what langdetect does is its own
    }


READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "instructions": ("reply", lambda text: parsers.instructions(Reply(text), "3.")),
    "classification": ("reply", lambda text: parsers.classification(Reply(text), "")),
    "inputs first": ("reply", lambda text: parsers.instances_input_first(Reply(text), "", TASK)),
    "outputs first": ("reply", lambda text: parsers.instances_output_first(Reply(text), "", TASK)),
    "triples": ("reply", lambda text: parsers.triples(Reply(text), "4. Instruction:", 17)),
    "reasoning": ("reply", split_reasoning),
    "verdict": ("reply", lambda text: read_verdict(Reply(text), "0123abcd", ["A", "B"])),
    "filters": ("reply", lambda text: FilterRules().instance_drop_reason(SeedTask("id", "a", "", text))),
    "number": ("answer", answers.number),
    "chosen": ("answer", lambda text: answers.chosen(text, ["rain", "snow"])),
    "same text": ("answer", lambda text: answers.same_text("the rain in spain " * 20, text)),
    "same text as itself": ("answer", lambda text: answers.same_text(text, text)),
    "number checker": ("checked", lambda text: checkers.number(text, "7")),
    "number checker, of itself": ("checked", lambda text: checkers.number(text, text)),
    "choice": ("checked", lambda text: checkers.choice(text, "rain", "What falls? A) rain B) snow")),
    "choice of itself": ("checked", lambda text: checkers.choice("b", text, text)),
    "json": ("checked", lambda text: checkers.same_json(text, text)),
    "contains": ("checked", lambda text: checkers.contains(text, "rain in spain")),
    "contains itself": ("checked", lambda text: checkers.contains(text, text)),
    "words": ("answer", split_words),
    "phrasing": ("answer", lambda text: Pattern.parse("{a}{{", "here").fill({"a": text})),
    **{name: ("answer", rule) for name, rule in _rules().items()},
}


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        ("instructions", "4. Output:\nok\n###" + "\n" * 40_000 + "x"),
        ("inputs first", "Example" + " " * 40_000 + "x"),
        ("triples", "*" * 20_000 + "x"),
        ("triples", "1. Instruction: a\n\nLet me know if you want more tasks " + "x" * 40_000 + "\n\nb"),
        ("inputs first", "Output" + " " * 40_000 + "x"),
        ("outputs first", "Class label" + " " * 40_000 + "x"),
        ("number", "answer" + " " * 20_000 + "7"),
        ("detectable_content:number_placeholders", "[" * 60_000),
        ("instructions", "```a\n" * 20_000),
    ],
)
def test_one_reply_or_row_holds_nothing_up(reader: str, text: str) -> None:
    assert not grows_too_fast(READERS[reader][1], lambda size: text[:7] + text[7 : 7 + size] + text[-1])


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_time_in_proportion_to_the_text(reader: str) -> None:
    kind, read = READERS[reader]
    found = {}
    for text_of in repetitive(WORDS[kind], " \n*#[`.:7aA'"):
        if slow := grows_too_fast(read, text_of):
            found[text_of(60)] = slow
            if len(found) == 3:
                break
    assert not found
