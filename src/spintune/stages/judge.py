"""A model judges the run's answers: which of two models answers better, and ratings for MT-Bench.

::

    judge/replies.sqlite                      every reply, so that nothing is asked or paid twice
    judge/canary/EVALUATION.json              whether the judge tells real answers from constant nonsense
    judge/EVALUATION/A-vs-B/judgements.jsonl  verdicts in both orders
    eval/mt-bench/MODEL/                      ratings.jsonl, scores.jsonl

A judge that prefers nonsense is asked nothing more, and its verdicts do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spintune.errors import TeacherError
from spintune.evaluation.answers import pair_answers, read_answers
from spintune.evaluation.judge import (
    AnswerPair,
    Canary,
    Judge,
    Judgement,
    PairwiseSummary,
    answer_pairs,
    canary,
    in_words,
    judge_pairs,
    summarize_judgements,
)
from spintune.evaluation.rating import (
    Dialogue,
    Question,
    Rating,
    RatingSummary,
    rate,
    rating_canary,
    read_questions,
    summarize_ratings,
)
from spintune.evaluation.scores import SCORES, ItemScore, ScoreScale, ScoreTable
from spintune.recipe import HELDOUT, MT_BENCH, MT_BENCH_ANSWERS, JudgeSection
from spintune.records import read_records, write_records
from spintune.results import JudgeResults
from spintune.stages.context import RunContext
from spintune.stages.endpoints import budget_of, local_teacher, named_teacher
from spintune.storage import digest_json, read_json_lines, write_json
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.replies import Replies
from spintune.typed_json import JsonObject, to_json

ModelPairs = Sequence[tuple[str, str]]
"""Names of models that are compared."""


def judging_stage(
    context: RunContext, section: JudgeSection, names: Sequence[str], pairs: Mapping[str, ModelPairs]
) -> JudgeResults:
    """Asks the judge about pairs of models and, where the recipe has MT-Bench, for ratings.

    Args:
        names: models whose answers to MT-Bench are rated.
        pairs: models whose answers are compared, by evaluation (heldout, questions).

    A judge that cannot be asked, or cannot be trusted, is a problem in the results; its earlier verdicts stay.
    """
    with Replies(context.run.folder / "judge" / "replies.sqlite") as replies:
        if section.runs_locally:
            teacher = local_teacher(context, section.model, context.load_by_name(section.model))
        else:
            teacher = named_teacher(context, section, replies)
        judge = Judge(CachedTeacher(teacher, replies), context.recipe.seed, context.progress, section.max_tokens)
        stage = JudgeStage(context, section, judge)
        try:
            for evaluation, models in pairs.items():
                stage.compare(evaluation, models)
            if MT_BENCH in context.recipe.eval:
                stage.rate(names)
        except TeacherError as error:
            stage.problems.append(str(error))
            context.progress.note(f"judging stopped: {error}; run the same command to continue")
        return stage.results()


class JudgeStage:
    """One judge at work on one run."""

    def __init__(self, context: RunContext, section: JudgeSection, judge: Judge) -> None:
        self.context, self.run, self.section, self.judge = context, context.run, section, judge
        self.canaries: dict[str, Canary] = {}
        self.pairs: dict[str, dict[str, PairwiseSummary]] = {}
        self.ratings: dict[str, RatingSummary] = {}
        self.words: list[str] = []
        self.problems: list[str] = []

    def results(self) -> JudgeResults:
        """What was found out so far."""
        exhausted = [self.judge.asker.exhausted] if self.judge.asker.exhausted else []
        return JudgeResults(
            canary=self.canaries,
            pairs=self.pairs,
            ratings=self.ratings,
            words=self.words,
            problems=[*self.problems, *exhausted],
            judge=self.judge.name,
            cost=budget_of(self.section).cost(self.judge.asker.spent),
        )

    # Pairs -----------------------------------------------------------------------------------------------------

    def compare(self, evaluation: str, models: ModelPairs) -> None:
        """Judges each pair of models on their answers in one evaluation."""
        answers = {pair: self._answers(evaluation, *pair) for pair in models}
        some = next(iter(answers.values()), [])
        if not some:
            return
        if not self._trusts(evaluation, canary(self.judge, some)):
            return
        for (first, second), items in answers.items():
            found = summarize_judgements(self._judgements(evaluation, first, second, items))
            self.pairs.setdefault(evaluation, {})[f"{first} - {second}"] = found
            self.words.append(f"{evaluation}: {in_words(found, first, second, self.judge.name)}")

    def _answers(self, evaluation: str, first: str, second: str) -> list[AnswerPair]:
        """The answers of two models to the same items; at most as many as the recipe says, drawn by the seed."""
        one, other = (read_answers(_answers_file(self.run.folder, evaluation, name)) for name in (first, second))
        found = answer_pairs(pair_answers(one, other).pairs)
        if evaluation == HELDOUT:
            report = {example.id for example in self.context.reporting}
            found = [item for item in found if item.id in report]
        drawn = sorted(found, key=lambda item: digest_json([self.judge.seed, "judge", item.id]))[: self.section.items]
        chosen = {item.id for item in drawn}
        return [item for item in found if item.id in chosen]

    def _judgements(self, evaluation: str, first: str, second: str, items: Sequence[AnswerPair]) -> list[Judgement]:
        stage = f"judge/{evaluation}/{first}-vs-{second}"
        path = self.run.folder / stage / "judgements.jsonl"
        inputs = self._inputs([vars(item) for item in items])
        if self.run.finished(stage, inputs) is None:
            judgements = judge_pairs(self.judge, items)
            write_records(path, map(to_json, judgements))
            if self.judge.asker.exhausted is not None:  # unfinished: a larger budget continues from here
                return judgements
            self.judge.asker.replies.sync()
            self.run.finish(stage, inputs, [path], {"items": len(items)})
        return read_records(path, Judgement)

    # Ratings ---------------------------------------------------------------------------------------------------

    def rate(self, names: Sequence[str]) -> None:
        """Rates the answers of each model to MT-Bench."""
        path = Path(self.context.recipe.evaluation.mt_bench or "")
        questions = {question.id: question for question in read_questions(path)}
        dialogues = {name: self._dialogues(name, questions) for name in names}
        tested = rating_canary(self.judge, dialogues[names[0]])
        if self._trusts(MT_BENCH, tested):
            self.ratings = {name: summarize_ratings(self._ratings(name, one)) for name, one in dialogues.items()}

    def _dialogues(self, name: str, questions: Mapping[str, Question]) -> list[Dialogue]:
        rows = read_json_lines(_answers_file(self.run.folder, MT_BENCH_ANSWERS, name))
        return [Dialogue(questions[row["id"]], tuple(row["answers"])) for row in rows]

    def _ratings(self, name: str, dialogues: Sequence[Dialogue]) -> list[Rating]:
        stage = f"eval/{MT_BENCH}/{name}"
        ratings_file, scores_file = (self.run.folder / stage / file for file in ("ratings.jsonl", SCORES))
        asked = [[one.question.id, one.question.references, one.answers] for one in dialogues]
        inputs = self._inputs(asked)
        if self.run.finished(stage, inputs) is None:
            ratings = rate(self.judge, dialogues)
            if self.judge.asker.exhausted is not None:
                return ratings
            write_records(ratings_file, ratings)
            scores = _rating_scores(dialogues, ratings)
            write_records(scores_file, scores.items)
            self.judge.asker.replies.sync()
            self.run.finish(stage, inputs, [ratings_file, scores_file], scores.facts())
        return read_records(ratings_file, Rating)

    # Both ------------------------------------------------------------------------------------------------------

    def _trusts(self, evaluation: str, tested: Canary) -> bool:
        """Whether the canary lets the judge go on; writes what it found."""
        write_json(self.run.folder / "judge" / "canary" / f"{evaluation}.json", to_json(tested))
        self.canaries[evaluation] = tested
        self.words.append(f"{evaluation}: {tested}")
        if not tested.trusted and self.judge.asker.exhausted is None:
            self.context.progress.note(f"{tested}; give a more capable judge")
        return tested.trusted

    def _inputs(self, items: object) -> JsonObject:
        return {
            "judge": self.judge.asker.teacher.identity,
            "items": digest_json(items),
            "max_tokens": self.section.max_tokens,
            "seed": self.judge.seed,
        }


def _answers_file(folder: Path, evaluation: str, name: str) -> Path:
    return folder / "eval" / evaluation / name / "answers.jsonl"


def _rating_scores(dialogues: Sequence[Dialogue], ratings: Sequence[Rating]) -> ScoreTable:
    """The mean rating of each question's turns; a question without a rating has no score."""
    items = []
    for question in (dialogue.question for dialogue in dialogues):
        given = [rating.score for rating in ratings if rating.id == question.id and rating.score is not None]
        if given:
            items.append(ItemScore(question.id, "\n\n".join(question.turns), {"rating": sum(given) / len(given)}))
    return ScoreTable({"rating": ScoreScale()}, tuple(items))
