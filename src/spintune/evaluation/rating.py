"""A model as judge that rates single answers from 1 to 10, turn by turn (MT-Bench, arXiv 2306.05685).

The judge sees the conversation before a later turn, and reference answers where the questions have them. A rating that
cannot be read is counted by its reason and enters no mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from spintune.data.file_rows import FileRow
from spintune.errors import DataError
from spintune.evaluation.answers import file_rows
from spintune.evaluation.judge import CANARIES, CANARY_ITEMS, Canary, Judge
from spintune.evaluation.judge_prompts import BEST, RATING, WORST, rating_prompt
from spintune.evaluation.statistics import Interval, bootstrap
from spintune.evaluation.verdicts import code_for
from spintune.storage import digest_json
from spintune.teachers.cached import BUDGET

_SCORES = tuple(str(score) for score in range(WORST, BEST + 1))


@dataclass(frozen=True)
class Question:
    """A question of one or more turns.

    Attributes:
        references: a good answer to each turn, or None.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str | None, ...]


@dataclass(frozen=True)
class Dialogue:
    """A question with a model's answer to each turn.

    Raises ValueError unless there is one answer per turn.
    """

    question: Question
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.question.turns):
            raise ValueError(f"{len(self.answers)} answers to {len(self.question.turns)} turns")


def read_questions(path: Path) -> list[Question]:
    """Questions in MT-Bench's format: ``question_id``, ``turns``, and perhaps ``category`` and ``reference``.

    Raises DataError with ``path:line`` for a row that is no such question, or whose id occurred before.
    """
    questions: dict[str, Question] = {}
    for row in file_rows(path):
        question = _question(row)
        if question.id in questions:
            raise DataError(f"{row.where}: the question_id {question.id} occurs twice; give each question its own")
        questions[question.id] = question
    return list(questions.values())


def _question(row: FileRow) -> Question:
    turns = _texts(row, "turns")
    references = _texts(row, "reference") if row.values.get("reference") is not None else [""] * len(turns)
    if not turns or len(references) > len(turns):
        raise DataError(f"{row.where}: {len(turns)} turns with {len(references)} references; give a turn for each")
    number = row.values.get("question_id")
    if not isinstance(number, int | str):
        raise DataError(f"{row.where}: a question without 'question_id'; give it a number or a name")
    references += [""] * (len(turns) - len(references))
    category = row.text("category", "a category") if "category" in row.values else ""
    # "" in the file: only the other turn has a reference
    return Question(str(number), category, tuple(turns), tuple(text if text.strip() else None for text in references))


def _texts(row: FileRow, key: str) -> list[str]:
    value = row.values.get(key)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return list(value)
    raise row.wrong(key, "a list of texts", "fix or delete the row")


@dataclass(frozen=True)
class Rating:
    """The rating of one answer.

    Attributes:
        turn: from 1.
        score: 1 to 10, or None.
        problem: why there is no score, see :mod:`spintune.evaluation.verdicts`.
        length: of the answer. [characters]
        request: key of the stored reply.
    """

    id: str
    category: str
    turn: int
    score: int | None
    problem: str | None
    length: int
    request: str


def rate(judge: Judge, dialogues: Sequence[Dialogue]) -> list[Rating]:
    """A rating for every turn of every dialogue, in their order. Raises as :meth:`Judge.ask`."""
    turns = [(dialogue, turn) for dialogue in dialogues for turn in range(1, len(dialogue.answers) + 1)]
    prompts = [_prompt(judge.seed, dialogue, turn) for dialogue, turn in turns]
    return [
        Rating(
            id=dialogue.question.id,
            category=dialogue.question.category,
            turn=turn,
            score=int(found.verdict) if found.verdict else None,
            problem=found.problem,
            length=len(dialogue.answers[turn - 1]),
            request=key,
        )
        for (dialogue, turn), (found, key) in zip(turns, judge.ask(prompts, _SCORES, "rates", "ratings"), strict=True)
    ]


def _prompt(seed: int, dialogue: Dialogue, turn: int) -> tuple[str, str]:
    """The code and the text of the prompt about one turn."""
    question = dialogue.question
    conversation = list(zip(question.turns, dialogue.answers, strict=True))[:turn]
    references = question.references[:turn]
    texts = [text for asked_answered in conversation for text in asked_answered]
    code = code_for(seed, [*texts, *(reference or "" for reference in references)])
    return code, rating_prompt(code, conversation, references)


@dataclass(frozen=True)
class RatingSummary:
    """Mean ratings of one model, with 95 % intervals; None where nothing was rated.

    Attributes:
        prompt: name and version of the judge's prompt.
        items: answers that the judge was asked to rate.
        invalid: ratings that could not be read; they are in no mean.
        problems: why, by reason.
        mean: over all ratings. The interval resamples questions, whose turns belong together.
        turns: by the number of the turn.
        categories: by category of the question.
    """

    prompt: str
    items: int
    invalid: int
    problems: dict[str, int]
    mean: Interval | None
    turns: dict[str, Interval | None]
    categories: dict[str, Interval | None]


def summarize_ratings(ratings: Sequence[Rating]) -> RatingSummary:
    """The mean rating of one model: over all, by turn and by category."""
    rated = [rating for rating in ratings if rating.score is not None]
    turns = sorted({rating.turn for rating in ratings})
    categories = list(dict.fromkeys(rating.category for rating in ratings if rating.category))
    return RatingSummary(
        prompt=RATING,
        items=len(ratings),
        invalid=len(ratings) - len(rated),
        problems=dict(Counter(rating.problem for rating in ratings if rating.problem is not None)),
        mean=_mean(rated),
        turns={str(turn): _mean([rating for rating in rated if rating.turn == turn]) for turn in turns},
        categories={name: _mean([rating for rating in rated if rating.category == name]) for name in categories},
    )


def _mean(rated: Sequence[Rating]) -> Interval | None:
    """The mean of all scores, as a ratio of sums over questions."""
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for rating in rated:
        sums[rating.id] += rating.score or 0
        counts[rating.id] += 1
    return bootstrap(list(sums.values()), list(counts.values())) if sums else None


def rating_canary(judge: Judge, dialogues: Sequence[Dialogue], count: int = CANARY_ITEMS) -> Canary:
    """Rates constant nonsense and real answers to first turns: a judge that can be trusted rates nonsense lower.

    As in :func:`~spintune.evaluation.judge.canary`, the real answer is the reference where there is one; the judge does
    not see it as a reference here. Judges in use have rated constant answers 9.55 (arXiv 2410.07137).
    """

    def order(dialogue: Dialogue) -> tuple[bool, str]:
        question = dialogue.question
        return question.references[0] is None, digest_json([judge.seed, "canary", question.id])

    pairs = []
    for dialogue, nonsense in zip(sorted(dialogues, key=order)[:count], cycle(CANARIES), strict=False):
        question = dialogue.question
        alone = Question(question.id, question.category, question.turns[:1], (None,))
        real = dialogue.answers[0] if question.references[0] is None else question.references[0]
        pairs += [Dialogue(alone, (nonsense,)), Dialogue(alone, (real,))]
    ratings = rate(judge, pairs)
    preferences = tuple(
        (float(bad.score > good.score) + float(bad.score >= good.score)) / 2
        for bad, good in zip(ratings[::2], ratings[1::2], strict=True)
        if bad.score is not None and good.score is not None
    )
    over_budget = sum(
        BUDGET in (bad.problem, good.problem) for bad, good in zip(ratings[::2], ratings[1::2], strict=True)
    )
    return Canary(judge.name, len(pairs) // 2, preferences, over_budget=over_budget)
