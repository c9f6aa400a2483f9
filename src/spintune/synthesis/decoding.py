"""How a teacher writes data: its decoding settings, and the random numbers that choose what it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from spintune.storage import canonical_json
from spintune.streams import python_stream


@dataclass(frozen=True)
class DecodingSettings:
    """How a teacher writes; see :class:`~spintune.teachers.protocol.Request`."""

    max_tokens: int
    temperature: float
    top_p: float
    presence_penalty: float = 0.0


def stream(seed: int, *name: Any) -> Random:
    """Random numbers for one purpose: a pure function of the seed and the purpose's name."""
    return python_stream(canonical_json([seed, *name]))
