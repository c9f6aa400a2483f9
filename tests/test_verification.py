"""``spintune verify``: every kind of damage is named by file, and a whole run has none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import RunError
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.run_folder import RunFolder
from spintune.step_log import StepLog
from spintune.unfinished import seal_checkpoint, write_shard
from spintune.verification import verify_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """SFT is finished; self-play is not."""
    out = tmp_path / "run"
    recipe = parse_recipe({"out": str(out), "model": "m", "data": {"train": "x.json"}, "sft": {}, "spin": {}}, "test")
    with RunFolder(recipe) as folder:
        for name, stage in (("train.jsonl", "data"), ("model/model.safetensors", "sft"), ("model/config.json", "sft")):
            path = out / stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"some": "content"}')
        folder.finish("data", {}, [out / "data/train.jsonl"], {"heldout": 0})
        folder.finish("sft", {}, [out / "sft/model"], {"steps": 2, "learning_rate": 0.1})
    log = StepLog(out / "metrics.jsonl")
    for step in (1, 2):
        log.append("sft", step, loss=1.0)
    log.append("spin/iterate-1", 1, loss=1.0)
    log.close()
    checkpoint = out / "spin/iterate-1/checkpoints/abc/step-00000001"
    checkpoint.mkdir(parents=True)
    for name in ("weights.safetensors", "optimizer.safetensors"):
        (checkpoint / name).write_text(name)
    seal_checkpoint(checkpoint, 1)
    write_shard(out / "spin/iterate-2/pairs/shards/abc-answers-00000000.jsonl", [{"a": 1}])
    (out / "spin/iterate-1/later.jsonl").write_text("")
    (out / "sft/.model.0123456789abcdef.spintune-partial").write_text("killed while it was written")
    return out


def keeping_times(path: Path, content: bytes) -> None:
    """What a start does not see."""
    times = path.stat().st_mtime_ns
    assert len(content) == path.stat().st_size
    path.write_bytes(content)
    os.utime(path, ns=(times, times))


def flipped(path: Path) -> None:
    content = path.read_bytes()
    keeping_times(path, content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


def of_another_stage(path: Path) -> None:
    path.write_bytes((path.parents[1] / "data/manifest.json").read_bytes())


def test_best_weights_are_checked_as_checkpoints_are(run: Path) -> None:
    best = run / "sft/checkpoints/abc/best-00000004"
    best.mkdir(parents=True)
    (best / "weights.safetensors").write_text("weights")
    seal_checkpoint(best, 4)
    whole = verify_run(run, Silent())
    assert (whole.problems, whole.unfinished) == ([], 3)
    best.rename(best.with_name("best-00000005"))
    (problem,) = verify_run(run, Silent()).problems
    assert (problem.path, problem.state) == ("sft/checkpoints/abc/best-00000005/checkpoint.json", "damaged")


def test_a_checkpoint_of_other_inputs_than_its_folder_says_is_told(run: Path) -> None:
    checkpoint = run / "spin/iterate-1/checkpoints/abc/step-00000001"
    for inputs, problems in (("abc", []), ("def", ["damaged"])):
        (checkpoint / "checkpoint.json").unlink()
        seal_checkpoint(checkpoint, 1, inputs=inputs)
        assert [problem.state for problem in verify_run(run, Silent()).problems] == problems


def test_a_whole_run_has_no_problems(run: Path) -> None:
    (run / "sft/model/README.md").write_text("mine")
    (run / "notes.txt").write_text("mine")
    found = verify_run(run, Silent())
    assert found.problems == []
    assert found.stages == {"data": 1, "sft": 2}
    assert (found.files, found.bytes, found.unfinished) == (3, 3 * 19, 2)
    assert found.foreign == ["notes.txt", "sft/model/README.md"]


@pytest.mark.parametrize(
    ("name", "damage", "state"),
    [
        ("sft/model/model.safetensors", flipped, "changed"),
        ("sft/model/config.json", Path.unlink, "missing"),
        ("sft/manifest.json", flipped, "damaged"),
        ("sft/manifest.json", of_another_stage, "damaged"),
        ("recipe.json", lambda path: path.write_text("[]"), "damaged"),
        ("results.json", lambda path: path.write_text('{"data": 3}'), "damaged"),
        ("best.json", lambda path: path.write_text('{"name": "x", "model": "/x", "why": ""}'), "damaged"),
        ("metrics.jsonl", lambda path: path.write_bytes(path.read_bytes() + b"\0\0\n"), "damaged"),
        ("metrics.jsonl", lambda path: path.write_bytes(path.read_bytes() * 2), "damaged"),
        ("metrics.jsonl", lambda path: path.write_bytes(path.read_bytes()[40:]), "damaged"),
        ("metrics.jsonl", Path.unlink, "missing"),
        ("sft/samples.jsonl", lambda path: path.write_text("{}\n"), "damaged"),
        ("sft/model/adapter_config.json", lambda path: path.write_text("{}"), "added"),
        ("sft/model/deep/modeling_x.py", lambda path: (path.parent.mkdir(), path.write_text("")), "added"),
        ("sft/model/vocab.txt", lambda path: path.symlink_to("/etc/hostname"), "added"),
        ("spin/iterate-1/checkpoints/abc/step-00000001/checkpoint.json", flipped, "damaged"),
        ("spin/iterate-1/checkpoints/abc/step-00000001/weights.safetensors", flipped, "damaged"),
        ("spin/iterate-2/pairs/shards/abc-answers-00000000.jsonl", flipped, "damaged"),
    ],
)
def test_damage_is_named(run: Path, name: str, damage: Callable[[Path], Any], state: str) -> None:
    damage(run / name)
    problems = verify_run(run, Silent()).problems
    of_checkpoint = str(Path(name).with_name("checkpoint.json")) if "checkpoints" in name else name
    assert {(one.path, one.state) for one in problems} == {(of_checkpoint, state)}
    assert all("\n" not in one.text for one in problems)


def test_a_file_that_became_a_link_is_named(run: Path) -> None:
    path = run / "sft/model/model.safetensors"
    path.rename(run / "elsewhere")
    path.symlink_to(run / "elsewhere")
    (one,) = verify_run(run, Silent()).problems
    assert (one.path, one.state) == ("sft/model/model.safetensors", "changed")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        verify_run(tmp_path, Silent())


def test_the_command_prints_each_finding_and_ends_with_a_code_of_its_own(
    run: Path, spintune: Callable[..., Any]
) -> None:
    good = spintune("verify", run)
    assert (good.code, good.out.splitlines()) == (
        0,
        ["whole    data (1 file)", "whole    sft (2 files)", "whole    2 checkpoints and shards of unfinished stages"],
    )
    flipped(run / "sft/model/model.safetensors")
    bad = spintune("verify", run)
    assert bad.code == 11
    assert "CHANGED  sft/model/model.safetensors: is not what the run wrote" in bad.out
    assert "1 problem beside 2 whole files" in bad.err.splitlines()[-1]
    told = spintune("verify", run, "--json")
    assert told.code == 11
    assert [one["path"] for one in json.loads(told.out)["problems"]] == ["sft/model/model.safetensors"]


def test_a_run_whose_damaged_recipe_was_deleted_goes_on(run: Path) -> None:
    """As the line about the damage says."""
    (run / "recipe.json").unlink()
    recipe = parse_recipe({"out": str(run), "model": "m", "data": {"train": "x.json"}, "sft": {}, "spin": {}}, "test")
    with RunFolder(recipe) as folder:
        assert folder.finished("sft", {}) == {"steps": 2, "learning_rate": 0.1}
    assert (run / "recipe.json").is_file()
