"""Whole sweeps of the tiny model, in this process and in others that are stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_server import Command
from run_contents import run_contents

import spintune as spintune_in_python
from spintune.pipeline import run_recipe
from spintune.progress import Silent
from spintune.recipe import load_recipe, losses
from spintune.run_folder import RunFolder
from spintune.sweeps.execution import _results as finished_results
from spintune.sweeps.execution import read_sweep
from spintune.sweeps.plan import PlannedRun
from spintune.verification import verify_run

Spintune = Callable[..., Any]
Write = Callable[..., Path]

ONLY_SFT: dict[str, Any] = {"spin": None, "eval": []}


def steps(out: Path, stage: str) -> int:
    """Optimizer steps of a stage that are in the metrics of a run."""
    path = out / "metrics.jsonl"
    return sum(f'"stage":"{stage}"' in line for line in path.read_text().splitlines()) if path.exists() else 0


def test_a_failed_run_ends_no_sweep_and_is_tried_again(spintune: Spintune, recipe: Write, tmp_path: Path) -> None:
    """No answer fits into two tokens."""
    path = recipe(**ONLY_SFT)
    words = ("sweep", path, "data.max_length=[8,96]", "seed=0..0", f"out={tmp_path / 'all'}")
    for _ in range(2):
        ended = spintune(*words)
        assert ended.code == 13
        line = ended.err.splitlines()[-1]
        assert line.startswith("spintune: 1 of 2 runs failed; the same command tries again. data.max_length=8,seed=0: ")
        assert "1 finished" in ended.out
        failed, finished = read_sweep(tmp_path / "all").runs
        assert (failed.state, finished.state) == ("failed", "finished")
        assert failed.reason
        assert failed.reason in line
        assert failed.reason in (tmp_path / "all/report.html").read_text().replace("&#39;", "'").replace("&#34;", '"')
    assert steps(tmp_path / "all/data.max_length=96,seed=0", "sft") == 3
    other = spintune("sweep", path, "data.max_length=[8,96]", "seed=0..0", "sft.epochs=2", f"out={tmp_path / 'all'}")
    assert other.code == 5  # found before anything runs
    assert "holds a run of another recipe (sft.epochs 1.0 there, 2.0 here)" in other.err
    assert "run 1 of 2" not in other.err


@pytest.fixture
def breaking_loss() -> Iterator[str]:
    """A loss of somebody's package that fails."""

    def fails(margin_D: Any, lambda_: float) -> Any:
        raise ValueError("a package's error")

    losses.register_loss(replace(losses.LOSSES["logistic"], name="fails", function=fails))
    yield "fails"
    losses.LOSSES.unregister("fails")


def test_an_error_that_nobody_foresaw_ends_no_sweep(
    spintune: Spintune, recipe: Write, tmp_path: Path, breaking_loss: str
) -> None:
    ended = spintune("sweep", recipe(sft=None, eval=[]), f"spin.loss=[{breaking_loss},logistic]")
    assert ended.code == 13
    failed, finished = read_sweep(tmp_path / "run-sweep").runs
    assert (failed.state, finished.state) == ("failed", "finished")
    assert "a package's error" in str(failed.reason)
    assert "its traceback is in" in str(failed.reason)
    # what does not depend on the loss is copied from the failed run
    assert "spin/iterate-1/pairs: copied from spin.loss=fails" in ended.err


def test_a_sweep_from_python(recipe: Write, tmp_path: Path) -> None:
    results = spintune_in_python.sweep(recipe(**ONLY_SFT), "data.max_length=[8,96]", f"out={tmp_path / 'all'}")
    assert [(run.state, bool(run.reason)) for run in results.runs] == [("failed", True), ("finished", False)]


def test_a_dry_run_lists_runs_and_writes_nothing(spintune: Spintune, recipe: Write, tmp_path: Path) -> None:
    path = recipe()
    words = ("sweep", path, "seed=0..1", "spin.loss=[logistic,hinge]", "--dry-run")
    lines = spintune(*words).out.splitlines()
    assert lines == [
        f"4 runs in {tmp_path}/run-sweep, in this order:",
        "   1 seed=0,spin.loss=logistic",
        "   2 seed=0,spin.loss=hinge; SFT, answers as in seed=0,spin.loss=logistic",
        "   3 seed=1,spin.loss=logistic",
        "   4 seed=1,spin.loss=hinge; SFT, answers as in seed=1,spin.loss=logistic",
    ]
    part = json.loads(spintune(*words, "--only", "2/4", "--json").out)
    assert part["runs"] == [
        {
            "name": "seed=0,spin.loss=hinge",
            "values": {"seed": 0, "spin.loss": "hinge"},
            "out": f"{tmp_path}/run-sweep/seed=0,spin.loss=hinge",
            "copies": {"SFT": "seed=0,spin.loss=logistic", "answers": "seed=0,spin.loss=logistic"},
        }
    ]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("only", ["0/2", "3/2", "1/3", "1", "a/b", "-1/2", "1/0"])
