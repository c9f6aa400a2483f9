"""Stanford Alpaca's way (2023): whole examples, many a request, from seeds alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from spintune.synthesis import parsers, prompts
from spintune.synthesis.bootstrap import BootstrapMethod
from spintune.synthesis.decoding import DecodingSettings
from spintune.synthesis.examples import SeedTask
from spintune.synthesis.parsers import ParsedReply
from spintune.teachers.protocol import Outcome, Request

SHOWN = 3


ALPACA_DECODING = DecodingSettings(max_tokens=3072, temperature=1.0, top_p=1.0)
"""Stanford's ``generate_instruction.py``."""


def alpaca_method(decoding: DecodingSettings = ALPACA_DECODING) -> BootstrapMethod:
    """Three seeds are shown, and the list of 20 is written to its end. No stop text: "20." may stand in an answer."""

    def show(random: random.Random, seeds: Sequence[SeedTask], _: Sequence[SeedTask]) -> list[SeedTask]:
        return random.sample(list(seeds), min(SHOWN, len(seeds)))

    def request(shown: Sequence[SeedTask], number: int) -> Request:
        messages, begin = prompts.alpaca(shown)
        return Request(messages, begin, **vars(decoding), draw=number)

    def read(outcome: Outcome, request: Request) -> ParsedReply:
        return parsers.triples(outcome, request.begin, prompts.ALPACA_TASKS - SHOWN)

    return BootstrapMethod("alpaca", show, request, read, prompts.ALPACA, whole=True)
