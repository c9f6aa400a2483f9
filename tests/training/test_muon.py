"""Muon: updates by hand, which weights it takes, its memory, and steps across a checkpoint."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from spintune.errors import ModelError
from spintune.training import rounding
from spintune.training.checkpoint import Checkpoints
from spintune.training.footprint import footprint
from spintune.training.muon import Muon, check_muon, hidden_matrices
from spintune.training.optimization import Optimization, build_optimizer, optimizer_tensors, restore_optimizer
from spintune.training.rounding import PiecewiseOptimizer

SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
RATE, DECAY = 0.01, 0.5


def llama(tied: bool = True) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


def gpt2() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def t5(tied: bool) -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 97}
    return T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=tied))


def experts() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Each singular value s, divided by the root of the sum of their squares, goes five times through
    3.4445 s - 4.775 s³ + 2.0315 s⁵, by a decomposition in float64."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("shape", [(6, 4), (4, 9)])
def test_steps_of_a_matrix_in_float64_by_hand(shape: tuple[int, int]) -> None:
    """Momentum 0.95, Nesterov; torch's products are in bfloat16, and five steps multiply their rounding."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    layer = nn.Linear(shape[1], shape[0], bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(start)
    optimizer = build_optimizer(layer, Optimization(RATE, optimizer="muon", weight_decay=DECAY))
    weight, momentum, rate = start, torch.zeros(shape, dtype=torch.float64), RATE
    for gradient in gradients:
        layer.weight.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        momentum = 0.95 * momentum + gradient
        scale = rate * 0.2 * math.sqrt(max(shape))
        shrunk = weight * (1 - rate * DECAY)
        moved = (shrunk - layer.weight.detach()) / scale
        assert distance(moved, orthogonalized(gradient + 0.95 * momentum)) < 0.05
        weight, rate = layer.weight.detach().clone(), rate / 3
    assert distance(moved, orthogonalized(momentum)) > 0.1  # without Nesterov
    assert distance(moved, orthogonalized(gradient)) > 0.1  # without momentum


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """As a share of the expected norm."""
    return ((found - expected).norm() / expected.norm()).item()


def test_the_other_weights_move_as_under_adamw() -> None:
    """To the bit, with decay of matrices alone, while those of hidden layers go another way."""
    mine, theirs = llama(), llama()
    for model, name in ((mine, "muon"), (theirs, "adamw")):
        optimizer = build_optimizer(model, Optimization(RATE, optimizer=name, weight_decay=DECAY))  # type: ignore[arg-type]
        for step in range(3):
            give_gradients(model, step)
            optimizer.step()
    hidden = hidden_matrices(mine)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other) == (one not in hidden)


ATTENTION, GATED = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
GPT2 = {"c_attn", "c_proj", "c_fc"}
T5_LAYERS = {"q", "k", "v", "o", "wi", "wo"}


@pytest.mark.parametrize(
    ("make", "names", "count"),
    [
        (llama, ATTENTION | GATED, 7),
        (lambda: llama(tied=False), ATTENTION | GATED, 7),
        (gpt2, GPT2, 2 * 4),  # Conv1D; position embeddings are left out
        (lambda: t5(True), T5_LAYERS, 6 + 10),
        (lambda: t5(False), T5_LAYERS, 6 + 10),  # the head, and biases of relative positions, are left out
        (experts, ATTENTION, 4),
    ],
    ids=["llama", "llama untied", "gpt2", "t5", "t5 untied", "experts"],
)
def test_which_weights_muon_takes(make: Callable[[], PreTrainedModel], names: set[str], count: int) -> None:
    """The matrices of layers; embeddings, the head, norms, biases and tensors of experts stay with AdamW."""
    model = make()
    hidden = hidden_matrices(model)
    found = [name for name, parameter in model.named_parameters() if parameter in hidden]
    assert len(found) == len(hidden) == count
    assert {name.split(".")[-2] for name in found} == names
    optimizer = build_optimizer(model, Optimization(RATE, optimizer="muon"))
    assert isinstance(optimizer, Muon)
    assert set(optimizer.param_groups[0]["params"]) == hidden
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_moments_take_4_bytes_of_a_hidden_weight_and_8_of_others() -> None:
    """Of a Llama of width 32: q and o 32 x 32, k and v 16 x 32, three of 48 x 32; embeddings 97 x 32, three norms."""
    model = llama()
    optimizer = build_optimizer(model, Optimization(RATE, optimizer="muon"))
    give_gradients(model, 0)
    optimizer.step()
    held = sum(t.nbytes for key, t in optimizer_tensors(optimizer).items() if not key.endswith(".step"))
    assert held == footprint(model, "muon").moments == 4 * (2 * 1024 + 2 * 512 + 3 * 1536) + 8 * (97 * 32 + 3 * 32)
    with torch.device("meta"):
        assert footprint(LlamaForCausalLM(model.config), "muon").moments == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_it_goes_on_from_a_checkpoint_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, make: Callable[[], PreTrainedModel]
) -> None:
    settings = Optimization(RATE, optimizer="muon", weight_decay=DECAY)
    model, resumed = make().to(dtype), make().to(dtype)
    optimizer, again = build_optimizer(model, settings), build_optimizer(resumed, settings)
    checkpoints = Checkpoints(tmp_path, 0)
    for step in range(6):
        if step == 3:
            checkpoints.save(step, model, optimizer)
        give_gradients(model, step)
        optimizer.step()
    for step in range(checkpoints.restore(resumed, again), 6):
        give_gradients(resumed, step)
        again.step()
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))
    mine, theirs = optimizer_tensors(optimizer), optimizer_tensors(again)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("first", [True, False])
def test_pieces_are_whole_matrices_and_change_no_update(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """The same bits with moments elsewhere, whose state goes on in one object and back. Embeddings are divided."""
    monkeypatch.setattr(rounding, "PIECE", 1000)
    straight, model = llama(), llama()
    plain = build_optimizer(straight, Optimization(RATE, optimizer="muon", weight_decay=DECAY))
    for step in range(4):
        give_gradients(straight, step)
        plain.step()
    state: dict[str, torch.Tensor] = {}
    for part, offload in enumerate((first, not first)):
        optimizer = build_optimizer(model, Optimization(RATE, optimizer="muon", weight_decay=DECAY, offload=offload))
        restore_optimizer(optimizer, state)
        for step in (2 * part, 2 * part + 1):
            give_gradients(model, step)
            optimizer.step()
        state = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
        if isinstance(optimizer, PiecewiseOptimizer):
            assert [len(pieces) for pieces in optimizer._pieces] == [7, 4, 3]  # of 97 x 32 numbers, 1000 at once
    assert all(map(torch.equal, straight.parameters(), model.parameters()))


def test_a_torch_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(
        ModelError, match=r"^optimizer: muon needs torch 2\.9 or newer \(here: .*\); pip install"
    ) as told:
        build_optimizer(llama(), Optimization(RATE, optimizer="muon"))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("known", "device", "lines"), [(True, "cpu", 0), (False, "cpu", 1), (False, "cuda", 0)])
def test_a_processor_that_is_slow_in_bfloat16_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, known: bool, device: str, lines: int
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known, raising=False)
    with caplog.at_level(logging.WARNING):
        check_muon("sft.optimizer: muon", torch.device(device))
    assert len(caplog.records) == lines
