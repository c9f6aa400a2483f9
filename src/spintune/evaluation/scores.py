"""The scores of one model in one evaluation, item by item: the form in which all are stored, shown and compared.

::

    eval/NAME/MODEL/scores.jsonl     id, text, scores, weights: one row per item
    eval/NAME/MODEL/manifest.json    facts: the measures, and which values of each are better
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spintune.errors import RunError
from spintune.evaluation.comparison import MeasuredItems, Table
from spintune.evaluation.statistics import Interval, bootstrap
from spintune.records import read_records
from spintune.run_folder import MANIFEST, read_manifest
from spintune.typed_json import from_json

SCORES = "scores.jsonl"

MEASURES_FOLDER = "heldout-measures"
"""Folder of further scores of held-out answers, beside ``heldout``: its measures are held-out measures."""


@dataclass(frozen=True)
class ScoreScale:
    """How a measure is read: which values are better (None for neither, as for lengths), and whether all are 0 or 1."""

    better: Literal["higher", "lower"] | None = "higher"
    right_or_wrong: bool = False


def common_scales(tables: Iterable[Mapping[str, ScoreScale]]) -> dict[str, ScoreScale]:
    """How each measure of several models is read: right or wrong only where it is that for all."""
    found: dict[str, ScoreScale] = {}
    for scales in tables:
        for name, scale in scales.items():
            found[name] = ScoreScale(scale.better, scale.right_or_wrong and found.get(name, scale).right_or_wrong)
    return found


@dataclass(frozen=True)
class ItemScore:
    """The scores of one item.

    Attributes:
        text: the prompt, with the right answer if there is one; contamination is looked for in it.
        scores: by measure: a number, or the numerator of a ratio of sums.
        weights: denominators, for measures that are such ratios: instructions of a prompt, bytes of a text.
    """

    id: str
    text: str
    scores: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreFacts:
    """What the manifest of an evaluation says about its scores."""

    items: int
    measures: dict[str, ScoreScale]


@dataclass(frozen=True)
class ScoreTable:
    """All scores of one model in one evaluation; ``scales`` by measure."""

    scales: dict[str, ScoreScale]
    items: tuple[ItemScore, ...]

    def facts(self) -> ScoreFacts:
        """The facts for the manifest."""
        return ScoreFacts(len(self.items), self.scales)

    def table(self, prefix: str = "") -> Table:
        """The measures as :func:`~spintune.evaluation.comparison.compare` takes them, by ``prefix`` and name."""
        return {f"{prefix}{name}": self._measure(name) for name in self.scales}

    def _measure(self, name: str) -> MeasuredItems:
        scale = self.scales[name]
        items = [item for item in self.items if name in item.scores]
        weighted = any(name in item.weights for item in items)
        return MeasuredItems(
            {item.id: item.scores[name] for item in items},
            scale.better,
            scale.right_or_wrong,
            {item.id: item.weights[name] for item in items} if weighted else None,
        )

    def summary(self, without: Collection[str] = ()) -> dict[str, Interval]:
        """Each measure with its 95 % interval, over all items but those ``without``. Skips empty measures."""
        found = {}
        for name in self.scales:
            items = [item for item in self.items if name in item.scores and item.id not in without]
            if items:
                weights = [item.weights.get(name, 1.0) for item in items]
                found[name] = bootstrap([item.scores[name] for item in items], weights)
        return found


@dataclass(frozen=True)
class HeldoutLikelihood:
    """How likely a model finds the reference of one held-out example."""

    id: str
    nll: float
    """Negative log-likelihood of the reference, in nats, summed over its tokens."""
    tokens: int
    """Scored tokens of the reference, including its end of turn."""
    bytes: int | None = None
    """Bytes of the reference in UTF-8, its reasoning and calls of tools included; None where a limit cut it."""


def read_scores(folder: Path) -> ScoreTable:
    """The scores in the folder of a finished evaluation of one model. Raises RunError when they are damaged."""
    facts = from_json(ScoreFacts, read_manifest(folder).facts, folder / MANIFEST)
    found = ScoreTable(facts.measures, tuple(read_records(folder / SCORES, ItemScore)))
    try:
        found.table()
    except (KeyError, ValueError) as error:
        raise RunError(f"{folder / SCORES}: damaged ({error}); delete it and run again") from error
    return found


def finished_scores(run: Path) -> dict[str, dict[str, Path]]:
    """The folders of a run's finished evaluations: by evaluation, then by model."""
    found: dict[str, dict[str, Path]] = {}
    for manifest in sorted(run.glob(f"eval/*/*/{MANIFEST}")):
        if (manifest.parent / SCORES).is_file():
            found.setdefault(manifest.parent.parent.name, {})[manifest.parent.name] = manifest.parent
    return found
