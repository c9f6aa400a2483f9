"""The search for a rate: what it looks at, what it costs, and that every rung begins with the same bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from spintune.training.batches import Batches
from spintune.training.checkpoint import Checkpoints
from spintune.training.ladder import (
    Ladder,
    choose,
    climb,
    for_stage,
    gains,
    kept_gain,
    least,
    usual_rate,
)
from spintune.training.ladder_plan import BACKWARD, MAX_RUNGS, SHARE, plan_ladder
from spintune.training.loop import TrainingHooks, train
from spintune.training.objectives import SelfPlay
from spintune.training.optimization import Optimization, rate_at

from .test_exact_world import DATA, START, TableEngine, every_pair

START_LOSSES = [2.0, 2.2, 1.8, 2.0]


def valley(best: float) -> Any:
    """Losses that are least at a rate, steep above and flat below; training breaks two decades above."""

    def losses(rate: float) -> list[float] | None:
        distance = math.log10(rate / best)
        shift = -1.2 + (distance**2 if distance > 0 else 0.1 * distance**2)
        return None if distance > 1.9 else [start + shift for start in START_LOSSES]

    return losses


@pytest.mark.parametrize("best", [1e-6, 3.2e-5, 1e-4, 3.2e-4, 1e-2])
def test_the_least_loss_is_found_to_half_a_decade_within_six_rungs(best: float) -> None:
    losses = climb(valley(best), START_LOSSES, 1e-4, kept=1)
    assert least(losses) == choose(losses, START_LOSSES, kept=1) == pytest.approx(best)
    assert len(losses) <= MAX_RUNGS
    assert list(losses) == sorted(losses)


def test_sft_takes_the_highest_rate_that_keeps_half_of_the_gain() -> None:
    """Half a decade above the best 0.25 of a gain of 1.2 is lost, a decade above nearly all of it."""
    losses = climb(valley(1e-4), START_LOSSES, 1e-4, kept=0.5)
    assert least(losses) == 1e-4
    assert choose(losses, START_LOSSES, kept=0.5) == 3.2e-4


def test_a_short_stage_takes_the_least_loss() -> None:
    """It has no time to settle what a high rate stirs up."""
    assert [kept_gain(4, steps) for steps in (3, 7, 31, 32, 400)] == [1, 1, 1, 0.5, 0.5]
    losses = climb(valley(1e-4), START_LOSSES, 1e-4, kept_gain(4, 7))
    assert choose(losses, START_LOSSES, kept_gain(4, 7)) == 1e-4


def test_self_play_takes_less_for_a_longer_run() -> None:
    assert for_stage(1e-3, 4, 400) == 1e-4
    assert for_stage(1e-3, 30, 20) == 1e-3


def test_rates_that_cannot_be_told_from_the_best_count_as_well_as_it() -> None:
    noisy = {1e-4: [2.0, 2.2, 1.7, 2.0], 3.2e-4: [2.3, 1.9, 1.8, 2.1], 1e-3: [2.5, 2.7, 2.3, 2.6]}
    assert least(noisy) == 1e-4
    assert choose(noisy, START_LOSSES, kept=0.5) == 3.2e-4
    assert not gains(noisy[3.2e-4], START_LOSSES)
    assert gains([1.9, 2.0, 1.7, 1.9], START_LOSSES)


def test_where_no_rate_changes_anything_the_search_does_not_go_down() -> None:
    def nothing_or_harm(rate: float) -> list[float]:
        return [start + (rate > 2e-4) * 1.0 + 1e-3 * (-1) ** place for place, start in enumerate(START_LOSSES)]

    assert min(climb(nothing_or_harm, START_LOSSES, 1e-3, kept=0.5)) >= 3.2e-5


def test_a_search_that_never_turns_ends_and_has_its_best_at_the_end() -> None:
    losses = climb(lambda rate: [-rate, -rate], [0.0, 0.0], 1e-4, kept=1)
    assert len(losses) <= MAX_RUNGS
    assert least(losses) == max(losses)


def test_where_training_breaks_the_search_goes_down() -> None:
    """From 1e-2 by decades to the first rate at which it does not break, and on to 3.2e-5, the best."""
    tried: list[float] = []

    def losses_of(rate: float) -> list[float] | None:
        tried.append(rate)
        return valley(3.2e-5)(rate)

    climb(losses_of, START_LOSSES, 1e-2, kept=1)
    assert tried[:3] == [1e-2, 1e-3, 1e-4]
    tried.clear()
    climb(lambda rate: tried.append(rate), START_LOSSES, 1e-2, kept=1)
    assert tried == sorted(tried, reverse=True)


def test_no_rate_is_tried_that_replaces_the_weights_in_a_few_steps() -> None:
    losses = climb(lambda rate: [-rate, -rate], [0.0, 0.0], 3.2e-2, kept=0.5)
    assert max(losses) == 0.1


def test_the_usual_rates_are_half_decades_and_fall_with_size() -> None:
    assert usual_rate(135_000_000, adapters=False, self_play=False) == 1e-4
    assert usual_rate(135_000_000, adapters=True, self_play=False) == 1e-3
    assert usual_rate(135_000_000, adapters=False, self_play=True) == 3.2e-5
    assert usual_rate(7_000_000_000, adapters=False, self_play=False) == 1e-5
    assert usual_rate(100_000, adapters=False, self_play=False) == 3.2e-3


@pytest.mark.parametrize("passes", [BACKWARD, BACKWARD + 2])
@pytest.mark.parametrize("steps", [60, 400, 5000])
def test_the_longest_ladder_costs_less_than_a_fifth_of_its_stage(steps: int, passes: int) -> None:
    tokens, heldout = [4096] * steps, [100] * 500
    plan = plan_ladder(tokens, 40, heldout, 20, passes)
    trained = plan.moments + MAX_RUNGS * plan.steps
    cost = BACKWARD * 4096 / plan.parts * trained + MAX_RUNGS * 100 * plan.heldout
    assert plan.share == pytest.approx(cost / (passes * sum(tokens)))
    assert plan.share <= SHARE
    assert 20 <= plan.heldout <= 500
    assert plan.steps >= 4


def test_a_small_stage_divides_its_steps_and_a_tiny_one_says_what_it_costs() -> None:
    small = plan_ladder([1000] * 20, 16, [60] * 40, 20, BACKWARD)
    assert (small.parts > 1, small.steps) == (True, 4)
    tiny = plan_ladder([400] * 3, 4, [100] * 25, 20, BACKWARD)
    assert (tiny.parts, tiny.steps, tiny.heldout) == (4, 4, 20)
    assert tiny.share > SHARE


def test_moment_steps_have_rate_0_and_are_no_part_of_the_schedule() -> None:
    plain, later = Optimization(1e-3, "linear", warmup=0.2), Optimization(1e-3, "linear", warmup=0.2, moment_steps=3)
    assert [rate_at(step, 13, later) for step in range(13)] == [0.0] * 3 + [rate_at(s, 10, plain) for s in range(10)]


@pytest.fixture
def ladder(tmp_path: Path) -> Ladder[Any]:
    return made(TableEngine(START), tmp_path)


def made(engine: Any, folder: Path) -> Ladder[Any]:
    pairs = every_pair(DATA, START)
    batches = Batches(pairs, [list(range(len(pairs)))] * 40)
    plan = plan_ladder([100] * 40, len(pairs), [10] * 20, 20, BACKWARD)
    optimization = Optimization(0.0, "linear", max_grad_norm=0.0)
    return Ladder(engine, batches, SelfPlay("logistic", 1.0), optimization, plan, folder / "start", TrainingHooks())


def weights(ladder: Ladder[Any]) -> torch.Tensor:
    return ladder._engine.model.logit_A.detach().clone()


def test_rungs_are_independent_and_the_model_comes_back_to_the_bit(ladder: Ladder[Any]) -> None:
    before = weights(ladder)
    found = {}
    for rate in (1e-2, 1.0, 1e-2):
        assert ladder.train(rate)
        found.setdefault(rate, []).append(weights(ladder))
    assert torch.equal(*found[1e-2])
    assert not torch.equal(found[1e-2][0], found[1.0][0])
    ladder.restore()
    assert torch.equal(weights(ladder), before)


def test_a_ladder_in_another_process_goes_on_with_the_same_bits(ladder: Ladder[Any], tmp_path: Path) -> None:
    ladder.train(1e-2)
    again = made(TableEngine(START), tmp_path)
    again.train(1e-2)
    assert torch.equal(weights(again), weights(ladder))


def test_a_rung_is_a_run_whose_first_steps_had_rate_0(ladder: Ladder[Any], tmp_path: Path) -> None:
    """Against the loop itself, in one go and without a checkpoint."""
    ladder.train(1e-2)
    plan = ladder.plan
    engine: Any = TableEngine(START)
    pairs = every_pair(DATA, START)
    parts = [pairs[place :: plan.parts] for place in range(plan.parts)]
    steps = [parts[step % plan.parts] for step in range(plan.moments + plan.steps)]
    indices = [[pairs.index(pair) for pair in step] for step in steps]
    optimization = Optimization(1e-2, "linear", max_grad_norm=0.0, moment_steps=plan.moments)
    objective, anything = SelfPlay("logistic", 1.0), Checkpoints(tmp_path / "none", 1e9)
    train(engine, Batches(pairs, indices), objective, optimization, anything)
    assert torch.equal(engine.model.logit_A, ladder._engine.model.logit_A)


def test_a_rung_that_breaks_says_so_and_the_next_one_is_whole(ladder: Ladder[Any], tmp_path: Path) -> None:
    before = made(TableEngine(START), tmp_path / "other")
    before.train(1e-2)
    assert not ladder.train(1e308)
    assert ladder.train(1e-2)
    assert torch.equal(weights(ladder), weights(before))
