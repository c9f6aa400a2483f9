"""What lm-evaluation-harness found, as records: items, metrics and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spintune.evaluation.statistics import Interval, bootstrap

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class HarnessItem:
    """One document of a task, and what the model made of it.

    Attributes:
        task: the task, or that part of a group, that it belongs to.
        doc_id: its place in the task.
        doc_hash: SHA-256 of the document; pair two models on it.
        prompt_hash: SHA-256 of the first prompt, which other exemplars or another chat template change.
        target_hash: SHA-256 of the right answer.
        text: all texts of the document, for finding it in training data.
        scores: by ``name,filter``, as the harness computes them: mostly one number, for perplexities the
            log-probability and its words or bytes.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> HarnessItem:
        return cls(**row)


@dataclass(frozen=True)
class HarnessMetric:
    """A number of a task, with its 95 % interval where the number is a mean or a ratio over documents."""

    value: float
    interval: Interval | None
    higher_is_better: bool

    def to_json(self) -> dict[str, Any]:
        bounds = {"low": self.interval.low, "high": self.interval.high} if self.interval else {}
        return {"value": self.value, **bounds, "higher_is_better": self.higher_is_better}


@dataclass(frozen=True)
class HarnessResult:
    """A benchmark that was run.

    Attributes:
        task: its name.
        metric: key in ``metrics`` of the number that stands for it.
        shots: answered examples before each question.
        version: the task's version in the harness; for one's own tasks a digest of file and rows.
        metrics: by ``name,filter``.
        rows: its documents.
    """

    task: str
    metric: str
    shots: int
    version: str
    metrics: dict[str, HarnessMetric]
    rows: tuple[HarnessItem, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {
            "task": self.task,
            "metric": self.metric,
            "shots": self.shots,
            "version": self.version,
            "documents": len({(row.task, row.doc_id) for row in self.rows}),
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
        }


@dataclass(frozen=True)
class HarnessReport:
    """What a run of benchmarks gave: results, and one line for each task that could not be run."""

    harness: str
    """Version of lm-evaluation-harness."""
    results: tuple[HarnessResult, ...]
    failed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "harness": self.harness,
            "results": [result.to_json() for result in self.results],
            "failed": self.failed,
        }


def read_result(head: str, found: Any, loaded: Any, metric: str | None) -> HarnessResult:
    """A task or a group of them: the harness's numbers, with intervals over its documents."""
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
            value,
            _interval(key.partition(",")[0], value, [row.scores[key] for row in rows if key in row.scores]),
            better.get(key.partition(",")[0]) is not False,
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
        metrics=metrics,
        rows=rows,
    )


def _rows(task: str, samples: Sequence[dict[str, Any]]) -> list[HarnessItem]:
    """One row a document; the harness writes one for each of a task's filters."""
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


def _texts(value: Any) -> Iterator[str]:
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
"""What becomes of nats a word, byte or document."""


def _interval(metric: str, value: float, scores: Sequence[Any]) -> Interval | None:
    """The interval of a number over documents; None where it is neither their mean nor a ratio of their sums."""
    if metric in _OF_RATIOS:
        pairs = [score if isinstance(score, list) else [score, 1] for score in scores]
        nats = bootstrap([-logprob for logprob, _ in pairs], [weight for _, weight in pairs])
        whole = _OF_RATIOS[metric]
        interval = Interval(whole(nats.mean), whole(nats.low), whole(nats.high))
    elif scores and all(isinstance(score, int | float) for score in scores):
        interval = bootstrap(scores)
    else:
        return None
    return interval if math.isclose(interval.mean, value, rel_tol=1e-6, abs_tol=1e-9) else None
