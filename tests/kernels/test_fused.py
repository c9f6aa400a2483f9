"""Fused layers against their formulas in float64, and against the models that they stand in for."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters

from spintune.engine.logprobs import LogProbEngine
from spintune.kernels.fused import fused_layers, patched_forwards, tied_lookup
from spintune.kernels.linear import inference_kernels
from spintune.kernels.native.layers import can_compute, rms_norm, swiglu
from spintune.kernels.native.products import product

compiled = pytest.mark.usefixtures("compiled")

shapes = st.tuples(st.sampled_from([1, 2, 7]), st.sampled_from([1, 5, 64, 65, 200]), st.sampled_from([16, 48, 64, 160]))


def drawn(*shapes: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(len(shapes))
    return [(scale * torch.randn(shape, generator=draw)).requires_grad_() for shape in shapes]


def norm_by_definition(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def agree(fast: Callable[..., Tensor], definition: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    wanted = [x.detach().double().requires_grad_() for x in tensors]
    found, expected = fast(*tensors), definition(*wanted)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    weight = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for one, other in zip(tensors, wanted, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


@compiled
@given(shape=shapes, scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_the_norm_is_its_formula(shape: tuple[int, ...], scale: float) -> None:
    x, weight = drawn(shape, shape[-1:])
    agree(lambda x, w: rms_norm(x, w, 1e-5), norm_by_definition, [(scale * x).detach().requires_grad_(), weight])


@compiled
@given(shape=shapes, scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_the_gate_is_its_formula(shape: tuple[int, ...], scale: float) -> None:
    agree(swiglu, lambda gate, up: gate * gate.sigmoid() * up, drawn(shape, shape, scale=scale))


@compiled
@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (64,), (2, 3, 2, 64)])
def test_every_shape_and_changes_in_place(shape: tuple[int, ...]) -> None:
    def sparse(x: Tensor) -> Tensor:  # not contiguous
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]

    x, up, weight = drawn(shape, shape, shape[-1:])
    agree(
        lambda x, up, w: rms_norm(sparse(x), w, 1e-5).mul_(3) + swiglu(sparse(x), sparse(up)).clamp_(-0.5, 0.4),
        lambda x, up, w: 3 * norm_by_definition(x, w) + (x * x.sigmoid() * up).clamp(-0.5, 0.4),
        [x, up, weight],
    )


@compiled
def test_extreme_gates_and_what_is_no_number() -> None:
    gate = torch.tensor([-1e30, -100.0, -88.0, 88.0, 1e30, torch.nan, torch.inf, 0.0] * 2)
    up = torch.ones(16)
    torch.testing.assert_close(swiglu(gate, up), nn.functional.silu(gate), equal_nan=True)
    assert rms_norm(gate, up, 1e-5).isnan().any()


@compiled
def test_threads_change_no_bit() -> None:
    results = []
    for threads in (1, 3):
        x, weight = drawn((3, 333, 64), (64,))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            y = rms_norm(x, weight, 1e-5)
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, weight))])
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@compiled
def test_few_rows_by_one_thread_have_the_bits_of_many_by_three() -> None:
    x, gate, weight, right = drawn((2000, 64), (2000, 64), (64,), (64, 48))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for layer in (
            lambda rows: rms_norm(x[rows], weight, 1e-5),
            lambda rows: swiglu(gate[rows], x[rows]),
            lambda rows: product(x[rows].detach(), right.detach()),
        ):
            assert torch.equal(layer(slice(700, 703)), layer(slice(None))[700:703])
    finally:
        torch.set_num_threads(before)


@compiled
def test_what_does_not_fit_is_left_to_torch() -> None:
    assert can_compute(torch.zeros(2, 32))
    assert not can_compute(torch.zeros(2, 32, dtype=torch.bfloat16))
    assert not can_compute(torch.zeros(2, 6))


# Gemma's norm multiplies by 1 + w, and its blocks have another activation; Phi-3's block has one matrix for both
RECOGNIZED = {
    "llama": (5, 2),
    "qwen3": (9, 2),
    "mistral": (5, 2),
    "gemma3_text": (0, 0),
    "phi3": (5, 0),
    "gpt2": (0, 0),
}


@compiled
@pytest.mark.parametrize("family", RECOGNIZED)
def test_layers_are_recognised_by_what_they_compute(family, build) -> None:
    model = build(family, torch.float32, hidden_size=64, head_dim=16, intermediate_size=96)
    found = list(fused_layers(model))
    norms = [module for module in found if "Norm" in type(module).__name__]
    assert (len(norms), len(found) - len(norms)) == RECOGNIZED[family]
    own = {name for name, module in model.named_modules() if "forward" in module.__dict__}
    with torch.no_grad(), inference_kernels(model, None, 2**30):
        fast = model(input_ids=torch.arange(9)[None]).logits
    assert own == {name for name, module in model.named_modules() if "forward" in module.__dict__}
    plain = build(family, torch.float64, hidden_size=64, head_dim=16, intermediate_size=96)
    expected = plain(input_ids=torch.arange(9)[None]).logits
    torch.testing.assert_close(fast.double(), expected, rtol=1e-4, atol=1e-4)


def falcon(build, multipliers: tuple[float, float]) -> nn.Module:
    changes = {"hidden_size": 64, "intermediate_size": 96, "mlp_multipliers": list(multipliers)}
    return build("falcon_h1", torch.float32, **changes)


@compiled
@pytest.mark.parametrize("order", [1, -1])
def test_two_models_of_a_class_with_different_settings_are_told_apart(build, order: int) -> None:
    for multipliers in [(1.0, 1.0), (0.5, 2.0), (1.0, 3.0), (1.0, 1.0)][::order]:
        model = falcon(build, multipliers)
        blocks = [module for name, module in model.named_modules() if name.endswith("feed_forward")]
        assert len(blocks) == 2
        assert {block in fused_layers(model) for block in blocks} == {multipliers == (1.0, 1.0)}
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = [block.double()(x.double()) for block in blocks]
            with inference_kernels(model.float(), None, 0):
                for block, wanted in zip(blocks, expected, strict=True):
                    torch.testing.assert_close(block(x).double(), wanted, rtol=1e-4, atol=1e-4)


@compiled
def test_a_setting_that_changes_is_seen(build) -> None:
    model = falcon(build, (1.0, 1.0))
    block = model.model.layers[0].feed_forward
    assert block in fused_layers(model)
    block.down_multiplier = 2.0
    assert block not in fused_layers(model)


@compiled
def test_small_numbers_and_few_bits_hide_no_other_activation(build) -> None:
    """Gemma's block has GELU: on tiny outputs in bfloat16 it looks like SiLU."""
    model = build("gemma3_text", torch.bfloat16, hidden_size=64, head_dim=16, intermediate_size=96)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.01)
    assert not fused_layers(model, compiled=True)
    assert len(fused_layers(build("llama", torch.bfloat16, hidden_size=64, intermediate_size=96), compiled=True)) == 7


