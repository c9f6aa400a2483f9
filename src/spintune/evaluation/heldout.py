"""How a model does on held-out examples: the likelihood of the references, and greedy answers scored by metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from spintune.checkers import Verdicts
from spintune.engine.logprobs import LogProbEngine
from spintune.evaluation.generate_answers import write_answers
from spintune.evaluation.metric_choice import AT_TEMPERATURE_1
from spintune.evaluation.scores import HeldoutLikelihood, ItemScore, ScoreScale, ScoreTable
from spintune.evaluation.selection import prompt_text
from spintune.evaluation.statistics import Interval, bootstrap, verdict_difference
from spintune.generation.protocol import Generator
from spintune.metrics import METRICS, Metric, answer_metrics
from spintune.progress import Progress
from spintune.recipe.evaluation import CHECKER
from spintune.records import Completion, Example
from spintune.text.reasoning import scored_answer, without_reasoning
from spintune.tokens.rows import TokenRow
from spintune.training.objectives import NegativeLogLikelihood
from spintune.typed_json import JsonObject


@dataclass(frozen=True)
class HeldoutAnswer:
    """The greedy answer to one held-out example.

    Attributes:
        reference_tokens, nll, reference_bytes: as in :class:`HeldoutLikelihood`.
        scores: by metric. In JSON each score is a key of the answer itself, true or false for a metric that is right or
            wrong; write answers by :func:`~spintune.typed_json.to_json`.
    """

    id: str
    prompt: str
    reference: str
    answer: str
    finish_reason: str
    answer_tokens: int
    reference_tokens: int
    nll: float
    scores: dict[str, float]
    reference_bytes: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather_scores(cls, row: object) -> object:
        if not isinstance(row, dict):
            return row  # is refused as no such record
        names = {field.name for field in fields(cls)}
        known = {key: value for key, value in row.items() if key in names}
        return {"scores": {key: value for key, value in row.items() if key not in names}, **known}

    @model_serializer(mode="wrap")
    def _spread_scores(self, serialize: SerializerFunctionWrapHandler) -> JsonObject:
        row: JsonObject = serialize(self)
        flags = {name for name in METRICS if METRICS[name].right_or_wrong}
        return row | {name: bool(score) if name in flags else score for name, score in row.pop("scores").items()}


@dataclass(frozen=True)
class SampledAnswer:
    """An answer to a held-out example, drawn at temperature 1; ``draw`` counts those of one example from 1."""

    id: str
    draw: int
    prompt: str
    reference: str
    answer: str
    finish_reason: str
    answer_tokens: int


def score_heldout(
    engine: LogProbEngine, examples: Sequence[Example], rows: Sequence[TokenRow], progress: Progress, name: str
) -> list[HeldoutLikelihood]:
    """The likelihood of every example's reference under the model called ``name``; ``rows`` are theirs, one for one."""
    objective = NegativeLogLikelihood()
    with progress.task(f"{name}: held-out likelihood", len(rows), "references") as task:
        scores = engine.score([objective.query(row) for row in rows], task.advance)
    return [
        HeldoutLikelihood(example.id, -logprob, sum(row.trained), _bytes(example) if row.complete else None)
        for example, row, (logprob,) in zip(examples, rows, scores, strict=True)
    ]


def _bytes(example: Example) -> int:
    """Bytes of a reference. An empty one still has its end to be likely, and counts as one byte."""
    last = example.messages[-1]
    calls = [text for call in last.tool_calls for text in (call.name, call.arguments)]
    return max(1, sum(len(text.encode()) for text in (last.reasoning, last.content, *calls)))


def answer_heldout(
    generator: Generator,
    examples: Sequence[Example],
    rows: Sequence[TokenRow],
    likelihoods: Sequence[HeldoutLikelihood],
    max_new_tokens: int,
    progress: Progress,
    name: str,
) -> list[HeldoutAnswer]:
    """Greedy answers to held-out examples; ``rows`` and ``likelihoods`` belong to the examples, one for one."""
    prompts = [row.prompt_ids for row in rows]
    completions = write_answers(generator, prompts, max_new_tokens, progress, f"{name}: held-out answers")
    return [
        HeldoutAnswer(
            id=example.id,
            prompt=prompt_text(example),
            reference=example.answer,
            answer=completion.text,
            finish_reason=completion.finish_reason,
            answer_tokens=len(completion.ids),
            reference_tokens=likelihood.tokens,
            nll=likelihood.nll,
            reference_bytes=likelihood.bytes,
            scores={
                one.name: one.score(scored_answer(completion.text), [without_reasoning(example.answer)])
                for one in answer_metrics()
            },
        )
        for example, likelihood, completion in zip(examples, likelihoods, completions, strict=True)
    ]


def sampled_answers(
    examples: Sequence[Example], completions: Sequence[Completion], samples: int
) -> list[SampledAnswer]:
    """The completions, ``samples`` of each example after another, as records."""
    return [
        SampledAnswer(
            id=example.id,
            draw=draw + 1,
            prompt=prompt_text(example),
            reference=example.answer,
            answer=completion.text,
            finish_reason=completion.finish_reason,
            answer_tokens=len(completion.ids),
        )
        for place, example in enumerate(examples)
        for draw, completion in enumerate(completions[place * samples : (place + 1) * samples])
    ]


