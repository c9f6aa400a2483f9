"""The run folder: what counts as done, who may write, and a log in which each step stands once."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spintune.errors import RunError, StorageError
from spintune.recipe import Recipe, parse_recipe
from spintune.run_folder import RunFolder
from spintune.step_log import StepLog
from spintune.tracking import Metrics


def recipe(out: Path, **changes: Any) -> Recipe:
    return parse_recipe({"out": str(out), "model": "m", "data": {"train": "x.json"}, **changes}, "test")


def finish(run: RunFolder, content: bytes = b"weights", stage: str = "sft") -> str:
    folder = run.folder / stage
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "a").write_bytes(content)
    (folder / "b").write_bytes(content)
    return run.finish(stage, {"x": 1}, [folder / "model", folder / "b"], {"rows": 3})


def test_a_finished_stage_gives_its_facts_back_for_its_inputs_only(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        assert run.finished("sft", {"x": 1}) is None
        finish(run)
        assert run.finished("sft", {"x": 1}) == {"rows": 3}
        assert run.finished("sft", {"x": 2}) is None
        assert run.finished("spin", {"x": 1}) is None


@pytest.mark.parametrize("name", ["model/a", "b"])
def test_an_output_that_is_gone_or_other_makes_a_stage_unfinished(tmp_path: Path, name: str) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        for damage in (b"weightz", b"longer than before", None):
            finish(run)
            path = tmp_path / "sft" / name
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
                os.utime(path, ns=(0, 0))
            assert run.finished("sft", {"x": 1}) is None
        finish(run)
        os.utime(tmp_path / "sft" / name, ns=(0, 0))  # touched, not changed
        assert run.finished("sft", {"x": 1}) == {"rows": 3}


def test_a_manifest_with_any_byte_changed_is_refused_or_says_the_same(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        finish(run)
        manifest = tmp_path / "sft" / "manifest.json"
        content = manifest.read_bytes()
        refused = 0
        for place in range(len(content)):
            manifest.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                assert run.finished("sft", {"x": 1}) == {"rows": 3}
            except RunError as error:
                assert str(manifest) in str(error)
                refused += 1
        assert refused > 0.8 * len(content)
        # one of a version that wrote no digest
        manifest.write_text(json.dumps({**json.loads(content), "sha256": None}))
        assert run.finished("sft", {"x": 1}) == {"rows": 3}


def test_the_digest_depends_on_what_was_written_and_on_nothing_else(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path / "a")) as run, RunFolder(recipe(tmp_path / "b", seed=1)) as other:
        assert finish(run) == finish(other) == run.digest("sft")
        assert finish(run) != finish(other, b"others")


def test_a_second_process_is_refused_while_the_first_lives_and_let_in_after(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom spintune.recipe import parse_recipe\nfrom spintune.run_folder import RunFolder\n"
        "with RunFolder(parse_recipe({'out': sys.argv[1], 'model': 'm', 'data': {'train': 'x.json'}}, 't')):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="in use by another spintune process"), RunFolder(recipe(tmp_path)):
        pass
    holder.kill()  # the lock dies with its holder
    holder.wait()
    holder.stdout.close()
    with RunFolder(recipe(tmp_path)):
        pass


def test_a_folder_with_work_in_it_belongs_to_its_recipe(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        finish(run)
    with pytest.raises(RunError, match=r"another recipe \(seed 0 there, 3 here\)"), RunFolder(recipe(tmp_path, seed=3)):
        pass
    with RunFolder(recipe(tmp_path, tracking=["tensorboard"])):  # who watches does not matter
        pass


@pytest.mark.parametrize(
    "changes",
    [
        {"recompute": 0.5},
        {"tokens_per_forward": 256},
        {"precision": "float32"},
        {"sft": {"samples": 0}},
        {"sft": {"checkpoint_minutes": 1.0}},
    ],
)
def test_what_changes_no_result_may_change_in_a_folder_with_work_in_it(
    tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def on_a_processor(precision: str) -> str:
        return {"auto": "float32"}.get(precision, precision)

    with RunFolder(recipe(tmp_path, sft={}), on_a_processor) as run:
        finish(run)
    with RunFolder(recipe(tmp_path, **{"sft": {}, **changes}), on_a_processor):
        pass
    assert ("last bits" in caplog.text) == ("tokens_per_forward" in changes)
    with (
        pytest.raises(RunError, match=r"precision '\w+' there, 'bfloat16' here"),
        RunFolder(recipe(tmp_path, sft={}, precision="bfloat16"), on_a_processor),
    ):
        pass


def test_one_place_may_be_named_in_several_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with RunFolder(recipe(tmp_path / "run", model="models/tiny")) as run:
        finish(run)
    for name in ("models/./tiny", "models/tiny/", str(tmp_path / "models" / "tiny")):
        with RunFolder(recipe(tmp_path / "run", model=name)):
            pass
    with pytest.raises(RunError, match=r"model .* there, 'models/other' here"):
        RunFolder(recipe(tmp_path / "run", model="models/other")).__enter__()


def test_files_keep_the_names_that_the_folder_knows_them_by(tmp_path: Path) -> None:
    """What stages write names the rows it is from, so another name of a file would change all that follows."""
    for name in ("rows.json", "answers.jsonl", "other.json"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = (
        recipe(
            tmp_path / "run",
            data={"train": [f"{place}/rows.json"], "heldout": f"{place}/other.json"},
            spin={"generated": f"{place}/answers.jsonl"},
        )
        for place in (tmp_path, tmp_path / "link")
    )
    with RunFolder(first) as run:
        finish(run)
    assert RunFolder(second).as_bound() == first
    for _ in range(2):
        with RunFolder(second) as run:
            assert run.recipe == first


def test_a_limit_of_held_out_examples_that_none_reaches_may_change(tmp_path: Path) -> None:
    """One that is reached decides which examples are trained on, so that a finished run would be made again."""

    def limited(limit: int) -> Recipe:
        return recipe(tmp_path, data={"train": "x.json", "eval_limit": limit})

    with RunFolder(limited(1000)) as run:
        finish(run)
        run.finish("data", {}, [], {"heldout": 20})
    with RunFolder(limited(21)):
        pass
    for limit in (20, 5):
        with pytest.raises(RunError, match=f"data.eval_limit 21 there, {limit} here"):
            RunFolder(limited(limit)).__enter__()


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"recipe": 1}', b'"x"', b'{"recipe": {"data": 3}}', b"\xff"])
def test_a_recipe_of_another_shape_is_one_line(tmp_path: Path, content: bytes) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        finish(run)
    (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(RunError, match=r"recipe\.json: |another recipe"):
        RunFolder(recipe(tmp_path)).__enter__()


def test_a_folder_in_which_only_data_was_read_may_be_taken_over(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        finish(run, stage="data")
    with RunFolder(recipe(tmp_path, seed=3)):
        assert json.loads((tmp_path / "recipe.json").read_text())["recipe"]["seed"] == 3
    (tmp_path / "base").mkdir()
    with pytest.raises(RunError, match="another recipe"), RunFolder(recipe(tmp_path, seed=4)):
        pass


def test_a_folder_in_which_a_teacher_wrote_and_trackers_began_may_be_taken_over(tmp_path: Path) -> None:
    """Its replies stay. Without a recipe, a folder with such names is somebody's own."""
    for name in ("synth", "tensorboard", "wandb"):
        (tmp_path / name).mkdir()
    with pytest.raises(RunError, match="no run of spintune"):
        RunFolder(recipe(tmp_path)).__enter__()
    for name in ("synth", "tensorboard", "wandb"):
        (tmp_path / name).rmdir()
    with RunFolder(recipe(tmp_path)) as run:
        finish(run, stage="synth")
        finish(run, stage="data")
        for name in ("metrics.jsonl", "results.json", "tracking.json", "tensorboard/sft/events", "wandb/run/x"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    with RunFolder(recipe(tmp_path, seed=3)) as run:
        assert json.loads((tmp_path / "recipe.json").read_text())["recipe"]["seed"] == 3
        assert run.finished("synth", {"x": 1}) == {"rows": 3}


@pytest.mark.parametrize(
    ("earlier", "now", "refused"),
    [
        ({"iterations": 2, "lambda": [0.1, 0.2]}, {"iterations": 3, "lambda": [0.1, 0.2, 0.3]}, None),
        ({"iterations": 3, "lambda": [0.1, 0.2, 0.3]}, {"iterations": 2, "lambda": [0.1, 0.2]}, None),
        ({"iterations": 2, "epochs": 1.0}, {"iterations": 3, "epochs": [1.0, 1.0, 2.0]}, None),
        ({"iterations": 2, "loss": ["hinge", "hinge"]}, {"iterations": 2, "loss": "hinge"}, None),
        ({"iterations": 1, "learning_rate": "auto"}, {"iterations": 2, "learning_rate": ["auto", 1e-5]}, None),
        # a rate for all is looked for once
        (
            {"iterations": 2, "learning_rate": "auto"},
            {"iterations": 2, "learning_rate": ["auto", "auto"]},
            r"spin.learning_rate 'auto' there, \['auto', 'auto'\] here",
        ),
        (
            {"iterations": 2, "lambda": [0.1, 0.2]},
            {"iterations": 3, "lambda": [0.1, 0.3, 0.3]},
            r"spin.lambda.1 0.2 there, 0.3 here",
        ),
        (
            {"iterations": 2, "lambda": 0.1},
            {"iterations": 3, "lambda": [0.1, 0.3, 0.3]},
            r"spin.lambda 0.1 there, \[0.1, 0.3\] here",
        ),
    ],
)
def test_values_of_iterations_that_both_recipes_have_must_agree(
    tmp_path: Path, earlier: dict[str, Any], now: dict[str, Any], refused: str | None
) -> None:
    with RunFolder(recipe(tmp_path, spin=earlier)) as run:
        finish(run)
    if refused:
        with pytest.raises(RunError, match=refused):
            RunFolder(recipe(tmp_path, spin=now)).__enter__()
    else:
        with RunFolder(recipe(tmp_path, spin=now)):
            pass


def test_unfinished_files_are_removed_on_entry_but_not_from_under_another_process(tmp_path: Path) -> None:
    left = tmp_path / ".x.0123456789abcdef.spintune-partial"
    left.write_text("")  # killed before it had a recipe
    with RunFolder(recipe(tmp_path)):
        assert not left.exists()
        left.write_text("")
        with pytest.raises(RunError), RunFolder(recipe(tmp_path)):
            pass
        assert left.exists()


def test_a_folder_of_somebody_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "Downloads").mkdir()
    (tmp_path / "Downloads" / "film.mkv.partial").write_text("mine")
    (tmp_path / "Downloads" / ".x.0123456789abcdef.spintune-partial").write_text("of a run that was copied there")
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(RunError, match=r"not empty and no run of spintune \(it has Downloads\)"),
        RunFolder(recipe(tmp_path)),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "new")
    with pytest.raises(StorageError, match="run: "), RunFolder(recipe(tmp_path / "run")):
        pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunFolder(recipe(tmp_path)):
        pass
    assert "has no locks" in caplog.text


