"""A chat template as the renderer uses it: rendered around placeholders, with the control tokens that it writes."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import jinja2
import orjson

from spintune.errors import ModelError
from spintune.records import Message
from spintune.text.reasoning import KNOWN_MARKS, split_content
from spintune.text.words import one_line
from spintune.tokens.ends import TurnEnd, learn_end
from spintune.tokens.layout import Control, Part, Splitter, Turn, TurnExtras
from spintune.tokens.limits import check_constants, limited_template
from spintune.tokens.reasoning import Thought, marks_of
from spintune.tokens.template_options import TemplateOptions, check_options, options_of
from spintune.tokens.templates import structural_tokens, template_source, with_fixed_date
from spintune.tokens.tool_calls import CALL_STYLES, PROBE_CALL, PROBE_TOOL, CallStyle, with_calls
from spintune.typed_json import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_RENDERINGS = 4096
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

USER, ANSWER = Turn("user", "", "", empty=False), Turn("assistant", "", "", empty=False)
THOUGHTFUL = Turn("assistant", "", "", empty=False, extras=TurnExtras(Thought("", "")))


class RefusedError(Exception):
    """A template's own words when it raises for a conversation."""


@contextlib.contextmanager
def template_errors(name: str) -> Iterator[None]:
    """Renders a chat template within limits.

    Raises RefusedError when it refuses the conversation, and ModelError when it fails.
    """
    try:
        with limited_template():
            yield
    except jinja2.TemplateError as error:
        if type(error) is jinja2.TemplateError:  # what raise_exception() raises; subclasses are faults
            raise RefusedError(one_line(str(error))) from error
        raise ModelError(f"{name}: the chat template fails: {one_line(str(error))}") from error
    except Exception as error:  # a template is foreign code and may raise anything
        raise ModelError(f"{name}: the chat template fails: {one_line(str(error))}") from error


