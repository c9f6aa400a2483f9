"""oneDNN computes what the layers compute, and leaves them as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spintune.kernels.linear import inference_kernels, training_kernels
from spintune.kernels.native.layers import rms_norm
from spintune.kernels.native.products import can_round

ENOUGH = 2**20

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this torch has no oneDNN",
)


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.fixture(params=["compiled", "oneDNN"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with our compiled products, and with oneDNN's as where there is no compiler."""
    if request.param == "oneDNN":
        monkeypatch.setattr("spintune.kernels.linear.can_multiply", lambda *tensors: False)
    else:
        request.getfixturevalue("compiled")
    return request.param


def layers(dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(48, 33), nn.SiLU(), Doubled(33, 20), nn.Linear(20, 70, bias=False))
    return model.to(dtype)


@pytest.mark.parametrize("copy_bytes", [0, ENOUGH], ids=["weights as they are", "in oneDNN's order"])
@pytest.mark.parametrize("shape", [(1, 48), (9, 48), (1, 200, 48), (0, 48)])
def test_float32_layers_agree_with_float64(shape, copy_bytes):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        expected = layers(torch.float64)(x)
        model = layers(torch.float32)
        with inference_kernels(model, None, copy_bytes):
            found = model(x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copy_bytes", [0, ENOUGH], ids=["weights as they are", "in oneDNN's order"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16_products_agree_with_autocast(weights, copy_bytes):
    model = layers(weights)
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with inference_kernels(model, torch.bfloat16, copy_bytes):
            found = model(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    # numbers up to 2, of 8 bits
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=2**-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("copy_bytes", [0, ENOUGH], ids=["weights as they are", "weights rounded once"])
def test_on_a_gpu_products_are_those_of_autocast(copy_bytes):
    model = layers(torch.float32).cuda()
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        expected = model(x)
        with inference_kernels(model, torch.bfloat16, copy_bytes):
            assert ("forward" in model[0].__dict__) == bool(copy_bytes)
            torch.testing.assert_close(model(x), expected)


def test_only_plain_layers_of_supported_types_are_changed_and_all_are_restored_even_after_an_error():
    model = layers(torch.float32)
    changed = []

    def use() -> None:
        with inference_kernels(model, None, ENOUGH):
            changed.extend("forward" in layer.__dict__ for layer in model)
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert changed == [True, False, False, True]
    assert not any("forward" in layer.__dict__ for layer in model)
    double = layers(torch.float64)
    with inference_kernels(double, None, ENOUGH):
        assert not any("forward" in layer.__dict__ for layer in double)


def test_nested_use_leaves_the_outer_products_in_place():
    model = layers(torch.float32)
    with inference_kernels(model, None, ENOUGH):
        outer = model[0].forward
        with inference_kernels(model, None, 0):
            assert model[0].forward is outer
        assert model[0].forward is outer


@pytest.mark.parametrize("shape", [(1, 48), (9, 48), (1, 200, 48), (2, 3, 48)])
def test_gradients_agree_with_float64(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = layers(torch.float64)
    expected_x = x.clone().requires_grad_()
    truth(expected_x).square().sum().backward()
    model = layers(torch.float32)
    found_x = x.float().requires_grad_()
    with training_kernels(model, None):
        assert "forward" in model[0].__dict__
        loss = model(found_x).square().sum()
    assert "forward" not in model[0].__dict__
    loss.backward()  # outside
    pairs = [(found_x.grad, expected_x.grad)] + [
        (mine.grad, theirs.grad) for mine, theirs in zip(model.parameters(), truth.parameters(), strict=True)
    ]
    for found, expected in pairs:
        assert (found.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("shape", [(0, 48), (2, 0, 48), (48,), (1, 48), (2, 3, 2, 48)])
def test_every_shape_goes_forward_and_backward(either, kind, shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(48, 33) if kind is nn.Linear else Conv1D(33, 48)
        x, slope = torch.randn(*shape[:-1], 96)[..., ::2], torch.randn(*shape[:-1], 66)[..., ::2]  # not contiguous
    twin = kind(48, 33) if kind is nn.Linear else Conv1D(33, 48)
    twin.load_state_dict(layer.state_dict())
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    with training_kernels(layer, None):
        assert ("forward" in layer.__dict__) == (kind is nn.Linear or either == "compiled")
        found = layer(mine)
    expected = nn.functional.linear(
        theirs, twin.double().weight if kind is nn.Linear else twin.double().weight.t(), twin.bias
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.backward(slope)
    expected.backward(slope.double())
    for one, other in ((mine, theirs), (layer.weight, twin.weight), (layer.bias, twin.bias)):
        assert one.grad.is_contiguous()
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mul_": lambda y: y.mul_(3),
    "add_": lambda y: y.add_(y.detach().square()),
    "clamp_": lambda y: y.clamp_(-0.3, 0.5),
    "part": lambda y: y.index_fill_(-1, torch.tensor([2, 7]), 0.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_outputs_may_be_changed_in_place(either, change):
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    model, truth = layers(torch.float32), layers(torch.float64)
    with training_kernels(model, None):
        CHANGES[change](model(x)).square().sum().backward()
    CHANGES[change](truth(x.double())).square().sum().backward()
    for mine, theirs in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("compiled")
def test_an_input_that_backward_computes_again_may_be_changed_after_its_use():
    """One layer reads a norm's result as it was, the next one as it is after a change in place."""
    x, weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(1)), torch.linspace(0.5, 2, 48)
    results = []

    def plain(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return nn.functional.rms_norm(x, [48], weight, epsilon)

    for dtype, norm in ((torch.float32, rms_norm), (torch.float64, plain)):
        model = nn.ModuleList([layers(dtype)[0], layers(dtype)[0]])
        leaf = x.to(dtype, copy=True).requires_grad_()
        with training_kernels(model, None):
            y = norm(leaf, weight.to(dtype), 1e-5)
            first = model[0](y if dtype == torch.float32 else y.clone())
            y.mul_(2)
            (first * model[1](y)).sum().backward()
        results.append([leaf.grad, *(parameter.grad for parameter in model.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copy_bytes", [0, ENOUGH])
@pytest.mark.parametrize("shape", [(0, 48), (48,), (2, 3, 2, 48)])
def test_gpt2s_transposed_layers_run_in_onednn_where_their_weights_may_be_copied(shape, copy_bytes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer, x = Conv1D(33, 48), torch.randn(shape)
    with torch.inference_mode(), inference_kernels(layer, None, copy_bytes):
        assert ("forward" in layer.__dict__) == bool(copy_bytes)
        found = layer(x)
    expected = x.double() @ layer.weight.detach().double() + layer.bias.detach().double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_frozen_weights_get_no_gradients_and_inputs_none_that_want_none():
    model = layers(torch.float32)
    model[3].weight.requires_grad_(False)
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    with training_kernels(model, None):
        model(x).sum().backward()
    assert model[3].weight.grad is None
    assert model[0].weight.grad is not None
    assert x.grad is None


def test_what_has_no_faster_product_is_left_alone():
    rounded = None if can_round() else torch.bfloat16
    for dtype, autocast in ((torch.float32, rounded or torch.float16), (torch.float64, None), (torch.bfloat16, None)):
        model = layers(dtype)
        with training_kernels(model, autocast):
            assert not any("forward" in layer.__dict__ for layer in model)


def bfloat16_exactly(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().double()


@pytest.mark.parametrize("shape", [(1, 48), (9, 48), (2, 3, 48)])
def test_rounded_layers_round_what_they_multiply_and_nothing_else(shape):
    if not can_round():
        pytest.skip("this processor gains nothing by rounding, or there is no compiler")
    layer = layers(torch.float32)[0]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    slope = torch.randn((*shape[:-1], 33), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16), training_kernels(layer, torch.bfloat16):
        y = layer(x)
    y.backward(slope)
    assert {t.dtype for t in (y, x.grad, layer.weight.grad)} == {torch.float32}
    w, inputs, g = (bfloat16_exactly(t.detach()) for t in (layer.weight, x, slope))
    rows, slopes = inputs.reshape(-1, 48), g.reshape(-1, 33)
    for found, expected in (
        (y, inputs @ w.t() + layer.bias.detach().double()),
        (x.grad, g @ w),
        (layer.weight.grad, slopes.t() @ rows),
        (layer.bias.grad, slope.double().reshape(-1, 33).sum(0)),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
