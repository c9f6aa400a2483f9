"""Compiled rotation against its formula in float64, and inside the models that call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.kernels.linear import inference_kernels, training_kernels
from spintune.kernels.native.layers import can_rotate, rotate
from spintune.kernels.rotary import FastRotary, fast_rotation

Build = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("compiled")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    tokens=st.integers(1, 70), heads=st.integers(1, 5), width=st.sampled_from([32, 64, 96, 128]), strided=st.booleans()
)
def test_pairs_are_turned_by_their_angles(tokens: int, heads: int, width: int, strided: bool) -> None:
    laid_out = drawn(1, tokens, heads, width).transpose(1, 2) if strided else drawn(1, heads, tokens, width)
    angles, slope = drawn(1, tokens, width, seed=1), drawn(1, heads, tokens, width, seed=2)  # two angles a pair, even
    x, wide = laid_out.clone().requires_grad_(), laid_out.double().requires_grad_()
    assert can_rotate(x, angles)
    cos, sin = angles.cos(), angles.sin()
    found = rotate(x, cos, sin)
    half = width // 2
    turned = torch.cat([-wide[..., half:], wide[..., :half]], -1)
    expected = wide * cos.double()[:, None] + turned * sin.double()[:, None]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.backward(slope)
    expected.backward(slope.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 3])
def test_results_may_be_changed_in_place_and_have_no_tokens(tokens: int) -> None:
    x, angles = drawn(1, 2, tokens, 64).requires_grad_(), drawn(1, tokens, 64, seed=1)
    plain, cos, sin = x.detach().clone().requires_grad_(), angles.cos(), angles.sin()
    rotate(x, cos, sin).mul_(3).clamp_(-2, 2).sum().backward()
    turned = plain * cos[:, None] + torch.cat([-plain[..., 32:], plain[..., :32]], -1) * sin[:, None]
    (turned * 3).clamp(-2, 2).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_only_what_fits_is_taken() -> None:
    q = drawn(1, 2, 3, 64)
    assert can_rotate(q, drawn(1, 3, 64))
    assert not can_rotate(q, drawn(1, 3, 32))  # a part of each head
    assert not can_rotate(drawn(2, 2, 3, 64), drawn(2, 3, 64))
    assert not can_rotate(q.double(), drawn(1, 3, 64).double())
    assert not can_rotate(drawn(1, 2, 3, 24), drawn(1, 3, 24))


def test_a_files_function_is_replaced_where_it_computes_the_formula_and_put_back(build: Build) -> None:
    for family, file, wanted in (
        ("llama", modeling_llama, True),
        ("gpt_neox", modeling_gpt_neox, True),
        ("cohere", modeling_cohere, False),  # neighbors are its pairs
    ):
        own = file.apply_rotary_pos_emb
        with fast_rotation(build(family)):
            assert (file.apply_rotary_pos_emb is not own) == wanted
            with fast_rotation(build(family)):
                inside = file.apply_rotary_pos_emb
            assert file.apply_rotary_pos_emb is inside
        assert file.apply_rotary_pos_emb is own


def test_the_replacement_agrees_and_leaves_to_the_function_what_it_cannot(build: Build) -> None:
    own = modeling_llama.apply_rotary_pos_emb
    q, k, cos, sin = drawn(1, 4, 5, 64), drawn(1, 2, 5, 64, seed=1), drawn(1, 5, 64, seed=2), drawn(1, 5, 64, seed=3)
    with fast_rotation(build("llama")):
        fast = modeling_llama.apply_rotary_pos_emb
    for cast in (torch.Tensor.float, torch.Tensor.double):
        tensors = [cast(x) for x in (q, k, cos, sin)]
        for found, expected in zip(fast(*tensors), own(*tensors), strict=True):
            torch.testing.assert_close(found, expected)
    swapped = q.transpose(1, 2), k.transpose(1, 2), cos, sin
    for found in (fast(*swapped, unsqueeze_dim=2), fast(*swapped, 2)):
        for one, other in zip(found, own(*swapped, unsqueeze_dim=2), strict=True):
            torch.testing.assert_close(one, other)


def test_a_model_whose_heads_are_wide_enough_computes_what_transformers_does(build: Build) -> None:
    changes = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 64}
    for fast in (training_kernels, lambda model, autocast: inference_kernels(model, autocast, 0)):
        with fast(build("llama", **changes), None):
            assert isinstance(modeling_llama.apply_rotary_pos_emb, FastRotary)
    query = Query((5, 17, 80, 2), ((60, 31, 9), (44, 71)))
    engine = LogProbEngine(build("llama", **changes).float())
    assert engine.packed
    found = engine([query]).sum_N
    plain = build("llama", **changes).double()
    for mine, response in zip(found, query.responses, strict=True):
        ids = torch.tensor([[*query.prompt, *response]])
        logits = plain(input_ids=ids, use_cache=False).logits[0, len(query.prompt) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(response)[:, None]).sum()
        torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-4)
