"""Steps of other kinds of models and losses: two ranks, replicated and sharded, end as one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked_team import on_ranks
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.sharded import shard_model, whole_weights
from spintune.engine.sharing import ENGINE
from spintune.errors import ModelError, RecipeError
from spintune.models.lora import new_adapter
from spintune.ranks.team import Team
from spintune.recipe import LoraSection, parse_recipe
from spintune.recipe.section import OptimizerName
from spintune.records import Answer, Pair
from spintune.stages import followers
from spintune.tokens.rows import TokenRow
from spintune.training.objectives import NegativeLogLikelihood, Objective, SelfPlay
from spintune.training.optimization import Optimization
from spintune.training.stepping import stepper_of

SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))


def _t5() -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 97}
    others: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(**sizes, **others, tie_word_embeddings=False))


def _experts() -> PreTrainedModel:
    routed = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **routed, output_router_logits=True, tie_word_embeddings=False))


SFT = NegativeLogLikelihood()


@dataclass(frozen=True)
class Kind:
    """A model and what it is trained with."""

    model: Callable[[], PreTrainedModel] = _llama
    objective: Objective[Any] = SFT
    lora: LoraSection | None = None
    dtype: torch.dtype = torch.float32
    optimizer: OptimizerName = "adamw"
    replay: float = 1.0
    modes: tuple[str, ...] = ("replicate", "shard")


KINDS = {
    "llama": Kind(),
    "lora": Kind(lora=LoraSection(rank=4)),
    "dora": Kind(lora=LoraSection(rank=4, dora=True)),
    "lora over bfloat16": Kind(lora=LoraSection(rank=4), dtype=torch.bfloat16),
    "t5": Kind(_t5),
    "t5 lora": Kind(_t5, lora=LoraSection(rank=4)),
    "experts": Kind(_experts),
    "experts lora": Kind(_experts, lora=LoraSection(rank=4)),
    "bfloat16": Kind(dtype=torch.bfloat16, modes=("replicate",)),
    "muon": Kind(optimizer="muon", modes=("replicate",)),
    "logistic, replay": Kind(objective=SelfPlay(), replay=0.25),
    "ipo": Kind(objective=SelfPlay("ipo", gamma=0.2)),
    "gsil": Kind(objective=SelfPlay("gsil_brier", 0.01, length_normalize=True)),
    "t_spin": Kind(objective=SelfPlay("t_spin", 1.0, history_weight=0.1)),
    "t5 mixed": Kind(_t5, SelfPlay("logistic", reference_mixture=0.5)),
}
STEPS = 3


def _engine(kind: Kind) -> LogProbEngine:
    torch.manual_seed(5)
    model = kind.model().eval()
    model.to(kind.dtype)
    if kind.lora:
        new_adapter(model, kind.lora, "kinds")
    autocast = torch.bfloat16 if kind.dtype == torch.bfloat16 else None
    return LogProbEngine(model, autocast, tokens_per_forward=60)


def _rows(kind: Kind) -> list[Any]:
    """Short and long rows, more than fit one call, and not the same number for each of two ranks."""
    draw = torch.Generator().manual_seed(7)

    def ids(most: int) -> tuple[int, ...]:
        count = int(torch.randint(1, most, (1,), generator=draw))
        return tuple(torch.randint(3, 97, (count,), generator=draw).tolist())

    def answer(score: float) -> Answer:
        return Answer(ids(12), "", True, opponent=-score, base=-score - 1)

    if isinstance(kind.objective, NegativeLogLikelihood):
        answers = [ids(20) for _ in range(13)]
        return [TokenRow(str(i), ids(25), one, (True,) * len(one), True) for i, one in enumerate(answers)]
    first = [answer(11.0) if kind.objective.loss == "t_spin" else None for _ in range(13)]
    return [
        replace(Pair(str(i), ids(25), answer(20.0), (answer(19.0),), writer="sft", first=one), weight=weight)
        for i, one in enumerate(first)
        for weight in [kind.replay if i % 3 else 1.0]
    ]


def _train(engine: LogProbEngine, kind: Kind) -> dict[str, Any]:
    """Loss, facts and norm of each step."""
    stepper = stepper_of(engine, kind.objective, Optimization(1e-3, optimizer=kind.optimizer))
    rows, found = _rows(kind), []
    for step in range(STEPS):
        measured, norm = stepper.finite_gradients(rows[step:], step, False)
        facts = {name: value for name, value in measured.facts.items() if name not in ("imbalance", "waiting")}
        found.append({"loss": measured.loss, "norm": norm, **facts})
        stepper.update(1e-3)
    return {"steps": found}


def _weights(engine: LogProbEngine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters() if p.requires_grad}


def _hold(team: Team, name: str, mode: str) -> LogProbEngine:
    engine = _engine(KINDS[name])
    if mode == "shard":
        shard_model(engine, team, 1)
    team.objects[ENGINE] = engine
    return engine


def _alike(team: Team) -> list[dict[str, torch.Tensor]]:
    return team.gather(_weights(team.objects[ENGINE]))  # type: ignore[arg-type]


def _write(team: Team, folder: Path) -> None:
    for name, kind in KINDS.items():
        for mode in kind.modes:
            engine = team.call(_hold, name, mode)
            found = _train(engine, kind)
            found["weights"] = team.call(whole_weights)
            if mode == "replicate":
                found["ranks"] = team.call(_alike)
            torch.save(found, folder / f"{name}-{mode}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("kinds")
    on_ranks(2, partial(_write, folder=folder), folder / "logs")
    torch.set_num_threads(threads)
    return folder


def _bound(kind: Kind) -> float:
    """Of float32's rounding; bfloat16 products round to 3 digits."""
    return 0.02 if kind.dtype == torch.bfloat16 else 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_two_ranks_step_as_one_process(folder: Path, name: str) -> None:
    kind = KINDS[name]
    engine = _engine(kind)
    expected, weights = _train(engine, kind)["steps"], _weights(engine)
    bound = _bound(kind)
    for mode in kind.modes:
        found = torch.load(folder / f"{name}-{mode}.pt", weights_only=True)
        for mine, theirs in zip(found["steps"], expected, strict=True):
            assert mine == pytest.approx(theirs, rel=10 * bound, abs=bound), mode
        assert found["weights"].keys() == weights.keys()
        # Adam's first steps have the size of the rate, whatever the gradient: noise of one near 0 moves a weight by it
        far = torch.cat([(found["weights"][key] - weights[key]).float().abs().flatten() for key in weights])
        assert far.mean() < bound / 4, mode
        assert far.max() < (3e-3 + 0.01 if kind.dtype == torch.bfloat16 else 2e-4), mode
        for other in found.get("ranks", []):
            assert all(torch.equal(other[key], found["weights"][key]) for key in weights), "ranks differ"


