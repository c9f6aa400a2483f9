"""Prompts with the answers of every model, side by side, bounded in size, for the page to show and search.

One set is of the held-out examples, and one of each evaluation that keeps its answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from spintune.recipe.evaluation import CHECKER
from spintune.report.facts import Answers, ReportedAnswer, RunFacts
from spintune.report.measures import Contender, contenders, label_of
from spintune.run_folder import BASELINE
from spintune.typed_json import JsonObject

MAX_EXAMPLES = 500
"""Per set."""
MAX_CHARACTERS = 4_000
"""Of a prompt's message, a reference or an answer. The page says how many more there are."""
MAX_BYTES = 8_000_000
"""Of all examples together, an equal part for every set. The page says how many do not fit."""
SHOWN_AT_FIRST = 5
"""Models whose answers are shown before a reader chooses."""

GREEDY, SAMPLED, DURING = "greedy", "sampled as in self-play", "greedy, of a few prompts, during SFT"
STORED = "stored answers"

_MEASURES = {"ifeval": "share of instructions", "questions": "ROUGE-L", "mt-bench": "rating"}


@dataclass(frozen=True)
class AnswerColumn:
    """The answers of one model, or of a rival.

    Attributes:
        kind: how they were made.
        file: where all of them are.
        main: a reader asks for this model first.
    """

    label: str
    kind: str
    file: str
    main: bool
    answers: Answers


@dataclass(frozen=True)
class ReportedPrompt:
    """A prompt, as (role, text) of each message, and its reference if it has one."""

    messages: tuple[tuple[str, str], ...]
    reference: str | None


@dataclass(frozen=True)
class Examples:
    """One set that the page shows.

    Attributes:
        measure: what the scores of answers are; empty without scores.
        file: where all prompts are.
        shown: labels of models that are shown at first.
        items: examples as plain values, the first ones of ``total``.
        total: examples that a model has answered.
        partial: some runs have further examples, which are not shown.
    """

    title: str
    measure: str
    file: str
    columns: tuple[AnswerColumn, ...]
    shown: tuple[str, ...]
    items: tuple[JsonObject, ...]
    total: int
    partial: bool

    def to_json(self) -> JsonObject:
        """The set as the page's script reads it."""
        models = [
            {"name": one.label, "kind": one.kind, "file": one.file, "shown": one.label in self.shown}
            for one in self.columns
        ]
        plain = {"title": self.title, "measure": self.measure, "file": self.file}
        return {**plain, "models": models, "items": list(self.items)}


def examples(runs: Sequence[RunFacts]) -> list[Examples]:
    """The sets with anything to show: examples that every run has, with the answers of all models."""
    names = dict.fromkeys(one.name for run in runs for one in run.evaluations if one.replies)
    max_bytes = MAX_BYTES // (1 + len(names))
    sets = [_heldout(runs, max_bytes), *(_evaluation(runs, name, max_bytes) for name in names)]
    return [one for one in sets if one.items]


# Held-out examples --------------------------------------------------------------------------------------------------


def _heldout(runs: Sequence[RunFacts], max_bytes: int) -> Examples:
    columns = [column for one in contenders(runs) if (column := _column(one))]
    sets = [
        {
            one.id: ReportedPrompt(tuple((message.role, message.content) for message in one.prompt), one.answer)
            for one in run.heldout
        }
        for run in runs
        if run.heldout
    ]
    return _set("held-out examples", "ROUGE-L", "data/heldout.jsonl", columns, sets, max_bytes)


def _column(one: Contender) -> AnswerColumn | None:
    """The best answers that there are of a model: judged ones before sampled ones before SFT's few."""
    model = one.model
    for answers, kind, file in (
        (model.judged, GREEDY, f"eval/heldout/{model.name}/answers.jsonl"),
        (model.sampled, SAMPLED, f"spin/heldout/{model.name}/answers.jsonl"),
        (model.during, DURING, "sft/samples.jsonl"),
    ):
        if answers:
            return AnswerColumn(one.label, kind, f"{one.run.name}/{file}", _is_main(one.run, model.name), answers)
    return None


def _is_main(run: RunFacts, name: str) -> bool:
    best = run.best.name if run.best else run.models[-1].name
    return name in (run.start, best, BASELINE)


# Evaluations --------------------------------------------------------------------------------------------------------


