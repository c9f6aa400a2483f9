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
from spintune.tokens.chat_template import MAX_RENDERINGS, ChatTemplate, RefusedError
from spintune.tokens.layout import Control, Part, Span, Turn, fill, joined, lay_out, rest_after
from spintune.tokens.plain import PlainEncoder, Position
from spintune.tokens.rows import TokenRow, Turns, check_roles, where
from spintune.tokens.template_options import TemplateOptions
from spintune.tokens.tool_turns import settle_tools
from spintune.tokens.turns import GenerationPrompt, TurnWriter, UnwritableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_MAX_READY = 4096  # examples that were asked for their units and not for their rows
_ANSWERED = (Message("user", "What is two plus two?"), Message("assistant", "Two plus two is four."))


@dataclass(frozen=True)
class _Plan:
    """The spans of all conversations of one shape; ``ids`` holds the ids of those without contents."""

    spans: tuple[Span, ...]
    ids: tuple[tuple[int, ...] | None, ...]
    first_trained: int


@dataclass(frozen=True)
class _Conversation:
    """A conversation as a template sees it, and the texts of its slots."""

    shape: tuple[Turn, ...]
    texts: Sequence[str]
    tools: tuple[str, ...]
    source: str


class ChatRenderer:
    """Writes conversations as token ids, as a model's chat template says.

    A prompt is what the template writes when the model is served: the conversation so far, earlier answers without
    the reasoning that the template leaves out, and the generation prompt. The response is what follows: reasoning
    where the answer has some, the content, calls of tools, and the end of the turn. Where a template ends no answer,
    the tokenizer's end-of-sequence token does. The loss covers the response. White space between the generation prompt
    and the answer (Llama-2's space) is part of it.

    With ``turns="all"``, a conversation is one row where each answer then stands in the context that it has when the
    model is served. Where it does not (a template that drops earlier reasoning), each answer is a row of its own.

    A default system turn that the template adds is kept; earlier content that it leaves out is left out. Templates
    cannot see contents, except texts of tools. If a template rewrites contents, a warning says so and the contents
    stay as they are. A template that writes the date always writes 2024-07-26.

    Args:
        tokenizer: a tokenizer with a fast (Rust) form.
        template: "tokenizer", "tokenizer:NAME", "alpaca", "chatml" or "plain"; see :mod:`spintune.tokens.templates`.
        turns: train on all assistant turns, or only on the last one, with the earlier ones in the prompt.
        generation_prompt: "served", or "bare" for prompts that end as the template's text before an answer does.
        model_stop_ids: ids at which the model's own generation settings stop.
        options: variables that the template reads, such as ``enable_thinking``, with their values.

    Attributes:
        stop_ids: ids at which generation must stop: the template's end-of-turn, ``tokenizer.eos_token_id`` and
            ``model_stop_ids``.
        end_ids: ids that end an ordinary answer and are trained, the end-of-turn token last. Usually one id.
        unknown_id: the id of characters that the vocabulary lacks; None where it can spell everything.

    Raises ModelError when the tokenizer or the template cannot be used.
    """

    stop_ids: frozenset[int]
    end_ids: tuple[int, ...]
    unknown_id: int | None

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "tokenizer",
        turns: Turns = "last",
        generation_prompt: GenerationPrompt = "served",
        model_stop_ids: frozenset[int] = frozenset(),
        options: TemplateOptions | None = None,
    ):
        self._template = ChatTemplate(tokenizer, template, options or {})
        self._name = self._template.name
        self._tokenizer, self._turns = tokenizer, turns
        self._warned_of_rewriting = self._told_of_splitting = False
        self._writer = TurnWriter(self._template, generation_prompt)
        # from units() to rows(), by the address of an example
        self._ready: dict[int, tuple[Example, _Plan, Sequence[str]]] = {}
        self._encoder = PlainEncoder(tokenizer.backend_tokenizer, self._template.controls)
        self.unknown_id = self._encoder.unknown_id
        self._bos = _automatic_bos(tokenizer)
        self._plan = lru_cache(MAX_RENDERINGS)(self._make_plan)
        self._prompt_plan = lru_cache(MAX_RENDERINGS)(self._make_prompt_plan)

        end = self._template.end
        eos = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
        self.stop_ids = frozenset({end.token.id} | eos | model_stop_ids)
        self.end_ids = _joined(
            [
                (piece.id,) if isinstance(piece, Control) else self._encoder.encode([piece], "cut")[0]
                for piece in end.pieces
            ]
        )
        self._compare_with_tokenizer()

    def prompt(self, messages: Sequence[Message], tools: tuple[str, ...] = ()) -> tuple[int, ...]:
        """The ids to generate an answer from: the conversation so far and the assistant's header.

        Equal to ``row(example).prompt_ids`` of the example that ends in that answer (``turns="last"``).
        Raises DataError for a conversation that the template refuses.
        """
        check_roles(messages, "")
        conversation = self._conversation(Example((*messages,), tools=tools))
        try:
            plan = self._prompt_plan(conversation.shape, tools)
        except (RefusedError, UnwritableError) as refusal:
            raise _refused("", refusal) from refusal
        return _joined(self._encode([(plan, conversation.texts)])[0])

    def row(self, example: Example) -> TokenRow:
        """The whole example as tokens, of any length.

        Raises DataError for a conversation that the template refuses or that does not end with the assistant, and
        ModelError when the template does not write a trained turn exactly once.
        """
        return self.rows([example])[0]

    def rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """:meth:`row` of each example; faster than one at a time."""
        jobs = [self._job(example) for example in examples]
        return [
            _row(example, plan, ids, self._turns)
            for example, (plan, _), ids in zip(examples, jobs, self._encode(jobs), strict=True)
        ]

    def units(self, example: Example) -> list[Example]:
        """The examples to make rows of: itself, or one for each trained answer where one row cannot hold them all."""
        places = example.answer_places
        if self._turns == "last" or len(places) < 2:
            return [example]
        conversation = self._conversation(example)
        if (plan := self._plan_of(conversation, _answers(example, "all"))) is not None:
            if len(self._ready) >= _MAX_READY:
                self._ready.clear()
            self._ready[id(example)] = (example, plan, conversation.texts)
            return [example]
        if not self._told_of_splitting:
            self._told_of_splitting = True
            log.warning("%s: the chat template writes earlier turns otherwise, so each answer is a row", self._name)
        units, before = [], list[Message]()
        for place, message in enumerate(example.messages):
            if place in places:
                units.append(replace(example, messages=(*before, message)))
            before.append(replace(message, trained=False) if message.role == "assistant" else message)
        return units

    def fingerprint(self) -> str:
        """Digest of everything that determines the tokens: template, vocabulary, tokenizer settings and options."""
        facts = [
            self._template.source,
            self._turns,
            self._writer.generation,
            sorted(self._tokenizer.special_tokens_map.items()),
            self._bos,
            self.end_ids,
            sorted(self.stop_ids),
            self._encoder.digest,
            *([sorted(self._template.options.items())] if self._template.options else []),
        ]
        return hashlib.sha256(orjson.dumps(facts, default=str)).hexdigest()[:32]

    def unknown_characters(self, text: str) -> str:
        """The characters of ``text`` that become :attr:`unknown_id`, each once."""
        return self._encoder.unknown_characters(text)

    def highest_token(self) -> tuple[int, str]:
        """The highest id that may stand in a row, and its text."""
        controls = self._template.controls.values()
        source = self._template.source
        written = {control.id for control in controls if control.text in source}
        bos = self._tokenizer.bos_token_id if self._bos or "bos_token" in source else None
        return self._encoder.highest_token({*written, *self.end_ids, *(() if bos is None else (bos,))})

    # Plans -----------------------------------------------------------------------------------------------------

    def _job(self, example: Example) -> tuple[_Plan, Sequence[str]]:
        messages = example.messages
        check_roles(messages, example.source)
        if not messages or messages[-1].role != "assistant":
            raise DataError(f"{where(example.source)}the conversation does not end with an assistant message")
        ready = self._ready.pop(id(example), None)
        if ready and ready[0] is example:
            return ready[1:]
        conversation = self._conversation(example)
        plan = self._plan_of(conversation, _answers(example, self._turns))
        if plan is None:
            raise DataError(
                f"{where(example.source)}the chat template writes earlier turns otherwise than the last one, so "
                "one row cannot train them all; set data.turns to last"
            )
        return plan, conversation.texts

    def _conversation(self, example: Example) -> _Conversation:
        turns = [self._template.turn(message) for message in example.messages]
        shape, texts = tuple(turn for turn, _, _ in turns), [content for _, content, _ in turns]
        if any(reasoning for _, _, reasoning in turns):
            texts += [reasoning for _, _, reasoning in reversed(turns)]
        if self._template.needs_tools and not example.tools:
            raise DataError(f"{where(example.source)}the chat template writes only conversations with tools; give some")
        conversation = _Conversation(shape, texts, example.tools, example.source)
        try:
            if example.tools or any(turn.role == "tool" or (turn.extras and turn.extras.calls) for turn in shape):
                conversation = replace(conversation, **settle_tools(self._template, example, shape, texts))
            self._watch_rewriting(conversation, example.messages)
        except (RefusedError, ModelError) as refusal:
            raise _refused(example.source, refusal) from refusal
        return conversation

    def _plan_of(self, conversation: _Conversation, answers: frozenset[int]) -> _Plan | None:
        try:
            return self._plan(conversation.shape, answers, conversation.tools)
        except (RefusedError, UnwritableError, ModelError) as refusal:
            raise _refused(conversation.source, refusal) from refusal

    def _make_plan(self, shape: tuple[Turn, ...], answers: frozenset[int], tools: tuple[str, ...]) -> _Plan | None:
        """The plan of a row that trains ``answers``; None where an answer is not in the context of its serving."""
        segments: list[tuple[tuple[Part, ...], bool]] = []
        written: tuple[Part, ...] = ("",)
        for place in sorted(answers):
            before = rest_after(self._writer.prompt(shape[:place], tools), written)
            if before is None:
                return None
            answer = self._writer.answer(shape[: place + 1], tools)
            segments += [(before, False), (answer, True)]
            written = joined(joined(written, before), answer)
        spans = self._with_bos(lay_out(segments, self._template.splitter))
        first_trained = next(number for number, span in enumerate(spans) if span.trained)
        return _Plan(spans, tuple(map(self._constant_ids, spans)), first_trained)

    def _make_prompt_plan(self, shape: tuple[Turn, ...], tools: tuple[str, ...]) -> _Plan:
        spans = self._with_bos(lay_out([(self._writer.prompt(shape, tools), False)], self._template.splitter))
        return _Plan(spans, tuple(map(self._constant_ids, spans)), len(spans))

    def _with_bos(self, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        if self._bos is None or (spans and isinstance(first := spans[0].parts, Control) and first.id == self._bos.id):
            return spans
        return (Span(self._bos, "start", False), *spans)

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
                    texts[span.position].append(fill(span.parts, contents))
        encoded = {position: iter(self._encoder.encode(batch, position)) for position, batch in texts.items()}
        return [
            [
                next(encoded[span.position]) if ids is None else ids
                for span, ids in zip(plan.spans, plan.ids, strict=True)
            ]
            for plan, _ in jobs
        ]

    # Checks ----------------------------------------------------------------------------------------------------

    def _watch_rewriting(self, conversation: _Conversation, messages: Sequence[Message]) -> None:
        """Warns once when the template treats a content specially. Only markup in a content can make it do so."""
        if self._warned_of_rewriting or not any(
            self._template.added_text.search(message.content) for message in messages
        ):
            return
        shape, texts, tools = conversation.shape, conversation.texts, conversation.tools
        if self._template.filled(shape, texts, tools) != fill(self._template.parts(shape, tools), texts):
            self._warned_of_rewriting = True
            log.warning(
                "%sthe chat template of %s rewrites contents like this one; they are kept as they are",
                where(conversation.source),
                self._name,
            )

    def _compare_with_tokenizer(self) -> None:
        """Logs a warning when the ids of an ordinary conversation differ from the tokenizer's own."""
        tools = self._template.probe_tools
        conversation = self._conversation(Example(_ANSWERED, tools=tools))
        shape, texts = conversation.shape, conversation.texts
        ours = [*_joined(self._encode([self._job(Example(_ANSWERED, tools=tools))])[0])]
        our_text = fill(joined(self._writer.prompt(shape[:1], tools), self._writer.answer(shape, tools)), texts)
        if not self._template.end.written:
            del ours[-len(self.end_ids) :]
            our_text = our_text.removesuffix(self._template.end.text)
        written = self._template.filled(shape, texts, tools)
        theirs = self._tokenizer.encode(written, add_special_tokens=False)
        if self._bos is not None and theirs[:1] != [self._bos.id]:
            theirs = [self._bos.id, *theirs]
        if theirs[: len(ours)] == ours or not written.startswith(our_text):  # TurnWriter tells of other texts
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


def _refused(source: str, refusal: Exception) -> DataError | ModelError:
    if isinstance(refusal, ModelError):
        return ModelError(f"{where(source)}{refusal}")
    if isinstance(refusal, RefusedError):
        return DataError(f"{where(source)}the chat template refuses this conversation: {refusal}")
    return DataError(f"{where(source)}{refusal}")


def _answers(example: Example, turns: Turns) -> frozenset[int]:
    """The places of the answers that a row is made for: the trained ones, else the last."""
    return frozenset((example.answer_places if turns == "all" else ()) or {len(example.messages) - 1})


def _row(example: Example, plan: _Plan, ids: Sequence[Sequence[int]], turns: Turns) -> TokenRow:
    learns = bool(example.answer_places) if turns == "all" else example.messages[-1].trained
    response = ids[plan.first_trained :]
    trained: tuple[bool, ...] = ()
    for span, tokens in zip(plan.spans[plan.first_trained :], response, strict=True):
        trained += (span.trained and learns,) * len(tokens)
    return TokenRow(example.id, _joined(ids[: plan.first_trained]), _joined(response), trained, complete=True)


def _joined(spans: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(spans))


def _automatic_bos(tokenizer: PreTrainedTokenizerBase) -> Control | None:
    """The BOS token, if the tokenizer puts one before plain text by itself."""
    bos = tokenizer.bos_token_id
    adds_bos = (
        bos is not None and tokenizer.encode("a")[:1] == [bos] != tokenizer.encode("a", add_special_tokens=False)[:1]
    )
    return Control(bos, tokenizer.bos_token) if adds_bos else None
