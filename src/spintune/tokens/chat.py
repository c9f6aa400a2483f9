"""Conversations to token rows with an exact loss mask.

The chat template is rendered with placeholders instead of contents, once for each shape of conversation. The contents
are then encoded in place of the placeholders. So text never becomes a control token, the position of the answer is
known without a search, and the prompt of a row equals the prompt that generation reads, token for token.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import orjson

from spintune.errors import DataError, ModelError
from spintune.records import Example, Message
from spintune.tokens.chat_template import ChatTemplate, RefusedError, turn_of
from spintune.tokens.layout import Control, Part, Span, Turn, lay_out
from spintune.tokens.plain import PlainEncoder, Position
from spintune.tokens.rows import TokenRow, Turns, check_roles, where

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


_OPEN_ANSWER = Turn("assistant", "", "", empty=False)
_MAX_PLANS = 4096


@dataclass(frozen=True)
class _Plan:
    """The spans of all conversations of one shape; ``ids`` holds the ids of those without contents."""

    spans: tuple[Span, ...]
    ids: tuple[tuple[int, ...] | None, ...]
    first_trained: int
    parts: tuple[Part, ...]


class ChatRenderer:
    """Writes conversations as token ids, as a model's chat template says.

    The loss covers the assistant's contents and the ends of their turns: the template text after a content, through
    the first control token. Where a template writes no control token after the answer, the tokenizer's end-of-sequence
    token follows every assistant content and ends the turn. White space between the generation prompt and the answer
    (Llama-2's space) is part of the response.

    A default system turn that the template adds is kept; earlier content that it leaves out is left out. Templates
    cannot see contents. If a template rewrites contents (parses thinking blocks), a warning says so and the contents
    stay as they are. A template that writes the date always writes 2024-07-26.

    Args:
        tokenizer: a tokenizer with a fast (Rust) form.
        template: "tokenizer", "alpaca", "chatml" or "plain"; see :mod:`spintune.tokens.templates`.
        turns: train on all assistant turns, or only on the last one, with the earlier ones in the prompt.

    Attributes:
        stop_ids: ids at which generation must stop: the template's end-of-turn and ``tokenizer.eos_token_id``.
        end_ids: ids that end an ordinary answer and are trained, the end-of-turn token last. Usually one id.
        unknown_id: the id of characters that the vocabulary lacks; None where it can spell everything.

    Raises ModelError when the tokenizer or the template cannot be used.
    """

    stop_ids: frozenset[int]
    end_ids: tuple[int, ...]
    unknown_id: int | None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "tokenizer", turns: Turns = "last"):
        self._template = ChatTemplate(tokenizer, template)
        self._name, self._style = self._template.name, self._template.style
        self._tokenizer, self._turns = tokenizer, turns
        self._warned_of_rewriting = False
        self._encoder = PlainEncoder(tokenizer.backend_tokenizer, self._style.controls)
        self.unknown_id = self._encoder.unknown_id
        self._bos = _automatic_bos(tokenizer)
        self._plan = lru_cache(_MAX_PLANS)(self._make_plan)

        eos = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
        self.stop_ids = frozenset({self._style.end.id} | eos)
        self.end_ids = self._learn_end()
        self._compare_with_tokenizer()

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids to generate an answer from: the conversation so far and the assistant's header.

        Equal to ``row(example).prompt_ids`` of the example that ends in that answer (``turns="last"``).
        Raises DataError for a conversation that the template refuses.
        """
        check_roles(messages, "")
        shape = (*_shape_of(messages), _OPEN_ANSWER)
        plan = self._plan_of(shape, frozenset({len(messages)}), "")
        self._watch_rewriting(plan, [*messages, Message("assistant", "Hello")], "")
        spans = self._encode([(plan, [*_contents(messages), ""])])[0]
        return _joined(spans[: plan.first_trained])

    def row(self, example: Example) -> TokenRow:
        """The whole example as tokens, of any length.

        Raises DataError for a conversation that the template refuses or that does not end with the assistant, and
        ModelError when the template does not write a trained turn exactly once.
        """
        return self.rows([example])[0]

    def rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """:meth:`row` of each example; faster than one at a time."""
        jobs = [(self._plan_for(example), _contents(example.messages)) for example in examples]
        return [
            _row(example, plan, ids, self._turns)
            for example, (plan, _), ids in zip(examples, jobs, self._encode(jobs), strict=True)
        ]

    def fingerprint(self) -> str:
        """Digest of everything that determines the tokens: template, vocabulary, tokenizer settings and options."""
        facts = [
            self._template.source,
            self._turns,
            sorted(self._tokenizer.special_tokens_map.items()),
            self._bos,
            self.end_ids,
            sorted(self.stop_ids),
            self._encoder.digest,
        ]
        return hashlib.sha256(orjson.dumps(facts, default=str)).hexdigest()[:32]

    def unknown_characters(self, text: str) -> str:
        """The characters of ``text`` that become :attr:`unknown_id`, each once."""
        return self._encoder.unknown_characters(text)

    def highest_token(self) -> tuple[int, str]:
        """The highest id that may stand in a row, and its text."""
        written = {control.id for control in self._style.controls.values() if control.text in self._template.source}
        return self._encoder.highest_token({*written, *self.end_ids, *((self._bos.id,) if self._bos else ())})

    def _learn_end(self) -> tuple[int, ...]:
        """The ids that follow the content of a plain answer, encoded by themselves."""
        plan = self._plan((turn_of("user", "Hi"), turn_of("assistant", "Hello")), frozenset({1}))
        answer, end = plan.spans[-2].parts, self._style.end.id
        after_content = "" if isinstance(answer, Control) else "".join(map(str, answer[answer.index(1) + 1 :]))
        return (*self._encoder.encode([after_content], "cut")[0], end)

    # Plans -----------------------------------------------------------------------------------------------------

    def _plan_for(self, example: Example) -> _Plan:
        messages = example.messages
        check_roles(messages, example.source)
        if not messages or messages[-1].role != "assistant":
            raise DataError(f"{where(example.source)}the conversation does not end with an assistant message")
        last = len(messages) - 1
        every = {index for index, message in enumerate(messages) if message.role == "assistant" and message.trained}
        answers = frozenset(every if self._turns == "all" and every else {last})
        plan = self._plan_of(_shape_of(messages), answers, example.source)
        self._watch_rewriting(plan, messages, example.source)
        return plan

    def _plan_of(self, shape: tuple[Turn, ...], answers: frozenset[int], source: str) -> _Plan:
        try:
            return self._plan(shape, answers)
        except RefusedError as refusal:
            raise DataError(f"{where(source)}the chat template refuses this conversation: {refusal}") from refusal

    def _make_plan(self, shape: tuple[Turn, ...], answers: frozenset[int]) -> _Plan:
        parts = self._template.parts(shape)
        for index in answers:
            if (count := parts[1::2].count(index)) != 1:
                raise ModelError(
                    f"{self._name}: the chat template writes the assistant's turn {index + 1} {count} times instead of "
                    "once, so it cannot be trained; set data.template"
                )
        bare_shape = [replace(turn, left="") if turn.role == "assistant" else turn for turn in shape]
        bare = parts if bare_shape == list(shape) else self._template.parts(bare_shape)
        spans = lay_out(parts, bare, shape, answers, self._style)
        if self._bos is not None and not (isinstance(first := spans[0].parts, Control) and first.id == self._bos.id):
            spans = (Span(self._bos, "start", False), *spans)
        first_trained = next(number for number, span in enumerate(spans) if span.trained)
        return _Plan(spans, tuple(map(self._constant_ids, spans)), first_trained, parts)

    def _constant_ids(self, span: Span) -> tuple[int, ...] | None:
        if isinstance(span.parts, Control):
            return (span.parts.id,)
        if any(isinstance(part, int) for part in span.parts):
            return None
        return tuple(self._encoder.encode(["".join(map(str, span.parts))], span.position)[0])

    def _encode(self, jobs: Sequence[tuple[_Plan, Sequence[str]]]) -> list[list[Sequence[int]]]:
        """The ids of each span, for each plan with its contents; one batch per position."""
        texts: dict[Position, list[str]] = {"start": [], "control": [], "cut": []}
        for plan, contents in jobs:
            for span, ids in zip(plan.spans, plan.ids, strict=True):
                if ids is None and isinstance(span.parts, tuple):
                    texts[span.position].append(_fill(span.parts, contents))
        encoded = {position: iter(self._encoder.encode(batch, position)) for position, batch in texts.items()}
        return [
            [
                next(encoded[span.position]) if ids is None else ids
                for span, ids in zip(plan.spans, plan.ids, strict=True)
            ]
            for plan, _ in jobs
        ]

    # Checks ----------------------------------------------------------------------------------------------------

    def _watch_rewriting(self, plan: _Plan, messages: Sequence[Message], source: str) -> None:
        """Warns once when the template treats a content specially. Only markup in a content can make it do so."""
        if self._warned_of_rewriting or not any(
            self._template.added_text.search(message.content) for message in messages
        ):
            return
        try:
            real = self._template.write([{"role": message.role, "content": message.content} for message in messages])
        except RefusedError as refusal:
            raise DataError(f"{where(source)}the chat template refuses this conversation: {refusal}") from refusal
        if real != _fill(plan.parts, _contents(messages)):
            self._warned_of_rewriting = True
            log.warning(
                "%sthe chat template of %s rewrites contents like this one; they are kept as they are",
                where(source),
                self._name,
            )

    def _compare_with_tokenizer(self) -> None:
        """Logs a warning when the ids of an ordinary conversation differ from the tokenizer's own."""
        messages = (Message("user", "What is two plus two?"), Message("assistant", "Two plus two is four."))
        row = self.row(Example(messages))
        ours = [*row.prompt_ids, *row.response_ids]
        if not self._style.template_ends:
            del ours[-1]
        theirs = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=self._template.source,
            tokenize=True,
            return_dict=False,
        )
        if self._bos is not None and theirs[:1] != [self._bos.id]:
            theirs = [self._bos.id, *theirs]
        if theirs[: len(ours)] == ours:
            return
        # the cut before the answer may split a token that the tokenizer would have made across it
        text, their_text = (self._tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (ours, theirs))
        if not their_text.startswith(text):
            log.warning(
                "%s: apply_chat_template encodes a plain question and answer differently: %r, here %r",
                self._name,
                their_text,
                text,
            )


