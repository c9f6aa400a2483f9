"""Prompts and answers as a chat template writes them: where the prompt ends and what the answer adds to it.

A model that is served reads the template's generation prompt and writes the rest. So the prompt of a row is the
generation prompt, and its response is what turns that into the template's text of the answered conversation. Templates
do not always agree with themselves there: a generation prompt may open a block of reasoning that the template leaves
out of every answer. The response then begins inside that block, as the model's own answer would.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Literal

from spintune.errors import ModelError
from spintune.text.reasoning import Marks
from spintune.tokens.chat_template import ANSWER, MAX_RENDERINGS, THOUGHTFUL, USER, ChatTemplate, RefusedError
from spintune.tokens.ends import text_of
from spintune.tokens.layout import Control, Part, Turn
from spintune.tokens.reasoning import Thought
from spintune.tokens.template_options import in_words

log = logging.getLogger(__name__)

GenerationPrompt = Literal["served", "bare"]
"""How a prompt ends: as the template's generation prompt, or as the template's text before an answer."""


class UnwritableError(Exception):
    """An answer that cannot stand behind its prompt; the message says why."""


class TurnWriter:
    """Writes prompts and answers with a template.

    Attributes:
        generation: "bare" also where no answer of the template follows the served prompt.
    """

    def __init__(self, template: ChatTemplate, generation: GenerationPrompt) -> None:
        self.template, self.generation = template, generation
        self._controls = tuple(template.controls)
        self.prompt = lru_cache(MAX_RENDERINGS)(self._prompt)
        self.answer = lru_cache(MAX_RENDERINGS)(self._answer)
        self._answer_space = self._learn_answer_space()
        self._between = self._learn_between()
        self._choose()

    def _prompt(self, shape: tuple[Turn, ...], tools: tuple[str, ...] = ()) -> tuple[Part, ...]:
        """The prompt for an answer to a conversation."""
        if self.generation == "served":
            return self.template.parts(shape, tools, generation=True)
        parts, place = self.template.parts((*shape, ANSWER), tools), len(shape)
        if place not in parts[1::2]:
            raise UnwritableError("the chat template does not write this answer")
        slot = len(parts) - 1 - parts[::-1].index(place)
        return (*parts[: slot - 1], str(parts[slot - 1]).removesuffix(self._answer_space))

    def _answer(self, shape: tuple[Turn, ...], tools: tuple[str, ...] = ()) -> tuple[Part, ...]:
        """What follows the prompt of ``shape[:-1]``, through the end of the answer ``shape[-1]``.

        Raises UnwritableError for reasoning that cannot stand there, and ModelError when the template does not write
        the answer exactly once.
        """
        turn, place = shape[-1], len(shape) - 1
        prompt, written = self.prompt(shape[:-1], tools), self.template.parts(shape, tools)
        if turn.extras and turn.extras.calls and not turn.empty and place not in written:
            raise UnwritableError("the chat template writes no content beside the calls of tools; leave it out")
        if not turn.empty and (count := written[1::2].count(place)) != 1:
            raise ModelError(
                f"{self.template.name}: the chat template writes the assistant's turn {place + 1} {count} times "
                "instead of once, so it cannot be trained; set data.template"
            )
        answer = self._continuation(written, prompt)
        if answer is None and place and shape[place - 1].role == "tool":
            answer = self._within_turn(written, prompt)
        if answer is None or self._is_broken(answer, str(prompt[-1]), -1 - place if _has_thought(turn) else None):
            answer = self._behind_block(shape, tools, prompt)
        return self.template.end.close(answer, self.template.splitter)

    def _is_broken(self, answer: tuple[Part, ...], prompt: str, thought: int | None) -> bool:
        """Whether an answer lacks its reasoning, brings it behind another block, or stays in the prompt's block.

        Args:
            thought: the slot of its reasoning, if it has some.
        """
        block = _block_at_end(prompt, self.template.marks)
        is_open = block is not None and not block[2]
        if thought is None:
            return is_open and block is not None and block[1].close not in "".join(map(str, answer))
        if thought not in answer or (block is not None and block[2]) or self._opens_content(prompt):
            return True
        before = "".join(map(str, answer[: answer.index(thought)]))
        if any(marks.close in before or (is_open and marks.open in before) for marks in self.template.marks):
            return True
        # a template that does not look for reasoning may have opened the content before it
        own = [marks.open for marks in self.template.marks]
        return self.template.reasoning_key is None and any(c in before and c not in own for c in self._controls)

    def _behind_block(
        self, shape: tuple[Turn, ...], tools: tuple[str, ...], prompt: tuple[Part, ...]
    ) -> tuple[Part, ...]:
        """An answer that the template does not write as it follows the prompt.

        The prompt holds the beginning of a block of reasoning, or all of it, or the template loses the reasoning.
        """
        turn, slot = shape[-1], -len(shape)
        thought = turn.extras.thought if turn.extras else None
        if thought and turn.extras:
            shape = (*shape[:-1], replace(turn, extras=replace(turn.extras, thought=None)))
        block = _block_at_end(str(prompt[-1]), self.template.marks)
        header = prompt if block is None else (*prompt[:-1], block[0])
        answer = self._continuation(self.template.parts(shape, tools), header)
        if answer is None:
            raise UnwritableError("the chat template's answer does not follow its generation prompt")
        if block is None:
            if not thought:
                return answer
            if not self.template.marks:
                raise UnwritableError("the chat template writes no reasoning; put it into the content, or leave it out")
            if self._opens_content(str(prompt[-1])):
                raise UnwritableError(
                    "the generation prompt begins the answer itself, behind its reasoning; leave it out"
                )
            _tell(f"{self.template.name}: the chat template drops reasoning; it is trained all the same")
            before, after = _around_thought(str(answer[0]), turn, self.template.marks[0])
            return (before, slot, after, *answer[1:])
        _, marks, closed = block
        first = _without_block(str(answer[0]), marks)
        if closed and thought:
            options = [name for name in self.template.unset_options if self._opens_reasoning(name)]
            setting = f"set data.template_options: {{{options[0]}: true}}, or " if options else ""
            raise UnwritableError(f"the generation prompt ends the reasoning before the answer; {setting}leave it out")
        if closed:
            return (first, *answer[1:])
        line = "\n" if str(prompt[-1]).endswith("\n") else ""
        between = self._between or f"{line}{marks.close}\n\n"
        if thought and not turn.empty:
            first = first.removesuffix(turn.left)
        opening: tuple[Part, ...] = ("", slot) if thought else ()
        return (*opening, f"{between}{first}", *answer[1:])

    def _opens_content(self, prompt: str) -> bool:
        """Whether a prompt ends with a token that begins the content within its turn (<|START_RESPONSE|>)."""
        last, end = self.template.splitter.split(prompt)[-1:], self.template.end
        opened = [_counterpart(piece.text) for piece in last if isinstance(piece, Control)]
        return opened == [text_of(end.pieces[:1])] and opened != [end.token.text]

    def _continuation(self, written: Sequence[Part], prompt: Sequence[Part]) -> tuple[Part, ...] | None:
        """What follows the prompt in a rendering; None where that goes on otherwise behind the prompt's last slot."""
        rest, end = _after_last_slot(written, prompt), str(prompt[-1])
        if rest is None:
            return None
        text = str(rest[0])
        if text.startswith(end):
            return (text[len(end) :], *rest[1:])
        words = [word for piece in self.template.splitter.split(end) for word in text_of([piece]).split()]
        loose = re.match(r"\s*".join(map(re.escape, ["", *words, ""])), text)
        if loose and not text[loose.end() :]:  # they differ in white space
            return ("", *rest[1:])
        # a template may put instructions for the answer before its header
        for header in (end[begin:] for begin in range(len(end)) if end.startswith(self._controls, begin)):
            if text.startswith(header):
                return (text[len(header) :], *rest[1:])
        return None

    def _within_turn(self, written: Sequence[Part], prompt: Sequence[Part]) -> tuple[Part, ...] | None:
        """An answer that the template writes in the turn of a call, where its generation prompt begins a new turn."""
        rest, end = _after_last_slot(written, prompt), str(prompt[-1])
        if rest is None or not end.startswith(before := str(rest[0])) or _block_at_end(end, self.template.marks):
            return None
        header = end.removeprefix(before)
        plain = str(self.template.parts((USER,), self.template.probe_tools, generation=True)[-1])
        if not (plain.endswith(header) and header.startswith(self._controls)):
            return None
        _tell(
            f"{self.template.name}: after a tool's result the chat template goes on in the same turn, but its "
            f"generation prompt begins another; rows follow that prompt, which ends as {end[-40:]!r}"
        )
        return ("", *rest[1:])

    def _opens_reasoning(self, option: str) -> bool:
        """Whether prompts no longer end the reasoning where this option is true."""
        prompt = self.template.prompt_with({**self.template.options, option: True})
        block = None if prompt is None else _block_at_end(prompt, self.template.marks)
        return prompt is not None and (block is None or not block[2])

    # Learning --------------------------------------------------------------------------------------------------

    def _learn_answer_space(self) -> str:
        """White space between the generation prompt and an answer (Llama-2's space); it belongs to the response."""
        prompt = self.template.parts((USER,), generation=True)
        rest = _after_last_slot(self.template.parts((USER, ANSWER)), prompt)
        space = "" if rest is None else str(rest[0]).removeprefix(str(prompt[-1]))
        return space if rest is not None and space != rest[0] and space.isspace() else ""

    def _learn_between(self) -> str:
        """What the template writes between reasoning and content; "" where it writes no reasoning."""
        return "" if self.template.reasoning_key is None else str(self.template.parts((USER, THOUGHTFUL))[4])

    def _choose(self) -> None:
        """Says which prompt is used where the two differ, and turns to the bare one where the served leads nowhere."""
        name = self.template.name
        try:
            served, answer = self.prompt((USER,)), self.answer((USER, ANSWER))
            self._tell_options()
        except RefusedError as refusal:
            raise ModelError(f"{name}: the chat template refuses a plain question: {refusal}") from refusal
        except UnwritableError as error:
            if self.generation == "bare":
                raise ModelError(f"{name}: {error}; set data.template") from error
            self.generation = "bare"
            self.prompt.cache_clear()
            self._choose()
            _tell(f"{name}: the generation prompt leads to no answer that the template writes; prompts are bare")
            return
        if self.generation == "served":
            self.generation = "bare"
            bare = self._prompt((USER,))
            self.generation = "served"
            if served != bare:
                _tell(
                    f"{name}: a prompt ends as the template's generation prompt, {str(served[-1])[-40:]!r}, and an "
                    f"answer begins with {str(answer[0])[:40]!r}; data.generation_prompt: bare would end it with "
                    f"{str(bare[-1])[-40:]!r}"
                )

    def _tell_options(self) -> None:
        """Says what options change in a plain prompt, since others serve the template without them."""
        options = self.template.options
        if not options:
            return
        prompt, default = self.template.prompt_with(options), self.template.prompt_with({})
        if prompt is None or default is None or prompt == default:
            return
        ends = [text[-40:] for text in (prompt, default)]
        where = f", which ends as {ends[0]!r} (by default {ends[1]!r})" if ends[0] != ends[1] else ""
        _tell(f"{self.template.name}: {in_words(options)} changes the prompt{where}; saved models do so by default")


