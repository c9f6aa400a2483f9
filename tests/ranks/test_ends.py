"""Ranks that end early, are told to stop, or differ: one line, all ranks down, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import Rank, command, start_ranks, wait_for
from run_contents import run_contents
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter

from spintune.ranks import lifeline, rollcall
from spintune.stages import followers
from spintune.training.stepping import Stepper
from spintune.unfinished import read_checkpoint

pytestmark = pytest.mark.slow

SFT_ALONE = """eval: []
sft: {epochs: 5, learning_rate: 1.0e-3, tokens_per_step: 260, checkpoint_minutes: 0}
"""


def _recipe(world: Callable[..., Path], name: str, more: str = "") -> Path:
    recipe = world(name)
    kept = [line for line in recipe.read_text().splitlines() if not line.startswith(("sft:", "spin:", "eval:"))]
    sft = SFT_ALONE.replace("minutes: 0", "minutes: 0, checkpoint_write: async") if more else SFT_ALONE  # shards
    recipe.write_text("\n".join(kept) + "\n" + sft + more)
    return recipe


def _out(recipe: Path) -> Path:
    return Path(next(line.split()[1] for line in recipe.read_text().splitlines() if line.startswith("out:")))


def _steps(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [line for line in lines if "grad_norm" in line]


def _when_training(run: Path, ranks: Sequence[Rank], steps: int = 2) -> None:
    until = time.monotonic() + 200
    while len(_steps(run)) < steps:
        assert time.monotonic() < until, "\n".join(rank.text for rank in ranks)
        time.sleep(0.02)


def _errors(ranks: Sequence[Rank]) -> list[str]:
    return [line for rank in ranks for line in rank.text.splitlines() if line.startswith("spintune:")]


@pytest.mark.parametrize("more", ["", "parallel: shard\n"])
def test_stops_and_goes_on_with_other_ranks(world: Callable[..., Path], tmp_path: Path, more: str) -> None:
    name = "shard" if more else "replicate"
    whole = _recipe(world, f"whole-{name}")
    assert wait_for(start_ranks(1, command(["run", str(whole)]), tmp_path / "whole")) == [0]
    recipe = _recipe(world, f"stopped-{name}", more)
    ranks = start_ranks(2, command(["run", str(recipe)]), tmp_path / "first")
    _when_training(_out(recipe), ranks)
    ranks[1].signal(signal.SIGUSR1)  # not the rank that decides
    assert wait_for(ranks) == [75, 75]
    (line,) = _errors(ranks)
    assert "SIGUSR1" in line
    assert "checkpoint of step" in line
    recipe.write_text(recipe.read_text().replace(more, "") if more else recipe.read_text())
    assert wait_for(start_ranks(1, command(["run", str(recipe)]), tmp_path / "second")) == [0]
    steps = [line["step"] for line in _steps(_out(recipe))]
    assert steps == [line["step"] for line in _steps(_out(whole))]  # each step once, whoever made it
    one, other = (load_file(_out(file) / "sft/model/model.safetensors") for file in (whole, recipe))
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 2e-4


@pytest.mark.parametrize("more", ["", "parallel: shard\n"])
def test_a_killed_rank_takes_the_others_down(world: Callable[..., Path], tmp_path: Path, more: str) -> None:
    recipe = _recipe(world, f"killed-{len(more)}", more)
    ranks = start_ranks(3, command(["run", str(recipe), "sft.epochs=60"]), tmp_path / "first")
    _when_training(_out(recipe), ranks, 3)  # a checkpoint begins when the one before it is complete
    ranks[2].signal(signal.SIGKILL)
    assert wait_for(ranks, 60) == [14, 14, -signal.SIGKILL]
    (line,) = _errors(ranks)
    assert "rank 2" in line
    assert "checkpoint of step" in line


def test_a_rank_killed_in_each_stage_costs_nothing_but_time(world: Callable[..., Path], tmp_path: Path) -> None:
    """Killed again and again, always further on, the run ends as one that nobody disturbed."""
    whole, recipe = world("whole"), world("killed-everywhere")
    run = _out(recipe)
    reached = [
        "data",
        "sft/model",
        "spin/iterate-1/pairs",
        "spin/iterate-1/model",
        "spin/iterate-2/pairs/manifest.json",
    ]
    for number, place in enumerate([*reached, "eval/heldout/iterate-1"]):
        ranks = start_ranks(2, command(["run", str(recipe)]), tmp_path / str(number))
        until = time.monotonic() + 120
        while not (run / place).exists():
            assert time.monotonic() < until, "\n".join(rank.text for rank in ranks)
            time.sleep(0.005)
        victim = number % 2
        ranks[victim].signal(signal.SIGKILL)
        codes = wait_for(ranks, 60)
        assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 14), place
        (line,) = _errors(ranks)
        assert line.startswith(f"spintune: rank {victim}: ended without a word"), place
    for name, one in (("again", recipe), ("whole", whole)):
        assert wait_for(start_ranks(2, command(["run", str(one)]), tmp_path / name)) == [0, 0]
    found, expected = run_contents(run), run_contents(_out(whole))
    for tree in (found, expected):
        tree.pop("recipe.json")  # names its folder
    assert found == expected


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_ends_ranks_that_wait_for_one_that_does_not_answer(
    world: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    """One of two ranks is paused, so the other waits in a collective operation."""
    monkeypatch.setattr(lifeline, "STUCK_SECONDS", 1.0)
    recipe = _recipe(world, f"stuck-{told}")
    ranks = start_ranks(2, command(["run", str(recipe), "sft.epochs=200"]), tmp_path / "first")
    _when_training(_out(recipe), ranks, 3)
    ranks[1 - told].signal(signal.SIGSTOP)
    time.sleep(1.0)
    steps = len(_steps(_out(recipe)))
    ranks[told].signal(signal.SIGTERM)
    until = time.monotonic() + 20
    while not _errors(ranks):
        assert time.monotonic() < until
        time.sleep(0.05)
    ranks[1 - told].signal(signal.SIGCONT)
    codes = wait_for(ranks, 30)
    assert codes[told] == 75
    assert codes[1 - told] in (14, 75)
    assert f"stopped by SIGTERM while rank {told} waited for another one; the same command" in "".join(_errors(ranks))
    assert len(_steps(_out(recipe))) in (steps, steps + 1)


def test_a_failing_rank_leaves_time_for_the_checkpoint_under_way(
    world: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing takes longer than a rank that waits for another one has before it is ended."""
    recipe = _recipe(world, "fails", "parallel: shard\n")
    write_data, gradients = FileSystemWriter.write_data, Stepper.finite_gradients

    def slow(self: FileSystemWriter, *arguments: Any) -> Any:
        time.sleep(1.5)
        return write_data(self, *arguments)

    def failing(self: Stepper[Any], batch: Any, step: int, *more: Any) -> Any:
        if step == 2 and os.environ["RANK"] == "1":
            raise ValueError("a library's error")
        return gradients(self, batch, step, *more)

    monkeypatch.setattr(lifeline, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(FileSystemWriter, "write_data", slow)
    monkeypatch.setattr(Stepper, "finite_gradients", failing)
    ranks = start_ranks(2, command(["run", str(recipe)]), tmp_path / "first")
    codes = wait_for(ranks, 120)
    assert 0 not in codes, codes
    (line,) = _errors(ranks)
    assert "a library's error" in line
    (folder,) = _out(recipe).glob("sft/checkpoints/*/step-*")
    assert read_checkpoint(folder).step == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=0", "seed=1"], "another recipe"),
        (["parallel=shard", "parallel=replicate"], "another parallel (replicate) than rank 0 (shard)"),
        (["parallel=replicate", "parallel=auto"], "another parallel (auto) than rank 0 (replicate)"),
        (["copies=1", "copies=2"], "another copies (2) than rank 0 (1)"),
    ],
)
def test_ranks_that_differ(world: Callable[..., Path], tmp_path: Path, words: list[str], told: str) -> None:
    recipe = _recipe(world, "differ", "parallel: shard\n")

    def work(rank: int) -> None:
        command(["run", str(recipe), words[rank]])(rank)

    ranks = start_ranks(2, work, tmp_path)
    assert wait_for(ranks, 60) == [14, 14]
    (line,) = _errors(ranks)
    assert f"rank 1 has {told}" in line


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("word", ["sft.epochs=none", "model=./nowhere"])
def test_a_rank_that_fails_before_it_joins(
    world: Callable[..., Path], tmp_path: Path, size: int, failing: int, word: str
) -> None:
    recipe = _recipe(world, "absent")

    def work(rank: int) -> None:
        command(["run", str(recipe), *([word] if rank == failing else [])])(rank)

    ranks = start_ranks(size, work, tmp_path)
    codes = wait_for(ranks, 40)
    assert codes == [codes[0]] * size
    assert codes[0]
    assert all(word.split("=")[0] in line for line in _errors(ranks))
    assert len(_errors(ranks)) == 1 + failing  # its own line, and the first rank's
    assert failing == 0 or _errors(ranks[:1])[0].startswith("spintune: rank 1: ")