def test_every_loss_of_a_kind() -> None:
    told = {kind.objective.loss for kind in KINDS.values() if isinstance(kind.objective, SelfPlay)}
    assert {"logistic", "ipo", "gsil_brier", "t_spin"} <= told


def test_refuses_shards_of_a_model_that_cannot_be_packed() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()
    engine = LogProbEngine(model)
    assert not engine.packed
    with pytest.raises(ModelError, match=r"parallel: shard .* replicate"):
        shard_model(engine, Team.__new__(Team), 1)


def test_only_what_can_be_sharded_is_sharded_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, of which there is none here, that is too small for a model or large enough."""
    gpu = SimpleNamespace(total_memory=1000)
    monkeypatch.setattr(followers, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()
    llama = _llama()

    def shards(model: PreTrainedModel, **more: object) -> bool:
        recipe = parse_recipe({"out": "o", "model": "m", "data": {"train": "x"}, "sft": {}, **more}, "test")
        loaded: Any = SimpleNamespace(loaded=SimpleNamespace(model=model), engine=LogProbEngine(model))
        return followers.shards(recipe, loaded)

    assert shards(llama)
    assert not shards(mamba)
    for more in ({"sft": {"optimizer": "adamw8bit"}}, {"weights": "bfloat16"}, {"lora": {"base": "nf4"}}):
        assert not shards(llama, **more)
        with pytest.raises(RecipeError, match="parallel: shard does not go with"):
            shards(llama, parallel="shard", **more)
    gpu.total_memory = 10**9
    assert not shards(llama)
