"""Damage anywhere in a finished run is mended or one line: never a traceback, never other results in silence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spintune.errors import SpintuneError

Run = Callable[..., dict[str, Any]]
SHAPES = [None, [], {}, "x", 3, -1.5, True, [1], {"a": 1}]


def with_another_shape(value: Any, draw: random.Random) -> Any:
    """JSON in which one value became another, or one key was lost."""
    copy = json.loads(json.dumps(value))
    at, key = None, None
    inside = copy
    while isinstance(inside, dict | list) and inside and (at is None or draw.random() < 0.8):
        at, key = inside, draw.choice(list(inside)) if isinstance(inside, dict) else draw.randrange(len(inside))
        inside = at[key]
    if at is None:
        return draw.choice(SHAPES)
    if draw.random() < 0.2:
        del at[key]
    else:
        at[key] = draw.choice(SHAPES)
    return copy


def damage(path: Path, draw: random.Random) -> str:
    """Changes a file as an editor, a bad disk or a power cut would; what was done."""
    data = path.read_bytes()
    kind = draw.choice(["shape", "shape", "cut", "zeros", "byte", "digit", "gone"])
    if kind == "gone":
        path.unlink()
        return kind
    place = draw.randrange(max(1, len(data)))
    changed = data
    if kind == "shape" and path.suffix == ".json":
        changed = json.dumps(with_another_shape(json.loads(data), draw)).encode()
    elif kind == "shape" and data:
        lines = data.splitlines(keepends=True)
        number = draw.randrange(len(lines))
        lines[number] = json.dumps(with_another_shape(json.loads(lines[number]), draw)).encode() + b"\n"
        changed = b"".join(lines)
    elif kind in ("cut", "zeros"):
        changed = data[:place] + (bytes(len(data) - place) if kind == "zeros" else b"")
    elif kind == "byte":
        changed = data[:place] + bytes([draw.choice([0, 0x22, 0x7D, 0xFF])]) + data[place + 1 :]
    elif digits := [number for number, byte in enumerate(data) if 48 <= byte <= 57]:
        place = draw.choice(digits)
        changed = data[:place] + bytes([48 + (data[place] - 47) % 10]) + data[place + 1 :]
    path.write_bytes(changed)
    return kind


def tried(act: Callable[[], object]) -> bool:
    """Whether it went through. One line is the other thing that may happen."""
    try:
        act()
    except SpintuneError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_every_damaged_file_is_mended_or_named(
    seed: int, run: Run, finished: Path, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    from spintune.evaluation.contenders import tables
    from spintune.export.model import export_model
    from spintune.export.pairs import export_pairs
    from spintune.progress import Silent
    from spintune.report.page import write_report
    from spintune.run_models import final_model
    from spintune.verification import verify_run

    draw, out = random.Random(seed), tmp_path / "run"
    for folder in (out, tmp_path / "model"):
        shutil.rmtree(folder, ignore_errors=True)
    (tmp_path / "pairs.jsonl").unlink(missing_ok=True)
    shutil.copytree(finished, out)
    files = sorted(path for path in out.rglob("*") if path.suffix in (".json", ".jsonl") and "model" not in path.parts)
    path = draw.choice(files)
    kind = damage(path, draw)
    unchanged = path.is_file() and path.read_bytes() == (finished / path.relative_to(out)).read_bytes()

    found = verify_run(out, Silent()) if (out / "recipe.json").is_file() else None
    without_digest = ("recipe.json", "results.json", "best.json", "metrics.jsonl", "samples.jsonl")
    if found and not unchanged and path.name not in without_digest:
        assert found.problems or path.name == "manifest.json", (kind, path)  # without a manifest a stage is unfinished
    tried(lambda: write_report([out], tmp_path / "page.html"))
    tried(lambda: tables([str(out)]))
    tried(lambda: export_model(out, tmp_path / "model"))
    tried(lambda: export_pairs(out, tmp_path / "pairs.jsonl"))
    tried(lambda: final_model(out))
    if tried(lambda: run(out)):
        mine, theirs = contents(out), contents(finished)
        for tree in (mine, theirs):  # logs are not made again; the lines of a stage that ran again stand at the end
            tree.pop("metrics.jsonl", None)
            tree.pop("sft/samples.jsonl", None)
            tree.pop("report.html", None)
        assert mine == theirs, (kind, path)


@pytest.mark.slow
def test_files_that_no_evaluation_reads_again_are_made_again(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Every stage of a finished run is asked for, also where nothing but the decision had read it."""
    changes: dict[str, Any] = {"spin": {"iterations": 1, "epochs": 0.5}, "sft": {"max_steps": 2}, "eval": []}
    run(tmp_path / "run", **changes)
    whole = contents(tmp_path / "run")
    for path in sorted((tmp_path / "run/likelihood").rglob("*.jsonl")):
        path.unlink()
        run(tmp_path / "run", **changes)
        assert contents(tmp_path / "run") == whole
