"""The probe: what may be packed is decided by structure and in float32, whatever the model's precision."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from families.builder import save_tiny, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from spintune.engine.float32 import in_float32
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.thresholds import lowered, thresholds
from spintune.errors import ModelError
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.models.loading import load_model

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# what a 16-token probe with a tolerance for half precision let pass, or a fresh model's nearly even predictions
REFUSED = {
    "bloom": ({}, "outside of transformers' attention interface"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "outside of transformers' attention interface"),
    "xglm": ({"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48}, "attention interface"),
    "gptj": ({"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}, "attention interface"),
    "falcon": ({}, "outside of transformers' attention interface"),
    "jamba": (
        {"num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "num_hidden_layers": 4, "num_key_value_heads": 2}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "a layer that is not attention",
    ),
    "falcon_h1": (
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
        "depend on each other",
    ),
}


def fresh(family, dtype=torch.float32, **changes):
    """A model as transformers initializes it, whose predictions hardly differ."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **changes}), dtype=dtype).eval()


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("precision", ["float32", "autocast", "stored"])
def test_what_ignores_the_layout_is_not_packed_in_any_precision(family, precision):
    changes, reason = REFUSED[family]
    if precision == "stored" and family in ("jamba", "falcon_h1"):
        pytest.skip("their scans mix float32 into bfloat16 weights")
    model = fresh(family, torch.bfloat16 if precision == "stored" else torch.float32, **changes)
    engine = LogProbEngine(model, torch.bfloat16 if precision == "autocast" else None)
    assert not engine.packed
    assert reason in engine.why


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma2"])
@pytest.mark.parametrize("precision", ["autocast", "stored"])
def test_packed_in_bfloat16_is_within_twice_the_error_of_a_plain_forward(family, precision, build, queries, plain):
    exact = plain(build(family), queries)
    dtype, autocast = (torch.bfloat16, None) if precision == "stored" else (torch.float32, torch.bfloat16)
    model = build(family, dtype=dtype)
    before = {name: (x.dtype, x.data_ptr()) for name, x in model.named_parameters()}
    engine = LogProbEngine(model, autocast)
    assert engine.packed
    assert {name: (x.dtype, x.data_ptr()) for name, x in model.named_parameters()} == before
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
        known = plain(model, queries).double()
        found = engine(queries).sum_N.double()
    assert (found - exact).norm() <= 2 * (known - exact).norm()


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_weights_stored_in_bfloat16_are_computed_in_float32_for_the_probe(family, build):
    model = build(family, dtype=torch.bfloat16)
    ids = torch.arange(1, 12)[None]
    expected = build(family, dtype=torch.bfloat16).float()(input_ids=ids).logits
    with in_float32(model), torch.no_grad():
        found = model(input_ids=ids).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.dtype == torch.bfloat16


def test_a_window_too_long_for_a_probe_is_made_short_for_it():
    model = fresh("mistral", sliding_window=4096)
    assert thresholds(model) == [4096]
    attention = model.model.layers[0].self_attn
    with lowered(model, above=1024, to=6):
        assert model.config.sliding_window == 6
    assert model.config.sliding_window == 4096
    engine = LogProbEngine(model)
    assert engine.packed
    assert "4096 tokens by rule" in engine.why
    assert attention.config.sliding_window == 4096


def test_a_window_in_a_mask_only_is_refused_however_long_it_is():
    moe = {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1}
    window = {"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 1}
    engine = LogProbEngine(fresh("qwen2_moe", **moe, **window))
    assert not engine.packed


def test_sinks_of_attention_are_packed():
    experts = {"num_local_experts": 2, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 9}
    model = fresh("gpt_oss", **experts)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.normal_(0, 2)
    engine = LogProbEngine(model)
    assert engine.packed
    assert "beyond 9 tokens" in engine.why


def test_a_model_whose_tokens_see_those_that_follow_is_refused_in_one_line():
    with pytest.raises(ModelError, match="not causal as configured") as caught:
        LogProbEngine(fresh("bert"))
    assert "\n" not in str(caught.value)


def test_what_does_not_compute_in_bfloat16_is_refused_in_one_line():
    model = tiny_model("dbrx")
    LogProbEngine(model)
    with pytest.raises(ModelError, match=r"does not compute in bfloat16: .*; set precision: float32") as caught:
        LogProbEngine(model, torch.bfloat16)
    assert "\n" not in str(caught.value)


def test_what_goes_wrong_in_bfloat16_alone_is_not_packed_there(build):
    model = build("llama", dtype=torch.float32)

    def overflows(module, arguments, output):
        wrong = torch.is_autocast_enabled("cpu") and output.shape[1] > 12  # longer than a plain row of the probe
        return torch.zeros_like(output) if wrong else output

    for layer in model.model.layers:
        layer.mlp.register_forward_hook(overflows)
    assert LogProbEngine(model).packed
    engine = LogProbEngine(model, torch.bfloat16)
    assert not engine.packed
    assert "in half precision" in engine.why


@pytest.mark.parametrize("name", ["falcon", "gptj", "bloom", "llama"])
def test_transformers_says_nothing_of_its_own(name, words, tmp_path, caplog):
    save_tiny(name, tmp_path / "model")
    own = logging.getLogger("transformers")
    own.addHandler(caplog.handler)  # it does not propagate
    try:
        with caplog.at_level(logging.WARNING, "transformers"), warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = load_model(str(tmp_path / "model"), cache=tmp_path)
            build_generator(LogProbEngine(loaded.model), words, frozenset()).generate([(5, 6, 7)], Sampling(2))
    finally:
        own.removeHandler(caplog.handler)
    assert [record.name for record in caplog.records if record.name.startswith("transformers")] == []
