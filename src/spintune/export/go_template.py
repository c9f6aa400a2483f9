"""A chat template as Ollama writes it: Jinja of the tokenizer, retold in Go's text/template.

Ollama reads no Jinja. What a template puts around turns is read off its renderings of a few conversations, and the
result must give the same text for all of a list of others; a template that does more is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from spintune.errors import ModelError
from spintune.tokens.chat_template import RefusedError

Turns = Sequence[tuple[str, str]]
"""Role and content of each turn."""
Render = Callable[[Turns, bool], str]
"""Renders a conversation, with or without the generation prompt. Raises RefusedError where the template does."""

_SYSTEM, _USER, _ANSWER, _FOLLOWING = "qSYSTEMq", "qUSERq", "qANSWERq", "qFOLLOWINGq"


@dataclass(frozen=True)
class TurnTexts:
    """What stands around the turns of a conversation.

    Attributes:
        first: before the first user turn of a conversation without a system message.
        before_system, after_system: around a system message; the latter reaches to the user's content.
        before_user: before later user turns.
        generation: what the model's answer follows.
        default_system: the system message that the template writes where there is none.
    """

    first: str
    before_user: str
    after_user: str
    before_answer: str
    after_answer: str
    generation: str
    before_system: str | None = None
    after_system: str = ""
    default_system: str | None = None

    def text(self, turns: Turns) -> str:
        """A conversation that ends with the user, as Ollama renders it with this template and its system message."""
        if self.default_system is not None and turns[0][0] != "system":
            turns = [("system", self.default_system), *turns]
        parts, before = [], self.first
        for role, content in turns:
            if role == "system":
                parts += [self.before_system or "", content]
                before = self.after_system
            elif role == "user":
                parts += [before, content, self.after_user]
                before = self.before_user
            else:
                parts += [self.before_answer, content, self.after_answer]
        return "".join([*parts, self.generation])

    def go(self) -> str:
        """The template in Go."""
        known = self.before_system is not None  # else it stands before the question, where users of Ollama expect it
        system = f"{_plain((self.before_system or '') if known else self.first)}{{{{ $m.Content }}}}"
        joined = self.after_system if known else "\n\n"
        return (
            f"{{{{ $before := {_quoted(self.first)} }}}}{{{{ range $i, $m := .Messages }}}}"
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq $m.Role "system" }}}}{system}{{{{ $before = {_quoted(joined)} }}}}'
            f'{{{{ else if eq $m.Role "user" }}}}{{{{ $before }}}}{{{{ $m.Content }}}}{_plain(self.after_user)}'
            f"{{{{ $before = {_quoted(self.before_user)} }}}}"
            f'{{{{ else if eq $m.Role "assistant" }}}}{_plain(self.before_answer)}{{{{ $m.Content }}}}'
            f"{{{{ if not $last }}}}{_plain(self.after_answer)}{{{{ end }}}}{{{{ end }}}}"
            f'{{{{ if and $last (ne $m.Role "assistant") }}}}{_plain(self.generation)}{{{{ end }}}}{{{{ end }}}}'
        )


def _quoted(text: str) -> str:
    """A Go string."""
    return json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """A text outside of actions. Quoted where Go would read it as one, or Ollama as the end of the template."""
    special = "{{" in text or '"' in text or text.endswith("{") or text.startswith("}")
    return f"{{{{ {_quoted(text)} }}}}" if special else text


def turn_texts(render: Render, begin: str = "") -> TurnTexts:
    """What a chat template writes around turns.

    Args:
        begin: a token at the start of every prompt that the program which reads the template adds itself.

    Raises ModelError for a template that cannot be retold in Go.
    """
    try:
        found = _with_system(_without_system(render), render)
    except RefusedError as error:
        raise _untranslatable(f"it refuses a plain conversation: {error!s:.80}") from error
    _compare(found, render)
    if begin:
        found = replace(
            found,
            first=found.first.removeprefix(begin),
            before_system=found.before_system and found.before_system.removeprefix(begin),
        )
    return found


def _without_system(render: Render) -> TurnTexts:
    asked, answered = [("user", _USER)], [("user", _USER), ("assistant", _ANSWER)]
    prompt, bare = render(asked, True), render(asked, False)
    first, after_user = _around(bare, _USER)
    if not prompt.startswith(bare):
        raise _untranslatable("its generation prompt rewrites the turn before")
    whole = render([*answered, ("user", _FOLLOWING)], False)
    _, rest = _around(whole, _USER)
    between, rest = _around(rest, _ANSWER)
    later, _ = _around(rest, _FOLLOWING)
    _, after_answer = _around(render(answered, False), _ANSWER)
    if not between.startswith(after_user) or not later.startswith(after_answer):
        raise _untranslatable("what it writes after a turn depends on the next one")
    return TurnTexts(
        first,
        later[len(after_answer) :],
        after_user,
        between[len(after_user) :],
        after_answer,
        prompt[len(bare) :],
    )


def _with_system(found: TurnTexts, render: Render) -> TurnTexts:
    """The same with what stands around a system message; unchanged where the template has none."""
    try:
        text = render([("system", _SYSTEM), ("user", _USER)], False)
    except RefusedError:
        return found
    if _SYSTEM not in text:
        return found
    before, rest = _around(text, _SYSTEM)
    after, _ = _around(rest, _USER)
    default = None
    if found.first.startswith(before) and found.first.endswith(after) and len(found.first) > len(before) + len(after):
        default = found.first[len(before) : len(found.first) - len(after)]
    return replace(found, before_system=before, after_system=after, default_system=default)


def _around(text: str, content: str) -> tuple[str, str]:
    if text.count(content) != 1:
        raise _untranslatable("it does not write each turn once")
    before, _, after = text.partition(content)
    return before, after


_CONVERSATIONS: tuple[Turns, ...] = (
    (("user", "Hello."),),
    (("user", "Two\nlines {and} \"quotes\" 'too'"),),
    (("system", "Be brief."), ("user", "Why?")),
    (("user", "a"), ("assistant", "b"), ("user", "c")),
    (("system", "s\n\nt"), ("user", "a"), ("assistant", "b\nb"), ("user", "c"), ("assistant", "d"), ("user", "e")),
    (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
)


def _compare(found: TurnTexts, render: Render) -> None:
    for turns in _CONVERSATIONS:
        if turns[0][0] == "system" and found.before_system is None:
            continue
        try:
            expected = render(turns, True)
        except RefusedError as error:
            raise _untranslatable(f"it refuses a conversation: {error!s:.80}") from error
        if found.text(turns) != expected:
            raise _untranslatable("it writes turns otherwise in longer conversations")


def _untranslatable(why: str) -> ModelError:
    return ModelError(
        f"its chat template cannot be written for Ollama, which reads no Jinja ({why}); --to gguf writes a file for "
        "llama.cpp, which reads it"
    )
