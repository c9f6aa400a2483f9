"""What is computed again in the backward pass is the same, and what is not kept is not kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError
from spintune.kernels import linear as products
from spintune.kernels.native.layers import recompute_of, rms_norm
from spintune.models.lora import dropout

CHANGES = {"hidden_size": 64, "head_dim": 16, "num_hidden_layers": 4}


def gradients(engine: LogProbEngine, queries: list[Query]) -> list[Tensor | None]:
    engine.model.zero_grad()
    engine(queries).sum_N.sum().backward()
    return [parameter.grad for parameter in engine.model.parameters()]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_no_bit_of_a_gradient_changes(family, dtype, share, build, queries) -> None:
    changes = CHANGES if family != "gpt2" else {}
    engines = [LogProbEngine(build(family, dtype, **changes), recompute=again) for again in (0.0, share)]
    plain, again = (gradients(engine, queries) for engine in engines)
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(plain, again, strict=True))
    assert not any("forward" in module.__dict__ for module in engines[1].model.modules())


def test_an_encoder_decoder_drops_the_same_twice(queries) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.3}
    results = []
    for share in (0.0, 1.0):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            config = AutoConfig.for_model("t5", vocab_size=97, decoder_start_token_id=0, **sizes)
            engine = LogProbEngine(AutoModelForSeq2SeqLM.from_config(config).eval(), recompute=share)
        with dropout(engine.model, "stream", 0.3):
            results.append(gradients(engine, queries))
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize(("share", "expected"), [(0.0, [1, 1, 1, 1]), (0.5, [1, 2, 1, 2]), (1.0, [2, 2, 2, 2])])
def test_a_share_of_the_layers_is_computed_twice(share, expected, build, queries) -> None:
    engine = LogProbEngine(build("llama", torch.float32, **CHANGES), recompute=share)
    calls = [0] * 4
    for i, layer in enumerate(engine.model.model.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    gradients(engine, queries)
    assert calls == expected
    calls[:] = [0] * 4
    engine.score(queries)
    assert calls == [1] * 4


def test_an_architecture_without_layers_is_refused_at_once(build) -> None:
    model = build("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="recompute: LlamaForCausalLM does not say what its layers are"):
        LogProbEngine(model, recompute=0.5)


@pytest.mark.usefixtures("compiled")
def test_norms_and_gated_products_are_not_kept(build, queries, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LogProbEngine(build("llama", torch.float32, **CHANGES, intermediate_size=96))

    def kept() -> int:
        """Bytes of different tensors that the backward pass needs, weights aside."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in engine.model.parameters()}
        found: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with saved_tensors_hooks(pack, lambda x: x):
            loss = engine(queries).sum_N.sum()
        total = sum(size for place, size in found.items() if place not in weights)
        loss.backward()
        return total

    little = kept()
    monkeypatch.setattr(products, "recompute_of", lambda x: None)
    much = kept()
    tokens = sum(query.tokens for query in queries)
    # of each layer two norms and one gated product
    assert much - little == 4 * tokens * 4 * (2 * 64 + 96)


@pytest.mark.usefixtures("compiled")
def test_what_was_changed_in_place_is_kept_as_it_is() -> None:
    x, weight = torch.randn(3, 16, requires_grad=True), torch.ones(16)
    y = rms_norm(x, weight, 1e-5)
    made = recompute_of(y)
    assert made
    assert torch.equal(made.make(*made.inputs), y)
    y.mul_(2)
    assert recompute_of(y) is None
    assert recompute_of(rms_norm(x.detach(), weight, 1e-5)) is None
