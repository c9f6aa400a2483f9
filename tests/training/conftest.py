"""A tiny player in float64, rows and pairs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_models import build  # noqa: F401 - pytest finds it here
from transformers import GPT2Config, GPT2LMHeadModel

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.records import Answer, Pair
from spintune.tokens.rows import TokenRow

VOCABULARY = 53


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def player() -> Callable[[], LogProbEngine]:
    """``player()``: a fresh engine around always the same weights. GPT-2 computes all of float64 in float64."""

    def engine() -> LogProbEngine:
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
        )
        with torch.random.fork_rng():
            torch.manual_seed(4)
            model = GPT2LMHeadModel(config).double().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.normal_(0, 0.3)
        return LogProbEngine(model)

    return engine


def _ids(count: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(2, VOCABULARY, (count,), generator=generator).tolist())


@pytest.fixture(scope="session")
def rows() -> list[TokenRow]:
    """Eleven rows of 4 to 20 tokens; in every third one a token of the response is not trained."""
    generator = torch.Generator().manual_seed(8)
    result = []
    for i in range(11):
        response = _ids(2 + i % 5 * 3, generator)
        trained = tuple(i % 3 != 0 or j != 1 for j in range(len(response)))
        result.append(TokenRow(f"row{i}", _ids(2 + i % 4, generator), response, trained, True))
    return result


@pytest.fixture(scope="session")
def pairs(player, rows) -> list[Pair]:
    """A made-up answer beside each real one, scored by the player itself."""
    generator = torch.Generator().manual_seed(9)
    answers = [_ids(3 + i % 6, generator) for i in range(len(rows))]
    queries = [Query(row.prompt_ids, (row.response_ids, ids)) for row, ids in zip(rows, answers, strict=True)]
    scores = player().score(queries)
    return [
        Pair(
            row.example_id,
            row.prompt_ids,
            Answer(row.response_ids, "text", True, real),
            (Answer(ids, "text", True, generated),),
        )
        for row, ids, (real, generated) in zip(rows, answers, scores, strict=True)
    ]
