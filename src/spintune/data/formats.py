"""The row formats of instruction data, and how each becomes a conversation.

=========  ===========================================================  ==================================
alpaca     ``instruction``, ``output``, optional ``input``              Stanford Alpaca and its descendants
chat       ``messages: [{role, content}]``                              UltraChat, OpenAI
sharegpt   ``conversations: [{from, value}]``                           ShareGPT, Vicuna
prompt     ``prompt``, ``completion`` (or ``prompt``, ``response``)     T0 tasks of Self-Instruct, TRL
qa         ``question``, ``answer``                                     GSM8K
seeds      ``instruction``, ``instances: [{input, output}]``            Self-Instruct seed tasks
spin       ``real``, ``generated``: lists of ``{role, content}``        SPIN's own data; the real side is read
preference ``prompt``, ``chosen``, ``rejected``: texts or messages      TRL, LLaMA-Factory; the chosen side is read
=========  ===========================================================  ==================================

Text is kept verbatim, white space included, with one exception: ``prompt`` rows lose an ``<|endoftext|>`` that ends
their answer. There it is the stop token of another tokenizer, written out, and not text.

Users add formats of their own, from Python or by an entry point of the group ``spintune.formats``::

    def dolly(row: FileRow) -> Iterator[Conversation]:
        question = instruction_prompt(row.text("instruction", "a prompt"), row.text("context", "a context"))
        yield Message("user", question), Message("assistant", row.text("response", "an answer"))

    register_format(Format("dolly", (("instruction", "context", "response"),), dolly))

After that a recipe may say ``format: dolly``, and rows with these keys are recognized without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from spintune.data.file_rows import FileRow, instruction_prompt
from spintune.errors import RowError
from spintune.plugins import Table
from spintune.records import Message, Role

Conversation = tuple[Message, ...]

AUTO = "auto"
"""In the place of a format's name: recognize it by the keys of the first rows."""

_END_OF_TEXT = "<|endoftext|>"

_CHAT_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        name: what a recipe calls it.
        keys: a row has the format when it has all keys of one of these groups.
        conversations: the conversations that a row holds, each of which ends with an assistant's turn; most formats
            hold one. Raises RowError, which begins with ``row.where``, for a row that holds none.
        reads: every key of a row that the format can use; None when it does not say.
    """

    name: str
    keys: tuple[tuple[str, ...], ...]
    conversations: Callable[[FileRow], Iterator[Conversation]]
    reads: frozenset[str] | None = None

    def fits(self, values: Mapping[str, object]) -> bool:
        """Whether a row with these values has the format."""
        return any(all(key in values for key in group) for group in self.keys)

    def __str__(self) -> str:
        return f"{self.name} ({' or '.join(', '.join(group) for group in self.keys)})"


def register_format(format: Format) -> None:
    """Makes a format known to recipes and to recognition. Raises RecipeError when its name is taken."""
    FORMATS.register(format.name, format)


def all_formats() -> list[Format]:
    """Every format in the order of recognition: users' own first, since they may extend the keys of a built-in one."""
    own = [FORMATS[name] for name in FORMATS if name not in _BUILTIN_NAMES]
    return [*own, *BUILTIN_FORMATS]


def recognize(rows: Iterable[Mapping[str, object]]) -> Format | None:
    """The format of the first row that has one, or None."""
    known = all_formats()
    return next((format for values in rows for format in known if format.fits(values)), None)


def drop_reason(conversation: Conversation) -> str | None:
    """Why a well-formed conversation is dropped: "empty_prompt", "empty_answer", or None when it is kept.

    White space alone is empty. One empty user or assistant turn among several is enough, since a model would learn to
    read or write it; an empty system message is a choice and stays.
    """
    empty = {message.role for message in conversation if not message.content.strip()}
    return "empty_prompt" if "user" in empty else "empty_answer" if "assistant" in empty else None


def _turn(prompt: str, answer: str) -> Conversation:
    return Message("user", prompt), Message("assistant", answer)


