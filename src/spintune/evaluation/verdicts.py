"""Reads a judge's verdict, which carries a code that the judged texts cannot know.

An answer may contain anything: a verdict, the end of its own block, orders to the judge. Three rules make that
harmless. Blocks and verdicts carry a code that follows from a seed and from the judged texts, so no text can contain
its own code. A verdict counts only with that code, so a verdict quoted from an answer does not. A reply with two
verdicts has none. Whether the judge itself is swayed, the canary shows.

Reasons for no verdict:

================  =================================================================
no_verdict        the reply has none with the code
several_verdicts  it has two or more, equal or not
unknown_verdict   its verdict is not one of the choices
cut_off           it was cut at its maximum length
withheld          the provider's filter withheld it
(any other)       the reason of a :class:`~spintune.teachers.protocol.Failure`
================  =================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spintune.storage import digest_json
from spintune.teachers.protocol import Failure, Outcome
from spintune.text.reasoning import split_reasoning


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
    """The text between two lines that it cannot contain."""
    return f"[{code}: {name} begins]\n{text}\n[{code}: {name} ends]"


def verdict_form(code: str, verdict: str) -> str:
    """The form in which a judge has to write a verdict."""
    return f"[[{code}:{verdict}]]"


def read_verdict(outcome: Outcome, code: str, verdicts: Iterable[str]) -> ParsedVerdict:
    """The one of ``verdicts`` that a reply has in the form of :func:`verdict_form`, in upper or lower case.

    The thoughts of a reasoning model before its answer do not count.
    """
    if isinstance(outcome, Failure):
        return ParsedVerdict(problem=outcome.reason)
    if outcome.ending != "stop":
        return ParsedVerdict(problem="withheld" if outcome.ending == "refused" else "cut_off")
    answer = split_reasoning(outcome.text)[1]
    if answer is None:
        return ParsedVerdict(problem="cut_off")
    found = re.findall(rf"\[\[\s*{code}\s*:([^\[\]]*)\]\]", answer)
    if len(found) != 1:
        return ParsedVerdict(problem="several_verdicts" if found else "no_verdict")
    known = {verdict.lower(): verdict for verdict in verdicts}
    verdict = known.get(found[0].strip().lower())
    return ParsedVerdict(verdict) if verdict else ParsedVerdict(problem="unknown_verdict")
