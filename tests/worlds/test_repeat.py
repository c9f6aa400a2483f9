"""The same command again does nothing; a changed or damaged file makes what depends on it run again, and only that."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from watching import Watching

from spintune.errors import ModelError
from spintune.recipe import SpinSection
from spintune.stages.pairs import training_settings
from spintune.stages.sft import deciding_settings

Run = Callable[..., dict[str, Any]]
Contents = Callable[[Path], Any]


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The finished run in another place, its times of change kept."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.name != "run.lock"}


def rewritten(out: Path, before: dict[str, int]) -> set[str]:
    """Names of the manifests that were written since."""
    now = times(out)
    return {str(Path(name).relative_to(out).parent) for name in now if "manifest" in name and now[name] != before[name]}


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_same_command_again_writes_nothing_and_loads_no_model(run: Run, copied: Path) -> None:
    run(copied)
    before, watching = times(copied), Watching()
    results = run(copied, watching)
    assert times(copied) == before
    assert watching.tasks == []
    assert results == json.loads((copied / "results.json").read_text())


def test_what_a_kill_after_the_last_manifest_left_behind_is_removed(
    run: Run, copied: Path, finished: Path, contents: Contents
) -> None:
    """A stage deletes its checkpoints and shards after its manifest is written; a kill can fall in between."""
    for leftover in ("sft/checkpoints/a/step-1", "spin/iterate-2/checkpoints", "spin/iterate-1/pairs/shards"):
        (copied / leftover).mkdir(parents=True)
        (copied / leftover / "file").write_text("")
    run(copied)
    assert contents(copied) == contents(finished)


def test_a_run_without_its_times_of_change_still_counts_as_done(run: Run, finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(finished, moved, copy_function=shutil.copyfile)
    watching = Watching()
    assert run(moved, watching)["models"]["sft"] == str(moved / "sft" / "model")
    assert watching.tasks == []


def test_keys_that_are_not_set_and_that_the_first_version_lacked_leave_its_stages_finished(finished: Path) -> None:
    recipe = json.loads((finished / "recipe.json").read_text())["recipe"]
    training = {"schedule", "optimizer", "warmup", "weight_decay", "max_grad_norm"}
    sft = {"epochs", "max_steps", "learning_rate", "tokens_per_step", "dropout", "samples"}
    assert deciding_settings(recipe["sft"]).keys() == training | sft
    context: Any = SimpleNamespace(settings=recipe)
    iteration = {"lambda_", "loss", "learning_rate", "epochs"}
    loss = {"mu", "shift", "history_weight", "gamma", "length_normalize", "reference_mixture"}
    pairs = {"negatives", "turns", "replay", "replay_weight", "history", "refresh", "generated", "pairs_per_step"}
    sampling = {"max_new_tokens", "temperature", "top_p", "top_k"}
    spin = training_settings(context, SpinSection(), 1)
    assert spin.keys() == training | iteration | loss | pairs | sampling


def test_changes_of_out_and_of_what_only_watches_do_not_count(run: Run, copied: Path) -> None:
    watching = Watching()
    neutral = {"checkpoint_minutes": 5.0, "checkpoint_write": "async"}
    run(copied, watching, sft=neutral, spin=neutral)
    assert watching.tasks == []


def test_a_finished_run_verifies_and_one_that_was_damaged_unseen_is_mended_by_deleting(
    run: Run, copied: Path, finished: Path, contents: Contents, spintune: Callable[..., Any]
) -> None:
    report = json.loads(spintune("verify", copied, "--json").out)
    assert (report["problems"], report["foreign"]) == ([], [])
    assert report["stages"].keys() == {str(path.parent.relative_to(copied)) for path in copied.rglob("manifest.json")}
    answers = copied / "eval/heldout/sft/answers.jsonl"
    before = answers.stat().st_mtime_ns
    flip(answers)
    os.utime(answers, ns=(before, before))  # a start does not see it
    bad = spintune("verify", copied)
    assert bad.code == 11
    assert f"CHANGED  {answers.relative_to(copied)}: " in bad.out
    answers.unlink()
    run(copied)
    assert spintune("verify", copied).code == 0
    assert contents(copied) == contents(finished)


def test_what_changes_no_result_runs_nothing_again(
    run: Run, values: Callable[..., dict[str, Any]], copied: Path, tiny_model: Path, alpaca_file: Path, tmp_path: Path
) -> None:
    """Also not the baseline; and a model folder may get a README, and it and the data be named in another way."""
    few = {"spin": {"iterations": 1, "baseline": "sft"}}
    run(copied, **few)
    before = times(copied)
    (tiny_model / "README.md").write_text("mine")
    (tmp_path / "link.json").symlink_to(alpaca_file)
    try:
        run(
            copied,
            model=f"{tiny_model.parent}/./{tiny_model.name}/",
            precision="float32",
            tokens_per_forward=512,
            recompute=0.5,
            data={"eval_limit": 999, "train": str(tmp_path / "link.json")},
            sft={"checkpoint_minutes": 5.0, "checkpoint_write": "async", "samples": 1},
            spin={**few["spin"], "checkpoint_minutes": 5.0, "checkpoint_write": "async", "learning_rate": [1e-3]},
        )
    finally:
        (tiny_model / "README.md").unlink()
    assert rewritten(copied, before) <= {"data"}  # is read again, and gives the same


@pytest.mark.parametrize(
    ("damaged", "again"),
    [
        ("data/train.jsonl", {"data"}),
        ("sft/model/model.safetensors", {"sft"}),
        ("spin/iterate-1/pairs/train.jsonl", {"spin/iterate-1/pairs"}),
        ("spin/iterate-2/model/model.safetensors", {"spin/iterate-2"}),
        ("eval/heldout/sft/answers.jsonl", {"eval/heldout/sft"}),
    ],
)
@pytest.mark.parametrize("how", [flip, pytest.param(Path.unlink, marks=pytest.mark.slow)])
def test_a_damaged_output_is_made_again_bit_for_bit_so_that_nothing_after_it_changes(
    run: Run,
    copied: Path,
    finished: Path,
    contents: Contents,
    damaged: str,
    again: set[str],
    how: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = times(copied)
    how(copied / damaged)
    run(copied)
    assert rewritten(copied, before) == again
    assert f"{copied / damaged} was changed after the run wrote it; stage {min(again)} runs again" in caplog.text
    expected, found = contents(finished), contents(copied)
    for tree in (expected, found):  # the lines of a stage that ran again stand at the end
        tree["metrics.jsonl"].sort(key=lambda row: (row["stage"], row["step"]))
    assert found == expected


@pytest.mark.slow
def test_changed_data_makes_everything_run_again(
    run: Run, contents: Contents, alpaca_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "animals.json"
    shutil.copy(alpaca_file, data)
    run(tmp_path / "run", data={"train": str(data)})
    before = times(tmp_path / "run")
    data.write_text(data.read_text().replace("fox", "FOX"))
    run(tmp_path / "run", data={"train": str(data)})
    every = {str(path.parent.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("manifest.json")}
    # data, contamination, sft; 2 iterations with pairs and diagnosis, 3 players' held-out answers;
    # 4 models' likelihoods and answers
    assert len(every) == 3 + 2 * 3 + 3 + 4 * 2
    assert rewritten(tmp_path / "run", before) == every
    for stage in every:
        folder = tmp_path / "run" / stage
        told = f"{folder} was written for other data or another model, or by another version; the stage runs again"
        assert told in caplog.text
    run(tmp_path / "fresh", data={"train": str(data)})
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


def test_data_that_was_touched_but_not_changed_runs_nothing_again(run: Run, copied: Path, alpaca_file: Path) -> None:
    os.utime(alpaca_file)
    watching = Watching()
    run(copied, watching)
    assert watching.tasks == []


@pytest.mark.slow
def test_two_runs_of_one_recipe_are_equal_and_another_seed_is_not(
    run: Run, finished: Path, contents: Contents, tmp_path: Path
) -> None:
    run(tmp_path / "same")
    assert contents(tmp_path / "same") == contents(finished)
    run(tmp_path / "other", seed=1)
    weights = "spin/iterate-2/model/model.safetensors"
    assert contents(tmp_path / "other")[weights] != contents(finished)[weights]


@pytest.mark.slow
def test_tokens_computed_at_once_change_no_result_beyond_rounding(run: Run, finished: Path, tmp_path: Path) -> None:
    """SFT alone, because sampled answers may differ once weights differ by a rounding error."""
    from safetensors.torch import load_file

    run(tmp_path / "run", spin=None, tokens_per_forward=100)
    one, other = (load_file(out / "sft/model/model.safetensors") for out in (tmp_path / "run", finished))
    # after 10 steps of AdamW at 1e-3; a wrong mean over micro-batches moves weights by more than 1e-3
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-4


@pytest.mark.slow
def test_layers_computed_again_change_no_bit(run: Run, finished: Path, contents: Contents, tmp_path: Path) -> None:
    run(tmp_path / "run", recompute=0.5)
    found, expected = (
        {name: digest for name, digest in contents(out).items() if name.endswith(".safetensors")}
        for out in (tmp_path / "run", finished)
    )
    assert len(expected) >= 3
    assert found == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles")
def test_compile_is_refused_on_a_processor_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="compile works on GPUs only"):
        run(tmp_path / "run", compile=True)
    assert not (tmp_path / "run").exists()


def test_without_held_out_rows_nothing_is_judged_and_the_reader_is_told(run: Run, tmp_path: Path) -> None:
    watching = Watching()
    results = run(tmp_path / "run", watching, data={"eval_fraction": 0.0}, spin={"iterations": 1})
    assert "heldout" not in results
    assert results["spin"][0]["heldout"] is None
    assert any("eval_fraction" in note for note in watching.notes)


@pytest.mark.parametrize(
    "left_out", [pytest.param("sft", marks=pytest.mark.slow), pytest.param("spin", marks=pytest.mark.slow), "both"]
)
def test_stages_that_a_recipe_leaves_out_are_skipped(run: Run, tmp_path: Path, left_out: str) -> None:
    changes = {key: None for key in ("sft", "spin") if left_out in (key, "both")}
    results = run(tmp_path / "run", **changes)
    models = {"sft": ["base", "iterate-1", "iterate-2"], "spin": ["base", "sft"], "both": ["base"]}[left_out]
    assert list(results["models"]) == list(results["heldout"]) == models
    # compared with where self-play starts: sft if there is one
    reference = "base" if left_out != "spin" else "sft"
    pairs = [f"{name} - {reference}" for name in models if name != reference]
    assert list(results["differences"])[: len(pairs)] == pairs


def test_a_run_on_the_same_data_tokenizes_them_no_more_and_trains_on_the_same(
    run: Run, tmp_path: Path, contents: Contents
) -> None:
    first, second = Watching(), Watching()
    for watching, out in ((first, tmp_path / "first"), (second, tmp_path / "second")):
        # a length that no other test asks for
        run(out, progress=watching, data={"max_length": 95}, spin={"iterations": 1})
    assert first.tasks.count("tokenize") > second.tasks.count("tokenize")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
