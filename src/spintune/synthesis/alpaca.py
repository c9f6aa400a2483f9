"""Stanford Alpaca's way (2023): whole examples, many a request, from seeds alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from spintune.synthesis import parsers, prompts
from spintune.synthesis.asking import Decoding
from spintune.synthesis.bootstrap import Method
from spintune.synthesis.parsers import Parsed
from spintune.synthesis.tasks import Task
from spintune.teachers.protocol import Outcome, Request

SHOWN = 3


ALPACA_DECODING = Decoding(max_tokens=3072, temperature=1.0, top_p=1.0)
"""Stanford's ``generate_instruction.py``."""


def alpaca_method(decoding: Decoding = ALPACA_DECODING) -> Method:
    """Three seeds are shown, and the list of 20 is written to its end. No stop text: "20." may stand in an answer."""

    def show(random: random.Random, seeds: Sequence[Task], _: Sequence[Task]) -> list[Task]:
        return random.sample(list(seeds), min(SHOWN, len(seeds)))

    def request(shown: Sequence[Task], number: int) -> Request:
        messages, begin = prompts.alpaca(shown)
        return Request(messages, begin, **vars(decoding), draw=number)

    def read(outcome: Outcome, request: Request) -> Parsed:
        return parsers.triples(outcome, request.begin, prompts.ALPACA_TASKS - SHOWN)

    return Method("alpaca", show, request, read, prompts.ALPACA, whole=True)
