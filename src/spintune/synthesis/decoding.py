"""Decoding settings of the requests that a method makes, and the random numbers that choose what each request shows."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from spintune.storage import canonical_json
from spintune.streams import python_stream


@dataclass(frozen=True)
class DecodingSettings:
    """How the teacher samples a reply; see :class:`~spintune.teachers.protocol.Request` for each field."""

    max_tokens: int
    temperature: float
    top_p: float
    presence_penalty: float = 0.0


def stream(seed: int, *name: object) -> Random:
    """Random numbers for one purpose: a pure function of the seed and the purpose's name."""
    return python_stream(canonical_json([seed, *name]))
