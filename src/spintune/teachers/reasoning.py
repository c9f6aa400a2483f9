"""Tells a reasoning teacher's thought from its answer where a server leaves both in one text."""

from __future__ import annotations

from dataclasses import replace

from spintune.teachers.protocol import Outcome, Reply
from spintune.text.reasoning import split_reasoning


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
