"""SFT and its held-out loss: when it is measured, which weights are kept, also by a run that was stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from spintune.errors import RunError
from spintune.progress import Silent
from spintune.training.batches import steps_by_rows, steps_of_equal_tokens
from spintune.training.checkpoint import Checkpoints
from spintune.training.optimization import Optimization, build_optimizer, rate_at
from spintune.training.sft import HeldoutRule, SftHooks, SftOutcome, SftRows, evaluation_steps, heldout_loss, run_sft
from spintune.unfinished import HeldoutLosses

NEVER = 1e9  # minutes
RATE = Optimization(3e-2, "cosine", warmup=0.1)
"""So high that a few rows are known by heart after some epochs."""
TRAINED, HELDOUT = slice(0, 6), slice(6, 11)
EPOCHS = 3
STEPS = steps_by_rows(6, 2, EPOCHS, seed=1)
BEST = HeldoutRule(1 / 3, keep_best=True)
"""An evaluation after each step."""


class StoppedError(Exception):
    pass


class NoAnswers:
    """No prompt is sampled, so there is nothing to answer."""

    def generate(self, prompts: Any, sampling: Any) -> list[Any]:
        assert not prompts
        return []


class Trained:
    """What a call of run_sft did: the losses and weights at each evaluation, the learning rates, the outcome."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.rates: list[float] = []
        self.outcome = SftOutcome(0, 0, None)


