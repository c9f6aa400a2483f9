"""Stanford Alpaca (2023): each request asks for many whole examples and shows seeds only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from spintune.synthesis import parsers, prompts
from spintune.synthesis.decoding import DecodingSettings
from spintune.synthesis.examples import SeedTask
from spintune.synthesis.parsers import ParsedReply
from spintune.teachers.protocol import Outcome, Request

SHOWN = 3

ALPACA_DECODING = DecodingSettings(max_tokens=3072, temperature=1.0, top_p=1.0)
"""The settings of Stanford's ``generate_instruction.py``."""


@dataclass(frozen=True)
class Alpaca:
    """Shows three seeds and asks for the rest of a list of 20 examples.

    The request has no stop text, because "20." may occur inside an answer.
    """

    decoding: DecodingSettings = ALPACA_DECODING
    name: ClassVar[str] = "alpaca"
    prompt: ClassVar[str] = prompts.ALPACA
    writes_outputs: ClassVar[bool] = True

    def show(self, rng: Random, seeds: Sequence[SeedTask], accepted: Sequence[SeedTask]) -> list[SeedTask]:
        return rng.sample(list(seeds), min(SHOWN, len(seeds)))

    def request(self, shown: Sequence[SeedTask], number: int) -> Request:
        messages, begin = prompts.alpaca(shown)
        return Request(messages, begin, **vars(self.decoding), draw=number)

    def read(self, outcome: Outcome, request: Request) -> ParsedReply:
        return parsers.triples(outcome, request.begin, prompts.ALPACA_TASKS - SHOWN)