def _row(example: Example, plan: _Plan, ids: Sequence[Sequence[int]], turns: Turns) -> TokenRow:
    candidates = example.messages if turns == "all" else example.messages[-1:]
    learns = any(message.role == "assistant" and message.trained for message in candidates)
    response = ids[plan.first_trained :]
    trained: tuple[bool, ...] = ()
    for span, tokens in zip(plan.spans[plan.first_trained :], response, strict=True):
        trained += (span.trained and learns,) * len(tokens)
    return TokenRow(example.id, _joined(ids[: plan.first_trained]), _joined(response), trained, complete=True)


def _joined(spans: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(spans))


def _fill(parts: Sequence[Part], contents: Sequence[str]) -> str:
    return "".join(contents[part] if isinstance(part, int) else part for part in parts)


def _contents(messages: Sequence[Message]) -> list[str]:
    """The texts that replace the placeholders; the white space around them is in the rendered text already."""
    return [message.content.strip() for message in messages]


def _shape_of(messages: Sequence[Message]) -> tuple[Turn, ...]:
    return tuple(turn_of(message.role, message.content) for message in messages)


def _automatic_bos(tokenizer: PreTrainedTokenizerBase) -> Control | None:
    """The BOS token, if the tokenizer puts one before plain text by itself."""
    bos = tokenizer.bos_token_id
    adds_bos = (
        bos is not None and tokenizer.encode("a")[:1] == [bos] != tokenizer.encode("a", add_special_tokens=False)[:1]
    )
    return Control(bos, tokenizer.bos_token) if adds_bos else None
