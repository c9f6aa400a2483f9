"""Memory that runs out ends in one line with what to change, and training leaves a checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spintune import memory
from spintune.errors import ModelError, OutOfMemoryError, TeacherError
from spintune.memory import available_memory, is_out_of_memory, memory_errors
from spintune.pipeline import run_recipe
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.remedies import BY_MOMENTS, advice, out_of_memory
from spintune.training.footprint import moment_bytes

RUNS_SHORT = """
import json, os, resource, sys
from importlib import import_module
import torch, spintune.pipeline, spintune.console
from spintune.cli import main

def run(place, calls, recipe):
    module, _, path = place.partition(" ")
    owner = import_module(module)
    *path, last = path.split(".")
    for part in path:
        owner = getattr(owner, part)
    function, seen = getattr(owner, last), [0]

    def limited(*arguments, **named):
        seen[0] += 1
        if seen[0] == calls:
            held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
            resource.setrlimit(resource.RLIMIT_DATA, (held * 1024 + 2**26,) * 2)
            torch.empty(2**30)  # more than there is
        return function(*arguments, **named)

    setattr(owner, last, limited)
    sys.argv = ["spintune", "run", recipe]
    main()

for case in json.loads(sys.argv[1]):
    if not os.fork():
        os.dup2(os.open(case[2] + ".err", os.O_WRONLY | os.O_CREAT), 2)
        run(*case)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
"""Runs each recipe in a process of its own. At the n-th call of a function its memory is limited to 64 MiB more than it
holds, and the function asks for more than that."""

SFT: dict[str, Any] = {"sft": {"checkpoint_minutes": 1000.0, "max_steps": 4}, "spin": None, "eval": []}
SPIN: dict[str, Any] = {"sft": None, "spin": {"iterations": 1}, "eval": []}
PLACES = {
    "loading": ("spintune.models.loading auto_class", 1, "use a smaller model", SFT),
    "training": ("spintune.training.stepping Stepper.finite_gradients", 3, "lower tokens_per_forward", SFT),
    "generation": (
        "spintune.generation.batch new_sequences",
        3,
        "lower data.max_length, or use a smaller model",  # answers of 12 tokens are short already
        SPIN,
    ),
    "scoring": ("spintune.engine.logprobs _sums_of", 1, "lower tokens_per_forward", SPIN),
    "evaluation": ("spintune.generation.batch new_sequences", 1, "lower data.max_length", {"sft": None, "spin": None}),
}
"""Where memory runs out: a function, its call, the advice, and changes of the recipe."""


@pytest.mark.slow
def test_a_limit_that_is_reached_is_one_line_and_a_code_of_its_own(
    values: Callable[..., dict[str, Any]], large_model: Path, tmp_path: Path
) -> None:
    cases = []
    for name, (place, calls, _, changes) in PLACES.items():
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(json.dumps(values(tmp_path / name, model=str(large_model), **changes)))
        cases.append((place, calls, str(recipe)))
    command = [sys.executable, "-c", RUNS_SHORT, json.dumps(cases)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["12"] * len(cases), ended
    for name, (_, _, told, _) in PLACES.items():
        errors = (tmp_path / f"{name}.yaml.err").read_text()
        before, _, after = errors.partition("spintune: out of memory")  # at its exit torch may lack memory, too
        assert "Traceback" not in before
        line = after.splitlines()[0]
        assert told in line
        if name == "training":
            assert line.endswith("the checkpoint of step 2 is kept, and the same command goes on from it")
            assert list((tmp_path / name).glob("sft/checkpoints/*/step-00000002"))


def test_memory_may_run_out_before_the_first_stage(
    values: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep takes what is none of our errors for one that nobody foresaw."""

    def fails(recipe: object) -> None:
        raise MemoryError

    monkeypatch.setattr("spintune.pipeline.check_data_files", fails)
    with pytest.raises(OutOfMemoryError):
        run_recipe(parse_recipe(values(tmp_path / "run"), "test"), tmp_path, Silent())


def test_only_what_saves_memory_and_goes_with_the_recipe_is_advised() -> None:
    sizes = [moment_bytes((1024, 1024), name) for name in BY_MOMENTS]
    assert sizes == sorted(sizes)
    values = {"out": "o", "model": "m", "data": {"train": "x.json"}, "precision": "float32"}
    both = ["adafactor", "adamw8bit"]
    for name, advised in (("adafactor", []), ("adamw8bit", ["adafactor"]), ("adamw", both), ("muon", both)):
        told = advice("training", parse_recipe({**values, "sft": {"optimizer": name}}, "test"))
        assert re.findall(r"use optimizer: (\w+)", told) == advised
        assert "weights: bfloat16" not in told
        assert ("use lora" in told) == (name != "muon")


@pytest.fixture
def large_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with wider layers, so that what it needs is not found in memory that was freed before."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = model.config
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 2048, 64
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (_caused(ModelError("model 'm' cannot be loaded"), MemoryError()), True),
        (ValueError("out of memory"), False),
        (TeacherError("the server says: CUDA out of memory"), False),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    raised = OutOfMemoryError if expected else type(error)
    with pytest.raises(raised, match="out of memory" if expected else None), memory_errors(out_of_memory):
        raise error


def test_torch_and_python_say_so_in_these_words() -> None:
    """The real errors, of requests that no machine can meet."""
    for ask in (lambda: torch.empty(2**55), lambda: bytearray(2**62)):
        with pytest.raises(OutOfMemoryError), memory_errors(out_of_memory):
            ask()


THREAD_FAILS = """
import resource, sys, threading
from spintune.memory import is_out_of_memory

held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
if sys.argv[1] == "memory":
    resource.setrlimit(resource.RLIMIT_DATA, (held * 1024 + 2**20,) * 2)
else:
    threading.stack_size(2**50)  # no machine has so many addresses
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    print(is_out_of_memory(error))
"""


@pytest.mark.parametrize(("lacking", "expected"), [("memory", "True"), ("threads", "False")])
def test_a_thread_that_cannot_start_for_want_of_memory_says_so(lacking: str, expected: str) -> None:
    """Python has the same words for a system that allows no more threads."""
    command = [sys.executable, "-c", THREAD_FAILS, lacking]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{expected}\n"


def test_memory_of_the_machine_and_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = available_memory()
    assert found is not None
    assert 0 < found < 2**50
    files = {
        "a/memory.max": "1000\n",
        "a/memory.current": "700\n",
        "a/memory.stat": "anon 1\ninactive_file 150\n",
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "700\n",
        "memory/c/memory.limit_in_bytes": "500\n",
        "memory/c/memory.usage_in_bytes": "600\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = tmp_path / "self"

    def left(groups: str) -> list[int]:
        own.write_text(groups)
        return list(memory._left_in_groups(tmp_path, own))

    assert left("0::/a/b\n") == [450]
    assert left("4:cpu,memory:/c\n3:cpu:/x\n") == [0]
    assert left("0::/of/the/host\n") == []
    (tmp_path / "memory.max").write_text("900\n")  # a container sees its own group as the root
    (tmp_path / "memory.current").write_text("300\n")
    assert left("0::/../of/the/host\n") == [600]
