"""Runs whose SFT overfits: the step with the least held-out loss is kept, told, and the same after any stop."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from watching import Watching
from worlds.test_resume import Stopped, StopsAt, until_done

from spintune.errors import DataError
from spintune.evaluation.selection import selects

Run = Callable[..., dict[str, Any]]
Contents = Callable[[Path], Any]

ANIMALS = ("fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow", "pig", "elk", "emu", "yak", "gnu", "ape", "rat")
OVERFITTING = {
    "learning_rate": 2e-2,
    "tokens_per_step": 512,
    "epochs": 8.0,
    "schedule": "constant",
    "samples": 0,
    "checkpoint_minutes": 1e6,
}


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy-five examples. What says them apart is drawn by nobody, so learning some by heart harms the others."""
    rows = [
        {"instruction": f"Say {animal} {count} times.", "output": " ".join(ANIMALS[(7 * count + place) % 15] * 2)}
        for place, animal in enumerate(ANIMALS)
        for count in range(5)
    ]
    path = tmp_path_factory.mktemp("data") / "many.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def overfit(run: Run, many: Path) -> Run:
    """Runs a recipe that holds out three of five examples, and whose SFT overfits the others."""

    def execute(out: Path, progress: Any = None, sft: Any = None, data: Any = None, **changes: Any) -> dict[str, Any]:
        sections = {
            "data": {"train": str(many), "eval_fraction": 0.6, **(data or {})},
            "sft": {**OVERFITTING, **(sft or {})},
        }
        return run(out, progress, **{"spin": None, "eval": [], **sections, **changes})

    return execute


