"""Attention of packed rows is masked attention over everything, however it is cut into calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spintune.engine import packing
from spintune.engine.attention import AttentionParams
from spintune.engine.packing import PackedLayout, PromptGroup, segments
from spintune.engine.varlen import VarlenLayout, flash_kernel

lengths = st.integers(1, 6)
branches = st.lists(st.builds(PromptGroup, lengths, st.lists(lengths, max_size=4).map(tuple)), min_size=1, max_size=3)


def by_definition(q: Tensor, k: Tensor, v: Tensor, params: AttentionParams, layout: PackedLayout) -> Tensor:
    """Every query against every key of the row, then a mask."""
    visible = torch.block_diag(*[branch.visible(params.window).double() for branch in layout.groups]).bool()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * params.scale
    if params.softcap:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v


def drawn(total: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(total)
    return [
        torch.randn(1, heads, total, 8, dtype=torch.float64, generator=draw).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]


@given(
    branches=branches,
    block=st.sampled_from([2, 6, 512]),
    params=st.builds(AttentionParams, st.just(0.3), st.sampled_from([None, 1, 3, 50]), st.sampled_from([None, 5.0])),
)
def test_a_packed_row_attends_as_its_mask_says(
    branches: list[PromptGroup], block: int, params: AttentionParams
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_BLOCK", block)
        layout = PackedLayout(branches, torch.device("cpu"))
        mine, wanted = (drawn(sum(branch.length for branch in branches)) for _ in range(2))
        found = layout.attend(0, *mine, params)
        expected = by_definition(*wanted, params, layout)
        tolerance = 1e-5 if params.softcap else 1e-9  # soft-capped scores go through a float32 softmax
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        weight = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).reshape(found.shape)
        (found * weight).sum().backward()
        (expected * weight).sum().backward()
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=tolerance, atol=tolerance)


@given(branch=st.builds(PromptGroup, st.integers(1, 900), st.lists(st.integers(1, 900), max_size=6).map(tuple)))
def test_pieces_hold_every_response_once_and_in_order(branch: PromptGroup) -> None:
    found = segments(branch)
    assert [length for piece in found for length in piece.responses if length] == list(branch.responses)
    masked = [piece for piece in found if not piece.with_prompt]
    assert all(len(piece.responses) == 1 or sum(piece.responses) < branch.prompt for piece in masked)


def test_a_long_response_goes_with_its_prompt_and_short_ones_together() -> None:
    found = segments(PromptGroup(100, (500, 500, 30, 40, 50, 200)))
    assert [(segment.responses, segment.with_prompt) for segment in found] == [
        ((500,), True),
        ((500,), True),  # 600 tokens are more than a block
        ((30, 40), False),
        ((50,), False),  # with it they would be more than the prompt
        ((200,), False),
    ]


@pytest.mark.parametrize("rounded_early", [True, False])
def test_short_bfloat16_attention_is_float32_attention_of_the_same_numbers(rounded_early: bool) -> None:
    branch = PromptGroup(5, (7, 3))
    q, k, v = drawn(branch.length, torch.bfloat16)
    if not rounded_early:  # as rotary embeddings leave queries and keys under autocast
        q, k = q.detach().float() * 1.001, k.detach().float() * 0.999
    layout = PackedLayout([branch], torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        found = layout.attend(0, q, k, v, AttentionParams(0.3))
    expected = by_definition(q.float(), k.float(), v.float(), AttentionParams(0.3), layout)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.to(torch.bfloat16), rtol=2**-7, atol=1e-6)
    if not rounded_early:
        assert (found.float() - expected).abs().max() < 2**-8 * expected.abs().max()


def varlen_by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """What torch documents of ``varlen_attn``, run by run; it has no kernel for a processor."""
    assert window_size[1] == 0
    outputs = []
    for run in range(len(cu_seq_q) - 1):
        queries, keys = (slice(int(cu[run]), int(cu[run + 1])) for cu in (cu_seq_q, cu_seq_k))
        q, k, v = query[queries], key[keys], value[keys]
        assert len(q) <= max_q
        assert len(k) <= max_k
        distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))[None, :]
        visible = (distance >= 0) & ((distance <= window_size[0]) if window_size[0] >= 0 else True)
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


@given(branches=branches, window=st.sampled_from([None, 1, 3, 50]), half=st.booleans())
def test_runs_of_variable_length_are_the_packed_row(
    branches: list[PromptGroup], window: int | None, half: bool
) -> None:
    params = AttentionParams(0.3, window)
    layout = VarlenLayout(branches, torch.device("cpu"), varlen_by_definition)
    packed = PackedLayout(branches, torch.device("cpu"))
    dtype = torch.bfloat16 if half else torch.float64  # the other goes the plain way
    mine, wanted = (drawn(sum(branch.length for branch in branches), dtype) for _ in range(2))
    found = layout.attend(3, *mine, params)
    expected = by_definition(*(x.double() for x in wanted), params, packed)
    tolerance = 0.05 if half else 1e-9
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    found.double().square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=2 * tolerance, atol=4 * tolerance)

    assert torch.equal(layout.positions(), packed.positions())


def test_there_is_no_flash_attention_on_a_processor() -> None:
    assert flash_kernel(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 3])
def test_torchs_own_kernel_is_the_definition(window: int | None) -> None:
    device = torch.device("cuda")
    kernel = flash_kernel(device)
    assert kernel
    branches = [PromptGroup(5, (7, 3, 60)), PromptGroup(40, ()), PromptGroup(1, (1,))]
    params, packed = AttentionParams(0.3, window), PackedLayout(branches, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    total = sum(branch.length for branch in branches)
    wanted = [torch.randn(1, heads, total, 64, generator=draw).bfloat16() for heads in (4, 2, 2)]
    mine = [x.to(device).requires_grad_() for x in wanted]
    wanted = [x.double().requires_grad_() for x in wanted]
    found = VarlenLayout(branches, device, kernel).attend(0, *mine, params)
    expected = by_definition(*wanted, params, packed)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0.02, atol=0.02)
    found.float().square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(mine, wanted, strict=True):
        assert (one.grad.cpu().double() - other.grad).norm() < 0.02 * other.grad.norm()
