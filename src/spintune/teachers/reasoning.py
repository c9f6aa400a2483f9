"""Tells a reasoning model's thought from its answer where a server leaves both in one text.

A thought stands at the beginning of a reply. A template may have written its opening mark already, so a closing mark is
enough. Without a closing mark the reply was cut inside the thought: there is no answer.
"""

from __future__ import annotations

import re
from dataclasses import replace

from spintune.teachers.protocol import Outcome, Reply

_TAGS = r"think|thinking|thoughts?|reasoning|analysis|scratchpad|seed:think"
_OPENING = (
    rf"<(?:{_TAGS})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<unused94>thought"
    # gpt-oss, also where a server removed the special tokens and left "analysis" glued to the thought
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)(?:<\|message\|>)?|(?-i:analysis(?=[A-Z]))"
)
_CLOSING = (
    rf"</(?:{_TAGS})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<unused95>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>final[^<\n]*<\|message\|>"
)
_OPEN = re.compile(rf"\s*(?:{_OPENING})", re.IGNORECASE)
_CLOSE = re.compile(_CLOSING, re.IGNORECASE)
# without an opening mark, one inside a line is more likely a text about such marks
_CLOSE_AT_LINE = re.compile(rf"^[ \t]*(?:{_CLOSING})|(?:{_CLOSING})[ \t]*$", re.IGNORECASE | re.MULTILINE)
_GLUED = re.compile(r"assistantfinal")
# what some models put around the answer that follows a thought
_BEFORE_ANSWER = re.compile(r"(?:<answer>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)?", re.IGNORECASE)
_BEHIND_ANSWER = re.compile(
    r"(?:</answer>|<\|end_of_solution\|>|<\|END_RESPONSE\|>|<\|return\|>|<\|end\|>)\Z", re.IGNORECASE
)


def split_reasoning(text: str) -> tuple[str, str | None]:
    """The thought and the answer. The answer is None if the thought has no end.

    >>> split_reasoning("<think>Two and two.</think>\\n\\nFour")
    ('Two and two.', 'Four')
    >>> split_reasoning("<think>Two and")
    ('Two and', None)
    >>> split_reasoning("Four")
    ('', 'Four')

    The last closing mark counts: a thought may quote one, and no part of a thought may pass for an answer.
    """
    opened = _OPEN.match(text)
    begin = opened.end() if opened else 0
    ends = list((_CLOSE if opened else _CLOSE_AT_LINE).finditer(text))
    if not ends and opened:
        ends = list(_GLUED.finditer(text))
    if ends:
        answer = _BEFORE_ANSWER.sub("", text[ends[-1].end() :].strip(), count=1)
        return text[begin : ends[-1].start()].strip(), _BEHIND_ANSWER.sub("", answer)
    return (text[begin:].strip(), None) if opened else ("", text)


def without_reasoning(outcome: Outcome) -> Outcome:
    """The outcome with its thought in ``reasoning``. A reply that ended inside its thought was cut."""
    if not isinstance(outcome, Reply):
        return outcome
    thought, answer = split_reasoning(outcome.text)
    if answer == outcome.text:
        return outcome
    reasoning = "\n\n".join(filter(None, [outcome.reasoning, thought]))
    if answer is None:
        ending = outcome.ending if outcome.ending == "refused" else "length"
        return replace(outcome, text="", ending=ending, reasoning=reasoning)
    return replace(outcome, text=answer, reasoning=reasoning)
