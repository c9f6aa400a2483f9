"""A chat template as the renderer uses it: rendered around placeholders, with the control tokens that it writes."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jinja2

from spintune.errors import ModelError
from spintune.text.words import one_line
from spintune.tokens.layout import Control, Part, TemplateStyle, Turn, split_controls
from spintune.tokens.templates import template_source, with_fixed_date

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RefusedError(Exception):
    """A template's own words when it raises for a conversation."""


class ChatTemplate:
    """The chat template of a tokenizer, or a built-in one.

    Attributes:
        name: of the tokenizer, for errors.
        source: the Jinja source, with a fixed date.
        style: how it writes conversations, learned from a plain question and answer.
        placeholder: stands for the content of a message, whose index it takes with ``%``.
        added_text: finds the text of an added token.

    Raises ModelError when the tokenizer or the template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.name = tokenizer.name_or_path or "this tokenizer"
        if not tokenizer.is_fast:
            raise ModelError(f"{self.name} has no fast tokenizer (tokenizer.json), which exact loss masks need")
        self._tokenizer = tokenizer
        self.source = with_fixed_date(template_source(tokenizer, template))
        nonce = hashlib.sha256(self.source.encode()).hexdigest()[:8]
        self.placeholder = f"\ue000{nonce}-%d\ue001"
        self._placeholders = re.compile(f"\ue000{nonce}-(\\d+)\ue001")
        added = {
            token.content: Control(id, token.content, token.lstrip, token.rstrip)
            for id, token in tokenizer.added_tokens_decoder.items()
        }
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.added_text = re.compile("|".join(map(re.escape, added)) or "(?!)")
        question_and_answer = self._probe([turn_of("user", "Hi"), turn_of("assistant", "Hello")])
        controls = special | self._structure(added.keys() - special, question_and_answer)
        self.style = self._learn_style({text: added[text] for text in controls}, question_and_answer)

    def write(self, messages: Sequence[Mapping[str, str]], generation: bool = False) -> str:
        """The template's text. Raises RefusedError when the template itself refuses the conversation."""
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except jinja2.TemplateError as error:
            if type(error) is jinja2.TemplateError:  # what raise_exception() raises; subclasses are faults
                raise RefusedError(one_line(str(error))) from error
            raise ModelError(f"{self.name}: the chat template fails: {one_line(str(error))}") from error
        except Exception as error:  # a template is foreign code and may raise anything
            raise ModelError(f"{self.name}: the chat template fails: {one_line(str(error))}") from error

    def parts(self, shape: Sequence[Turn], generation: bool = False) -> tuple[Part, ...]:
        """The template's text around placeholders: text, index, text, ..., text."""
        messages = [
            {
                "role": turn.role,
                "content": f"{turn.left}{'' if turn.empty else self.placeholder % index}{turn.right}",
            }
            for index, turn in enumerate(shape)
        ]
        pieces = self._placeholders.split(self.write(messages, generation))
        return tuple(int(piece) if number % 2 else piece for number, piece in enumerate(pieces))

    def _probe(self, shape: Sequence[Turn], generation: bool = False) -> tuple[Part, ...]:
        try:
            return self.parts(shape, generation)
        except RefusedError as refusal:
            raise ModelError(
                f"{self.name}: the chat template refuses a plain question and answer: {refusal}"
            ) from refusal

    def _structure(self, ordinary: set[str], question_and_answer: tuple[Part, ...]) -> set[str]:
        """Added tokens that the template writes although they are not flagged special: they are control tokens too.

        Runs of white space (Gemma has tokens for them) are not.
        """
        rendered = [*question_and_answer]
        with contextlib.suppress(RefusedError):
            rendered += self.parts(
                [turn_of(role, "Hi") for role in ("system", "user", "assistant", "user", "assistant")]
            )
        written = "\ue000".join(part for part in rendered if isinstance(part, str))
        return {text for text in ordinary if text.strip(" \n\t\r▁") and text in written}

    def _learn_style(self, controls: dict[str, Control], question_and_answer: tuple[Part, ...]) -> TemplateStyle:
        if question_and_answer[-2:-1] != (1,):
            raise ModelError(f"{self.name}: the chat template does not write the assistant's turn; set data.template")
        after = split_controls(str(question_and_answer[-1]), controls)
        ends = [piece for piece in after if isinstance(piece, Control)]
        eos = self._tokenizer.eos_token
        if not ends and eos not in controls:
            raise ModelError(
                f"{self.name}: neither the chat template nor the tokenizer has a token that ends an answer; "
                "set data.template"
            )
        end = ends[0] if ends else controls[eos]
        return TemplateStyle(controls, end, bool(ends), self._learn_answer_space(question_and_answer))

    def _learn_answer_space(self, question_and_answer: tuple[Part, ...]) -> str:
        generation = self._probe([turn_of("user", "Hi")], generation=True)
        header, prompt = question_and_answer[-3], generation[-1]
        if generation[:-1] != question_and_answer[: len(generation) - 1]:
            return ""
        space = str(header).removeprefix(str(prompt))
        return space if space != header and space.isspace() else ""


def turn_of(role: str, content: str) -> Turn:
    """The shape of a message. An assistant's turn has a placeholder even for an empty content."""
    rest = content.lstrip()
    core = rest.rstrip()
    empty = not core and role != "assistant"
    return Turn(role, content[: len(content) - len(rest)], rest[len(core) :], empty)  # type: ignore[arg-type]