def _instruction(row: FileRow, task: FileRow) -> str:
    """The user message of an instruction with an optional input.

    A blank instruction stays blank, whatever the input, so that the row counts as one without a prompt.
    """
    instruction, task_input = row.text("instruction", "a prompt"), task.task_input()
    return instruction_prompt(instruction, task_input) if instruction.strip() else instruction


def _alpaca(row: FileRow) -> Iterator[Conversation]:
    yield _turn(_instruction(row, row), row.text("output", "an answer"))


def _seeds(row: FileRow) -> Iterator[Conversation]:
    for instance in row.objects("instances", "an answer"):
        yield _turn(_instruction(row, instance), instance.text("output", "an answer"))


def _prompt(row: FileRow) -> Iterator[Conversation]:
    key = "response" if "response" in row.values and "completion" not in row.values else "completion"
    prompt = row.text("prompt", "a prompt")
    yield _turn(prompt, row.text(key, "an answer").removesuffix(_END_OF_TEXT))


def _qa(row: FileRow) -> Iterator[Conversation]:
    yield _turn(row.text("question", "a prompt"), row.text("answer", "an answer"))


def _chat(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(turns_of(row, "messages"), row)


def _sharegpt(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(_turns(row, "conversations", "from", "value", _SHAREGPT_ROLES), row)


def _spin(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(turns_of(row, "real"), row)


def _preference(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(preferred(row, "chosen"), row)


def preferred(row: FileRow, side: str) -> Conversation:
    """The conversation that ends with one side of a preference row, of texts or of lists of messages."""
    prompt, answer = row.values.get("prompt"), row.values.get(side)
    before = turns_of(row, "prompt", answered=False) if isinstance(prompt, list) else None
    if isinstance(answer, list):
        said = turns_of(row, side)
        if before is None and said[0].role == "assistant":
            before = (Message("user", row.text("prompt", "a prompt")),)
    else:
        said = (Message("assistant", row.text(side, "an answer")),)
        before = before or (Message("user", row.text("prompt", "a prompt")),)
    # some preference data repeats the prompt in both sides
    return said if before is None or said[: len(before)] == before else (*before, *said)


def turns_of(row: FileRow, key: str, answered: bool = True) -> Conversation:
    """The messages under ``key``.

    Raises DataError for an unknown role, and with ``answered`` for messages that do not end with an assistant's turn.
    """
    return _turns(row, key, "role", "content", _CHAT_ROLES, answered)


def _turns(
    row: FileRow, key: str, role_key: str, text_key: str, roles: dict[str, Role], answered: bool = True
) -> Conversation:
    messages = []
    for turn in row.objects(key, "an answer"):
        role = turn.text(role_key, "a role")
        if role not in roles:
            raise RowError(f"{turn.where}: unknown role '{role}'; use {', '.join(roles)}", "unknown_role")
        messages.append(Message(roles[role], turn.text(text_key, "a text")))
    if answered and messages[-1].role != "assistant":
        raise RowError(
            f"{row.where}: a row without an answer (its last turn is the {messages[-1].role}'s); "
            "end it with an assistant turn or delete the row",
            "missing_answer",
        )
    return tuple(messages)


def _with_prompt(conversation: Conversation, row: FileRow) -> Conversation:
    if all(message.role != "user" for message in conversation):
        raise RowError(
            f"{row.where}: a row without a prompt (no user turn); add one or delete the row", "missing_prompt"
        )
    return conversation


# In the order of recognition: chat data often carries a `prompt` beside its `messages`.
BUILTIN_FORMATS = (
    Format("chat", (("messages",),), _chat),
    Format("sharegpt", (("conversations",),), _sharegpt),
    Format("seeds", (("instruction", "instances"),), _seeds),
    Format("alpaca", (("instruction", "output"),), _alpaca),
    Format("prompt", (("prompt", "completion"), ("prompt", "response")), _prompt),
    Format("qa", (("question", "answer"),), _qa),
    Format("spin", (("real", "generated"),), _spin),
    Format("preference", (("prompt", "chosen", "rejected"),), _preference),
)

_BUILTIN_NAMES = frozenset(format.name for format in BUILTIN_FORMATS)

FORMATS = Table("data format", "spintune.formats", ((format.name, format) for format in BUILTIN_FORMATS))