def rows_of(out: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def least(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return min((row for row in rows if row["step"]), key=lambda row: row["loss"])


def losses_of(out: Path, model: str, selection: bool) -> list[tuple[float, int]]:
    """Loss and tokens of the held-out references of one part, from what the likelihood stage wrote."""
    lines = (out / "data/heldout.jsonl").read_text().splitlines()
    scores = [json.loads(line) for line in (out / f"likelihood/{model}/likelihood.jsonl").read_text().splitlines()]
    prompts = [json.loads(line)["messages"][0]["content"] for line in lines]
    part = [score for prompt, score in zip(prompts, scores, strict=True) if selects(prompt) == selection]
    return [(score["nll"], score["tokens"]) for score in part]


def mean(losses: list[tuple[float, int]]) -> float:
    return sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)


def test_the_best_step_is_kept_by_the_examples_that_choose_and_is_told(overfit: Run, tmp_path: Path) -> None:
    out, watching = tmp_path / "run", Watching()
    sft = overfit(out, watching, eval=["heldout"], sft={"epochs": 5.0})["sft"]
    heldout, steps = rows_of(out, "sft/heldout"), len(rows_of(out, "sft"))
    best = least(heldout)
    assert [row["step"] for row in heldout] == [steps * epoch // 5 for epoch in range(6)]
    assert 0 < best["step"] < steps
    assert (sft["kept_step"], sft["steps"], sft["planned_steps"]) == (best["step"], steps, steps)
    assert sft["heldout_loss"] == best["loss"]
    # by other code, on the model as it was saved: the part that chooses, and not the other
    chosen, reported = (losses_of(out, "sft", selection) for selection in (True, False))
    assert mean(chosen) == pytest.approx(best["loss"], rel=1e-5)
    assert abs(mean(reported) - best["loss"]) > 1e-4
    assert sft["chosen_by"] == len(chosen) >= 20
    (line,) = [note for note in watching.notes if "held-out loss" in note]  # and none for each evaluation
    assert line == (
        f"SFT keeps step {best['step']} of {steps}, with the least held-out loss: {best['loss']:.4f} nats per token "
        f"there, {heldout[-1]['loss']:.4f} at step {steps}"
    )
    assert not (out / "sft/checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "patience"), [(None, None), ({"rank": 4, "dropout": 0.1}, 2)])
def test_a_run_stopped_anywhere_keeps_the_same_step(
    overfit: Run, contents: Contents, tmp_path: Path, lora: Any, patience: int | None
) -> None:
    sft = {"eval_every": 0.5, "patience": patience, "checkpoint_minutes": 0.0}
    kept = overfit(tmp_path / "straight", lora=lora, sft=sft)["sft"]
    assert kept["kept_step"] < kept["steps"] <= kept["planned_steps"]
    assert (kept["steps"] < kept["planned_steps"]) == bool(patience)
    moves: Iterator[int] = iter([5, 3, 4, 6, 200])
    stops = until_done(overfit, tmp_path / "stopped", moves, lora=lora, sft=sft)
    assert len(stops) == 4
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


class StopsInSft(StopsAt):
    """Counts the moves of SFT alone."""

    def advance(self, amount: float = 1, **facts: Any) -> None:
        if self.task_name == "SFT":
            super().advance(amount, **facts)


@pytest.mark.slow
def test_of_an_adapter_only_the_adapter_is_written(overfit: Run, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        overfit(tmp_path, StopsInSft(12), lora={"rank": 4}, sft={"keep": "best", "checkpoint_minutes": 0.0})
    (best,) = tmp_path.glob("sft/checkpoints/*/best-*/weights.safetensors")
    (trained,) = tmp_path.glob("sft/checkpoints/*/step-*/weights.safetensors")
    assert best.stat().st_size == trained.stat().st_size
    assert best.stat().st_size < (tiny_model / "model.safetensors").stat().st_size / 2


def test_patience_is_told(overfit: Run, tmp_path: Path) -> None:
    watching = Watching()
    sft = overfit(tmp_path, watching, sft={"patience": 1})["sft"]
    assert sft["steps"] - sft["kept_step"] == sft["planned_steps"] // 8
    told = f"SFT stops after step {sft['steps']} of {sft['planned_steps']}: an evaluation without a lower held-out loss"
    assert [note for note in watching.notes if note.startswith(told)]
    assert len(rows_of(tmp_path, "sft")) == sft["steps"]


@pytest.mark.slow
def test_self_play_starts_from_the_best_and_the_baseline_keeps_its_own_at_equal_compute(
    overfit: Run, tmp_path: Path
) -> None:
    spin = {"iterations": 1, "pairs_per_step": 4, "max_new_tokens": 8, "epochs": 6.0, "baseline": "sft"}
    results = overfit(tmp_path, spin=spin, sft={"epochs": 3.0, "patience": 1, "eval_every": 0.34})
    start = rows_of(tmp_path, "spin/baseline-sft/heldout")[0]["loss"]
    assert start == pytest.approx(results["sft"]["heldout_loss"], rel=1e-6)
    baseline, trained = results["baseline"], rows_of(tmp_path, "spin/baseline-sft")
    best = least(rows_of(tmp_path, "spin/baseline-sft/heldout"))
    assert (baseline["kept_step"], baseline["heldout_loss"]) == (best["step"], best["loss"])
    # whatever patience says: it takes as many tokens as self-play did
    assert baseline["steps"] == baseline["planned_steps"] == len(trained) > best["step"]
    assert sum(row["tokens"] for row in trained) == pytest.approx(results["spin"][0]["tokens"], rel=0.1)


def test_too_few_examples_choose_nothing_and_a_line_says_so(overfit: Run, tmp_path: Path) -> None:
    watching = Watching()
    sft = overfit(tmp_path, watching, data={"eval_fraction": 0.2}, sft={"epochs": 2.0})["sft"]
    assert (sft["kept_step"], sft["chosen_by"]) == (sft["steps"], 0)
    assert sft["heldout_loss"] == rows_of(tmp_path, "sft/heldout")[-1]["loss"]
    (line,) = [note for note in watching.notes if "keeps its last step" in note]
    assert " of 15 held-out examples are there to choose by, and 20 are needed; hold out 50 or more" in line


@pytest.mark.parametrize("key", ["keep", "patience"])
def test_a_choice_that_was_asked_for_and_cannot_be_made_is_an_error(overfit: Run, tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=f"^sft.{key}: .* of 15 held-out examples are there to choose by, and 20 are"):
        overfit(tmp_path, data={"eval_fraction": 0.2}, sft={key: "best" if key == "keep" else 1})


def test_patience_of_self_play_with_too_few_to_choose_by_is_an_error_before_sft(overfit: Run, tmp_path: Path) -> None:
    spin = {"iterations": 2, "max_new_tokens": 8, "stop": {"patience": 1}}
    line = r"^spin.stop.patience: \d+ of {} held-out examples are there to choose by, and 20 are needed"
    with pytest.raises(DataError, match=line.format(15)):
        overfit(tmp_path / "few", data={"eval_fraction": 0.2}, spin=spin)
    with pytest.raises(DataError, match=line.format(r"\d+")):
        overfit(tmp_path / "long", data={"max_length": 24}, spin=spin)
    assert not list(tmp_path.glob("*/sft"))


def test_training_that_does_not_help_at_all_is_told(overfit: Run, tmp_path: Path) -> None:
    watching = Watching()
    overfit(tmp_path, watching, sft={"learning_rate": 1.0, "epochs": 2.0})
    assert [note for note in watching.notes if note.startswith("warning, SFT: no step has a lower held-out loss")]


def test_answers_that_are_rows_of_their_own_choose_with_their_conversation(
    overfit: Run, tiny_model: Path, tmp_path: Path
) -> None:
    """A template that writes earlier answers otherwise: each answer of a conversation is a row."""
    model, data = tmp_path / "model", tmp_path / "chats.jsonl"
    shutil.copytree(tiny_model, model)
    template = (model / "chat_template.jinja").read_text()
    said = "message['content']"
    assert said in template
    otherwise = "('' if loop.last or message['role'] == 'user' else 'once: ')"
    (model / "chat_template.jinja").write_text(template.replace(said, f"{otherwise} + {said}", 1))
    turns = ("user", "assistant", "user", "assistant")
    texts = [
        (f"Hello {count} {animal}.", f"Hi, {animal}.", f"Say {animal} {count} times.", animal)
        for animal in ANIMALS
        for count in "1234"
    ]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in zip(turns, chat, strict=True)]}
        for chat in texts
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    sft = overfit(
        out,
        model=str(model),
        data={"train": str(data), "turns": "all", "eval_fraction": 0.8, "max_length": 128},
        sft={"epochs": 1.0, "samples": 2, "keep": "best"},
    )["sft"]
    heldout = [json.loads(line)["messages"] for line in (out / "data/heldout.jsonl").read_text().splitlines()]
    prompts = ["\n\n".join(message["content"] for message in messages[:-1]) for messages in heldout]
    assert sft["rows"] == 2 * (60 - len(heldout))
    assert sft["chosen_by"] == sum(map(selects, prompts)) >= 20
    samples = [json.loads(line) for line in (out / "sft/samples.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in samples[:2]] == [heldout[0][1]["content"], heldout[0][3]["content"]]


def test_muon_trains_both_stages(run: Run, tmp_path: Path) -> None:
    """SFT lowers its loss, and self-play starts at ln 2 and gets below it."""
    section = {"optimizer": "muon", "checkpoint_minutes": 1e6}
    sft = {**section, "learning_rate": 1e-2, "epochs": 2.0, "samples": 0}
    run(tmp_path, eval=[], sft=sft, spin={**section, "iterations": 1})
    losses = [row["loss"] for row in rows_of(tmp_path, "sft")]
    assert fmean(losses[-3:]) < 0.8 * fmean(losses[:3])
    losses = [row["loss"] for row in rows_of(tmp_path, "spin/iterate-1")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0]