def weights(engine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def assert_same_bits(mine, theirs) -> None:
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []


def sft(engine, rows, folder: Path, rule: HeldoutRule = BEST, *, minutes: float = NEVER, stop: int = 0) -> Trained:
    """Trains; with ``stop``, an error ends it when that step was told of."""
    trained = Trained()

    def evaluated(step: int, loss: float, answers: list[str]) -> None:
        trained.losses[step] = loss
        trained.weights[step] = weights(engine)

    def stepped(report) -> None:
        trained.rates.append(report.learning_rate)
        if report.step == stop:
            raise StoppedError

    data = SftRows(rows[TRAINED], STEPS, rows[HELDOUT], [])
    with Silent().task("SFT", len(STEPS), "steps") as task:
        hooks = SftHooks(on_step=stepped, on_evaluation=evaluated)
        trained.outcome = run_sft(engine, NoAnswers(), data, rule, RATE, Checkpoints(folder, minutes), task, hooks)
    return trained


def least(losses: dict[int, float]) -> int:
    return min((step for step in losses if step), key=lambda step: losses[step])


def test_the_weights_of_the_least_held_out_loss_are_kept(player, rows, tmp_path):
    engine = player()
    trained = sft(engine, rows, tmp_path / "best")
    assert list(trained.losses) == list(range(len(STEPS) + 1))
    best = least(trained.losses)
    assert 1 < best < len(STEPS) / 2  # the rows are random: what is learned of them by heart is wrong for others
    assert trained.losses[len(STEPS)] > trained.losses[best] + 0.25
    outcome = trained.outcome
    assert (outcome.steps, outcome.kept, outcome.loss) == (len(STEPS), best, trained.losses[best])
    assert outcome.losses == HeldoutLosses(
        trained.losses[0], trained.losses[len(STEPS)], trained.losses[best], best, len(STEPS) - best
    )
    assert_same_bits(weights(engine), trained.weights[best])
    assert heldout_loss(engine, rows[HELDOUT]) == trained.losses[best]


def test_progress_has_the_newest_held_out_loss_and_at_the_end_that_before_and_after(player, rows, tmp_path):
    shown: list[dict[str, object]] = []
    measured: dict[int, float] = {}

    class Facts:
        def advance(self, amount: float = 1, safe: bool = True, restored: bool = False, **facts: object) -> None:
            shown.append(facts)

    data = SftRows(rows[TRAINED], STEPS[:6], rows[HELDOUT], [])
    hooks = SftHooks(on_evaluation=lambda step, loss, answers: measured.update({step: loss}))
    outcome = run_sft(player(), NoAnswers(), data, BEST, RATE, Checkpoints(tmp_path, NEVER), Facts(), hooks)
    _, *steps, end = shown
    before = [max(done for done in measured if done < step) for step in range(1, 7)]
    assert [facts["held_out"] for facts in steps] == [measured[step] for step in before]
    assert end == {"held_out": (measured[0], measured[outcome.kept])}


def test_without_that_rule_the_last_weights_are_kept_and_no_others_are_written(player, rows, tmp_path):
    engine = player()
    trained = sft(engine, rows, tmp_path, HeldoutRule(1 / 3))
    assert (trained.outcome.kept, trained.outcome.loss) == (len(STEPS), trained.losses[len(STEPS)])
    assert_same_bits(weights(engine), trained.weights[len(STEPS)])
    assert list(tmp_path.iterdir()) == []


def test_the_last_weights_are_the_best_where_the_loss_falls_to_the_end(player, rows, tmp_path):
    """And then they are in memory: only the weights of evaluations before the last are written."""
    engine = player()
    data = SftRows(rows, steps_by_rows(len(rows), 4, 3, seed=1), rows, [])
    with Silent().task("SFT", 9, "steps") as task:
        checkpoints = Checkpoints(tmp_path, NEVER)
        outcome = run_sft(engine, NoAnswers(), data, HeldoutRule(1, True), RATE, checkpoints, task, SftHooks())
    assert outcome.kept == outcome.steps == 9
    assert [path.name for path in tmp_path.iterdir()] == ["best-00000006"]


@pytest.mark.parametrize(("minutes", "patience"), [(0.0, None), (NEVER, None), (0.0, 3)])
def test_a_run_stopped_at_any_step_keeps_the_same_weights(player, rows, tmp_path, minutes, patience):
    rule = HeldoutRule(1 / 3, True, patience)
    whole = player()
    expected = sft(whole, rows, tmp_path / "whole", rule, minutes=minutes)
    best = expected.outcome.kept
    for stop in [best + 1] if minutes else sorted({1, best, best + 1, expected.outcome.steps}):
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(StoppedError):
            sft(player(), rows, folder, rule, minutes=minutes, stop=stop)
        assert len(list(folder.glob("best-*"))) <= 2
        resumed = player()
        trained = sft(resumed, rows, folder, rule, minutes=minutes)
        assert trained.outcome == expected.outcome
        assert_same_bits(weights(resumed), weights(whole))
        begun = stop - 1 if minutes == 0 else 0  # the stop came before the checkpoint of its own step
        assert trained.losses == {step: loss for step, loss in expected.losses.items() if step > begun or not begun}


def test_patience_ends_training_and_leaves_the_schedule_as_it_was(player, rows, tmp_path):
    engine = player()
    trained = sft(engine, rows, tmp_path / "a", HeldoutRule(1 / 3, True, 2), minutes=0)
    best = least(trained.losses)
    assert (trained.outcome.steps, trained.outcome.kept) == (best + 2, best)
    assert trained.rates == [rate_at(step, len(STEPS), RATE) for step in range(best + 2)]
    assert_same_bits(weights(engine), trained.weights[best])
    # once more, from the checkpoint of the very step at which it ended: not a step more
    again = player()
    trained = sft(again, rows, tmp_path / "a", HeldoutRule(1 / 3, True, 2), minutes=0)
    assert (trained.rates, trained.losses) == ([], {})
    assert (trained.outcome.steps, trained.outcome.kept) == (best + 2, best)
    assert_same_bits(weights(again), weights(engine))


def test_patience_without_the_best_keeps_the_step_at_which_it_ends(player, rows, tmp_path):
    engine = player()
    trained = sft(engine, rows, tmp_path, HeldoutRule(1 / 3, False, 2))
    assert trained.outcome.kept == trained.outcome.steps == least(trained.losses) + 2
    assert_same_bits(weights(engine), trained.weights[trained.outcome.steps])


def test_a_checkpoint_names_its_best_weights_which_stay_until_the_next_one(player, rows, tmp_path):
    """Of a checkpoint of step 1 and the weights of step 2, which are better, the first are needed to go on."""
    with pytest.raises(StoppedError):
        sft(player(), rows, tmp_path, minutes=0, stop=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000002", "step-00000002"]
    facts = json.loads((tmp_path / "step-00000002/checkpoint.json").read_text())
    assert (facts["best"], facts["heldout"]["step"]) == (2, 2)
    model = player().model
    checkpoints = Checkpoints(tmp_path, NEVER)
    checkpoints.restore(model, build_optimizer(model, Optimization(1e-3)))
    checkpoints.save_best(3, model)
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-00000002", "best-00000003"]
    checkpoints.save_best(4, model)
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-00000002", "best-00000004"]
    Checkpoints(tmp_path, NEVER).restore(model, build_optimizer(model, Optimization(1e-3)))
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-00000002"]


@pytest.mark.parametrize("file", ["weights.safetensors", "checkpoint.json"])
def test_a_checkpoint_whose_best_weights_are_damaged_is_not_used(player, rows, tmp_path, file, caplog):
    whole = player()
    sft(whole, rows, tmp_path / "whole")
    with pytest.raises(StoppedError):
        sft(player(), rows, tmp_path / "a", minutes=0, stop=6)
    (path,) = tmp_path.glob(f"a/best-*/{file}")
    path.write_bytes(path.read_bytes()[:-9])
    again = player()
    assert len(sft(again, rows, tmp_path / "a").rates) == len(STEPS)
    assert "this checkpoint is not used" in caplog.text
    assert_same_bits(weights(again), weights(whole))


def test_best_weights_that_are_damaged_when_they_are_needed_are_told(player, rows, tmp_path):
    model = player().model
    checkpoints = Checkpoints(tmp_path, NEVER)
    checkpoints.save_best(7, model)
    (tmp_path / "best-00000007/weights.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"best-00000007.*as it was written\); delete .* and run again"):
        checkpoints.load_best(model)


def test_losses_that_are_no_numbers_are_never_the_best():
    losses = HeldoutLosses().after(0, 3.0)
    assert losses == HeldoutLosses(3.0, 3.0)
    losses = losses.after(2, math.nan)
    assert losses == HeldoutLosses(3.0, None, later=1)
    losses = losses.after(4, 2.5).after(6, 2.5).after(8, math.inf)
    assert losses == HeldoutLosses(3.0, None, 2.5, 4, 2)


def test_evaluations_follow_the_share_of_an_epoch():
    steps = steps_by_rows(10, 4, 2, seed=0)  # of 4, 4 and 2 rows, twice
    assert evaluation_steps(steps, 10, 1) == {3, 6}
    assert evaluation_steps(steps, 10, 0.5) == {2, 3, 5, 6}  # 5 of 10 rows are passed in the second step
    assert evaluation_steps(steps, 10, 0.01) == {1, 2, 3, 4, 5, 6}
    assert evaluation_steps(steps, 10, 9) == {6}
    assert evaluation_steps(steps[:4], 10, 1) == {3, 4}
    # of steps of equal tokens, which end where no epoch does
    assert evaluation_steps(steps_of_equal_tokens([5] * 10, 7, 150, seed=0), 10, 1) == {3, 5, 7}
