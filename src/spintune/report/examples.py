"""Held-out prompts with the answers of every model, side by side, bounded in size, for the page to show and search."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spintune.report.facts import Answered, Model, RunFacts
from spintune.report.findings import Contender, contenders
from spintune.run import BASELINE

MOST_EXAMPLES = 500
MOST_CHARACTERS = 4_000
"""Of a prompt's message, a reference or an answer; what is left out is counted on the page."""
MOST_BYTES = 8_000_000
"""Of all examples together; what comes behind is left out and counted."""
SHOWN_AT_FIRST = 5
"""Models whose answers are shown before a reader chooses."""

GREEDY, SAMPLED, DURING = "greedy", "sampled as in self-play", "greedy, of a few prompts, during SFT"


@dataclass(frozen=True)
class Column:
    """The answers of one model; ``kind`` says how they came about, ``file`` where they stand in full."""

    contender: Contender
    kind: str
    file: str
    answers: Mapping[str, Answered]


@dataclass(frozen=True)
class Examples:
    """What the page shows.

    Attributes:
        columns: models with answers; empty when there are none yet.
        shown: labels of those that are shown at first.
        items: examples as plain values, the first so many of ``total``.
        total: held-out examples that a model has answered.
        partial: some runs hold out other examples, which are left out.
    """

    columns: tuple[Column, ...]
    shown: tuple[str, ...]
    items: tuple[dict[str, Any], ...]
    total: int
    partial: bool

    def to_json(self) -> dict[str, Any]:
        models = [
            {
                "name": one.contender.label,
                "kind": one.kind,
                "file": one.file,
                "shown": one.contender.label in self.shown,
            }
            for one in self.columns
        ]
        return {"models": models, "items": list(self.items)}


def examples(runs: Sequence[RunFacts]) -> Examples:
    """Examples that every run holds out, with the answers of all models."""
    columns = [column for one in contenders(runs) if (column := _column(one))]
    held = [{example.id for example in run.heldout} for run in runs]
    common = set.intersection(*held)
    answered = {id for column in columns for id in column.answers}
    chosen = [example for example in runs[0].heldout if example.id in common and example.id in answered]
    items: list[dict[str, Any]] = []
    room = MOST_BYTES
    for example in chosen[:MOST_EXAMPLES]:
        item = {
            "id": example.id,
            "prompt": [[message.role, *_cut(message.content)] for message in example.prompt],
            "reference": _cut(example.answer),
            "answers": [_answer(column.answers.get(example.id)) for column in columns],
        }
        room -= len(embedded(item).encode())
        if room < 0:
            break
        items.append(item)
    return Examples(
        tuple(columns), _at_first(runs, columns), tuple(items), len(chosen), any(ids != common for ids in held)
    )


def _column(one: Contender) -> Column | None:
    """The best answers that there are of a model: judged ones before sampled ones before SFT's few."""
    model = one.model
    for answers, kind, file in (
        (model.judged, GREEDY, f"eval/heldout/{model.name}/answers.jsonl"),
        (model.sampled, SAMPLED, f"spin/heldout/{model.name}/answers.jsonl"),
        (model.during, DURING, "sft/samples.jsonl"),
    ):
        if answers:
            return Column(one, kind, f"{one.run.name}/{file}", answers)
    return None


def _at_first(runs: Sequence[RunFacts], columns: Sequence[Column]) -> tuple[str, ...]:
    """All of a few models; of many, those that a reader asks for first."""
    if len(columns) <= SHOWN_AT_FIRST:
        return tuple(column.contender.label for column in columns)
    telling = [column.contender for column in columns if _tells(column.contender.run, column.contender.model)]
    return tuple(one.label for one in telling)


def _tells(run: RunFacts, model: Model) -> bool:
    best = run.best["name"] if run.best else run.models[-1].name
    return model.name in (run.start, best, BASELINE)


def _answer(answer: Answered | None) -> dict[str, Any] | None:
    if answer is None:
        return None
    told = {
        "finished": answer.finished,
        "tokens": answer.tokens,
        "rouge": answer.rouge_l,
        "exact": answer.exact_match,
    }
    return {"text": _cut(answer.text)} | {name: value for name, value in told.items() if value is not None}


def _cut(text: str) -> list[Any]:
    """The text and how many characters are left out behind it."""
    return [text[:MOST_CHARACTERS], max(0, len(text) - MOST_CHARACTERS)]


# As a part of the page ----------------------------------------------------------------------------------------------

# "<" could end the script element or open a comment in it; the separators end lines in older JavaScript; a lone
# surrogate is no UTF-8
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element of an HTML page, whatever texts it holds.

    >>> embedded("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
