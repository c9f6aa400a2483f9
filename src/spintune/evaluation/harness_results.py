"""Results of lm-evaluation-harness as records: documents, metrics with intervals, and scores for comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from spintune.evaluation.scores import ItemScore, ScoreScale, ScoreTable
from spintune.evaluation.statistics import bootstrap
from spintune.typed_json import JsonObject, OmitEmpty


@dataclass(frozen=True)
class HarnessItem:
    """One document of a task, and the model's response.

    Attributes:
        task: the task, or the part of a group.
        doc_id: its place in the task.
        doc_hash: SHA-256 of the document; two models are paired on it.
        prompt_hash: SHA-256 of the first prompt, which changes with exemplars and chat template.
        target_hash: SHA-256 of the right answer.
        text: all texts of the document, for finding it in training data.
        scores: by ``name,filter``, as the harness computes them: usually a number, for perplexities the
            log-probability and the number of words or bytes.
        responses: log-probability (nats) and greedy flag of each continuation; or the text, or the log-probability.
    """

    task: str
    doc_id: int
    doc_hash: str
    prompt_hash: str
    target_hash: str
    text: str
    scores: dict[str, Any]
    responses: list[Any]

    @property
    def id(self) -> str:
        """The same for the same document in every run."""
        return f"{self.task}/{self.doc_id}/{self.doc_hash[:8]}"


@dataclass(frozen=True, kw_only=True)
class HarnessMetric(OmitEmpty):
    """A number of a task. Its 95 % interval is None where the number is neither a mean nor a ratio over documents."""

    value: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool


@dataclass(frozen=True)
class HarnessResult:
    """The results of one benchmark. Its rows are not in the manifest of an evaluation.

    Attributes:
        metric: key in ``metrics`` of the number that represents it in tables.
        shots: answered examples before each question.
        version: the task's version in the harness; for a user's own task a digest of file and rows.
        documents: how many there are.
        metrics: by ``name,filter``.
    """

    task: str
    metric: str
    shots: int
    version: str
    documents: int
    metrics: dict[str, HarnessMetric]
    rows: Annotated[tuple[HarnessItem, ...], Field(exclude=True)]


@dataclass(frozen=True)
class HarnessReport:
    """Results of several benchmarks: facts of the manifest of an evaluation.

    Attributes:
        harness: version of lm-evaluation-harness.
        failed: one line for each task that could not be run.
    """

    harness: str
    results: tuple[HarnessResult, ...]
    failed: dict[str, str]


def read_result(head: str, found: Any, loaded: Any, metric: str | None) -> HarnessResult:
    """The harness's numbers for a task or group, with intervals over its documents.

    Raises ValueError when there are none, or none called ``metric``.
    """
    group = loaded["groups"].get(head)
    parts = [task.task_name for task in group.get_all_tasks()] if group else [head]
    rows = tuple(row for part in parts for row in _rows(part, found["samples"][part]))
    better = {key: up for part in [head, *parts] for key, up in found["higher_is_better"].get(part, {}).items()}
    values = {
        key: float(value)
        for key, value in found["results"][head].items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }
    if not values:
        raise ValueError(f"{head} gave no numbers")
    metrics = {
        key: HarnessMetric(
            value=value,
            **_bounds(key.partition(",")[0], value, [row.scores[key] for row in rows if key in row.scores]),
            higher_is_better=better.get(key.partition(",")[0]) is not False,
        )
        for key, value in values.items()
    }
    if metric is not None and metric not in metrics:
        raise ValueError(f"{head} has no metric {metric!r}, only {', '.join(metrics)}")
    shots = {found["n-shot"].get(part, 0) for part in parts}
    return HarnessResult(
        task=head,
        metric=metric or next(iter(metrics)),
        shots=max(shots),
        version=str(found["versions"].get(head)),
        documents=len({(row.task, row.doc_id) for row in rows}),
        metrics=metrics,
        rows=rows,
    )


def _rows(task: str, samples: Sequence[JsonObject]) -> list[HarnessItem]:
    """One row per document; the harness gives one for each filter of a task."""
    rows: dict[int, HarnessItem] = {}
    for sample in samples:
        scores = {f"{metric},{sample['filter']}": _plain(sample[metric]) for metric in sample["metrics"]}
        row = rows.setdefault(
            sample["doc_id"],
            HarnessItem(
                task=task,
                doc_id=sample["doc_id"],
                doc_hash=sample["doc_hash"],
                prompt_hash=sample["prompt_hash"],
                target_hash=sample["target_hash"],
                text="\n\n".join(_texts(sample["doc"])),
                scores={},
                responses=[_plain(response) for responses in sample["resps"] for response in responses],
            ),
        )
        row.scores.update(scores)
    return list(rows.values())


def _texts(value: object) -> Iterator[str]:
    """Every text in a document, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in _texts(each))


def _plain(value: Any) -> Any:
    """A score as JSON has it."""
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


_OF_RATIOS: dict[str, Callable[[float], float]] = {
    "word_perplexity": math.exp,
    "byte_perplexity": math.exp,
    "perplexity": math.exp,
    "bits_per_byte": lambda nats: nats / math.log(2),
}
"""The metric as a function of nats per word, byte or document."""


def _bounds(metric: str, value: float, scores: Sequence[Any]) -> dict[str, float]:
    """The interval of a number over documents; empty when it is neither their mean nor a ratio of their sums."""
    if metric in _OF_RATIOS:
        pairs = [score if isinstance(score, list) else [score, 1] for score in scores]
        nats = bootstrap([-logprob for logprob, _ in pairs], [weight for _, weight in pairs])
        mean, low, high = map(_OF_RATIOS[metric], (nats.mean, nats.low, nats.high))
    elif scores and all(isinstance(score, int | float) for score in scores):
        found = bootstrap(scores)
        mean, low, high = found.mean, found.low, found.high
    else:
        return {}
    return {"low": low, "high": high} if math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9) else {}


# Scores --------------------------------------------------------------------------------------------------------------


def standing_scores(results: Sequence[HarnessResult]) -> ScoreTable:
    """The metric that represents each benchmark, document by document.

    Skips metrics that are neither a mean nor a ratio over documents. Bits per byte and perplexities are compared as
    bits, which add up.
    """
    scales: dict[str, ScoreScale] = {}
    items: dict[str, ItemScore] = {}
    for result in results:
        metric = result.metrics[result.metric]
        if metric.low is None:
            continue
        name = result.metric.partition(",")[0] if len(results) == 1 else result.task
        rows = [row for row in result.rows if result.metric in row.scores]
        values = [row.scores[result.metric] for row in rows]
        likelihood = any(isinstance(value, list) for value in values)
        if likelihood:
            name = f"{name} in bits"
        scales[name] = ScoreScale(
            "lower" if likelihood or not metric.higher_is_better else "higher", all(value in (0, 1) for value in values)
        )
        for row, value in zip(rows, values, strict=True):
            item = items.setdefault(row.id, ItemScore(row.id, row.text, {}, {}))
            nats, weight = value if isinstance(value, list) else (-value, None)
            item.scores[name] = -nats / math.log(2) if likelihood else float(value)
            if weight is not None:
                item.weights[name] = float(weight)
    return ScoreTable(scales, tuple(items.values()))
