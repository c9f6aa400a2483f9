"""The harness itself: what it calls equal, what a power cut takes, and that the shim sees every operation."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from crash import damage, power
from crash.__main__ import print_tables, read_counts
from crash.kinds import Stage
from crash.machine import Ending, Machine
from crash.outcome import contents, differences, faults_of_reference, judge
from crash.shim import Operation
from crash.worlds import WORLDS


def ended(code: int = 0, err: str = "", hung: bool = False) -> Ending:
    return Ending(code, 0, 0.0, 0.0, hung, "", err)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A run with two steps."""
    (tmp_path / "run").mkdir()
    rows = [{"stage": "sft", "step": step, "loss": 0.5, "seconds": step} for step in (1, 2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run" / "weights").write_bytes(b"\1\2\3")
    return tmp_path


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_times_and_the_order_of_stages_make_no_difference_and_everything_else_does(disk: Path) -> None:
    expected = contents(disk)
    metrics = disk / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(reversed([line.replace('"seconds": 1', '"seconds": 9') for line in lines])))
    assert judge(ended(), disk, expected).kind == "equal"
    metrics.write_text("".join([*lines, lines[0]]))
    assert differences(disk, expected) == ["run/metrics.jsonl differs (3 entries instead of 2)"]
    assert faults_of_reference(disk) == ["metrics.jsonl has a step of sft twice"]
    metrics.write_text("".join(lines))
    (disk / "run" / "weights").write_bytes(b"\1\2\4")
    (disk / "run" / ".model.partial").touch()
    found = differences(disk, expected)
    assert found[0] == "run/.model.partial is left over"
    assert found[1].startswith("run/weights differs")


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (ended(), "equal"),
        (ended(5, '{"note":"loading"}\nspintune.storage: a warning\nspintune: no; do this\n'), "refused"),
        (ended(5, "spintune: no\nspintune: and no\n"), "DIFFERENT"),
        (ended(1, "Traceback (most recent call last):\nKeyError: 1\n"), "DIFFERENT"),
        (ended(5, ""), "DIFFERENT"),
        (ended(-11), "DIFFERENT"),
        (ended(-9, hung=True), "DIFFERENT"),
    ],
)
def test_a_run_ends_equal_or_with_one_line(disk: Path, ending: Ending, kind: str) -> None:
    assert judge(ending, disk, contents(disk)).kind == kind


# Power ----------------------------------------------------------------------------------------------------------------


def operations(root: Path) -> list[Operation]:
    """A file is written and synced under a temporary name, renamed, and its folder synced; then two bytes more."""
    a, b = str(root / ".new"), str(root / "new")
    none = b""
    return [
        Operation("open", a, "", os.O_CREAT, none),
        Operation("write", a, "", 0, b"1234"),
        Operation("sync", a, "", 0, none),
        Operation("rename", a, b, 0, none),
        Operation("sync", str(root), "", 0, none),
        Operation("write", b, "", 4, b"56"),
    ]


def after_cut(root: Path, target: Path, count: int, variant: str, seed: int = 0) -> dict[str, bytes]:
    power.replay(root, operations(root), count).write_after_cut(target, variant, random.Random(seed))
    return {path.name: path.read_bytes() for path in target.iterdir()}


@pytest.mark.parametrize(
    ("count", "variant", "left"),
    [
        (2, "strict", {"old": b"o"}),
        (2, "names kept", {"old": b"o", ".new": b""}),
        (2, "zeros", {"old": b"o", ".new": bytes(4)}),
        (4, "strict", {"old": b"o"}),  # neither name is safe
        (4, "names kept", {"old": b"o", "new": b"1234"}),
        (5, "strict", {"old": b"o", "new": b"1234"}),
        (6, "strict", {"old": b"o", "new": b"1234"}),
        (6, "zeros", {"old": b"o", "new": b"1234\0\0"}),
    ],
)
def test_a_power_cut_leaves_what_was_synced(tmp_path: Path, count: int, variant: str, left: dict[str, bytes]) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "old").write_bytes(b"o")
    assert after_cut(tmp_path / "root", tmp_path / "left", count, variant) == left


def test_a_random_power_cut_leaves_at_least_what_was_synced(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    left = [after_cut(tmp_path / "root", tmp_path / f"{seed}", 6, "random", seed)["new"] for seed in range(20)]
    assert len(set(left)) > 2
    assert all(content.startswith(b"1234") and len(content) <= 6 for content in left)


@pytest.mark.parametrize("way", damage.WAYS)
def test_damage_changes_a_file(tmp_path: Path, way: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    damage.damage(path, way, random.Random(1))
    assert not path.exists() or path.read_bytes() != b"content"


def test_tables_sum_counts_of_several_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a later command counted of a run and kind replaces what an earlier one did."""
    for name, counted in (("a", [("lora nth", 3, 1), ("lora kill", 2, 0)]), ("b", [("lora nth", 1400, 0)])):
        lines = [{"counted": of, "tried": tried, "equal": 1, "DIFFERENT": bad} for of, tried, bad in counted]
        (tmp_path / name).write_text("a note\n" + "".join(f"{json.dumps(line)}\n" for line in lines))
    first, both = read_counts([tmp_path / "a"]), read_counts([tmp_path / "a", tmp_path / "b"])
    assert (print_tables(first), print_tables(both)) == (1, 0)
    shown = capsys.readouterr().out
    assert "| `nth` | 3 | 0 | 1 | 0 | 1 |" in shown
    assert "| `lora` | 1,402 | 0 | 2 | 0 | 0 |" in shown


# With the shim --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_log_of_a_run_gives_the_folder_that_it_wrote(machine: Machine) -> None:
    """So the shim sees every operation, also those of Rust and SQLite."""
    stage = Stage(machine, WORLDS["synth"], seed=0)
    assert len([one for one in stage.operations if one.counted]) == stage.reference.operations
    machine.wipe()
    disk = power.replay(machine.disk, stage.operations, stage.reference.operations)
    disk.write(machine.disk)
    assert _bytes(machine.disk) == _bytes(machine.aside / "synth")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