def steps(log: StepLog) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def test_rewind_drops_a_torn_line_and_the_steps_to_come(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.rewind("sft", 0)
    assert not log.path.exists()
    for step in (1, 2, 3):
        log.append("sft", step, loss=1 / step)
    log.append("spin", 3, loss=0.5)
    log.close()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"stage":"sft","st')
    log.rewind("sft", 2)
    assert steps(log) == [("sft", 1), ("sft", 2), ("spin", 3)]
    assert whole.startswith(log.path.read_bytes()[:40])  # what stays is not rewritten in another form
    log.append("sft", 3)
    log.close()
    assert steps(log) == [("sft", 1), ("sft", 2), ("spin", 3), ("sft", 3)]


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        (b"\x00" * 50, False),
        (b"\x00" * 50 + b'{"stage":"sft","step":4}\n', True),
        (b'{"stage":"sft","step":4,"loss":1e\n', True),
        (b'[1]\n7\n{}\n{"stage":3,"step":1}\n{"stage":"sft","step":"4"}\n', True),
        (b"\xff\xfe\n", True),
    ],
)
def test_what_a_power_cut_leaves_of_a_log_is_dropped(
    tmp_path: Path, tail: bytes, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.append("sft", step, loss=1 / step)
    log.close()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + tail)
    log.mend()
    assert log.path.read_bytes() == whole
    log.path.write_bytes(whole + tail)
    assert log.rewind("sft", 2) == 2
    assert log.rewind("sft", 9) == 2
    assert steps(log) == [("sft", 1), ("sft", 2)]
    assert ("damaged lines are left out" in caplog.text) == told


