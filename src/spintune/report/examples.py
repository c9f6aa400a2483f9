"""Prompts with the answers of every model, side by side, bounded in size, for the page to show and search.

One set is of the held-out examples, and one of each evaluation that keeps its answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spintune.report.evaluated import ReportedAnswer
from spintune.report.facts import AnswerFacts, ModelFacts, RunFacts
from spintune.report.findings import Contender, contenders
from spintune.run_folder import BASELINE

MOST_EXAMPLES = 500
"""Of a set."""
MOST_CHARACTERS = 4_000
"""Of a prompt's message, a reference or an answer; what is left out is counted on the page."""
MOST_BYTES = 8_000_000
"""Of all examples together, every set an equal part; what comes behind is left out and counted."""
SHOWN_AT_FIRST = 5
"""Models whose answers are shown before a reader chooses."""

HELDOUT_TITLE = "held-out examples"

GREEDY, SAMPLED, DURING = "greedy", "sampled as in self-play", "greedy, of a few prompts, during SFT"
STORED = "stored answers"


@dataclass(frozen=True)
class ShownAnswer:
    """An answer, a text to each turn, with what is known of it in words; ``score`` orders the examples."""

    texts: tuple[str, ...]
    facts: tuple[str, ...]
    score: float | None = None


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt, as (role, text) of each message, and its reference where there is one."""

    prompt: tuple[tuple[str, str], ...]
    reference: str | None


@dataclass(frozen=True)
class AnswerColumn:
    """The answers of one model, or of a rival.

    Attributes:
        kind: how they came about.
        file: where they stand in full.
        telling: a reader asks for this model first.
    """

    label: str
    kind: str
    file: str
    telling: bool
    answers: Mapping[str, ShownAnswer]


@dataclass(frozen=True)
class Examples:
    """One set that the page shows.

    Attributes:
        measure: what the scores of answers are; empty without scores.
        file: where the prompts stand in full.
        shown: labels of models that are shown at first.
        items: examples as plain values, the first so many of ``total``.
        total: examples that a model has answered.
        partial: some runs have other examples, which are left out.
    """

    title: str
    measure: str
    file: str
    columns: tuple[AnswerColumn, ...]
    shown: tuple[str, ...]
    items: tuple[dict[str, Any], ...]
    total: int
    partial: bool

    def to_json(self) -> dict[str, Any]:
        models = [
            {"name": one.label, "kind": one.kind, "file": one.file, "shown": one.label in self.shown}
            for one in self.columns
        ]
        plain = {"title": self.title, "measure": self.measure, "file": self.file}
        return {**plain, "models": models, "items": list(self.items)}


def examples(runs: Sequence[RunFacts]) -> list[Examples]:
    """The sets with anything to show: examples that every run has, with the answers of all models."""
    names = dict.fromkeys(one.name for run in runs for one in run.evaluations if one.replies)
    room = MOST_BYTES // (1 + len(names))
    sets = [_heldout(runs, room), *(_evaluation(runs, name, room) for name in names)]
    return [one for one in sets if one.items]


def _set(
    title: str,
    measure: str,
    file: str,
    columns: Sequence[AnswerColumn],
    asked: Mapping[str, ShownPrompt],
    partial: bool,
    room: int,
) -> Examples:
    answered = {id for column in columns for id in column.answers}
    chosen = {id: one for id, one in asked.items() if id in answered}
    items: list[dict[str, Any]] = []
    for id, one in list(chosen.items())[:MOST_EXAMPLES]:
        item = {
            "id": id,
            "prompt": [[role, *_cut(text)] for role, text in one.prompt],
            "reference": None if one.reference is None else _cut(one.reference),
            "answers": [_answer(column.answers.get(id)) for column in columns],
        }
        room -= len(embedded(item).encode())
        if room < 0:
            break
        items.append(item)
    return Examples(title, measure, file, tuple(columns), _at_first(columns), tuple(items), len(chosen), partial)


def _at_first(columns: Sequence[AnswerColumn]) -> tuple[str, ...]:
    """All of a few models; of many, those that a reader asks for first, and rivals as far as there is room."""
    if len(columns) <= SHOWN_AT_FIRST:
        return tuple(column.label for column in columns)
    telling = [column.label for column in columns if column.telling]
    rivals = [column.label for column in columns if column.kind == STORED]
    return (*telling, *rivals[: max(0, SHOWN_AT_FIRST - len(telling))])


def _answer(told: ShownAnswer | None) -> dict[str, Any] | None:
    if told is None:
        return None
    score = {} if told.score is None else {"score": told.score}
    return {"texts": [_cut(text) for text in told.texts], "facts": list(told.facts)} | score


def _cut(text: str) -> list[Any]:
    """The text and how many characters are left out behind it."""
    return [text[:MOST_CHARACTERS], max(0, len(text) - MOST_CHARACTERS)]


def _tells(run: RunFacts, model: ModelFacts) -> bool:
    best = run.best["name"] if run.best else run.models[-1].name
    return model.name in (run.start, best, BASELINE)


# Held-out examples --------------------------------------------------------------------------------------------------


def _heldout(runs: Sequence[RunFacts], room: int) -> Examples:
    columns = [column for one in contenders(runs) if (column := _column(one))]
    having = [run for run in runs if run.heldout]
    held = [{example.id for example in run.heldout} for run in having]
    common = set.intersection(*held) if held else set()
    asked = {
        example.id: ShownPrompt(tuple((message.role, message.content) for message in example.prompt), example.answer)
        for run in having[:1]
        for example in run.heldout
        if example.id in common
    }
    partial = any(ids != common for ids in held)
    return _set(HELDOUT_TITLE, "ROUGE-L", "data/heldout.jsonl", columns, asked, partial, room)


def _column(one: Contender) -> AnswerColumn | None:
    """The best answers that there are of a model: judged ones before sampled ones before SFT's few."""
    model = one.model
    for answers, kind, file in (
        (model.judged, GREEDY, f"eval/heldout/{model.name}/answers.jsonl"),
        (model.sampled, SAMPLED, f"spin/heldout/{model.name}/answers.jsonl"),
        (model.during, DURING, "sft/samples.jsonl"),
    ):
        if answers:
            told = {id: _told(answer) for id, answer in answers.items()}
            return AnswerColumn(one.label, kind, f"{one.run.name}/{file}", _tells(one.run, model), told)
    return None


