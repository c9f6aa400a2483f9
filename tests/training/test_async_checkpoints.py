"""Checkpoints that a thread writes from a copy: the bits of their step, and no end of training loses one."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spintune.errors import StorageError
from spintune.training import checkpoint
from spintune.training.batches import Batches
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import Optimization

STEPS = [[0, 1], [2], [3, 4], [5]]
KEPT = "the checkpoint of step {} is kept, and the same command goes on from it"


class StoppedError(Exception):
    pass


class Breaks(NegativeLogLikelihood):
    """Does something at a call, and fails at it."""

    def __init__(self, at, first=lambda: None):
        self.left, self.first = at, first

    def __call__(self, rows, logprobs):
        self.left -= 1
        if self.left == 0:
            self.first()
            raise StoppedError
        return super().__call__(rows, logprobs)


class Gate:
    """safetensors' save_file, which waits until it may write, and fails at some calls."""

    def __init__(self, monkeypatch, *fails_at):
        self.opened, self.calls, self.fails_at = threading.Event(), 0, fails_at
        monkeypatch.setattr(checkpoint, "save_file", self)

    def __call__(self, tensors, path):
        assert self.opened.wait(60)
        self.calls += 1
        if self.calls in self.fails_at:
            raise OSError(errno.ENOSPC, "full")
        save_file(tensors, path)


def run(engine, rows, folder, objective=None, on_step=lambda report: None, copies=True):
    engine.tokens_per_forward = 1000
    train(
        engine,
        Batches(rows, STEPS),
        objective or NegativeLogLikelihood(),
        Optimization(1e-3, weight_decay=0.1),
        Checkpoints(folder, 0, copies=copies),
        TrainingHooks(on_step=on_step),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")}


def test_it_holds_its_step_though_the_weights_have_moved_on(player, rows, tmp_path, monkeypatch):
    def stop(report):
        if report.step == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(player(), rows, tmp_path / "sync", on_step=stop, copies=False)
    gate = Gate(monkeypatch)
    before = []

    def open_gate(report):  # the weights are those of the second step, and nothing is written yet
        if report.step == 2:
            before.extend(tmp_path.glob("async/step-*"))
            gate.opened.set()
            raise StoppedError

    with pytest.raises(StoppedError):
        run(player(), rows, tmp_path / "async", on_step=open_gate)
    assert before == []
    assert contents(tmp_path / "async") == contents(tmp_path / "sync")
    assert [path.name for path in (tmp_path / "async").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("fails_at", [3, 5])
def test_a_full_disk_ends_training_at_the_next_step_or_the_end(fails_at, player, rows, tmp_path, monkeypatch):
    """The first file of the second or of the third and last checkpoint."""
    gate, failed = Gate(monkeypatch, fails_at), fails_at // 2 + 1
    gate.opened.set()
    with pytest.raises(StorageError, match="the disk is full; free some space or choose another out=") as caught:
        run(player(), rows, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / f"step-{failed:08d}:"))
    assert caught.value.__notes__ == [KEPT.format(failed - 1)]
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{failed - 1:08d}"]


LOST = "no checkpoint of step 2 could be written ({}: the disk is full; free some space or choose another out=)"


@pytest.mark.parametrize(("fails_at", "calls", "kept"), [((), 4, 2), ((3,), 5, 2), ((3, 4), 4, 1)])
def test_a_failing_step_waits_for_it_and_writes_it_again_if_it_fails(
    fails_at, calls, kept, player, rows, tmp_path, monkeypatch
):
    """The third call is the first file of the second checkpoint, the fourth that of the second attempt."""
    gate = Gate(monkeypatch, *fails_at)

    def hold_the_second(report):
        if report.step == 1:
            gate.opened.set()
        if report.step == 2:
            while gate.calls < 2:
                time.sleep(0.001)
            gate.opened.clear()

    with pytest.raises(StoppedError) as caught:
        run(player(), rows, tmp_path, Breaks(3, gate.opened.set), hold_the_second)
    lost = [LOST.format(tmp_path / "step-00000002")] if kept == 1 else []
    assert caught.value.__notes__ == [*lost, KEPT.format(kept)]
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{kept:08d}"]
    assert gate.calls == calls


def test_an_error_outside_a_step_waits_for_it_and_tells_of_a_full_disk(player, rows, tmp_path, monkeypatch):
    gate = Gate(monkeypatch, 1)

    def evaluation(report):
        if report.step == 2:
            gate.opened.set()
            raise StoppedError

    with pytest.raises(StoppedError) as caught:
        run(player(), rows, tmp_path, on_step=evaluation)
    (note,) = caught.value.__notes__
    assert "step-00000001: the disk is full" in note
    assert list(tmp_path.iterdir()) == []


def test_best_weights_that_it_names_stay(player, tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    gate.opened.set()
    model = player().model
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(tmp_path, 0, copies=True)
    checkpoints.save_best(1, model)
    gate.opened.clear()
    checkpoints.save(2, model, optimizer)
    threading.Timer(0.05, gate.opened.set).start()
    checkpoints.save_best(3, model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000001", "best-00000003", "step-00000002"]
    assert Checkpoints(tmp_path, 0).restore(model, optimizer) == 2


def test_without_memory_for_a_copy_training_waits(player, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "available_memory", lambda: 1)
    model = player().model
    Checkpoints(tmp_path, 0, copies=True).save(1, model, torch.optim.AdamW(model.parameters()))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert "training waits for this checkpoint" in caplog.text
