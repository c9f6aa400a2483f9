"""Numbers go to metrics.jsonl always, and to TensorBoard as well when the recipe asks for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from spintune.errors import MissingExtraError
from spintune.tracking import Metrics, Stopwatch


def recorded(folder: Path) -> dict[tuple[str, str, int], float]:
    """What TensorBoard shows: the value of every (stage, name, step)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = {}
    for stage in {path.parent for path in folder.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(stage))
        events.Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                key = (str(stage.relative_to(folder)), name, event.step)
                assert key not in values
                values[key] = event.value
    return values


def logged(path: Path) -> dict[tuple[str, str, int], float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        (row["stage"], name, row["step"]): value
        for row in rows
        for name, value in row.items()
        if name not in ("stage", "step")
    }


def test_event_files_hold_the_numbers_of_the_log_also_after_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for done, last in ((0, 3), (2, 4)):  # the second attempt goes on after step 2
        metrics = Metrics(tmp_path, ["tensorboard"])
        metrics.begin("sft", done)
        metrics.begin("spin/iterate-1", done)
        for step in range(done + 1, last + 1):
            metrics.add("sft", step, loss=last + 1 / step, seconds=0.25)
            metrics.add("spin/iterate-1", step, loss=0.6931471805599453)
        metrics.close()
    found, expected = recorded(tmp_path / "tensorboard"), logged(tmp_path / "metrics.jsonl")
    assert len(expected) == 4 * 2 + 4
    assert found.keys() == expected.keys()
    for key, value in found.items():  # TensorBoard keeps float32
        assert value == pytest.approx(expected[key], rel=1e-6)


def test_without_tracking_there_is_the_log_and_nothing_else(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, [])
    metrics.begin("sft", 0)
    metrics.add("sft", 1, loss=1.0)
    metrics.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_tensorboard_is_told_at_once_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError) as caught:
        Metrics(tmp_path, ["tensorboard"])
    assert "\n" not in str(caught.value)
    assert "pip install 'spintune[tracking]'" in str(caught.value)
    assert caught.value.exit_code == 8
    assert list(tmp_path.iterdir()) == []


def test_work_inside_other_work_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train from 0 to 10 with two stretches of generating, 2 to 5 and 6 to 7, the first with a second of scoring."""
    times = iter([0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    clock = Stopwatch()
    with clock("train"):
        with clock("generate"), clock("score"):
            pass
        with clock("generate"):
            pass
    assert clock.seconds == {"score": 1.0, "generate": 3.0, "train": 6.0}
