"""Rotary frequencies that depend on a call's longest position: a row has those of a call of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import LONGROPE

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query

ROTARY = {
    "longrope": {"rope_parameters": LONGROPE},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}
    | {"max_position_embeddings": 20},
}


def alone(reference, prompt, response):
    """The log-probabilities of one row, by a model that has seen no other."""
    ids = torch.tensor([[*prompt, *response[:-1]]])
    logits = copy.deepcopy(reference)(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


@pytest.fixture
def sides(queries):
    """Rows on both sides of 20 tokens, two of them responses to one prompt, one that ends at the threshold."""
    ids = queries[0].responses[0] * 4
    return [
        Query(ids[:12], (ids[12:24], ids[5:8], ids[1:10], ids[1:11])),
        Query(ids[3:6], (ids[9:12],)),
        Query(ids[:30], (ids[2:9], ids[7:8])),
    ]


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("whole", [True, False])
def test_a_packed_row_equals_a_call_of_its_own_in_value_and_gradient(kind, whole, build, sides):
    reference, model = (build("llama", **ROTARY[kind]) for _ in range(2))
    engine = LogProbEngine(model)
    assert engine.packed
    assert "beyond 20 tokens" in engine.why
    asked = [Query(query.prompt, query.responses, whole=whole) for query in sides]
    expected = torch.stack([alone(reference, query.prompt, r) for query in sides for r in query.responses])
    result = engine(asked)
    torch.testing.assert_close(result.sum_N, expected, rtol=1e-5, atol=1e-5)

    weights = torch.linspace(0.3, 1.7, len(expected), dtype=torch.float64)
    (result.sum_N @ weights).backward()
    rows = [(query.prompt, response) for query in sides for response in query.responses]
    for weight, (prompt, response) in zip(weights, rows, strict=True):
        clone = copy.deepcopy(reference)
        ids = torch.tensor([[*prompt, *response[:-1]]])
        logits = clone(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].log_softmax(-1)
        (weight * logits.gather(1, torch.tensor(response)[:, None]).sum()).backward()
        for parameter, other in zip(reference.parameters(), clone.parameters(), strict=True):
            parameter.grad = other.grad if parameter.grad is None else parameter.grad + other.grad
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ROTARY)
def test_scores_do_not_depend_on_neighbours_order_or_what_came_before(kind, build, sides):
    engine = LogProbEngine(build("llama", **ROTARY[kind]), tokens_per_forward=10_000)
    together = engine.score(sides)
    backwards = engine.score(sides[::-1])[::-1]
    apart = [engine.score([query])[0] for query in sides]
    for other in (backwards, apart):
        for one, two in zip(together, other, strict=True):
            assert one == pytest.approx(two, abs=1e-5)


def test_what_is_scored_in_part_comes_back_in_order(build, sides):
    engine = LogProbEngine(build("llama", **ROTARY["longrope"]))
    masks = [tuple(tuple(i % 3 != 1 for i in range(len(r))) for r in query.responses) for query in sides]
    masked = [Query(query.prompt, query.responses, mask) for query, mask in zip(sides, masks, strict=True)]
    every, some = engine(sides), engine(masked)
    kept = torch.tensor([x for mask in masks for response in mask for x in response])
    torch.testing.assert_close(some.token_M, every.token_M[kept])
