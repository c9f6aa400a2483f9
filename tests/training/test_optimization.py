"""Schedules, decay, clipping and the order of rows, by hand."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from spintune.number_files import NumberFile
from spintune.streams import numpy_stream, stream_key
from spintune.training.batches import sizes_of, steps_by_rows, steps_by_tokens, steps_of_equal_tokens
from spintune.training.optimization import Optimization, build_optimizer, clip_gradients, gradient_norm, rate_at

# --- learning rates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 2 of 10 steps warm up: 1/2, 2/2; then 8 steps fall from 1 to 1/8 of the way
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (
            "cosine",
            [0.5, 1, 1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060],  # cos²(πk/16), k = 0..7
        ),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),  # the decay of 1 step begins at the peak
        ("inverse_sqrt", [0.5, 1, *((2 / step) ** 0.5 for step in range(2, 10))]),
    ],
)
def test_rates_by_hand(schedule, expected):
    optimization = Optimization(3e-4, schedule, warmup=0.2)
    assert [rate_at(step, 10, optimization) for step in range(10)] == pytest.approx(
        [3e-4 * share for share in expected], rel=1e-5
    )


def test_rates_that_fall_to_a_floor_by_hand():
    """Of 10 steps 2 warm up; wsd falls over the last 4. A tenth of the peak is what the step after the last has."""
    settings = {"warmup": 0.2, "decay": 0.4, "floor": 0.1}
    rates = {name: [rate_at(step, 10, Optimization(1.0, name, **settings)) for step in range(11)] for name in FALLING}
    assert rates["wsd"] == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1])
    assert rates["linear"][2:] == pytest.approx([1 - 0.9 * k / 8 for k in range(9)])
    assert rates["cosine"][2:] == pytest.approx([0.1 + 0.9 * math.cos(math.pi * k / 16) ** 2 for k in range(9)])


@pytest.mark.parametrize("total", [1, 7, 40, 333])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(
    ("schedule", "floor", "theirs", "arguments"),
    [
        ("constant", 0.0, "constant_with_warmup", {}),
        ("linear", 0.0, "linear", {}),
        ("linear", 0.2, "polynomial", {"lr_end": 0.2 * 3e-4, "power": 1.0}),
        ("cosine", 0.0, "cosine", {}),
        ("cosine", 0.2, "cosine_with_min_lr", {"min_lr_rate": 0.2}),
        ("wsd", 0.0, "warmup_stable_decay", {"decay_type": "linear"}),
        ("wsd", 0.2, "warmup_stable_decay", {"decay_type": "linear", "min_lr_ratio": 0.2}),
        ("inverse_sqrt", 0.0, "inverse_sqrt", {}),
    ],
)
def test_rates_are_those_of_transformers(schedule, floor, theirs, arguments, total, warmup):
    """After the warm-up. In it, transformers begins at 0, where a step moves nothing, so ours is one step ahead."""
    steps = round(warmup * total)
    if schedule == "wsd":
        arguments = {**arguments, "num_decay_steps": min(total - steps, max(1, round(0.3 * total)))}
    if schedule == "inverse_sqrt":
        steps = max(1, steps)  # without a warm-up theirs falls by another law
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = get_scheduler(theirs, optimizer, steps, total, arguments)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [rate_at(step, total, Optimization(3e-4, schedule, warmup, 0.3, floor)) for step in range(total)]
    assert ours[steps:] == pytest.approx(rates[steps:], rel=1e-12)
    if not floor:
        assert ours[: max(0, steps - 1)] == pytest.approx(rates[1:steps], rel=1e-12)


FALLING = ("cosine", "linear", "wsd")


@pytest.mark.parametrize("schedule", [*FALLING, "constant", "inverse_sqrt"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_every_step_of_any_run_moves(schedule, warmup):
    for total in (1, 2, 5, 37):
        rates = [rate_at(step, total, Optimization(1.0, schedule, warmup)) for step in range(total)]
        assert min(rates) > 0
        assert max(rates) <= 1


# --- AdamW ------------------------------------------------------------------------------------------------------


def test_weight_decay_moves_matrices_and_leaves_vectors_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, Optimization(0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # without a gradient AdamW multiplies by 1 - rate x decay = 0.95
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if name == "0.weight" else 1)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=0)


def test_a_step_of_adamw_in_float64_by_hand():
    model = torch.nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    optimizer = build_optimizer(model, Optimization(0.1))
    for gradient in ([3.0, -1.0], [-1.0, 0.0]):
        model.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    # first step: rate x sign; second: m = 0.9 x 0.1 g1 + 0.1 g2, v = 0.999 x 0.001 g1² + 0.001 g2², bias-corrected
    corrected = [(0.09 * 3 - 0.1) / 0.19, 0.09 * -1 / 0.19], [(0.999 * 9 + 1) / 1.999, 0.999 / 1.999]
    expected = [
        start - 0.1 * sign - 0.1 * m / math.sqrt(v)
        for start, sign, m, v in zip([1, -2], [1, -1], *corrected, strict=True)
    ]
    assert model.weight[0].tolist() == pytest.approx(expected, abs=1e-8)  # epsilon is 1e-8


def test_a_step_of_rmsprop_in_float64_by_hand():
    """torch's defaults, which the SPIN authors' scripts use: v = 0.99 v + 0.01 g², step = rate g / (√v + 1e-8)."""
    model = torch.nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
    optimizer = build_optimizer(model, Optimization(0.1, optimizer="rmsprop"))
    for gradient in ([3.0, -1.0], [-1.0, 0.0]):
        model.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    first = 1 - 0.1 * 3 / 0.3, -2 + 0.1 / 0.1
    expected = first[0] + 0.1 / math.sqrt(0.99 * 0.09 + 0.01), first[1]
    assert model.weight[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(2, 1)
    model.weight.requires_grad_(False)
    (group,) = build_optimizer(model, Optimization(0.1)).param_groups
    assert [p.shape for p in group["params"]] == [model.bias.shape]


def test_gradients_are_scaled_down_to_the_norm_and_never_up():
    model = torch.nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    norm = gradient_norm(model)
    assert norm.item() == 5
    for unchanged in (0.0, 5.0, 9.0):
        clip_gradients(model, norm, unchanged)
        assert model.bias.grad.item() == 4
    clip_gradients(model, norm, 1.0)
    assert (model.weight.grad.item(), model.bias.grad.item()) == pytest.approx((0.6, 0.8))


# --- order ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))
def test_every_row_is_seen_once_an_epoch_in_steps_of_the_asked_size(rows, per_step, epochs, seed):
    steps = steps_by_rows(rows, per_step, epochs, seed)
    per_epoch = math.ceil(rows / per_step)
    assert len(steps) == epochs * per_epoch
    for epoch in range(epochs):
        *full, last = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert all(len(step) == per_step for step in full)
        assert sorted(index for step in [*full, last] for index in step) == list(range(rows))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 80), st.integers(0, 5))
def test_steps_hold_at_most_their_tokens_and_are_filled_while_rows_fit(tokens, per_step, seed):
    steps = steps_by_tokens(tokens, per_step, 1, seed)
    assert sorted(index for step in steps for index in step) == list(range(len(tokens)))
    totals = [sum(tokens[index] for index in step) for step in steps]
    assert all(total <= per_step or len(step) == 1 for total, step in zip(totals, steps, strict=True))
    for total, following in zip(totals, steps[1:], strict=False):
        assert total + tokens[following[0]] > per_step


def test_order_is_a_pure_function_of_seed_and_epoch():
    torch.manual_seed(0)
    first = steps_by_rows(30, 4, 2, seed=5)
    torch.manual_seed(1)
    assert steps_by_rows(30, 4, 2, seed=5) == first
    assert steps_by_rows(30, 4, 2, seed=6) != first
    assert first[:8] != first[8:]
    # a longer run begins like a shorter one, and rows are in the same order whatever the steps
    assert steps_by_rows(30, 4, 3, seed=5)[:16] == first
    flat = [index for step in first for index in step]
    assert [index for step in steps_by_tokens([1] * 30, 7, 2, seed=5) for index in step] == flat


def test_first_rows_are_equally_often_first():
    counts = Counter(steps_by_rows(5, 1, 1, seed)[0][0] for seed in range(1000))
    # chi-square of 4 degrees of freedom: 33 is exceeded once in a million
    assert sum((counts[i] - 200) ** 2 / 200 for i in range(5)) < 33


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.25, 2), (0.5, 4), (1, 8), (1.25, 10), (2.5, 20)])
def test_fractional_epochs_take_their_share_of_steps(epochs, steps):
    result = steps_by_rows(32, 4, epochs, seed=1)
    assert len(result) == steps
    assert result == steps_by_rows(32, 4, 3, seed=1)[:steps]


def test_no_rows_give_no_steps():
    assert steps_by_rows(0, 4, 2, seed=1) == []
    assert steps_by_tokens([], 4, 2, seed=1) == []


def test_steps_of_equal_tokens_share_the_total_and_begin_with_the_asked_epoch() -> None:
    tokens = [3, 5, 7, 2, 9, 4, 6, 8]  # 44 an epoch
    steps = steps_of_equal_tokens(tokens, 4, 88, seed=5)
    assert [sum(tokens[i] for i in step) for step in steps] == pytest.approx([22] * 4, abs=9)
    rows = [i for step in steps for i in step]
    assert sorted(rows) == sorted([*range(8), *range(8)])  # two whole epochs, in different orders
    assert rows[:8] != rows[8:]
    later = [i for step in steps_of_equal_tokens(tokens, 4, 88, seed=5, first_epoch=1) for i in step]
    assert later[:8] == rows[8:]


def test_a_step_without_a_row_is_left_out_of_equal_tokens() -> None:
    """Two rows of 10 tokens in four steps of 5: their middles, 5 and 15, fall into the second and the last."""
    assert len(steps_of_equal_tokens([10, 10], 4, 20, seed=0)) == 2


# Steps as lists of lists, as the order of rows was drawn before it stayed on disk ------------------------------------


def listed_orders(rows: int, seed: int, first: int = 0) -> Iterator[list[int]]:
    for epoch in itertools.count(first):
        yield numpy_stream(stream_key(f"order/{seed}/{epoch}")).permutation(rows).tolist()


def listed_by_tokens(tokens: list[int], per_step: int, epochs: float, seed: int) -> list[list[int]]:
    per_epoch: list[list[list[int]]] = []
    for order in itertools.islice(listed_orders(len(tokens), seed), math.ceil(epochs)):
        steps: list[list[int]] = []
        room = 0
        for index in order:
            if not steps or tokens[index] > room:
                steps.append([])
                room = per_step
            steps[-1].append(index)
            room -= tokens[index]
        per_epoch.append(steps)
    last = per_epoch[-1]
    kept = last[: max(1, round((epochs - (len(per_epoch) - 1)) * len(last)))]
    return [step for steps in [*per_epoch[:-1], kept] for step in steps]


def listed_by_equal_tokens(tokens: list[int], steps: int, total: int, seed: int, first: int) -> list[list[int]]:
    made: list[list[int]] = [[] for _ in range(steps)]
    filled = 0
    for order in listed_orders(len(tokens), seed, first):
        for index in order:
            if (step := int((filled + tokens[index] / 2) * steps / total)) < steps:
                made[step].append(index)
            filled += tokens[index]
        if filled >= total:
            return [step for step in made if step]
    raise AssertionError


@given(
    tokens=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    epochs=st.sampled_from([0.3, 1, 2.5, 3]),
    seed=st.integers(0, 3),
)
def test_steps_on_disk_are_those_of_lists(tokens: list[int], epochs: float, seed: int) -> None:
    stored = NumberFile([np.array(tokens, np.int32)])
    steps = steps_by_tokens(stored, 50, epochs, seed)
    expected = listed_by_tokens(tokens, 50, epochs, seed)
    assert steps == expected
    assert list(sizes_of(steps)) == [len(step) for step in expected]
    assert steps[2:] == expected[2:]
    equal = listed_by_equal_tokens(tokens, 5, math.ceil(epochs * sum(tokens)), seed, first=2)
    assert steps_of_equal_tokens(stored, 5, math.ceil(epochs * sum(tokens)), seed, first_epoch=2) == equal


def test_the_order_of_an_epoch_takes_no_memory_once_its_steps_are_known() -> None:
    count = 200_000
    tokens = NumberFile([np.full(count, 100, np.int32)])
    tracemalloc.start()
    steps = steps_by_tokens(tokens, 10_000, 2, seed=0)
    held, most = tracemalloc.get_traced_memory()
    assert sorted(itertools.chain(*steps[:2000])) == list(range(count))  # an epoch has every row
    tracemalloc.stop()
    assert held < 8 * len(steps) + 50_000  # where each of 4,000 steps begins
    assert most < 12 * count  # an order of 4 bytes a row and lengths of 2, and blocks


def test_rows_of_more_tokens_than_two_bytes_count_have_steps_of_their_own() -> None:
    tokens = [10, 1 << 16, 10, (1 << 20) + 3]
    stored = NumberFile([np.array(tokens, np.int32)])
    assert steps_by_tokens(stored, 30, 1, seed=0) == listed_by_tokens(tokens, 30, 1, seed=0)
