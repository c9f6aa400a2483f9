"""Numbers go to metrics.jsonl always, and to TensorBoard as well when the recipe asks for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from spintune.errors import MissingExtraError, RecipeError
from spintune.recipe import parse_recipe
from spintune.trackers import TRACKERS, register_tracker
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


class Remembering:
    """A tracker of one's own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.heard = folder, list[object]()

    def begin(self, stage: str, step: int) -> None:
        self.heard.append(("begin", stage, step))

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        self.heard.append((stage, step, dict(numbers)))

    def close(self) -> None:
        self.heard.append("close")


def test_a_registered_tracker_hears_what_the_log_gets(tmp_path: Path) -> None:
    made = []

    def factory(folder: Path) -> Remembering:
        made.append(Remembering(folder))
        return made[-1]

    register_tracker("remembering", factory)
    try:
        recipe = parse_recipe({"out": "x", "model": "m", "eval": [], "tracking": ["remembering"]}, "test")
        metrics = Metrics(tmp_path, recipe.tracking)
        metrics.begin("sft", 0)
        metrics.add("sft", 1, loss=2.0)
        metrics.close()
    finally:
        TRACKERS.unregister("remembering")
    assert [tracker.folder for tracker in made] == [tmp_path]
    assert made[0].heard == [("begin", "sft", 0), ("sft", 1, {"loss": 2.0}), "close"]
    assert logged(tmp_path / "metrics.jsonl") == {("sft", "loss", 1): 2.0}


def test_an_unknown_tracker_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(RecipeError, match=r"tracking.0: there is no tracker 'tensorbord'; did you mean tensorboard\?"):
        parse_recipe({"out": "x", "model": "m", "eval": [], "tracking": ["tensorbord"]}, "test")
