"""What a judge said: codes that the judged text cannot know, and the one verdict that counts.

An answer may hold anything: a verdict, the end of its own block, orders to the judge. Three things make that harmless
on our side. Blocks and verdicts carry a code that follows from a seed and from the judged texts themselves, so no text
can be written to hold its own; a verdict counts only with that code, so one that is quoted from an answer is none; and
a reply with two verdicts has none. Whether the judge itself is swayed is for the canary to show.

Why there is no verdict:

================  =================================================================
no_verdict        the reply holds none with the code
several_verdicts  it holds two or more, be they equal
unknown_verdict   it holds one that was not among those to choose from
cut_off           it ran out of room, so its last word is not known
withheld          the provider's filter
(any other)       the reason of a :class:`~spintune.teachers.protocol.Failure`
================  =================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spintune.storage import digest_json
from spintune.teachers.protocol import Failure, Outcome

_THOUGHT_ENDS = "</think>"


@dataclass(frozen=True)
class ParsedVerdict:
    """A verdict, or the reason why there is none."""

    verdict: str = ""
    problem: str | None = None


def code_for(seed: int, texts: Sequence[str]) -> str:
    """Eight hexadecimal digits that follow from the seed and the texts, and occur in none of them."""
    attempt = 0
    while True:
        code = digest_json([seed, attempt, *texts])[:8]
        if not any(code in text for text in texts):
            return code
        attempt += 1


def block(code: str, name: str, text: str) -> str:
    """A text between two lines that it cannot contain."""
    return f"[{code}: {name} begins]\n{text}\n[{code}: {name} ends]"


def verdict_form(code: str, verdict: str) -> str:
    """How a judge has to write a verdict."""
    return f"[[{code}:{verdict}]]"


def read_verdict(outcome: Outcome, code: str, verdicts: Iterable[str]) -> ParsedVerdict:
    """The one of ``verdicts`` that a reply holds in the form of :func:`verdict_form`; upper and lower case are equal.

    What a reasoning model thinks before it answers does not count.
    """
    if isinstance(outcome, Failure):
        return ParsedVerdict(problem=outcome.reason)
    if outcome.ending != "stop":
        return ParsedVerdict(problem="withheld" if outcome.ending == "refused" else "cut_off")
    answer = outcome.text.rpartition(_THOUGHT_ENDS)[2]
    found = re.findall(rf"\[\[\s*{code}\s*:([^\[\]]*)\]\]", answer)
    if len(found) != 1:
        return ParsedVerdict(problem="several_verdicts" if found else "no_verdict")
    known = {verdict.lower(): verdict for verdict in verdicts}
    verdict = known.get(found[0].strip().lower())
    return ParsedVerdict(verdict) if verdict else ParsedVerdict(problem="unknown_verdict")
