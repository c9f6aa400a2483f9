"""Answers of a model whose weights are divided: gathered at once or layer by layer, they are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from forked_team import on_ranks
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.sharded import ShardedModel, shard_model
from spintune.engine.sharing import ENGINE
from spintune.generation.build import build_generator
from spintune.generation.checked import CheckedGenerator
from spintune.generation.sampling import Sampling
from spintune.generation.sharing import GENERATOR, SharedGenerator
from spintune.ranks.team import Team
from spintune.records import Completion

pytestmark = pytest.mark.slow

PROMPTS = [(3, 4, 5), (6,), (7, 8, 9, 10, 11, 12, 13), (14, 15), (16, 17, 18, 19)]
SAMPLING = Sampling(9, seed=1)


def _generator(words: PreTrainedTokenizerFast, autocast: torch.dtype | None) -> CheckedGenerator:
    torch.manual_seed(5)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=128, tie_word_embeddings=True)
    engine = LogProbEngine(LlamaForCausalLM(config).eval(), autocast)
    found = build_generator(engine, words, frozenset(range(40)))  # so that answers end early, ranks at other times
    assert isinstance(found, CheckedGenerator)
    found.decide()
    return found


def _hold(team: Team, words: PreTrainedTokenizerFast, autocast: torch.dtype | None, room: bool) -> SharedGenerator:
    own = _generator(words, autocast)
    shard_model(own.engine, team, 1)
    cast(Any, cast(ShardedModel, own.engine.inside)).has_room = lambda: room  # as a full GPU says
    team.objects[ENGINE], team.objects[GENERATOR] = own.engine, own
    return SharedGenerator(own, own.engine)


def _written(completions: list[Completion]) -> list[tuple[tuple[int, ...], float]]:
    return [(one.ids, one.logprob) for one in completions]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_layer_by_layer(tmp_path: Path, words: PreTrainedTokenizerFast, autocast: torch.dtype | None) -> None:
    expected = _generator(words, autocast).generate(PROMPTS, SAMPLING)
    assert len({len(one.ids) for one in expected}) > 1

    def write(team: Team) -> None:
        found: dict[str, object] = {}
        for name, room in (("whole", True), ("layers", False)):
            shared = team.call(_hold, words, autocast, room)
            assert cast(CheckedGenerator, shared.own).chosen[0] == "batch"
            found[name] = _written(shared.generate(PROMPTS, SAMPLING))
            tokens: list[int] = []
            alone = shared.generate(PROMPTS[:2], SAMPLING, on_token=lambda _, token, told=tokens: told.append(token))
            assert sorted(tokens) == sorted(token for one in alone for token in one.ids)
            found[f"{name} alone"] = _written(alone)
        torch.save(found, tmp_path / "found")

    on_ranks(2, write, tmp_path / "logs")
    found = torch.load(tmp_path / "found", weights_only=False)
    bound = 1e-4 if autocast is None else 0.3
    for name, completions in found.items():
        for (ids, logprob), one in zip(completions, expected[: len(completions)], strict=True):
            assert autocast is not None or ids == one.ids, name
            assert ids != one.ids or logprob == pytest.approx(one.logprob, abs=bound)
    assert [ids for ids, _ in found["layers"]] == [ids for ids, _ in found["whole"]] or autocast is not None