def test_parts_that_are_none(spintune: Spintune, recipe: Write, only: str) -> None:
    ended = spintune("sweep", recipe(), "seed=0..1", f"--only={only}")
    assert ended.code == 2
    assert ended.err.strip() == (
        f"spintune: --only {only} is no part of 2 runs; give K/N, such as 1/2 for the first run"
    )


def test_a_mistake_in_one_recipe_ends_the_sweep_before_it_begins(
    spintune: Spintune, recipe: Write, tmp_path: Path
) -> None:
    path = recipe(**ONLY_SFT)
    ended = spintune("sweep", path, "generator=[batch,bach]")
    assert ended.code == 2
    assert len([line for line in ended.err.splitlines() if line.startswith("spintune:")]) == 1
    assert "did you mean batch?" in ended.err
    assert not (tmp_path / "run-sweep").exists()


# Other processes -----------------------------------------------------------------------------------------------------


def stop_when(process: Command, moment: Callable[[], bool]) -> tuple[int, str]:
    """Sends SIGTERM at a moment; gives the exit code and what was told."""
    while process.poll() is None and not moment():
        time.sleep(0.005)
    process.signal(signal.SIGTERM)
    return process.wait(), process.err


def test_results_of_another_recipe_do_not_finish_a_run(recipe: Write, tmp_path: Path, cache: Path) -> None:
    """A start binds the folder to its recipe; what it finds out is there at its end."""

    def planned(*changes: str) -> PlannedRun:
        found = load_recipe(recipe(**ONLY_SFT), [f"out={tmp_path / 'run'}", *changes])
        return PlannedRun("run", {}, found)

    before, now = planned(), planned("eval=[heldout]")
    results = run_recipe(before.recipe, cache, Silent())
    assert finished_results(before) == results
    with RunFolder(now.recipe):
        assert finished_results(now) is None
    run_recipe(now.recipe, cache, Silent(), until="sft")
    assert finished_results(now) is None
    found = run_recipe(now.recipe, cache, Silent())
    (tmp_path / "link").symlink_to(now.recipe.data.train[0].path)
    assert finished_results(planned("eval=[heldout]", f"data.train={{path: {tmp_path / 'link'}, limit: 20}}")) == found


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_every_run_is_that_run_alone(
    spintune: Spintune, recipe: Write, cache: Path, tmp_path: Path
) -> None:
    """Stopped in SFT of the first run and in self-play of the third. SFT is trained once a seed, and the results are
    those of runs alone, bit for bit."""
    sft, spin = {"epochs": 40, "max_steps": 60}, {"epochs": 20, "checkpoint_minutes": 1000.0}  # a signal may come late
    path = recipe(data={"eval_fraction": 0.5}, sft=sft, spin=spin)
    words = ("sweep", path, "seed=0..1", "spin.loss=[logistic,hinge]")
    folder = tmp_path / "run-sweep"
    first, third = folder / "seed=0,spin.loss=logistic", folder / "seed=1,spin.loss=logistic"
    codes = [
        stop_when(Command(*words, "--json"), lambda: steps(first, "sft") >= 2),
        stop_when(Command(*words, "--json"), lambda: steps(third, "spin/iterate-1") >= 2),
    ]
    assert [code for code, _ in codes] == [75, 75]
    assert codes[0][1].splitlines()[-1].endswith("and the same command goes on from it")
    assert [run.state for run in read_sweep(folder).runs] == ["finished", "finished", "not run", "not run"]
    last = Command(*words, "--json")
    assert last.wait() == 0
    everything = "".join(text for _, text in codes) + last.err
    # a stopped training says how far it was; each is ended once, and one of SFT then says what it gained
    assert everything.count('"held_out":[') == 2
    everything = "\n".join(line for line in everything.splitlines() if '"held_out":[' not in line)
    for task, unit in (("SFT", "steps"), ("sft answers training prompts", "answers")):
        assert len(re.findall(rf'"task":"{task}","total":(\d+),"unit":"{unit}","done":\1\.0\b', everything)) == 2
    plan = json.loads(spintune(*words, "--dry-run", "--json").out)["runs"]
    parts = {"sft": "SFT", "spin/iterate-1/pairs": "answers", "spin/iterate-1": "self-play"}
    copied = Counter(re.findall(r'"note":"(\S+): copied from', everything))
    assert {parts[stage]: count for stage, count in copied.items() if stage in parts} == Counter(
        part for run in plan for part in run["copies"]
    )
    for run in plan:
        out = Path(run["out"])
        if not run["copies"]:
            continue
        alone = load_recipe(path, [f"seed={run['values']['seed']}", f"spin.loss={run['values']['spin.loss']}"])
        run_recipe(alone.model_copy(update={"out": str(tmp_path / out.name)}), cache, Silent())
        assert run_contents(out) == run_contents(tmp_path / out.name), out.name
        assert not verify_run(out, Silent()).problems
    # a shell's SWEEP/* names report.html and sweep.json too; other seeds hold out other examples
    names = [name for name in sorted(folder.glob("[!.]*")) if not name.name.startswith("seed=1")]
    assert len(names) == 4
    assert "seed=0,spin.loss=hinge:iterate-1" in spintune("compare", *names).out
    assert spintune("report", *names, "--out", tmp_path / "several.html").code == 0


