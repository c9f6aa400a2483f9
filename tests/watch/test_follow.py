"""A file that grows is read once, whatever happens to it meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

from spintune.watch.follow import MAX_ROWS, GrowingLines, LiveMetrics


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = GrowingLines(path)
    assert lines.new_rows() == (False, [])
    path.write_text('{"a": 1}\n{"a"')
    assert lines.new_rows() == (False, [{"a": 1}])
    assert lines.new_rows() == (False, [])
    with path.open("a") as file:
        file.write(': 2}\n{"a": 3}\n')
    assert lines.new_rows() == (False, [{"a": 2}, {"a": 3}])


def test_damaged_lines_and_other_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\0\0\0\n[1]\n3\n\xff\n{"a": 2}\n')
    assert GrowingLines(path).new_rows() == (False, [{"a": 1}, {"a": 2}])


def test_a_file_that_was_replaced_begins_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "x.jsonl", tmp_path / "y"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    lines = GrowingLines(path)
    lines.new_rows()
    other.write_text('{"b": 1}\n{"b": 2}\n{"b": 3}\n')  # as long and longer, so that its size tells nothing
    other.replace(path)
    assert lines.new_rows() == (True, [{"b": 1}, {"b": 2}, {"b": 3}])
    path.write_text('{"c": 1}\n')  # shorter, in the same file
    assert lines.new_rows() == (True, [{"c": 1}])
    path.write_text('{"d": 1}\n{"d": 2}\n')  # longer, in the same file
    assert lines.new_rows() == (True, [{"d": 1}, {"d": 2}])
    path.unlink()
    assert lines.new_rows() == (True, [])
    assert lines.new_rows() == (False, [])
    path.write_text('{"e": 1}\n')
    assert lines.new_rows() == (False, [{"e": 1}])


def test_metrics_keep_the_newest_rows_and_every_second_one_before(tmp_path: Path) -> None:
    path, count = tmp_path / "metrics.jsonl", MAX_ROWS + 1
    path.write_text("".join(json.dumps({"stage": "sft", "step": n, "loss": n}) + "\n" for n in range(count)))
    metrics = LiveMetrics(path)
    assert metrics.look()
    steps = [row["step"] for row in metrics.by_stage["sft"]]
    half = MAX_ROWS // 2
    assert steps == [*range(0, half, 2), *range(half, count)]
    assert not metrics.look()


def test_rows_that_no_curve_can_hold_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"stage": "sft", "step": 1, "loss": None}, {"stage": "sft", "step": "2"}, {"step": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"stage": "sft", "step": 4, "loss": "x"}]))
    metrics = LiveMetrics(path)
    metrics.look()
    assert metrics.by_stage == {"sft": rows[:1]}