def test_a_whole_log_is_not_written_again(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.append("sft", 1)
    log.close()
    before = log.path.stat().st_ino
    log.mend()
    assert log.path.stat().st_ino == before


@settings(max_examples=25)
@given(cuts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=5))
def test_every_step_stands_once_after_any_torn_writes_and_restarts(
    cuts: list[tuple[int, int]], tmp_path_factory: Any
) -> None:
    """Each attempt goes on from a checkpoint of some steps, and its last line is cut anywhere."""
    log = StepLog(tmp_path_factory.mktemp("log") / "log.jsonl")
    done = 0
    for more, cut in cuts:
        log.rewind("sft", done)
        for step in range(done + 1, done + more + 1):
            log.append("sft", step, loss=0.1)
        log.close()
        if more and cut:
            data = log.path.read_bytes()
            last = data.rstrip(b"\n").rfind(b"\n") + 1
            log.path.write_bytes(data[: max(last, len(data) - cut)])
            done += more - 1
    log.rewind("sft", done)
    log.append("sft", done + 1)
    log.close()
    assert steps(log) == [("sft", step) for step in range(1, done + 2)]


def test_a_key_that_an_earlier_version_did_not_have_makes_no_other_recipe(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        finish(run)
    path = tmp_path / "recipe.json"
    document = json.loads(path.read_text())
    assert document["recipe"].pop("generator", "missing") is None
    path.write_text(json.dumps(document))
    with RunFolder(recipe(tmp_path)) as run:
        assert "generator" in json.loads(path.read_text())["recipe"]


def test_a_key_that_an_earlier_version_s_sources_did_not_have_makes_no_other_recipe(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path)) as run:
        finish(run)
    path = tmp_path / "recipe.json"
    document = json.loads(path.read_text())
    (source,) = document["recipe"]["data"]["train"]
    assert source.pop("columns", "missing") is None
    path.write_text(json.dumps(document))
    with RunFolder(recipe(tmp_path)):
        assert "columns" in json.loads(path.read_text())["recipe"]["data"]["train"][0]