@pytest.mark.slow
def test_parts_in_processes_make_one_report(spintune: Spintune, recipe: Write, tmp_path: Path) -> None:
    """Two processes at once; then a larger sweep finds their runs done."""
    path = recipe(**ONLY_SFT)
    folder = tmp_path / "run-sweep"
    words = ("sweep", path, "seed=0..2", "--only")
    with Command(*words, "1/2") as process:
        assert spintune(*words, "2/2").code == 0
    assert process.poll() == 0
    assert [run.state for run in read_sweep(folder).runs] == ["finished"] * 3
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    told = spintune("sweep", path, "seed=0..3").err
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert told.count("SFT: 3 steps") == 1
    assert len(read_sweep(folder).runs) == 4


@pytest.mark.slow
def test_the_job_array_runs_its_index_and_waits_for_shared_work(
    spintune: Spintune, recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's part is played by three scripts; the job and its exit codes are real."""
    path = recipe(**ONLY_SFT)
    monkeypatch.chdir(tmp_path)
    job = tmp_path / "a job.sbatch"
    ended = spintune("sweep", path, "seed=0..1", "sft.learning_rate=[1e-3,1e-4]", "out=the sweep", "--slurm", job)
    assert ended.code == 0
    assert "4 runs in one array" in ended.out
    assert subprocess.run(["bash", "-n", job], check=False).returncode == 0
    assert not (tmp_path / "the sweep").exists()
    commands = {
        "sbatch": 'echo "$@" >> submitted; echo "$(wc -l < submitted);cluster"',
        "srun": 'exec "$@"',
        "scontrol": 'echo "$@" > requeued',
        "spintune": f'exec {sys.executable} -m spintune "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, line in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", job], cwd="/", env=environment, check=True)
    assert (tmp_path / "submitted").read_text() == f"--parsable --array=1-4 {job}\n"
    task = {**environment, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "7"}
    subprocess.run(["bash", job], cwd="/", env=task, check=True, stderr=subprocess.DEVNULL)
    states = {run.name: run.state for run in read_sweep(tmp_path / "the sweep").runs}
    assert states == {
        "seed=0,sft.learning_rate=0.001": "not run",
        "seed=0,sft.learning_rate=0.0001": "not run",
        "seed=1,sft.learning_rate=0.001": "finished",
        "seed=1,sft.learning_rate=0.0001": "not run",
    }
    (tmp_path / "bin/spintune").write_text("#!/bin/sh\nexit 75\n")
    assert subprocess.run(["bash", job], env=task, check=False).returncode == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7_3\n"


def test_arrays_wait_for_the_work_that_they_share(
    spintune: Spintune, recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = spintune("sweep", recipe(), "seed=0..1", "spin.loss=[logistic,hinge,space]", "--slurm=job.sh")
    assert "6 runs in 2 arrays, one after another" in ended.out
    submitted = [line.strip() for line in (tmp_path / "job.sh").read_text().splitlines() if "$(sbatch" in line]
    script = '"$script") || exit'
    assert submitted == [
        f"wave=$(sbatch --parsable --array=1,4 {script}",
        f'wave=$(sbatch --parsable --array=2-3,5-6 --dependency="afterany:${{wave%%;*}}" {script}',
    ]
