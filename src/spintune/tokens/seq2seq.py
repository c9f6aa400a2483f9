"""Token rows for encoder-decoder models (T5, FLAN-T5), which have no chat template.

The encoder reads one text and the decoder writes one. The tokenizer ends both as it ends any text: T5's with ``</s>``.
:func:`flatten` turns a conversation into text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from spintune.errors import DataError, ModelError
from spintune.records import Example, Message
from spintune.tokens.plain import PlainEncoder
from spintune.tokens.rows import TokenRow, Turns, check_roles, where

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SPEAKERS = {"user": "User", "assistant": "Assistant"}


def flatten(messages: Sequence[Message]) -> str:
    """A conversation as one text, for the encoder.

    A single user message stays verbatim. A system message comes first, followed by a blank line. With more than one
    turn, each turn is a line that begins with its speaker, and the last line prompts the assistant::

        Answer in French.

        User: Hello!
        Assistant: Bonjour !
        User: How are you?
        Assistant:

    (T5's own vocabulary has no line break: its tokenizer reads one as a space.)
    """
    system = [message.content for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    if len(turns) == 1:
        text = turns[0].content
    else:
        text = "\n".join([f"{_SPEAKERS[turn.role]}: {turn.content}" for turn in turns] + ["Assistant:"])
    return "\n\n".join([*system, text])


class Seq2SeqRenderer:
    """Writes the conversation so far as the encoder's text, and the last answer as the decoder's.

    No text becomes a control token: text that spells one (``</s>``, ``<extra_id_0>``) is encoded like any other. All
    other text gets the tokenizer's own ids.

    Args:
        tokenizer: a tokenizer with a fast (Rust) form that ends a text with its end-of-sequence token.
        template: "tokenizer" or "plain", which are the same here.
        turns: "last", since a row has one answer.

    Attributes:
        stop_ids: the end-of-sequence token alone.
        end_ids: the same token; it ends every answer and is trained.
        unknown_id: the id of characters that the vocabulary lacks; None where it can spell everything.

    Raises ModelError when the tokenizer or an option cannot be used.
    """

    stop_ids: frozenset[int]
    end_ids: tuple[int, ...]
    unknown_id: int | None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "tokenizer", turns: Turns = "last") -> None:
        name = tokenizer.name_or_path or "this tokenizer"
        if not tokenizer.is_fast:
            raise ModelError(f"{name} has no fast tokenizer (tokenizer.json), which text that is never control needs")
        if template not in ("tokenizer", "plain"):
            raise ModelError(f"{name} reads a text and no chat; set data.template to tokenizer, not {template}")
        if turns != "last":
            raise ModelError(f"{name} writes one answer for each text it reads; set data.turns to last")
        self._tokenizer = tokenizer
        self._encoder = PlainEncoder(tokenizer.backend_tokenizer, _controls(tokenizer))
        self.unknown_id = self._encoder.unknown_id
        self._before, self._after = _surroundings(tokenizer)
        if tokenizer.eos_token_id is None or self._after != (tokenizer.eos_token_id,):
            raise ModelError(f"{name} does not end a text with its end-of-sequence token, so no answer would ever end")
        self.end_ids = self._after
        self.stop_ids = frozenset(self.end_ids)

    def prompt(self, messages: Sequence[Message], tools: tuple[str, ...] = ()) -> tuple[int, ...]:
        """The ids that the encoder reads. Equal to ``row(example).prompt_ids`` of the example they begin.

        Raises DataError for tools.
        """
        check_roles(messages, "")
        _refuse_tools(messages, tools, "")
        return self._encode([flatten(messages)])[0]

    def row(self, example: Example) -> TokenRow:
        """The whole example as tokens, of any length.

        Raises DataError for a conversation that does not end with the assistant or has nothing before that.
        """
        return self.rows([example])[0]

    def rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """:meth:`row` of each example; faster than one at a time."""
        for example in examples:
            _check(example)
        prompts = self._encode([flatten(example.messages[:-1]) for example in examples])
        answers = self._encode([example.messages[-1].content for example in examples])
        return [
            TokenRow(example.id, prompt, answer, (example.messages[-1].trained,) * len(answer), complete=True)
            for example, prompt, answer in zip(examples, prompts, answers, strict=True)
        ]

    def units(self, example: Example) -> list[Example]:
        """The example itself: a row has one answer."""
        return [example]

    def fingerprint(self) -> str:
        """Digest of everything that determines the tokens: vocabulary and tokenizer settings."""
        facts = ["text-to-text", self._before, self._after, self._encoder.digest]
        return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:32]

    def unknown_characters(self, text: str) -> str:
        """The characters of ``text`` that become :attr:`unknown_id`, each once."""
        return self._encoder.unknown_characters(text)

    def highest_token(self) -> tuple[int, str]:
        """The highest id that may stand in a row, and its text."""
        return self._encoder.highest_token({*self._before, *self._after})

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [(*self._before, *ids, *self._after) for ids in self._encoder.encode(texts, "start")]


def _check(example: Example) -> None:
    check_roles(example.messages, example.source)
    if len(example.messages) < 2 or example.messages[-1].role != "assistant":
        raise DataError(f"{where(example.source)}the conversation does not end with an answer to something")
    _refuse_tools(example.messages, example.tools, example.source)
    if example.messages[-1].reasoning:
        raise DataError(
            f"{where(example.source)}a text-to-text model writes no reasoning apart; put it into the content, or leave "
            "it out"
        )


def _refuse_tools(messages: Sequence[Message], tools: tuple[str, ...], source: str) -> None:
    if tools or any(message.role == "tool" or message.tool_calls for message in messages):
        raise DataError(f"{where(source)}a text-to-text model has no form for tools; use a chat model")


def _controls(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    return sorted({token.content for token in added if token.special} | set(tokenizer.all_special_tokens))


def _surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after any text."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    for begin in range(len(whole) - len(bare) + 1):
        if whole[begin : begin + len(bare)] == bare:
            return tuple(whole[:begin]), tuple(whole[begin + len(bare) :])
    raise ModelError(f"{tokenizer.name_or_path or 'this tokenizer'} changes a text when it adds its special tokens")
