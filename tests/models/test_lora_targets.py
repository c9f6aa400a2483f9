"""LoRA on experts that share a tensor: adapted, merged and resumed right, or refused by the key that is wrong."""

from __future__ import annotations

import warnings
from collections import Counter
from itertools import chain

import pytest
import torch
from families.builder import tiny_model

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import ModelError
from spintune.models.lora import load_adapter, merge, new_adapter, save_adapter
from spintune.models.lora_targets import find_targets
from spintune.recipe import LoraSection

ROUTED = {"num_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**ROUTED, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**ROUTED, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": ROUTED,
}


@pytest.fixture
def moe(build, monkeypatch):
    import tiny_models

    for family in FAMILIES:
        monkeypatch.setitem(tiny_models.FAMILIES, family, FAMILIES[family])
    return lambda family: build(family, dtype=torch.float32)


def scores(engine, queries):
    return torch.tensor(list(chain(*engine.score(queries))))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_adapts_attention_and_experts_of_every_family(family, moe):
    targets = find_targets(moe(family), "all-linear")
    names = {name.split(".")[-1] for name in (*targets.modules, *targets.parameters)}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"} <= names
    assert "lm_head" not in names


@pytest.mark.parametrize("family", FAMILIES)
def test_adapted_experts_start_equal_learn_resume_and_merge(family, moe, queries, tmp_path):
    model = moe(family)
    before = scores(LogProbEngine(model), queries)
    adapted = new_adapter(model, LoraSection(rank=2, targets=["q_proj", "gate_up_proj", "down_proj"]), "key")
    engine = LogProbEngine(model)
    assert scores(engine, queries).allclose(before, atol=1e-4)
    engine(queries).sum_N.sum().backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} >= {"q_proj", "base_layer", "experts"}
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                assert parameter.grad.abs().max() > 0, name
                parameter -= 0.3 * parameter.grad / parameter.grad.abs().max()
    moved = scores(engine, queries)
    assert (moved - before).abs().max() > 0.1
    save_adapter(adapted, tmp_path / "adapter", "base")
    again = moe(family)
    load_adapter(again, tmp_path / "adapter")
    assert scores(LogProbEngine(again), queries).allclose(moved, atol=1e-3)
    assert scores(LogProbEngine(merge(adapted)), queries).allclose(moved, atol=1e-3)


@pytest.mark.parametrize(("options", "key"), [({"dora": True}, "lora.dora"), ({"dropout": 0.1}, "lora.dropout")])
def test_what_experts_cannot_have_is_refused_by_its_own_key(options, key, moe):
    with pytest.raises(ModelError, match=key):
        new_adapter(moe("mixtral"), LoraSection(**options), "key")
    new_adapter(moe("mixtral"), LoraSection(targets=["q_proj", "v_proj"], **options), "key")


def test_an_unknown_target_lists_the_experts_too(moe):
    with pytest.raises(ModelError, match=r"no layer w1; known: .*gate_up_proj"):
        find_targets(moe("mixtral"), ["w1"])


def test_all_linear_leaves_out_what_fused_kernels_read_past_an_adapter(build):
    targets = find_targets(build("mamba", dtype=torch.float32), "all-linear")
    assert isinstance(targets.modules, list)
    assert {name.rpartition(".")[2] for name in targets.modules} == {"in_proj", "x_proj", "dt_proj"}


def test_all_linear_leaves_out_layers_that_share_weights(caplog):
    """Zamba2 has one transformer in several places: adapters of each place would all be merged into the one."""
    model = tiny_model("zamba2")
    weights = Counter(module.weight.data_ptr() for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert max(weights.values()) > 1
    with caplog.at_level("WARNING", "spintune"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = new_adapter(model, LoraSection(rank=2), "key")
    assert any("share weights" in record.getMessage() for record in caplog.records)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        ids = torch.arange(3, 13)[None]
        before = adapted(input_ids=ids, use_cache=False).logits
        assert merge(adapted)(input_ids=ids, use_cache=False).logits.allclose(before, atol=1e-4)
    with pytest.raises(ModelError, match="shares its weights"):
        find_targets(tiny_model("zamba2"), ["q_proj"])


@pytest.mark.parametrize("name", ["deepseek_v3", "llama", "qwen2_moe", "t5"])
def test_layers_that_peft_leaves_out_are_told(name, caplog):
    with caplog.at_level("WARNING", "spintune"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        new_adapter(tiny_model(name), LoraSection(rank=2), "key")
    told = [record.getMessage() for record in caplog.records]
    # five layers of attention and three of a dense block, twice
    left_out = "lora: peft adapts 10 of the 16 layers that lora.targets names, and leaves out "
    assert told == ([f"{left_out}model.layers.0.mlp.gate_proj, ..."] if name == "deepseek_v3" else [])