def _evaluation(runs: Sequence[RunFacts], name: str, max_bytes: int) -> Examples:
    having = [(run, one) for run in runs for one in run.evaluations if one.name == name and one.replies]
    columns = [
        AnswerColumn(
            label_of(run, model, len(runs)),
            STORED if model in run.rivals else GREEDY,
            f"{run.name}/{one.place}/{model}/answers.jsonl",
            model not in run.rivals and _is_main(run, model),
            replies,
        )
        for run, one in having
        for model, replies in one.replies.items()
    ]
    sets = [
        {id: _asked(reply) for replies in one.replies.values() for id, reply in replies.items()} for _, one in having
    ]
    scored = any(_score(reply) is not None for column in columns for reply in column.answers.values())
    return _set(name, _MEASURES.get(name, "score") if scored else "", columns[0].file, columns, sets, max_bytes)


def _asked(reply: ReportedAnswer) -> ReportedPrompt:
    several = len(reply.turns) > 1
    roles = [f"turn {number}" if several else "user" for number in range(1, len(reply.turns) + 1)]
    return ReportedPrompt(tuple(zip(roles, reply.turns, strict=True)), reply.reference)


# Sets ---------------------------------------------------------------------------------------------------------------


def _set(
    title: str,
    measure: str,
    file: str,
    columns: Sequence[AnswerColumn],
    sets: Sequence[Mapping[str, ReportedPrompt]],
    max_bytes: int,
) -> Examples:
    """``sets`` are the prompts of each run; those that all runs have alike are shown."""
    first, *others = sets or [{}]
    alike = {
        id: one
        for id, one in first.items()
        if all(id in other and other[id].messages == one.messages for other in others)
    }
    answered = {id for column in columns for id in column.answers}
    chosen = {id: one for id, one in alike.items() if id in answered}
    items: list[JsonObject] = []
    for id, one in list(chosen.items())[:MAX_EXAMPLES]:
        item = {
            "id": id,
            "prompt": [[role, *_cut(text)] for role, text in one.messages],
            "reference": None if one.reference is None else _cut(one.reference),
            "answers": [_shown(column.answers[id]) if id in column.answers else None for column in columns],
        }
        max_bytes -= len(embedded(item).encode())
        if max_bytes < 0:
            break
        items.append(item)
    partial = any(len(one) != len(alike) for one in sets)
    return Examples(title, measure, file, tuple(columns), _at_first(columns), tuple(items), len(chosen), partial)


def _at_first(columns: Sequence[AnswerColumn]) -> tuple[str, ...]:
    """All of a few models; of many, those that a reader asks for first, and rivals until there are enough."""
    if len(columns) <= SHOWN_AT_FIRST:
        return tuple(column.label for column in columns)
    main = [column.label for column in columns if column.main]
    rivals = [column.label for column in columns if column.kind == STORED]
    return (*main, *rivals[: max(0, SHOWN_AT_FIRST - len(main))])


def _shown(answer: ReportedAnswer) -> JsonObject:
    score = _score(answer)
    plain: JsonObject = {"texts": [_cut(text) for text in answer.texts], "facts": list(_facts(answer))}
    return plain if score is None else {**plain, "score": score}


def _cut(text: str) -> list[str | int]:
    """The beginning of a text, and how many characters follow."""
    return [text[:MAX_CHARACTERS], max(0, len(text) - MAX_CHARACTERS)]


def _score(answer: ReportedAnswer) -> float | None:
    """What orders the examples."""
    if given := [rating for rating in answer.ratings if rating is not None]:
        return sum(given) / len(given)
    if answer.followed:
        return sum(follows for _, follows in answer.followed) / len(answer.followed)
    return answer.scores.get("rouge_l")


def _facts(answer: ReportedAnswer) -> Iterator[str]:
    """What is known of an answer, in words."""
    missed = [kind for kind, follows in answer.followed if not follows]
    if any(rating is not None for rating in answer.ratings):
        yield f"rated {' and '.join('nothing' if one is None else str(one) for one in answer.ratings)}"
    if answer.followed:
        yield f"follows {len(answer.followed) - len(missed)} of {len(answer.followed)} instructions"
    if "rouge_l" in answer.scores:
        yield f"ROUGE-L {answer.scores['rouge_l']:.3f}"
    if answer.scores.get("exact_match"):
        yield "exact match"
    if (verdict := answer.scores.get(CHECKER)) is not None:
        yield {0.0: "wrong", 1.0: "right"}.get(verdict, f"{verdict:.2f} right") + " by the checker"
    if answer.tokens is not None:
        yield f"{answer.tokens:,} token{'s' * (answer.tokens != 1)}"
    if answer.finished is False:
        yield "cut for length"
    if missed:
        yield f"not {', '.join(missed)}"


# As a part of the page ----------------------------------------------------------------------------------------------

# "<" could end the script element or open a comment in it; the separators end lines in older JavaScript; a lone
# surrogate is no UTF-8
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def embedded(value: object) -> str:
    """JSON for the inside of a script element of an HTML page, whatever texts it holds.

    >>> embedded("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
