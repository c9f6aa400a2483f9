"""Mixtures of experts: the load-balancing loss is transformers' own, and how tokens are spread is reported."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from families.builder import tiny_model
from tiny_models import FAMILIES

import spintune
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError
from spintune.tokens.rows import TokenRow
from spintune.training.batches import Batches
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import Optimization
from spintune.training.routing import Routers, load_facts

ROUTED = {"num_experts": 4, "num_experts_per_tok": 2}
MIXTURES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**ROUTED, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**ROUTED, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": ROUTED,
}
ROW = TokenRow("a", tuple(range(3, 12)), tuple(range(20, 34)), (True,) * 14, True)
SHORT = TokenRow("b", (4, 5), (6, 7, 8), (True,) * 3, True)


SILENT = ("deepseek v4 hashed", "granitemoehybrid dense")
"""Layers that all route by a table of tokens; a family of mixtures without an expert."""


@pytest.fixture
def moe(build, monkeypatch):
    for family, changes in MIXTURES.items():
        monkeypatch.setitem(FAMILIES, family, changes)
    return lambda family, **changes: build(family, dtype=torch.float32, **changes)


def theirs(model, row: TokenRow):
    """transformers' own call with labels and with the routers' loss."""
    ids = [*row.prompt_ids, *row.response_ids]
    labels = [*(-100 for _ in row.prompt_ids), *row.response_ids]
    return model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]), output_router_logits=True)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def trained(model, rows, folder, tokens: int = 1000, recompute: float = 0.0, **optimization):
    """One step; its report, and the gradients at the end of it."""
    engine = LogProbEngine(model, tokens_per_forward=tokens, recompute=recompute)
    reports, found = [], {}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, name=name: found.__setitem__(name, found.get(name, 0) + grad))
    train(
        engine,
        Batches(rows, [range(len(rows))]),
        NegativeLogLikelihood(),
        Optimization(1e-9, max_grad_norm=0.0, **optimization),
        Checkpoints(folder, 1e9),
        TrainingHooks(on_step=reports.append),
    )
    return reports[0], found


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("recompute", [0.0, 1.0])
def test_loss_and_gradients_of_a_row_are_those_of_transformers(family, recompute, moe, tmp_path):
    model = moe(family, router_aux_loss_coef=0.5, output_router_logits=True)
    output = theirs(model, ROW)
    output.loss.backward()
    expected = gradients(model)
    report, found = trained(model, [ROW], tmp_path, recompute=recompute)
    assert report.facts["router_aux_loss"] == pytest.approx(output.aux_loss.item(), rel=1e-4)
    assert report.loss == pytest.approx((output.loss - 0.5 * output.aux_loss).item(), rel=1e-4)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-2, atol=1e-4), name


def test_without_packing_the_calls_of_all_rows_count_together(moe):
    model = moe("mixtral")
    engine = LogProbEngine(model)
    engine.packed = False
    queries = [Query(ROW.prompt_ids, (ROW.response_ids,)), Query(SHORT.prompt_ids, (SHORT.response_ids,))]
    with Routers(model).watch() as routing:
        engine(queries)
    # one row at a time the last token of each is not read, since it predicts nothing
    assert [int(count_E.sum()) for count_E in routing.counts] == [2 * (sum(q.tokens for q in queries) - 2)] * 2
    assert 1.9 < routing.loss().item() < 4
    assert model.config.output_router_logits is False


def test_the_loss_is_used_as_the_models_config_asks_unless_the_recipe_says_otherwise(moe):
    def coefficient(given, **config):
        return Routers(moe("mixtral", router_aux_loss_coef=0.02, **config), given).coefficient

    assert coefficient(None, output_router_logits=True) == 0.02
    assert coefficient(None, output_router_logits=False) == 0.0
    assert coefficient(0.1, output_router_logits=False) == 0.1
    assert coefficient(0.0, output_router_logits=True) == 0.0


def test_a_coefficient_changes_gradients_and_not_the_reported_loss(moe, tmp_path):
    off, without = trained(moe("olmoe"), [ROW], tmp_path / "a")
    on, with_loss = trained(moe("olmoe"), [ROW], tmp_path / "b", router_aux_loss=0.5)
    assert on.loss == pytest.approx(off.loss, rel=1e-6)
    assert on.facts == pytest.approx(off.facts, rel=1e-6)
    assert any(not torch.allclose(without[name], with_loss[name], atol=1e-4) for name in without)


def test_over_calls_the_loss_is_their_mean_by_tokens(moe, tmp_path):
    model = moe("mixtral")
    alone = [theirs(model, row).aux_loss.item() for row in (ROW, SHORT)]
    sizes = [len(row.prompt_ids) + len(row.response_ids) for row in (ROW, SHORT)]
    expected = sum(loss * size for loss, size in zip(alone, sizes, strict=True)) / sum(sizes)
    report, _ = trained(model, [ROW, SHORT], tmp_path, tokens=1, router_aux_loss=0.5)
    assert report.facts["router_aux_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_spread_of_tokens_is_counted_by_layer():
    counts = [torch.tensor([4, 4, 4, 4]), torch.tensor([16, 0, 0, 0])]
    assert load_facts(counts) == {"expert_load": (1 + 4) / 2, "experts_idle": 3 / 8}
    assert load_facts([]) == {}


def test_a_model_without_experts_has_no_routers(build, tmp_path):
    model = build("llama", dtype=torch.float32)
    report, _ = trained(model, [ROW], tmp_path)
    assert not {"router_aux_loss", "expert_load"} & set(chain(report.facts))
    with pytest.raises(ModelError, match="router_aux_loss"):
        Routers(model, 0.1)
    assert Routers(model, 0.0).coefficient == 0.0


@pytest.mark.parametrize("name", SILENT)
def test_a_model_whose_routers_give_no_logits_is_told_and_trained(name, tmp_path, caplog):
    model = tiny_model(name)
    with pytest.raises(ModelError, match="router_aux_loss"):
        Routers(model, 0.1)
    model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.5
    with caplog.at_level("WARNING", "spintune"):
        assert Routers(model).coefficient == 0.0
    assert "trained without that loss" in caplog.text
    model.config.output_router_logits = False  # transformers' own calls fail with it
    report, _ = trained(model, [ROW], tmp_path)
    assert not {"router_aux_loss", "expert_load"} & set(report.facts)


def test_a_coefficient_that_would_do_nothing_is_refused_before_data_is_generated(tiny_model, alpaca_file, tmp_path):
    recipe = {"out": str(tmp_path / "run"), "model": str(tiny_model), "router_aux_loss": 0.01, "eval": []}
    with pytest.raises(ModelError, match="router_aux_loss"):
        spintune.run({**recipe, "data": {"train": str(alpaca_file), "max_length": 96}, "spin": {"max_new_tokens": 4}})
    assert not (tmp_path / "run/spin/iterate-1").exists()
