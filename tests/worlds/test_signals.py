"""Signals stop a run where it can go on: a checkpoint in training, a shard or a reply elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import SpintuneError, StoppedBySignal
from spintune.pipeline import run_recipe
from spintune.progress import Progress, ProgressTask, Silent, StoppableProgress, StopRequest
from spintune.recipe import losses, parse_recipe
from spintune.storage import canonical_json
from spintune.synthesis.pipeline import synthesize
from spintune.teachers.protocol import Request
from spintune.teachers.scripted import ScriptedTeacher
from spintune.training.losses import logistic

Spintune = Callable[..., Any]
REPOSITORY = Path(__file__).resolve().parents[2]
NO_CHECKPOINT = {"checkpoint_minutes": 1000.0}
LONG = {"sft": {"epochs": 60.0, **NO_CHECKPOINT}, "spin": None, "eval": []}


@pytest.fixture
def recipe(values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """The small recipe in a file, with changes; its run folder is ``out``."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(values(tmp_path / "out", **changes)))  # JSON is YAML
        return path

    return write


def steps(out: Path, stage: str = "sft") -> int:
    """Steps of a stage that are in the metrics."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(f'"stage":"{stage}"' in line for line in lines)


@contextlib.contextmanager
def signal_when(moment: Callable[[], bool], number: int) -> Iterator[None]:
    """Sends a signal to this process as soon as the moment has come."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if moment():
                os.kill(os.getpid(), number)
                return
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    before = signal.signal(number, lambda *_: None)  # of these tests, should it come too late
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_in_training_leaves_a_checkpoint_and_a_line(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    path, out = recipe(**LONG), tmp_path / "out"
    with signal_when(lambda: steps(out) >= 3, number):
        before = signal.getsignal(number)
        result = spintune("run", path)
        assert signal.getsignal(number) == before
    assert result.code == 75
    (folder,) = out.glob("sft/checkpoints/*/step-*")
    step = json.loads((folder / "checkpoint.json").read_text())["step"]
    assert step == steps(out) >= 3
    assert result.err.splitlines()[-1] == (
        f"spintune: stopped by {number.name}; the checkpoint of step {step} is kept, "
        "and the same command goes on from it"
    )


@pytest.mark.slow
def test_a_stopped_run_ends_as_one_that_was_not(
    spintune: Spintune,
    recipe: Callable[..., Path],
    run: Callable[..., Any],
    contents: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    """Stopped in SFT, in self-play and in its evaluation, each time with only the checkpoint that the stop wrote."""
    changes = {"sft": NO_CHECKPOINT, "spin": NO_CHECKPOINT}
    path, out = recipe(**changes), tmp_path / "out"
    moments = [
        lambda: steps(out) >= 2,
        lambda: (out / "spin/heldout/sft/answers.jsonl").exists(),
        lambda: steps(out, "spin/iterate-1") >= 1,
        lambda: steps(out, "spin/iterate-2") >= 2,
        lambda: (out / "likelihood/iterate-2/likelihood.jsonl").exists(),
    ]
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGTERM]
    codes = []
    for moment, number in zip(moments, numbers, strict=True):
        with signal_when(moment, number):
            codes.append(spintune("run", path).code)
    assert codes[:4] == [75, 75, 130, 75]
    assert spintune("run", path).code == 0
    run(tmp_path / "straight", **changes)
    assert contents(out) == contents(tmp_path / "straight")


def test_ctrl_c_in_training_leaves_a_checkpoint(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = recipe(**LONG), tmp_path / "out"
    with signal_when(lambda: steps(out) >= 3, signal.SIGINT):
        result = spintune("run", path)
    assert result.code == 130
    assert result.err.splitlines()[-1] == "spintune: stopped; the same command continues"
    (folder,) = out.glob("sft/checkpoints/*/step-*")
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == steps(out)


def test_ignored_signals_stay_ignored() -> None:
    """As SIGHUP is under nohup, and SIGINT in a shell's background jobs."""
    from spintune.cli.signals import stop_on_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_library_leaves_handlers_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
    seen = []

    class Looks:
        """Progress that looks at the handlers while a run works."""

        @contextlib.contextmanager
        def task(self, name: str, total: float, unit: str) -> Iterator[Any]:
            seen.append([signal.getsignal(number) for number in numbers])
            yield self

        def advance(self, amount: float = 1, **facts: Any) -> None: ...

        def note(self, text: str) -> None: ...

    before = [signal.getsignal(number) for number in numbers]
    run(tmp_path / "out", Looks(), spin=None, eval=[])
    assert seen
    assert all(handlers == before for handlers in seen)


def test_a_signal_that_comes_again_at_once_is_the_same_request() -> None:
    """timeout(1) sends one to the process and one to its group."""
    from spintune.cli.signals import stop_on_signals
    from spintune.errors import StoppedBySignal

    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedBySignal, match="SIGTERM"):
            stop.check()


WAITS = """
import signal, sys, time
from spintune.cli import signals
signals._SAME_SECONDS = 0.0
with signals.stop_on_signals() as stop, stop.held():
    print("ready", flush=True)
    time.sleep(0.01)
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)])
def test_a_second_signal_ends_at_once(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(number)
        try:
            assert process.wait(60) == code
        finally:
            process.kill()


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_output(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """As with ``spintune run recipe.yaml 2>&1 | head -1``."""
    path = recipe(spin=None, eval=[])
    command = [sys.executable, "-m", "spintune", "run", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == 0
    assert (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_output_gives_no_traceback(closed: str) -> None:
    number = {"stdout": 1, "stderr": 2}[closed]
    line = f"exec {sys.executable} -m spintune schema {number}>&-"
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_the_job_script_of_the_guide_goes_back_into_the_queue(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Slurm's part is played by two scripts; the job, its signal and its exit codes are real."""
    page = (REPOSITORY / "docs/how-to/resume-and-move.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.S)
    commands = {
        "srun": 'exec "$@"',
        "spintune": f'echo $$ > pid; exec {sys.executable} -m spintune "$@"',
        "scontrol": 'echo "$@" > requeued',
    }
    (tmp_path / "bin").mkdir()
    for name, line in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    recipe(**LONG).rename(tmp_path / "small.yaml")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    with subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None and steps(tmp_path / "out") < 2:
            time.sleep(0.01)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
        assert job.wait(120) == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert list((tmp_path / "out").glob("sft/checkpoints/*/step-*"))


def test_writing_data_stops_at_a_reply_and_asks_nothing_twice(tmp_path: Path) -> None:
    stop, asked = StopRequest(), list[str]()

    def reply(request: Request) -> str:
        asked.append(canonical_json(request.to_json()).decode())
        if len(asked) == 5:
            stop.ask(StoppedBySignal("stopped by SIGTERM"))
        return f"9. List {len(asked)} things in a {'very ' * len(asked)}healthy breakfast."

    def write(progress: Progress) -> None:
        synthesize(
            "builtin:seeds", ScriptedTeacher(reply, "script"), 1, replies=tmp_path / "replies", progress=progress
        )

    with pytest.raises(StoppedBySignal):
        write(StoppableProgress(Silent(), stop))
    assert len(asked) == 5
    with contextlib.suppress(SpintuneError):  # replies of no use, some
        write(Silent())
    assert len(asked) == len(set(asked)) > 5


@pytest.mark.parametrize(("title", "stage"), [("SFT", "sft"), ("SPIN iteration 1", "spin/iterate-1")])
def test_a_stop_after_the_last_step_keeps_the_model(
    values: Callable[..., dict[str, Any]], tmp_path: Path, title: str, stage: str
) -> None:
    """No checkpoint has the last step, so nothing may end the run before the model is written."""
    stop = StopRequest()

    class AsksAfter(Silent):
        @contextlib.contextmanager
        def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
            with super().task(name, total, unit) as task:
                yield task
            if name == title:
                stop.ask(StoppedBySignal("stopped by SIGTERM"))

    recipe = parse_recipe(values(tmp_path / "run", spin={"iterations": 1}), "test")
    with pytest.raises(StoppedBySignal):
        run_recipe(recipe, tmp_path / "cache", AsksAfter(), stop=stop)
    assert (tmp_path / "run" / stage / "model").is_dir()
    assert (tmp_path / "run" / stage / "manifest.json").is_file()
    assert not (tmp_path / "run/results.json").exists()


@pytest.fixture
def breaking_loss() -> Iterator[str]:
    """A loss of somebody's package that fails at the third step."""
    calls = []

    def fails(margin_D: Any, lambda_: float) -> Any:
        calls.append(margin_D)
        if len(calls) == 6:  # each step's start is computed as well
            raise ValueError("a package's error")
        return logistic(margin_D, lambda_)

    losses.register_loss(replace(losses.LOSSES["logistic"], name="fails", function=fails))
    yield "fails"
    losses.LOSSES.unregister("fails")


def test_an_error_of_a_package_says_which_checkpoint_is_kept(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, breaking_loss: str
) -> None:
    spin = {"iterations": 1, "loss": breaking_loss, "pairs_per_step": 4, **NO_CHECKPOINT}
    result = spintune("run", recipe(sft=None, spin=spin, eval=[]))
    assert result.code == 70
    line = result.err.splitlines()[-1]
    assert "a package's error" in line
    (folder,) = (tmp_path / "out").glob("spin/iterate-1/checkpoints/*/step-*")
    step = int(folder.name.removeprefix("step-"))
    assert line.endswith(f"the checkpoint of step {step} is kept, and the same command goes on from it")
    assert step == steps(tmp_path / "out", "spin/iterate-1") >= 1
