"""A model as judge of the run's answers: pairs of models, and ratings for mt-context.

::

    judge/replies.sqlite                      every reply, so that nothing is asked or paid twice
    judge/canary/EVALUATION.json              whether the judge tells real answers from constant nonsense
    judge/EVALUATION/A-vs-B/judgements.jsonl  verdicts in both orders
    eval/mt-context/MODEL/                      ratings.jsonl, scores.jsonl

A judge that prefers nonsense is asked nothing more, and its verdicts are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spintune.errors import TeacherError
from spintune.evaluation.answers import pair_answers, read_answers
from spintune.evaluation.judge import (
    AnswerPair,
    Canary,
    Judgement,
    answer_pairs,
    canary,
    in_words,
    judge_pairs,
    summary,
)
from spintune.evaluation.rating import Dialogue, Question, Rating, rate, rating_canary, read_questions
from spintune.evaluation.rating import summary as rating_summary
from spintune.evaluation.scores import SCORES, ItemScore, ScoreScale, ScoreTable
from spintune.recipe import MT_BENCH, MT_BENCH_ANSWERS, JudgeSection
from spintune.records import read_records, write_records
from spintune.stages.context import RunContext
from spintune.stages.endpoints import budget_of, local_teacher, named_teacher
from spintune.storage import digest_json, read_json_lines, write_json, write_json_lines
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.replies import Replies

_SCALES = {"rating": ScoreScale()}


@dataclass
class JudgeStage:
    """What judging works with."""

    context: RunContext
    section: JudgeSection
    asker: CachedTeacher

    @property
    def seed(self) -> int:
        return self.context.recipe.seed


def judging_stage(
    context: RunContext, section: JudgeSection, names: Sequence[str], pairs: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """What the judge says.

    Args:
        names: models whose answers to mt-context are rated.
        pairs: of models whose answers are compared, by evaluation (heldout, questions).

    A judge that cannot be asked, or is not to be believed, is told of ("problems"); what it said before stays.
    """
    found: dict[str, Any] = {"canary": {}, "pairs": {}, "ratings": {}, "words": [], "problems": []}
    with Replies(context.run.folder / "judge" / "replies.sqlite") as replies:
        if section.runs_locally:
            teacher = local_teacher(context, section.model, context.load_by_name(section.model))
        else:
            teacher = named_teacher(context, section, replies)
        judging = JudgeStage(context, section, CachedTeacher(teacher, replies))
        found["judge"] = teacher.name
        try:
            for evaluation, wanted in pairs.items():
                _compare(judging, evaluation, wanted, found)
            if MT_BENCH in context.recipe.eval:
                _rate(judging, names, found)
        except TeacherError as error:
            found["problems"].append(str(error))
            context.progress.note(f"judging stopped: {error}; the same command goes on")
        if judging.asker.exhausted:
            found["problems"].append(judging.asker.exhausted)
        spent = judging.asker.spent
        found["cost"] = {**vars(spent), "dollars": budget_of(section).cost(spent)}
    return found


# Pairs --------------------------------------------------------------------------------------------------------------


def _compare(judging: JudgeStage, evaluation: str, wanted: Sequence[tuple[str, str]], found: dict[str, Any]) -> None:
    staged = {pair: _contests(judging, evaluation, *pair) for pair in wanted}
    some = next(iter(staged.values()), [])
    if not some:
        return
    tested = canary(judging.asker, some, judging.seed, judging.context.progress, max_tokens=judging.section.max_tokens)
    if not _believed(judging, evaluation, tested, found):
        return
    for (first, second), items in staged.items():
        judgements = _judgements(judging, evaluation, first, second, items)
        said = summary(judgements)
        found["pairs"].setdefault(evaluation, {})[f"{first} - {second}"] = said
        found["words"].append(f"{evaluation}: {in_words(said, first, second, judging.asker.teacher.name)}")


def _contests(judging: JudgeStage, evaluation: str, first: str, second: str) -> list[AnswerPair]:
    """Answers of two models to the same items; as many as the recipe asks for, drawn by the seed."""
    folder = judging.context.run.folder
    one, other = (read_answers(answers_file(folder, evaluation, name)) for name in (first, second))
    found = answer_pairs(pair_answers(one, other).pairs)
    drawn = sorted(found, key=lambda item: digest_json([judging.seed, "judge", item.id]))[: judging.section.items]
    chosen = {item.id for item in drawn}
    return [item for item in found if item.id in chosen]


def answers_file(folder: Path, evaluation: str, name: str) -> Path:
    return folder / "eval" / evaluation / name / "answers.jsonl"


def _judgements(
    judging: JudgeStage, evaluation: str, first: str, second: str, items: Sequence[AnswerPair]
) -> list[Judgement]:
    stage = f"judge/{evaluation}/{first}-vs-{second}"
    run = judging.context.run
    path = run.folder / stage / "judgements.jsonl"
    inputs = _inputs(judging, [vars(item) for item in items])
    if run.finished(stage, inputs) is None:
        judgements = judge_pairs(
            judging.asker, items, judging.seed, judging.context.progress, judging.section.max_tokens
        )
        write_json_lines(path, [judgement.to_json() for judgement in judgements])
        if judging.asker.exhausted is not None:  # not done: a larger budget goes on from here
            return judgements
        run.finish(stage, inputs, [path], {"items": len(items)})
    return read_records(path, Judgement)


# Ratings ------------------------------------------------------------------------------------------------------------


def _rate(judging: JudgeStage, names: Sequence[str], found: dict[str, Any]) -> None:
    questions = {
        question.id: question for question in read_questions(Path(judging.context.recipe.evaluation.mt_bench or ""))
    }
    dialogues = {name: _dialogues(judging, name, questions) for name in names}
    tested = rating_canary(
        judging.asker,
        dialogues[names[0]],
        judging.seed,
        judging.context.progress,
        max_tokens=judging.section.max_tokens,
    )
    if not _believed(judging, MT_BENCH, tested, found):
        return
    for name, said in dialogues.items():
        found["ratings"][name] = rating_summary(_ratings(judging, name, said))


def _dialogues(judging: JudgeStage, name: str, questions: Mapping[str, Question]) -> list[Dialogue]:
    path = answers_file(judging.context.run.folder, MT_BENCH_ANSWERS, name)
    return [Dialogue(questions[row["id"]], tuple(row["answers"])) for row in read_json_lines(path)]


def _ratings(judging: JudgeStage, name: str, dialogues: Sequence[Dialogue]) -> list[Rating]:
    stage = f"eval/{MT_BENCH}/{name}"
    run = judging.context.run
    folder = run.folder / stage
    said = [[dialogue.question.id, dialogue.question.references, dialogue.answers] for dialogue in dialogues]
    inputs = _inputs(judging, said)
    if run.finished(stage, inputs) is None:
        ratings = rate(judging.asker, dialogues, judging.seed, judging.context.progress, judging.section.max_tokens)
        if judging.asker.exhausted is not None:
            return ratings
        write_records(folder / "ratings.jsonl", ratings)
        scores = _scores(dialogues, ratings)
        write_records(folder / SCORES, scores.items)
        facts = {"items": len(scores.items), "measures": scores.to_facts()}
        run.finish(stage, inputs, [folder / "ratings.jsonl", folder / SCORES], facts)
    return read_records(folder / "ratings.jsonl", Rating)


def _scores(dialogues: Sequence[Dialogue], ratings: Sequence[Rating]) -> ScoreTable:
    """The mean rating of each question's turns; one without any has no score."""
    items = []
    for dialogue in dialogues:
        given = [rating.score for rating in ratings if rating.id == dialogue.question.id and rating.score is not None]
        if given:
            text = "\n\n".join(dialogue.question.turns)
            items.append(ItemScore(dialogue.question.id, text, {"rating": sum(given) / len(given)}))
    return ScoreTable(_SCALES, tuple(items))


# What they share ----------------------------------------------------------------------------------------------------


def _believed(judging: JudgeStage, evaluation: str, tested: Canary, found: dict[str, Any]) -> bool:
    write_json(judging.context.run.folder / "judge" / "canary" / f"{evaluation}.json", tested.to_json())
    found["canary"][evaluation] = tested.to_json()
    found["words"].append(f"{evaluation}: {tested}")
    if not tested.trusted and judging.asker.exhausted is None:
        judging.context.progress.note(f"{tested}; give a more capable judge")
    return tested.trusted


def _inputs(judging: JudgeStage, items: Any) -> dict[str, Any]:
    return {
        "judge": judging.asker.teacher.identity,
        "items": digest_json(items),
        "max_tokens": judging.section.max_tokens,
        "seed": judging.seed,
    }