def test_a_rank_whose_first_rank_never_comes_says_nothing_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch prints its own stack where a store cannot be reached, and goes on trying."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name, value in {
        "RANK": 1,
        "LOCAL_RANK": 1,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(rollcall, "_TELL_SECONDS", 0.5)
    before = time.monotonic()
    rollcall.tell_failure("no recipe", 2)
    assert 0.5 <= time.monotonic() - before < 20
    assert capfd.readouterr() == ("", "")


def test_ranks_of_different_environments(
    world: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(world, "environments")

    def work(rank: int) -> None:
        if rank:
            monkeypatch.setenv("SPINTUNE_KERNELS", "off")
        command(["run", str(recipe)])(rank)

    monkeypatch.delenv("SPINTUNE_KERNELS", raising=False)
    ranks = start_ranks(2, work, tmp_path)
    assert wait_for(ranks, 60) == [14, 14]
    (line,) = _errors(ranks)
    assert "rank 1 has another SPINTUNE_KERNELS (off) than rank 0 (unset)" in line


def test_ranks_of_different_versions(
    world: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(world, "versions")

    def work(rank: int) -> None:
        monkeypatch.setattr(followers, "__version__", f"{rank}.0")
        command(["run", str(recipe)])(rank)

    ranks = start_ranks(2, work, tmp_path)
    assert wait_for(ranks, 120) == [14, 14]
    (line,) = _errors(ranks)
    assert "rank 1 has another version of spintune (1.0) than rank 0 (0.0)" in line


def test_nodes_that_share_no_file_system(
    world: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path is another folder on each: /proc/self/cwd is where a process was started."""
    recipe = _recipe(world, "apart")
    monkeypatch.setattr(followers, "_SEEN_SECONDS", 0.5)

    def work(rank: int) -> None:
        root = tmp_path / f"node-{rank}"
        root.mkdir()
        os.chdir(root)
        command(["run", str(recipe), "out=/proc/self/cwd/run"])(rank)

    ranks = start_ranks(2, work, tmp_path)
    assert wait_for(ranks, 120) == [14, 14]
    (line,) = _errors(ranks)
    assert "rank 1: /proc/self/cwd/run is another folder there than on rank 0" in line
    assert "file system that all nodes share" in line
    assert not (tmp_path / "node-0/run/data").exists()  # before anything is computed


def test_torchrun(world: Callable[..., Path], tmp_path: Path) -> None:
    """Two processes that torchrun starts on loopback, as on nodes."""
    recipe = _recipe(world, "torchrun")
    words = ["--standalone", "--nproc-per-node=2", "-m", "spintune", "run", str(recipe), "sft.max_steps=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = _steps(_out(recipe))
    assert [line["step"] for line in steps] == [1, 2]
    assert all("imbalance" in line for line in steps)  # both computed
    assert (_out(recipe) / "sft/model/model.safetensors").is_file()