@cache
def _tell(message: str) -> None:
    """Tells a fact about a template once, however many renderers there are."""
    log.warning(message)


def _counterpart(opening: str) -> str:
    """The token that ends what another begins, by their names."""
    for begin, end in (("START", "END"), ("start", "end"), ("BEGIN", "END"), ("begin", "end")):
        if begin in opening:
            return opening.replace(begin, end)
    return opening.replace("<", "</", 1).replace("[", "[/", 1)


def _has_thought(turn: Turn) -> bool:
    return turn.extras is not None and turn.extras.thought is not None


def _after_last_slot(written: Sequence[Part], prompt: Sequence[Part]) -> tuple[Part, ...] | None:
    """What is written behind the last slot of the prompt; None where that slot is not written."""
    if len(prompt) == 1:
        return tuple(written)
    slots = written[1::2]
    if prompt[-2] not in slots:
        return None
    last = max(place for place, slot in enumerate(slots) if slot == prompt[-2])
    return tuple(written[2 * last + 2 :])


def _block_at_end(prompt: str, known: Sequence[Marks]) -> tuple[str, Marks, bool] | None:
    """The text before a block of reasoning that ends a prompt, its marks, and whether the prompt closes it."""
    end = prompt.rstrip()
    for marks in known:
        begin = end.rfind(marks.open)
        if end.endswith(marks.open):
            return prompt[:begin], marks, False
        if end.endswith(marks.close):
            return prompt[: begin if begin >= 0 else end.rfind(marks.close)], marks, True
    return None


def _without_block(text: str, marks: Marks) -> str:
    """A text without the empty block of reasoning that it begins with, or the mark that opens one."""
    opened, closed = re.escape(marks.open), re.escape(marks.close)
    return re.sub(rf"\A\s*(({opened}\s*)?{closed}\n*|{opened}\s*)", "", text)


def _around_thought(text: str, turn: Turn, known: Marks) -> tuple[str, str]:
    """The text before and after the reasoning of ``turn`` in ``text``, which stands before its content or calls."""
    if block := re.search(rf"({re.escape(known.open)})(\s*)({re.escape(known.close)})", text):
        half = len(block[2]) // 2  # the template writes an empty block: it shows where reasoning stands
        return (
            f"{text[: block.start()]}{block[1]}{block[2][:half]}",
            f"{block[2][half:]}{block[3]}{text[block.end() :]}",
        )
    thought = turn.extras.thought if turn.extras and turn.extras.thought else Thought("", "")
    before, after = thought.inside("\0", thought.marks or known).split("\0")
    if turn.empty or text.strip() != turn.left.strip():
        return before, f"{after.rstrip() if text.strip() else after}{text}"
    return f"{text.removesuffix(turn.left)}{before}", f"{after}{turn.left}"