class ChatTemplate:
    """The chat template of a tokenizer, or a built-in one.

    Attributes:
        name: of the tokenizer, for errors.
        source: the Jinja source, with a fixed date.
        options: variables that the template reads, with their values.
        placeholder: stands for the text of a slot, whose number it takes with ``%``.
        names: of the templates that the tokenizer brings, where it brings several.
        added_text: finds the text of an added token.
        controls: the control tokens by their text.
        splitter: splits template text at them.
        marks: the marks of reasoning that the template knows.
        reasoning_key: the key of a message in which the template reads reasoning; None where it reads none.
        needs_tools: the template writes no conversation without tools.
        end: how an answer ends.

    Raises ModelError when the tokenizer or the template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, options: TemplateOptions) -> None:
        self.name = tokenizer.name_or_path or "this tokenizer"
        if not tokenizer.is_fast:
            raise ModelError(f"{self.name} has no fast tokenizer (tokenizer.json), which exact loss masks need")
        self._tokenizer = tokenizer
        own = tokenizer.chat_template
        self.names = sorted(own) if isinstance(own, dict) else []
        self.source = with_fixed_date(template_source(tokenizer, template))
        check_options(tokenizer, self.source, options)
        self.options = dict(options)
        check_constants(self.source, self.name)
        nonce = hashlib.sha256(self.source.encode()).hexdigest()[:8]
        self.placeholder = f"\ue000{nonce}-%d\ue001"
        self._placeholders = re.compile(f"\ue000{nonce}-(-?\\d+)\ue001")
        self._rendered = lru_cache(MAX_RENDERINGS)(self._render)
        self.marks = marks_of(self.source)
        self.reasoning_key: str | None = None
        self.needs_tools = False

        question_and_answer = self._first_probe()
        self.reasoning_key = self._learn_reasoning_key()
        # data from another family has other marks
        self._split_marks = (*self.marks, KNOWN_MARKS[0]) if self.marks or self.reasoning_key else ()
        added = {
            token.content: Control(id, token.content, token.lstrip, token.rstrip)
            for id, token in tokenizer.added_tokens_decoder.items()
        }
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.added_text = re.compile("|".join(map(re.escape, added)) or "(?!)")
        controls = special | self._structure(added.keys() - special)
        self.controls = {text: added[text] for text in controls}
        self.splitter = Splitter(self.controls)
        self._check_texts_of_options()
        self.end = self._learn_end(question_and_answer)

    def parts(self, shape: tuple[Turn, ...], tools: tuple[str, ...] = (), generation: bool = False) -> tuple[Part, ...]:
        """The template's text around placeholders: text, slot, text, ..., text. ``generation`` asks for an answer.

        Raises RefusedError when the template itself refuses the conversation, and ModelError when it fails.
        """
        return self._rendered(shape, tools, generation)

    def filled(self, shape: tuple[Turn, ...], texts: Sequence[str], tools: tuple[str, ...] = ()) -> str:
        """What the template writes for real contents; ``texts`` holds the text of slot ``i`` at ``i``."""
        return self._write(self._messages(shape, texts), tools)

    def turn(self, message: Message) -> tuple[Turn, str, str]:
        """The shape of a message, its content, and its reasoning, both without the white space around them."""
        content, role, thought = message.content, message.role, ""
        extras: TurnExtras | None = None
        if role == "assistant":
            shown, thought, content = self._thought_of(message)
            extras = TurnExtras(shown, message.tool_calls) if shown or message.tool_calls else None
        elif role == "tool":
            extras = TurnExtras(call_id=message.call_id, name=message.name)
        left, right = _around(content)
        core = content.strip()
        # an assistant's turn has a placeholder even for an empty content, except beside calls
        empty = not core and (role != "assistant" or bool(message.tool_calls))
        return Turn(role, left, right, empty, extras), core, thought.strip()

    def _thought_of(self, message: Message) -> tuple[Thought | None, str, str]:
        """The shape of an answer's reasoning, the reasoning, and the content without it."""
        content = message.content
        if message.reasoning:
            return Thought(*_around(message.reasoning)), message.reasoning, content
        if not self._split_marks or (found := split_content(content, self._split_marks))[1] is None:
            return None, "", content
        reasoning, marks, rest = found
        if not reasoning.strip():
            return None, "", rest.lstrip()  # an empty block is no reasoning
        if not (rest.strip() or message.tool_calls or (marks and marks.open)):
            return None, "", content  # all of it: an answer that ends with a mark
        if marks is not None and marks.close in [known.close for known in self.marks]:
            return Thought(*_around(reasoning), marks), reasoning, rest
        return Thought("", ""), reasoning, rest.lstrip()  # marks of another family

    @property
    def probe_tools(self) -> tuple[str, ...]:
        """Tools for a conversation that needs some to be written."""
        return (PROBE_TOOL,) if self.needs_tools else ()

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools that it is given."""
        with contextlib.suppress(RefusedError, ModelError):
            written = "".join(map(str, self.parts((USER,), (PROBE_TOOL,))))
            return str(orjson.loads(PROBE_TOOL)["function"]["name"]) in written
        return False

    @cached_property
    def call_style(self) -> CallStyle | None:
        """How the template takes the calls of an answer; None where it writes none."""
        asked = Turn("assistant", "", "", empty=True, extras=TurnExtras(calls=(PROBE_CALL,)))
        tools = (PROBE_TOOL,) if self.writes_tools else ()
        for style in CALL_STYLES:
            with contextlib.suppress(RefusedError, ModelError):
                messages = with_calls(self._messages((USER, asked)), style)
                written = self._write(messages, tools)
                if all(text in written for text in (PROBE_CALL.name, "\ue002value")):
                    return style
        return None

    @property
    def unset_options(self) -> list[str]:
        """Options that the template reads and that have no value yet."""
        return [name for name in options_of(self._tokenizer, self.source) if name not in self.options]

    def prompt_with(self, options: TemplateOptions) -> str | None:
        """The prompt of a plain question with other options; None where the template refuses that."""
        own, self.options = self.options, dict(options)
        try:
            return self._write(self._messages((USER,), ["?"]), (), generation=True)
        except (RefusedError, ModelError):
            return None
        finally:
            self.options = own

    # Rendering -------------------------------------------------------------------------------------------------

    def _render(self, shape: tuple[Turn, ...], tools: tuple[str, ...], generation: bool) -> tuple[Part, ...]:
        written = self._write(self._messages(shape), tools, generation)
        pieces = self._placeholders.split(written)
        return tuple(int(piece) if number % 2 else piece for number, piece in enumerate(pieces))

    def _messages(self, shape: tuple[Turn, ...], texts: Sequence[str] | None = None) -> list[JsonObject]:
        """The messages that the template gets: with ``texts`` the real ones, else those of placeholders."""
        messages = [self._message(turn, place, texts) for place, turn in enumerate(shape)]
        for place, turn in enumerate(shape):
            if turn.extras is not None and turn.extras.thought is not None:
                text = texts[-1 - place] if texts else self.placeholder % (-1 - place)
                self._add_thought(messages[place], turn.extras.thought, text, place == len(shape) - 1)
        return messages

    def _message(self, turn: Turn, place: int, texts: Sequence[str] | None = None) -> JsonObject:
        text = texts[place] if texts else self.placeholder % place
        content = f"{turn.left}{'' if turn.empty else text}{turn.right}"
        message: JsonObject = {"role": turn.role, "content": content}
        if turn.extras is None:
            return message
        extras = turn.extras
        if extras.text is not None:
            message["content"] = extras.text
        if turn.role == "tool":
            message |= {"tool_call_id": extras.call_id, "name": extras.name}
        if extras.calls:
            message["calls"] = extras.calls
        return message

    def _add_thought(self, message: JsonObject, thought: Thought, text: str, last: bool) -> None:
        """Puts reasoning where the template reads it. Where it reads none, only the last answer may keep some."""
        if self.reasoning_key is not None:
            message[self.reasoning_key] = text if thought.marks else f"{thought.left}{text}{thought.right}"
            if thought.marks:
                message["content"] = message["content"].lstrip()
        elif thought.marks or (last and self.marks):
            message["content"] = f"{thought.inside(text, thought.marks or self.marks[0])}{message['content']}"

    def _write(self, messages: Sequence[Mapping[str, object]], tools: tuple[str, ...], generation: bool = False) -> str:
        called: Sequence[Mapping[str, object]] = messages
        if any("calls" in message or message["role"] == "tool" for message in messages):
            called = with_calls(messages, self.call_style or CALL_STYLES[0])
        given = [orjson.loads(tool) for tool in tools or self.probe_tools] or None
        with template_errors(self.name):
            return self._tokenizer.apply_chat_template(
                list(called),
                tools=given,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generation,
                **self.options,
            )

    def _check_texts_of_options(self) -> None:
        for key, value in self.options.items():
            found = [piece.text for piece in self.splitter.split(str(value)) if isinstance(piece, Control)]
            if found:
                raise ModelError(
                    f"data.template_options.{key} holds the text of the control token {found[0]!r}; change it"
                )

    # Probes ----------------------------------------------------------------------------------------------------

    def _first_probe(self) -> tuple[Part, ...]:
        """A plain question and answer. A template that fails there may do with tools."""
        try:
            found = self.parts((USER, ANSWER))
        except (RefusedError, ModelError) as error:
            self.needs_tools = True
            self._rendered.cache_clear()
            with contextlib.suppress(RefusedError, ModelError):
                return self.parts((USER, ANSWER))
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{self.name}: the chat template refuses a plain question and answer: {error}") from error
        return found

    def _try(self, *shape: Turn, generation: bool = False) -> tuple[Part, ...] | None:
        """A rendering, or None where the template refuses the conversation."""
        with contextlib.suppress(RefusedError):
            return self.parts(shape, generation=generation)
        return None

    def _learn_reasoning_key(self) -> str | None:
        for key in REASONING_KEYS:
            self.reasoning_key = key
            with contextlib.suppress(RefusedError, ModelError):
                if key in self.source and self.parts((USER, THOUGHTFUL))[1::2] == (0, -2, 1):
                    return key
            self._rendered.cache_clear()
        return None

    def _structure(self, ordinary: set[str]) -> set[str]:
        """Added tokens that the template writes although they are not flagged special: they are control tokens too.

        Runs of white space (Gemma has tokens for them) are not.
        """
        system = Turn("system", "", "", empty=False)
        rendered = [
            self._try(USER, ANSWER),
            self._try(system, USER, ANSWER, USER, ANSWER),
            self._try(USER, generation=True),
            self._try(USER, THOUGHTFUL),
        ]
        written = "\ue000".join(part for part in chain.from_iterable(filter(None, rendered)) if isinstance(part, str))
        found = {text for text in ordinary if text.strip(" \n\t\r▁") and text in written}
        return found | structural_tokens(self.source, ordinary)

    def _learn_end(self, question_and_answer: tuple[Part, ...]) -> TurnEnd:
        if question_and_answer[-2:-1] != (1,):
            raise ModelError(f"{self.name}: the chat template does not write the assistant's turn; set data.template")
        eos = self.controls.get(self._tokenizer.eos_token or "")
        end = learn_end(question_and_answer, self._try(USER, ANSWER, USER), self.splitter, eos)
        if end is None:
            raise ModelError(
                f"{self.name}: neither the chat template nor the tokenizer has a token that ends an answer; "
                "set data.template"
            )
        return end


def _around(text: str) -> tuple[str, str]:
    """The white space before and after a text."""
    rest = text.lstrip()
    return text[: len(text) - len(rest)], rest[len(rest.rstrip()) :]