def score_further(
    answers: Sequence[HeldoutAnswer],
    sampled: Sequence[SampledAnswer],
    checker: Verdicts | None,
    sources: Mapping[str, str],
) -> ScoreTable:
    """What is measured beside the metrics of greedy answers: the checker's verdicts, and all of sampled answers.

    Each example has one score of a measure: of sampled answers it is their mean, so that intervals are over prompts.

    Args:
        sources: where each example comes from, by id; a checker that fails is told with it.
    """

    def verdict(answer: HeldoutAnswer | SampledAnswer) -> float:
        texts = scored_answer(answer.answer), without_reasoning(answer.reference)
        return checker.verdict(*texts, answer.prompt, sources[answer.id]) if checker else 0.0

    drawn: dict[str, list[SampledAnswer]] = {}
    for one in sampled:
        drawn.setdefault(one.id, []).append(one)
    scales, items = {}, []
    if checker:
        scales[CHECKER] = ScoreScale("higher", checker.right_or_wrong)
    if sampled:
        scales |= {f"{one.name}{AT_TEMPERATURE_1}": ScoreScale(one.better) for one in answer_metrics()}
        scales |= {f"{CHECKER}{AT_TEMPERATURE_1}": ScoreScale("higher")} if checker else {}
    for answer in answers:
        scores = {CHECKER: verdict(answer)} if checker else {}
        for name in scales.keys() - {CHECKER}:
            metric = name.removesuffix(AT_TEMPERATURE_1)
            values = [verdict(one) if metric == CHECKER else _score(METRICS[metric], one) for one in drawn[answer.id]]
            scores[name] = math.fsum(values) / len(values)
        ordered = {name: scores[name] for name in scales}
        items.append(ItemScore(answer.id, f"{answer.prompt}\n\n{answer.reference}", ordered))
    return ScoreTable(scales, tuple(items))


def _score(metric: Metric, answer: SampledAnswer) -> float:
    return metric.score(scored_answer(answer.answer), [without_reasoning(answer.reference)])


def with_further(answers: Sequence[HeldoutAnswer], further: ScoreTable) -> list[HeldoutAnswer]:
    """The answers with what :func:`score_further` found among their scores."""
    scores = {item.id: item.scores for item in further.items}
    return [replace(one, scores={**one.scores, **scores[one.id]}) for one in answers]


# Tables --------------------------------------------------------------------------------------------------------------

_MAX_NLL = 700.0  # nats
_UNITS = {"nll_per_token": "reference_tokens", "nll_per_byte": "reference_bytes"}
"""Of each likelihood."""


def summarize_heldout(answers: Sequence[HeldoutAnswer]) -> dict[str, Interval]:
    """Each measure of one model with its 95 % interval, and the perplexities exp(nll) per token and per byte.

    Bytes are those of the reference in UTF-8. They make models of different tokenizers comparable. References that a
    limit cut are left out there.
    """
    likelihoods = _likelihoods([one.nll for one in answers], answers)
    perplexities = {
        name.replace("nll", "perplexity"): Interval(*map(_perplexity, (nll.mean, nll.low, nll.high)))
        for name, nll in likelihoods.items()
    }
    return {
        **likelihoods,
        **perplexities,
        **{name: bootstrap(_values(answers, name)) for name in _measures(answers)},
    }


def _perplexity(nll: float) -> float:
    """exp(nll), which a ruined model could make larger than any number that a file can hold."""
    return math.exp(min(nll, _MAX_NLL))


def heldout_differences(first: Sequence[HeldoutAnswer], second: Sequence[HeldoutAnswer]) -> dict[str, Interval]:
    """The paired difference (first minus second) in each measure, with its 95 % interval.

    Raises ValueError unless both hold the same items in the same order.
    """
    if [one.id for one in first] != [one.id for one in second]:
        raise ValueError("a paired comparison needs the same items in the same order")
    nll = [a.nll - b.nll for a, b in zip(first, second, strict=True)]
    both = [name for name in _measures(first) if name in _measures(second)]
    pairs = {name: list(zip(_values(first, name), _values(second, name), strict=True)) for name in both}
    return {
        **_likelihoods(nll, first),
        **{name: _difference(values) for name, values in pairs.items()},
    }


def _difference(pairs: Sequence[tuple[float, float]]) -> Interval:
    are_verdicts = all(value in (0, 1) for pair in pairs for value in pair)
    return (verdict_difference if are_verdicts else bootstrap)([one - other for one, other in pairs])


def _measures(answers: Sequence[HeldoutAnswer]) -> list[str]:
    """The metrics that all answers were scored by, then what else is measured of an answer."""
    return [name for name in answers[0].scores if all(name in one.scores for one in answers)] + [
        "answer_tokens",
        "finished",
    ]


def _likelihoods(nll: Sequence[float], answers: Sequence[HeldoutAnswer]) -> dict[str, Interval]:
    """Nats per token and per byte, each over the answers whose units are known."""
    found = {}
    for name, unit in _UNITS.items():
        known = [(nats, size) for nats, one in zip(nll, answers, strict=True) if (size := getattr(one, unit))]
        if known:
            found[name] = bootstrap([nats for nats, _ in known], [size for _, size in known])
    return found


def _values(answers: Sequence[HeldoutAnswer], name: str) -> list[float]:
    if name == "finished":
        return [float(one.finish_reason == "stop") for one in answers]
    if name == "answer_tokens":
        return [float(one.answer_tokens) for one in answers]
    return [one.scores[name] for one in answers]
