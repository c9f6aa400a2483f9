"""How a teacher writes data: its decoding settings, and the random numbers that choose what it is shown."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from spintune.storage import digest_json


@dataclass(frozen=True)
class DecodingSettings:
    """How a teacher writes; see :class:`~spintune.teachers.protocol.Request`."""

    max_tokens: int
    temperature: float
    top_p: float
    presence_penalty: float = 0.0


def stream(seed: int, *name: Any) -> random.Random:
    """Random numbers for one purpose: a pure function of the seed and the purpose's name."""
    return random.Random(int(digest_json([seed, *name])[:16], 16))  # noqa: S311 -- not for secrets
