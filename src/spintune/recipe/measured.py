"""What spintune writes into recipes of its own making where our measurements favor it over the papers' defaults.

The papers' rates hardly move a small model, so runs find their own (docs/lab/learning-rates.md). Self-play on little
data needs small steps to take any, and a baseline to mean anything; λ = 1 with γ = 3 gained most of what self-play can
(docs/lab/self-play-map.md). A model that has not learned when to stop writes as much as it may, so answers end not far
behind the longest real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spintune.recipe.section import AUTO_RATE

RATE: Mapping[str, object] = MappingProxyType({"learning_rate": AUTO_RATE})
LOSS: Mapping[str, object] = MappingProxyType({"lambda": 1.0, "gamma": 3.0})
ANSWER: Mapping[str, object] = MappingProxyType({"max_new_tokens": "auto"})
STEP: Mapping[str, object] = MappingProxyType({"pairs_per_step": 16})
BASELINE: Mapping[str, object] = MappingProxyType({"baseline": "sft"})