@compiled
def test_autocast_around_the_first_look_changes_no_verdict(build) -> None:
    model = build("llama", torch.float32, hidden_size=64, intermediate_size=96)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(fused_layers(model)) == 7


class DroppingMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.act_fn, self.dropout = nn.SiLU(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


class GatedRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(16)), 1e-5

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y = norm_by_definition(x, self.weight)
        return y if gate is None else y * gate


class BiasedRMSNorm(GatedRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(16))  # what it adds shows only once it is trained

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x, gate) + self.bias


@compiled
def test_what_shows_only_later_is_left_alone() -> None:
    assert not fused_layers(nn.Sequential(DroppingMLP().eval(), BiasedRMSNorm()))


@compiled
def test_a_norm_that_is_called_with_more_answers_itself() -> None:
    norm, x = GatedRMSNorm(), drawn((3, 16))[0].detach()
    with patched_forwards(fused_layers(norm)):
        assert "forward" in norm.__dict__
        for found, expected in ((norm(x), norm_by_definition(x, norm.weight)), (norm(x, gate=x), norm(x) * x)):
            torch.testing.assert_close(found, expected)


@compiled
def test_recognizing_a_layer_calls_no_hook(build) -> None:
    model, calls = build("llama", torch.float32, hidden_size=64, intermediate_size=96), []
    for module in model.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    assert len(fused_layers(model)) == 7
    assert not calls


def test_nested_replacements_come_back() -> None:
    layer = nn.Linear(2, 2)
    with patched_forwards({layer: lambda x: x + 1}):
        with patched_forwards({layer: lambda x: x + 2}):
            assert layer(1) == 3
        assert layer(1) == 2
    assert "forward" not in layer.__dict__


def test_a_forward_that_somebody_put_there_stays(build) -> None:
    model = build("llama", torch.float32, hidden_size=64, intermediate_size=96)
    own = {module: lambda x: x for module in (model.model.norm, model.model.layers[0].mlp)}
    with patched_forwards(own):
        assert not set(own) & set(fused_layers(model))
    assert "forward" not in model.model.norm.__dict__


def test_a_tied_embedding_has_its_whole_gradient(build, queries, plain) -> None:
    changes = {"hidden_size": 64, "tie_word_embeddings": True}
    engine, reference = LogProbEngine(build("llama", torch.float32, **changes)), build("llama", **changes)
    assert tied_lookup(engine.model)
    for _ in range(2):  # a second pass adds to the first
        engine(queries).sum_N.sum().backward()
        plain(reference, queries).sum().backward()
    found, expected = (model.get_input_embeddings().weight.grad for model in (engine.model, reference))
    assert not found.is_sparse
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_an_embedding_of_its_own_is_left_alone(build) -> None:
    assert not tied_lookup(build("llama", torch.float32))


@compiled
@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists(), reason="torch.compile needs Python's headers"
)
def test_torch_compiles_the_same_for_all_numbers_of_tokens(build, queries, plain) -> None:
    changes = {"hidden_size": 64, "intermediate_size": 96}
    engine = LogProbEngine(build("llama", **changes), compiled=True)  # float64, for which there is no code of ours
    assert len(fused_layers(engine.model, compiled=True)) == 7
    reference = build("llama", **changes)
    compilations = counters["stats"]["unique_graphs"]
    for part in (queries, queries[:1], queries[1:]):
        found, expected = engine(part).sum_N, plain(reference, part)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # norms are float32 inside, as Llama's
        found.sum().backward()
        expected.sum().backward()
    for one, other in zip(engine.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] - compilations <= 4  # two formulas, the norm's also for one token's row
