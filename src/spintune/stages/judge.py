"""A model as judge of the run's answers: pairs of models, and ratings for mt-bench.

::

    judge/replies.sqlite                      every reply, so that nothing is asked or paid twice
    judge/canary/EVALUATION.json              whether the judge tells real answers from constant nonsense
    judge/EVALUATION/A-vs-B/judgements.jsonl  verdicts in both orders
    eval/mt-bench/MODEL/                      ratings.jsonl, scores.jsonl

A judge that prefers nonsense is asked nothing more, and its verdicts are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from spintune.errors import TeacherError
from spintune.evaluation.answers import pair_answers, read_answers
from spintune.evaluation.judge import Canary, Contest, Judgement, canary, contests, in_words, judge_pairs, summary
from spintune.evaluation.rating import Dialogue, Question, Rating, rate, rating_canary, read_questions
from spintune.evaluation.rating import summary as rating_summary
from spintune.evaluation.scores import SCORES, Scale, Scored, Scores, write_scores
from spintune.recipe import MT_BENCH, MT_BENCH_ANSWERS, JudgeSection
from spintune.stages.asking import budget_of, endpoint_teacher, local_teacher
from spintune.stages.workbench import Workbench
from spintune.storage import atomic_file, digest_json, write_json
from spintune.teachers.asking import Asker
from spintune.teachers.replies import Replies

_SCALES = {"rating": Scale()}


@dataclass
class Judging:
    """What judging works with."""

    bench: Workbench
    section: JudgeSection
    asker: Asker

    @property
    def seed(self) -> int:
        return self.bench.recipe.seed


def judging_stage(
    bench: Workbench, section: JudgeSection, names: Sequence[str], pairs: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """What the judge says.

    Args:
        names: models whose answers to mt-bench are rated.
        pairs: of models whose answers are compared, by evaluation (heldout, questions).

    A judge that cannot be asked, or is not to be believed, is told of ("problems"); what it said before stays.
    """
    found: dict[str, Any] = {"canary": {}, "pairs": {}, "ratings": {}, "words": [], "problems": []}
    with Replies(bench.run.folder / "judge" / "replies.sqlite") as replies:
        if section.url is not None:
            teacher = endpoint_teacher(bench, section, section.url, replies)
        else:
            teacher = local_teacher(bench, section.model, bench.guest(section.model))
        judging = Judging(bench, section, Asker(teacher, replies))
        found["judge"] = teacher.name
        try:
            for evaluation, wanted in pairs.items():
                _compare(judging, evaluation, wanted, found)
            if MT_BENCH in bench.recipe.eval:
                _rate(judging, names, found)
        except TeacherError as error:
            found["problems"].append(str(error))
            bench.progress.note(f"judging stopped: {error}; the same command goes on")
        if judging.asker.exhausted:
            found["problems"].append(judging.asker.exhausted)
        spent = judging.asker.spent
        found["cost"] = {**vars(spent), "dollars": budget_of(section if section.url else None).cost(spent)}
    return found


# Pairs --------------------------------------------------------------------------------------------------------------


def _compare(judging: Judging, evaluation: str, wanted: Sequence[tuple[str, str]], found: dict[str, Any]) -> None:
    staged = {pair: _contests(judging, evaluation, *pair) for pair in wanted}
    some = next(iter(staged.values()), [])
    if not some:
        return
    tested = canary(judging.asker, some, judging.seed, judging.bench.progress, max_tokens=judging.section.max_tokens)
    if not _believed(judging, evaluation, tested, found):
        return
    for (first, second), items in staged.items():
        judgements = _judgements(judging, evaluation, first, second, items)
        said = summary(judgements)
        found["pairs"].setdefault(evaluation, {})[f"{first} - {second}"] = said
        found["words"].append(f"{evaluation}: {in_words(said, first, second, judging.asker.teacher.name)}")


def _contests(judging: Judging, evaluation: str, first: str, second: str) -> list[Contest]:
    """Answers of two models to the same items; as many as the recipe asks for, drawn by the seed."""
    folder = judging.bench.run.folder
    one, other = (read_answers(answers_file(folder, evaluation, name)) for name in (first, second))
    found = contests(pair_answers(one, other).pairs)
    drawn = sorted(found, key=lambda item: digest_json([judging.seed, "judge", item.id]))[: judging.section.items]
    chosen = {item.id for item in drawn}
    return [item for item in found if item.id in chosen]


def answers_file(folder: Path, evaluation: str, name: str) -> Path:
    return folder / "eval" / evaluation / name / "answers.jsonl"


def _judgements(
    judging: Judging, evaluation: str, first: str, second: str, items: Sequence[Contest]
) -> list[Judgement]:
    stage = f"judge/{evaluation}/{first}-vs-{second}"
    run = judging.bench.run
    path = run.folder / stage / "judgements.jsonl"
    inputs = _inputs(judging, [vars(item) for item in items])
    if run.finished(stage, inputs) is None:
        judgements = judge_pairs(judging.asker, items, judging.seed, judging.bench.progress, judging.section.max_tokens)
        _write(path, [judgement.to_json() for judgement in judgements])
        if judging.asker.exhausted is not None:  # not done: a larger budget goes on from here
            return judgements
        run.finish(stage, inputs, [path], {"items": len(items)})
    return [Judgement.from_json(orjson.loads(line)) for line in path.read_bytes().splitlines()]


# Ratings ------------------------------------------------------------------------------------------------------------


def _rate(judging: Judging, names: Sequence[str], found: dict[str, Any]) -> None:
    questions = {
        question.id: question for question in read_questions(Path(judging.bench.recipe.evaluation.mt_bench or ""))
    }
    dialogues = {name: _dialogues(judging, name, questions) for name in names}
    tested = rating_canary(
        judging.asker,
        dialogues[names[0]],
        judging.seed,
        judging.bench.progress,
        max_tokens=judging.section.max_tokens,
    )
    if not _believed(judging, MT_BENCH, tested, found):
        return
    for name, said in dialogues.items():
        found["ratings"][name] = rating_summary(_ratings(judging, name, said))


def _dialogues(judging: Judging, name: str, questions: Mapping[str, Question]) -> list[Dialogue]:
    path = answers_file(judging.bench.run.folder, MT_BENCH_ANSWERS, name)
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    return [Dialogue(questions[row["id"]], tuple(row["answers"])) for row in rows]


def _ratings(judging: Judging, name: str, dialogues: Sequence[Dialogue]) -> list[Rating]:
    stage = f"eval/{MT_BENCH}/{name}"
    run = judging.bench.run
    folder = run.folder / stage
    said = [[dialogue.question.id, dialogue.question.references, dialogue.answers] for dialogue in dialogues]
    inputs = _inputs(judging, said)
    if run.finished(stage, inputs) is None:
        ratings = rate(judging.asker, dialogues, judging.seed, judging.bench.progress, judging.section.max_tokens)
        if judging.asker.exhausted is not None:
            return ratings
        _write(folder / "ratings.jsonl", [rating.to_json() for rating in ratings])
        scores = _scores(dialogues, ratings)
        write_scores(folder / SCORES, scores.items)
        facts = {"items": len(scores.items), "measures": scores.to_facts()}
        run.finish(stage, inputs, [folder / "ratings.jsonl", folder / SCORES], facts)
    return [Rating.from_json(orjson.loads(line)) for line in (folder / "ratings.jsonl").read_bytes().splitlines()]


def _scores(dialogues: Sequence[Dialogue], ratings: Sequence[Rating]) -> Scores:
    """The mean rating of each question's turns; one without any has no score."""
    items = []
    for dialogue in dialogues:
        given = [rating.score for rating in ratings if rating.id == dialogue.question.id and rating.score is not None]
        if given:
            text = "\n\n".join(dialogue.question.turns)
            items.append(Scored(dialogue.question.id, text, {"rating": sum(given) / len(given)}))
    return Scores(_SCALES, tuple(items))


# What they share ----------------------------------------------------------------------------------------------------


def _believed(judging: Judging, evaluation: str, tested: Canary, found: dict[str, Any]) -> bool:
    write_json(judging.bench.run.folder / "judge" / "canary" / f"{evaluation}.json", tested.to_json())
    found["canary"][evaluation] = tested.to_json()
    found["words"].append(f"{evaluation}: {tested}")
    if not tested.trusted and judging.asker.exhausted is None:
        judging.bench.progress.note(f"{tested}; give a more capable judge")
    return tested.trusted


def _inputs(judging: Judging, items: Any) -> dict[str, Any]:
    return {
        "judge": judging.asker.teacher.identity,
        "items": digest_json(items),
        "max_tokens": judging.section.max_tokens,
        "seed": judging.seed,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with atomic_file(path) as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)