def _told(answer: AnswerFacts) -> ShownAnswer:
    facts = _measured(answer.rouge_l, answer.exact_match, answer.tokens, answer.finished)
    return ShownAnswer((answer.text,), tuple(facts), answer.rouge_l)


def _measured(
    rouge_l: float | None, exact_match: bool | None, tokens: int | None, finished: bool | None
) -> Iterator[str]:
    if rouge_l is not None:
        yield f"ROUGE-L {rouge_l:.3f}"
    if exact_match:
        yield "exact match"
    if tokens is not None:
        yield f"{tokens:,} token{'s' * (tokens != 1)}"
    if finished is False:
        yield "cut for length"


# Evaluations --------------------------------------------------------------------------------------------------------


def _evaluation(runs: Sequence[RunFacts], name: str, room: int) -> Examples:
    """Items that every run which has the evaluation was asked alike."""
    having = [(run, one) for run in runs for one in run.evaluations if one.name == name and one.replies]
    columns = []
    for run, one in having:
        models = {model.name: model for model in run.models}
        for model, replies in one.replies.items():
            columns.append(
                AnswerColumn(
                    label=model if len(runs) == 1 else f"{run.name} / {model}",
                    kind=GREEDY if model in models else STORED,
                    file=f"{run.name}/{one.place}/{model}/answers.jsonl",
                    telling=model in models and _tells(run, models[model]),
                    answers={id: _replied(reply) for id, reply in replies.items()},
                )
            )
    asked = [{id: reply for replies in one.replies.values() for id, reply in replies.items()} for _, one in having]
    alike = {
        id: ShownPrompt(tuple(zip(_roles(reply), reply.turns, strict=True)), reply.reference)
        for id, reply in asked[0].items()
        if all(id in other and other[id].turns == reply.turns for other in asked[1:])
    }
    told = [answer for column in columns for answer in column.answers.values() if answer.score is not None]
    measure = _MEASURES.get(name, "score") if told else ""
    partial = any(len(one) != len(alike) for one in asked)
    return _set(name, measure, columns[0].file, columns, alike, partial, room)


_MEASURES = {"ifeval": "share of instructions", "questions": "ROUGE-L", "mt-bench": "rating"}


def _roles(reply: ReportedAnswer) -> list[str]:
    return ["user"] if len(reply.turns) == 1 else [f"turn {number}" for number in range(1, len(reply.turns) + 1)]


def _replied(reply: ReportedAnswer) -> ShownAnswer:
    facts = [*_measured(reply.rouge_l, reply.exact_match, reply.tokens, reply.finished)]
    score = reply.rouge_l
    if reply.followed:
        missed = [kind for kind, follows in reply.followed if not follows]
        score = 1 - len(missed) / len(reply.followed)
        facts.insert(0, f"follows {len(reply.followed) - len(missed)} of {len(reply.followed)} instructions")
        facts += [f"not {', '.join(missed)}"] if missed else []
    if given := [rating for rating in reply.ratings if rating is not None]:
        score = sum(given) / len(given)
        facts.insert(0, f"rated {' and '.join('nothing' if one is None else str(one) for one in reply.ratings)}")
    return ShownAnswer(reply.answers, tuple(facts), score)


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