def test_a_folder_whose_recipe_named_the_metric_under_spin_belongs_to_it_still(tmp_path: Path) -> None:
    with RunFolder(recipe(tmp_path, spin={})) as run:
        finish(run)
    path = tmp_path / "recipe.json"
    document = json.loads(path.read_text())
    document["recipe"]["spin"]["metric"] = "rouge_l"
    for key in ("metric", "checker", "samples"):
        del document["recipe"]["evaluation"][key]
    path.write_text(json.dumps(document))
    with RunFolder(recipe(tmp_path, spin={})):
        assert json.loads(path.read_text())["recipe"]["evaluation"]["metric"] == "auto"


def test_a_command_that_was_killed_is_told_by_the_next_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="an error"), RunFolder(recipe(tmp_path)):
        raise ValueError("an error")
    if not os.fork():
        RunFolder(recipe(tmp_path)).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    assert "was killed" not in caplog.text
    for told in (True, False):
        caplog.clear()
        with RunFolder(recipe(tmp_path)):
            assert ("was killed" in caplog.text) == told
    assert (tmp_path / "run.lock").read_bytes() == b""


def test_lost_metrics_of_a_finished_stage_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Metrics(tmp_path, []).close()
    assert not caplog.messages  # nothing was trained
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/manifest.json").write_text("{}")
    Metrics(tmp_path, []).close()
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'metrics.jsonl'} is gone, with the steps of sft")
