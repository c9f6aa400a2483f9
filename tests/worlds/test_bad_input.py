"""What a user can get wrong: one clear line, a code of its own, nothing half-written, and the next command works."""

from __future__ import annotations

import fcntl
import json
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_server import Command
from safetensors.torch import load_file, save_file

Spintune = Callable[..., Any]
Values = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(values: Values, tmp_path: Path) -> Callable[..., Path]:
    """A recipe file of the small run in tmp_path/out, with changes."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(values(tmp_path / "out", **changes)))
        return path

    return write


def one_line(result: Any, code: int, *parts: str) -> None:
    """The command failed with ``code`` and one line on standard error that holds all ``parts``."""
    assert result.code == code, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("spintune: ")]
    assert len(lines) == 1, result.err
    assert lines[0] == result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    for part in parts:
        assert part in lines[0]


def only_complete(out: Path, *stages: str) -> None:
    """Nothing is half-written: exactly ``stages`` have manifests, and every other file is a log or the run's own."""
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} if out.exists() else set()
    manifests = {name for name in files if name.endswith("manifest.json")}
    assert manifests == {f"{stage}/manifest.json" for stage in stages}
    listed = {f"{stage}/{name}" for stage in stages for name in read(out / stage / "manifest.json")["files"]}
    logs = {"run.lock", "recipe.json", "metrics.jsonl", "sft/samples.jsonl"}
    assert files - manifests - listed <= logs


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def copy_model(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# Data ----------------------------------------------------------------------------------------------------------------


def test_a_missing_data_file(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "animals.json").write_text("[]")
    path = recipe(data={"train": str(tmp_path / "animal.json")})
    one_line(spintune("run", path), 3, str(tmp_path / "animal.json"), "does not exist", "did you mean", "animals.json")
    only_complete(tmp_path / "out")


@pytest.mark.slow
def test_after_a_mended_recipe_the_same_folder_goes_on(
    spintune: Spintune, recipe: Callable[..., Path], alpaca_file: Path
) -> None:
    """A run that failed before it computed anything does not hold its folder."""
    assert spintune("run", recipe(sft=None, spin=None, data={"train": "nowhere.json"})).code == 3
    assert spintune("run", recipe(sft=None, spin=None, data={"train": str(alpaca_file), "max_length": 8})).code == 3
    assert spintune("run", recipe(sft=None, spin=None, data={"train": str(alpaca_file), "max_length": 96})).code == 0


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("rows.docx", b"instruction,output\na,b\n", ("rows.docx", ".json", ".jsonl")),
        ("rows.json", b"\x89PNG\r\n\x1a\n\x00\x00", ("rows.json:1", "UTF-8")),
        ("rows.json", b'[{"question": "a"', ("rows.json:1", "not valid JSON")),
        ("rows.jsonl", b'{"lorem": 1}\n{"lorem": 2}\n', ("rows.jsonl", "lorem", "rename")),
        ("rows.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction": "c"}\n', ("rows.jsonl:2", "output")),
        ("rows.parquet", b"PAR1 not really", ("rows.parquet", "parquet")),
        ("rows.json", b"", ("rows.json", "empty")),
    ],
)
def test_a_data_file_that_cannot_be_read(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, name: str, content: bytes, parts: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(content)
    one_line(spintune("run", recipe(data={"train": str(tmp_path / name)})), 3, *parts)
    only_complete(tmp_path / "out")


def test_max_length_shorter_than_every_prompt(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    one_line(spintune("run", recipe(data={"max_length": 8})), 3, "max_length (8 tokens)", "shortest", "raise")
    only_complete(tmp_path / "out", "data")


# Models --------------------------------------------------------------------------------------------------------------


def test_an_alias_that_does_not_exist(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    one_line(spintune("run", recipe(model="smollm3")), 4, "smollm3", "smollm2-135m-instruct", "folder", "hub id")
    only_complete(tmp_path / "out")


def test_a_folder_that_is_no_model(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one_line(spintune("run", recipe(model=str(tmp_path / "empty"))), 4, "empty", "config.json")
    one_line(spintune("run", recipe(model=str(tmp_path / "none.gguf"))), 4, "none.gguf", "does not exist")


def test_max_length_longer_than_the_model_reads(spintune: Spintune, recipe: Callable[..., Path]) -> None:
    one_line(spintune("run", recipe(data={"max_length": 513})), 4, "513", "512", "lower")


@pytest.mark.slow
def test_a_tokenizer_without_a_template_needs_one_and_then_keeps_it(
    spintune: Spintune, recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    model = copy_model(tiny_model, tmp_path / "bare")
    (model / "chat_template.jinja").unlink()
    path = recipe(model=str(model), spin={"iterations": 1})
    one_line(spintune("run", path), 4, "bare", "no chat template", "data.template", "plain")
    only_complete(tmp_path / "out", "data")
    result = spintune("run", path, "data.template=plain")
    assert result.code == 0, result.err
    for iterate in ("sft", "spin/iterate-1"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / iterate / "model")
        conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        assert tokenizer.apply_chat_template(conversation, tokenize=False) == "Hi\n\nHo<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize("stages", [("sft",), ("spin",)])
def test_weights_that_are_not_numbers(
    spintune: Spintune, recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path, stages: tuple[str, ...]
) -> None:
    import torch

    model = copy_model(tiny_model, tmp_path / "broken")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    off = {key: None for key in ("sft", "spin") if key not in stages}
    one_line(spintune("run", recipe(model=str(model), **off)), 7, "not numbers", "damaged or has diverged")
    assert not list((tmp_path / "out").glob("**/model"))
    only_complete(tmp_path / "out", "data")
    assert spintune("run", recipe(**off, eval=[]), f"out={tmp_path / 'good'}").code == 0


def test_a_loss_that_is_not_a_number(
    spintune: Spintune, recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Finite weights, infinite scores: only without held-out prompts is the loss the first to meet them."""
    model = copy_model(tiny_model, tmp_path / "overflowing")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= 1e38
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    path = recipe(model=str(model), spin=None, data={"eval_fraction": 0.0})
    result = spintune("run", path)
    one_line(result, 7, "step 1", "loss inf", "the weights were not touched", "lower learning_rate")
    assert re.search("gradient norm (nan|inf)", result.err)  # inf - inf, or inf alone: the order of a formula decides
    only_complete(tmp_path / "out", "data")


# Recipes and command lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sft.lerning_rate=1e-5", ("sft.lerning_rate", "did you mean sft.learning_rate?")),
        ("learning_rate=1e-5", ("learning_rate", "did you mean sft.learning_rate?")),
        ("data.columns={prompt: question}", ("data.columns", "did you mean data.train: {path: FILE, columns: ...}?")),
        ("sft.epochs", ("'sft.epochs'", "key.path=value")),
        ("out.folder=x", ("out.folder=x", "not a section")),
        ("spin.lambda=0", ("spin.lambda", "greater than 0")),
        ("spin.lambda=[0.1]", ("spin", "lambda", "1 values for 2 iterations", "one for each")),
        ("spin.loss=[logistic, hinge, hinge]", ("loss", "3 values for 2 iterations")),
        ("seed=[1", ("seed", "expected")),
    ],
)
def test_an_override_that_is_wrong(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, override: str, parts: tuple[str, ...]
) -> None:
    one_line(spintune("run", recipe(), override), 2, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("out: [1\nmodel: m\n", ("recipe.yaml:2",)),
        ("out: a\nmodel: m\nout: b\n", ("recipe.yaml:3", "'out'", "repeated")),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", ("recipe.yaml:2", "aliases are not allowed")),
        ("x: " + "[" * 100_000, ("nested too deeply",)),
        ("x: 2024-13-45\n", ("recipe.yaml", "quotes")),
        ("? [a]\n: 1\n", ("recipe.yaml:1", "not text")),
        ("seed: 100000000000000000000\n", ("recipe.yaml:1", "64 bits")),
        ("x: !!python/object/apply:os.system [ls]\n", ("recipe.yaml:1", "tag")),
        ("just text", ("no keys",)),
        ("out: a\nmodel: m\ndata: {train: x}\nsft:\n", ("sft is empty", "{}")),
    ],
)
def test_a_recipe_that_is_no_recipe(spintune: Spintune, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    one_line(spintune("run", path), 2, *parts)


def test_a_recipe_that_is_not_there(spintune: Spintune, tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    one_line(spintune("run", tmp_path / "quikstart.yaml"), 2, "does not exist", "quickstart.yaml?")


def test_commands_and_options_that_do_not_exist(spintune: Spintune) -> None:
    one_line(spintune("rnu"), 2, "rnu")
    one_line(spintune("run", "--jsno"), 2, "--jsno")
    one_line(spintune("run"), 2, "RECIPE")


# Run folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_another_recipe_names_the_keys_that_differ(
    spintune: Spintune, recipe: Callable[..., Path], finished: Path, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    before = contents(finished)
    result = spintune("run", recipe(seed=8, spin={"lambda": 0.2}), f"out={finished}")
    one_line(
        result, 5, str(finished), "seed 0 there, 8 here", "spin.lambda None there, 0.2 here", "choose another out="
    )
    assert contents(finished) == before


def test_a_folder_that_another_process_holds(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "run.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        one_line(spintune("run", recipe()), 5, str(tmp_path / "out"), "in use by another", "wait")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.lock"]


def test_a_damaged_file_of_the_run_is_named(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe(sft=None, spin=None)
    assert spintune("run", path).code == 0
    (tmp_path / "out" / "data" / "manifest.json").write_text("{")
    one_line(spintune("run", path), 5, "data/manifest.json", "damaged", "delete it")


@pytest.mark.parametrize("out", ["file/run", "file", "/proc/spintune-run"])
def test_a_place_that_cannot_be_written(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, out: str
) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / out
    one_line(spintune("run", recipe(), f"out={place}"), 6, str(place), "choose another out=")


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A real file system of this size in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kilobytes", [160, *(pytest.param(size, marks=pytest.mark.slow) for size in (4, 12, 24, 40, 80, 240, 320))]
)
def test_a_full_disk_is_told_and_the_same_command_goes_on_once_there_is_room(
    spintune: Spintune,
    recipe: Callable[..., Path],
    contents: Callable[[Path], Any],
    finished: Path,
    tmp_path: Path,
    kilobytes: int,
) -> None:
    """Wherever the disk fills: in the run's own files, data, metrics, a checkpoint, the weights."""
    with small_disk(tmp_path / "disk", kilobytes):
        out = tmp_path / "disk" / "run"
        one_line(spintune("run", recipe(), f"out={out}"), 6, str(out), "disk is full", "free some space")
        assert not list(out.glob("**/.*-partial"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(tmp_path / "disk")], check=True)
        assert spintune("run", recipe(), f"out={out}").code == 0
        assert contents(out) == contents(finished)


def test_a_disk_that_cannot_hold_the_models_is_refused_before_training(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spintune.stages.needs._WORTH_TELLING", 0)  # the tiny models take 400 kB
    with small_disk(tmp_path / "disk", 300):
        out = tmp_path / "disk" / "run"
        one_line(
            spintune("run", recipe(), f"out={out}"), 6, str(out), "models take 0 MB", "too little", "spin.keep=best"
        )
        assert not (out / "metrics.jsonl").exists()


def test_a_file_size_limit_is_told(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))  # the weights have 115 kB
    try:
        result = spintune("run", recipe())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(result, 6, "larger than allowed", "ulimit")
    only_complete(tmp_path / "out", "data")


@pytest.mark.slow
def test_ctrl_c_ends_with_a_line_and_the_same_command_goes_on(
    spintune: Spintune,
    recipe: Callable[..., Path],
    tmp_path: Path,
    contents: Callable[[Path], Any],
    run: Callable[..., Any],
) -> None:
    path = recipe(sft={"epochs": 6.0}, spin=None, eval=[])
    with Command("run", path) as process:
        while process.poll() is None and not list((tmp_path / "out").glob("sft/checkpoints/*/step*")):
            time.sleep(0.01)
        process.signal(signal.SIGINT)
    assert process.poll() == 130
    assert process.err.splitlines()[-1] == "spintune: stopped; the same command continues"
    assert "Traceback" not in process.err
    assert spintune("run", path).code == 0
    run(tmp_path / "straight", sft={"epochs": 6.0}, spin=None, eval=[])
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
