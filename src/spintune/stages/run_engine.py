"""Engines of a run's models. What the checks of an iterate found out holds each time that it is read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from spintune.engine.logprobs import Findings, LogProbEngine
from spintune.recipe import Recipe


@dataclass
class RunEngines:
    """Makes engines, and remembers what was found out: a run reads its start and every opponent several times."""

    _known: dict[Hashable, Findings] = field(default_factory=dict)

    def engine(
        self, recipe: Recipe, model: PreTrainedModel, autocast: torch.dtype | None, weights: Hashable
    ) -> LogProbEngine:
        """An engine of a model as the recipe says.

        Args:
            weights: what the model was read from, and how; equal for equal weights.
        """
        engine = LogProbEngine(
            model,
            autocast,
            recompute=recipe.recompute,
            compiled=recipe.compile,
            tokens_per_forward=recipe.tokens_per_forward,
            offload=recipe.offload in ("activations", "both"),
            findings=self._known.get(weights),
        )
        self._known[weights] = engine.findings
        return engine
