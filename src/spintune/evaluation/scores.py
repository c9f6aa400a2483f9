"""What an evaluation says of a model, item by item: the one form in which all of them are kept, shown and compared.

::

    eval/NAME/MODEL/scores.jsonl     id, text, scores, weights: a row an item
    eval/NAME/MODEL/manifest.json    facts: which measures there are, and which way is better
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spintune.evaluation.comparison import MeasuredItems, Table
from spintune.evaluation.statistics import Interval, bootstrap
from spintune.records import read_records
from spintune.run_folder import MANIFEST
from spintune.storage import read_json

SCORES = "scores.jsonl"


@dataclass(frozen=True)
class ScoreScale:
    """How a measure is read: which way is better (None for neither, as for lengths), and whether it is 0 or 1."""

    better: Literal["higher", "lower"] | None = "higher"
    right_or_wrong: bool = False


@dataclass(frozen=True)
class ItemScore:
    """One item.

    Attributes:
        text: what is asked, with its right answer where there is one; contamination is looked for in it.
        scores: by measure: a number, or the numerator of a ratio of sums.
        weights: denominators, for measures that are such ratios: instructions of a prompt, bytes of a text.
    """

    id: str
    text: str
    scores: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreTable:
    """One model in one evaluation."""

    scales: dict[str, ScoreScale]
    items: tuple[ItemScore, ...]

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

    def summary(self, only: Collection[str] | None = None) -> dict[str, Interval]:
        """Each measure with its 95 % interval, over all items or those of some ids; without items it is left out."""
        found = {}
        for name in self.scales:
            items = [item for item in self.items if name in item.scores and (only is None or item.id in only)]
            if items:
                weights = [item.weights.get(name, 1.0) for item in items]
                found[name] = bootstrap([item.scores[name] for item in items], weights)
        return found

    def to_facts(self) -> dict[str, Any]:
        return {name: asdict(scale) for name, scale in self.scales.items()}


def read_scores(folder: Path) -> ScoreTable:
    """What a finished evaluation of a model left in its folder."""
    scales: Mapping[str, Any] = read_json(folder / MANIFEST)["facts"]["measures"]
    items = tuple(read_records(folder / SCORES, ItemScore))
    return ScoreTable({name: ScoreScale(**scale) for name, scale in scales.items()}, items)


def finished_scores(run: Path) -> dict[str, dict[str, Path]]:
    """The folders of finished evaluations of a run: by evaluation, then by model."""
    found: dict[str, dict[str, Path]] = {}
    for manifest in sorted(run.glob(f"eval/*/*/{MANIFEST}")):
        if (manifest.parent / SCORES).is_file():
            found.setdefault(manifest.parent.parent.name, {})[manifest.parent.name] = manifest.parent
    return found
