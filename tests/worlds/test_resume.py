"""A run that is stopped anywhere, and started again by the same command, ends bit for bit as one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_server import Command

from spintune.errors import RunError
from spintune.progress import Silent
from spintune.selfplay import shards
from spintune.trackers import TRACKERS, SentOnce, register_tracker


class Stopped(BaseException):
    """Like a signal: nothing may catch it."""


class StopsAt(Silent):
    """Progress that raises when the work moves for the n-th time."""

    def __init__(self, moves: int) -> None:
        self.left = moves
        self.task_name = ""

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Any]:
        self.task_name = name
        yield self

    def advance(self, amount: float = 1, under_way: float | None = None, **facts: Any) -> None:
        if not amount and under_way:  # a token: too small a move
            return
        self.left -= 1
        if self.left == 0:
            raise Stopped


def until_done(run: Callable[..., Any], out: Path, moves: Iterator[int], **changes: Any) -> list[str]:
    """Starts the run again and again until it ends; the tasks in which it was stopped."""
    stops = []
    for count in moves:
        progress = StopsAt(count)
        try:
            run(out, progress, **changes)
            return stops
        except Stopped:
            stops.append(progress.task_name)
    raise AssertionError("the moves were used up")


def no_leftovers(out: Path) -> None:
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    assert not [name for name in names if "-partial" in name or "checkpoints" in name or "shards" in name]


def each_step_once(out: Path) -> None:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = Counter((row["stage"], row["step"]) for row in rows)
    assert set(steps.values()) == {1}
    for stage in {stage for stage, _ in steps if not stage.endswith("/heldout")}:
        numbers = sorted(step for name, step in steps if name == stage)
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of opponent answers, so that a stop can fall between them."""
    monkeypatch.setattr(shards, "SHARD_SIZE", 8)


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
def test_a_run_stopped_at_many_points_equals_an_uninterrupted_one(
    run: Callable[..., Any], contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    """The stopped run's checkpoints are written while it goes on, those of the other one while it waits."""
    run(tmp_path / "straight")
    moves = iter([1, 3, 4, 6, 9, 5, 8, 12, 5, 13, 20, 40, 42, 9, 45, 30, 60, 10_000])
    copies = {"checkpoint_write": "async"}
    stops = until_done(run, tmp_path / "stopped", moves, sft=copies, spin=copies)
    # the stops fell into every kind of work
    kinds = {" ".join(word for word in name.split() if not any(map(str.isdigit, word))) for name in stops}
    assert {"SFT", "sft answers training prompts", "SPIN iteration"} <= kinds
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")
    each_step_once(tmp_path / "stopped")
    no_leftovers(tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(("template", "minutes", "first"), [("tokenizer", 10.0, 5), ("plain", 0.0, 18)])
def test_a_run_stopped_once_at_any_point_equals_an_uninterrupted_one(
    run: Callable[..., Any], contents: Callable[[Path], Any], tmp_path: Path, template: str, minutes: float, first: int
) -> None:
    """Both kinds of runs share the points: every second one each. ``make crash`` looks at far more of them."""
    changes = {
        "data": {"template": template},
        "sft": {"checkpoint_minutes": minutes, "epochs": 1.5},
        "spin": {"checkpoint_minutes": minutes},
    }
    run(tmp_path / "straight", **changes)
    expected = contents(tmp_path / "straight")
    for moves in range(first, 300, 26):  # the first ones fall into SFT and self-play's training
        out = tmp_path / f"stopped-{moves}"
        stops = until_done(run, out, iter([moves, 10_000]), **changes)
        assert contents(out) == expected, f"stopped at move {moves} in {stops}"
        no_leftovers(out)
        if not stops:
            return
    raise AssertionError("the run is longer than the points that were tried")


def test_a_checkpoint_of_other_data_is_not_used(
    run: Callable[..., Any], contents: Callable[[Path], Any], tmp_path: Path, alpaca_file: Path
) -> None:
    """Stopped during SFT, the data file mended, the same command: the result is that of the mended data alone."""
    data = tmp_path / "data.json"
    rows = json.loads(alpaca_file.read_text())
    data.write_text(json.dumps(rows))
    changes = {"data": {"train": str(data)}, "spin": None, "eval": []}
    with pytest.raises(Stopped):
        run(tmp_path / "mended", StopsAt(6), **changes)
    assert list((tmp_path / "mended").glob("sft/checkpoints/**/checkpoint.json"))
    data.write_text(json.dumps([{**row, "output": row["output"].upper()} for row in rows]))
    run(tmp_path / "mended", **changes)
    run(tmp_path / "straight", **changes)
    assert contents(tmp_path / "mended") == contents(tmp_path / "straight")
    no_leftovers(tmp_path / "mended")


def test_a_checkpoint_of_another_run_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    """Its shapes are the same, for only the seed is another."""
    changes = {"spin": None, "eval": []}
    for name, seed in (("mine", 3), ("other", 4)):
        with pytest.raises(Stopped):
            run(tmp_path / name, StopsAt(6), seed=seed, **changes)
    (mine,), (other,) = ((tmp_path / name).glob("sft/checkpoints/*") for name in ("mine", "other"))
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    with pytest.raises(RunError, match="is of other training"):
        run(tmp_path / "mine", seed=3, **changes)


def test_trackers_get_the_numbers_of_other_data(run: Callable[..., Any], alpaca_file: Path, tmp_path: Path) -> None:
    """Those that cannot take numbers back show another run."""
    kept: dict[str, dict[tuple[str, int], float]] = {}

    class Keeping(SentOnce):
        def log(self, place: int, stage: str, step: int, numbers: Mapping[str, float]) -> None:
            kept.setdefault(self.run.id, {})[stage, step] = next(iter(numbers.values()))

        def finish(self, facts: Mapping[str, str]) -> None: ...

        def close(self) -> None: ...

    data = tmp_path / "data.json"
    rows = json.loads(alpaca_file.read_text())
    changes = {"sft": {"max_steps": 2}, "spin": None, "eval": [], "tracking": ["keeping"]}
    register_tracker("keeping", Keeping)
    try:
        for count in (30, 20):
            data.write_text(json.dumps(rows[:count]))
            run(tmp_path / "run", data={"train": str(data)}, **changes)
    finally:
        TRACKERS.unregister("keeping")
    first, second = kept.values()
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    losses = {(line["stage"], line["step"]): line["loss"] for line in lines}
    assert second == losses
    assert first["sft", 1] != second["sft", 1]


def test_logs_are_on_disk_before_the_checkpoints_and_manifests_that_cover_them(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was synced: after it no step of a checkpoint, or of a finished stage, may be missing."""
    out, on_disk, checked = tmp_path / "run", {}, Counter[str]()
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            on_disk[path] = path.read_bytes()

    def lines(name: str, stage: str) -> list[int]:
        rows = [json.loads(line) for line in on_disk.get(out / name, b"").splitlines()]
        return [row["step"] for row in rows if row["stage"] == stage]

    def publish(source: Any, target: Any) -> None:
        path = Path(target)
        if path in (out / "metrics.jsonl", out / "sft/samples.jsonl"):
            on_disk[path] = on_disk[Path(source)]
        if path.name.startswith("step-"):
            stage = str(path.relative_to(out)).partition("/checkpoints")[0]
            assert lines("metrics.jsonl", stage) == list(range(1, int(path.name[5:]) + 1))
        for log in (out / "metrics.jsonl", out / "sft/samples.jsonl"):
            if (path.name.startswith("step-") or path.name == "manifest.json") and log.exists():
                assert on_disk[log] == log.read_bytes()
                checked[f"{log.name} {path.name[:4]}"] += 1

    def renaming(source: Any, target: Any, **options: Any) -> None:
        publish(source, target)
        rename(source, target, **options)

    def replacing(source: Any, target: Any, **options: Any) -> None:
        publish(source, target)
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    monkeypatch.setattr(os, "replace", replacing)
    run(out, sft={"max_steps": 4}, spin={"iterations": 1, "epochs": 0.5}, eval=[])
    assert min(checked[f"{log}.jsonl {kind}"] for log in ("metrics", "samples") for kind in ("step", "mani")) >= 3


def test_steps_that_the_log_has_lost_are_told(
    run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"spin": None, "eval": []}
    with pytest.raises(Stopped):
        run(tmp_path / "run", StopsAt(9), **changes)
    log = tmp_path / "run" / "metrics.jsonl"
    rows = [line for line in log.read_bytes().splitlines(keepends=True) if json.loads(line)["stage"] == "sft"]
    assert len(rows) > 3
    log.write_bytes(b"".join(rows[:2]) + b"\x00" * 40)
    run(tmp_path / "run", **changes)
    assert "has no lines for steps 3 to " in caplog.text
    assert "of sft; the weights do not depend on them" in caplog.text


@pytest.mark.slow
def test_a_run_killed_at_many_moments_equals_an_uninterrupted_one(
    values: Callable[..., dict[str, Any]], contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    """kill -9 of the real command, twelve times, at seeded moments of every stage (crash-test regime, rows 1 and 2)."""
    words = ["fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow", "pig", "elk", "emu", "yak"]
    rows = [
        {"instruction": f"Say {first} and {second} {count} times.", "output": " ".join([first, second] * count)}
        for first in words
        for second in words
        for count in (1, 2, 3)
    ]
    data = tmp_path / "animals.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(name: str) -> list[str]:
        recipe = tmp_path / f"{name}.yaml"
        changes = {"train": str(data)}, {"tokens_per_step": 256}, {"pairs_per_step": 16}
        built = values(tmp_path / name, data=changes[0], sft=changes[1], spin=changes[2])
        recipe.write_text(json.dumps(built))  # JSON is YAML
        return ["run", str(recipe), "--json"]

    assert Command(*command("straight")).wait() == 0
    out = tmp_path / "killed"
    kills = kill_and_restart(command("killed"), out, random.Random(7))
    assert kills >= 10
    assert contents(out) == contents(tmp_path / "straight")
    each_step_once(out)
    no_leftovers(out)


def kill_and_restart(words: list[str], out: Path, draw: random.Random) -> int:
    """Kills the command at twelve moments, each in a process of its own, then lets it end; the number of kills."""
    moments: list[Callable[[], bool]] = [
        lambda: (out / "data" / "train.jsonl").exists(),
        more_lines(out, 3),
        seen(out, "sft/checkpoints/*/.*-partial"),
        more_lines(out, draw.randint(4, 20)),
        seen(out, "sft/.*-partial"),
        seen(out, "spin/iterate-1/pairs/shards/*"),
        more_lines(out, draw.randint(1, 9)),
        seen(out, "spin/iterate-1/checkpoints/*/.*-partial"),
        seen(out, "spin/iterate-2/pairs/manifest.json"),
        more_lines(out, draw.randint(1, 9)),
        seen(out, "spin/iterate-2/manifest.json"),
        seen(out, "eval/heldout/*/answers.jsonl"),
    ]
    kills = 0
    for moment in [*moments, lambda: False]:
        with Command(*words) as process:
            while process.poll() is None and not moment():
                time.sleep(0.0005)
            if process.poll() is None:
                process.signal(signal.SIGKILL)
                kills += 1
            else:
                assert process.poll() == 0, process.err
    assert process.poll() == 0
    return kills


def more_lines(out: Path, more: int) -> Callable[[], bool]:
    """Whether the metrics grew by so many lines since the first call."""
    start: list[int] = []

    def grown() -> bool:
        path = out / "metrics.jsonl"
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        start.append(lines) if not start else None
        return lines >= start[0] + more

    return grown


def seen(out: Path, pattern: str) -> Callable[[], bool]:
    return lambda: any(out.glob(pattern))
