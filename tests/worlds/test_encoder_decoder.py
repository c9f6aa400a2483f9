"""Whole runs with a tiny FLAN-T5: the same recipe, commands and guarantees as for decoder-only models."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.models.loading import load_model
from spintune.progress import Silent
from spintune.records import Pair, read_records

EOS = 1

T5: dict[str, Any] = {
    "sft": {"optimizer": "adafactor", "schedule": "constant", "warmup": 0.0, "learning_rate": 5e-3, "dropout": 0.05},
    "spin": {"optimizer": "adafactor"},
}


class Stopped(BaseException):
    """Like a signal: nothing may catch it."""


class StopsAt(Silent):
    """Progress that raises when the work moves for the n-th time."""

    def __init__(self, moves: int) -> None:
        self.left = moves

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Any]:
        yield self

    def advance(self, amount: float = 1, under_way: float | None = None, **facts: Any) -> None:
        if not amount and under_way:  # a token: too small a move
            return
        self.left -= 1
        if self.left == 0:
            raise Stopped


@pytest.fixture(scope="module")
def finished_t5(
    one_thread: None,
    values: Callable[..., dict[str, Any]],
    tiny_t5: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run: Callable[..., dict[str, Any]],
) -> Path:
    """The folder of one uninterrupted run with SFT, two iterations and evaluation; not to be written to."""
    out = tmp_path_factory.mktemp("t5") / "run"
    run(out, model=str(tiny_t5), **T5)
    return out


def steps(out: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


@pytest.mark.slow
def test_a_recipe_runs_through_the_command_line_and_its_model_chats(
    spintune: Callable[..., Any],
    values: Callable[..., dict[str, Any]],
    tiny_t5: Path,
    finished_t5: Path,
    contents: Callable[[Path], Any],
    tmp_path: Path,
) -> None:
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values(out, model=str(tiny_t5), **T5)))
    ended = spintune("run", recipe, "--json")
    assert ended.code == 0, ended.err
    results = json.loads(ended.out)
    assert set(results["heldout"]) == {"base", "sft", "iterate-1", "iterate-2"}
    mine, theirs = contents(out), contents(finished_t5)
    assert {name: mine[name] for name in mine if name.endswith("safetensors")} == {
        name: theirs[name] for name in theirs if name.endswith("safetensors")
    }

    answer = spintune("chat", out, "--prompt", "Say fox 2 times.", "--max-new-tokens", "5")
    assert answer.code == 0, answer.err
    assert answer.out.strip()


def test_sft_lowers_the_held_out_loss(finished_t5: Path) -> None:
    losses = [row["loss"] for row in steps(finished_t5, "sft/heldout")]
    assert losses[-1] < losses[0] - 0.1


def test_the_first_loss_of_every_iteration_is_ln_2_and_training_lowers_it(finished_t5: Path) -> None:
    for iteration in (1, 2):
        losses = [row["loss"] for row in steps(finished_t5, f"spin/iterate-{iteration}")]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
        assert min(losses) < math.log(2) - 1e-3


def test_the_opponent_scores_its_draws_as_transformers_does(finished_t5: Path) -> None:
    """Real and generated answers of iteration 1, by the stock model one at a time; draws had that probability."""
    model = AutoModelForSeq2SeqLM.from_pretrained(finished_t5 / "sft/model").eval()
    pairs = read_records(finished_t5 / "spin/iterate-1/pairs/train.jsonl", Pair)
    for pair in pairs:
        for answer in pair.answers:
            inputs = torch.tensor([[0, *answer.ids[:-1]]])
            logits = model(input_ids=torch.tensor([pair.prompt_ids]), decoder_input_ids=inputs).logits[0]
            expected = logits.log_softmax(-1)[range(len(answer.ids)), list(answer.ids)].sum().item()
            assert answer.opponent == pytest.approx(expected, abs=1e-3)
            assert answer.sampled is None or answer.sampled == pytest.approx(expected, abs=1e-3)
    assert all(pair.real.ids[-1] == EOS for pair in pairs if pair.real.complete)


@pytest.mark.slow
def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(
    run: Callable[..., Any], tiny_t5: Path, finished_t5: Path, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    out, stops = tmp_path / "run", 0
    for moves in (7, 5, 9, 3, 12, 6, 10, 4, 8, 11, 20, 30, 10**6):
        try:
            run(out, StopsAt(moves), model=str(tiny_t5), **T5)
            break
        except Stopped:
            stops += 1
    assert stops >= 5
    assert contents(out) == contents(finished_t5)


def test_a_finished_model_is_an_ordinary_folder(finished_t5: Path, tmp_path: Path) -> None:
    folder = finished_t5 / "spin/iterate-2/model"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id == EOS
    prompt = tokenizer("Say fox 2 times.").input_ids
    written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=5)[0, 1:].tolist()
    loaded = load_model(str(folder), cache=tmp_path)
    (score,) = LogProbEngine(loaded.model).score([Query(tuple(prompt), (tuple(written),))])[0]
    logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *written[:-1]]])).logits[0]
    assert score == pytest.approx(logits.log_softmax(-1)[range(len(written)), written].sum().item(), abs=1e-4)


@pytest.mark.slow
def test_lora_trains_it_as_well(run: Callable[..., Any], tiny_t5: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, model=str(tiny_t5), lora={"rank": 2}, spin={"iterations": 1}, eval=[])
    first = steps(out, "spin/iterate-1")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    adapter = json.loads((out / "spin/iterate-1/adapter/adapter_config.json").read_text())
    assert adapter["task_type"] == "SEQ_2_SEQ_LM"
    base, merged = (AutoModelForSeq2SeqLM.from_pretrained(f) for f in (tiny_t5, out / "spin/iterate-1/model"))
    key = "decoder.block.1.layer.1.EncDecAttention.q.weight"
    moved = merged.state_dict()[key] - base.state_dict()[key]
    assert torch.linalg.matrix_rank(moved, atol=1e-7).item() in (1, 2)
    assert torch.equal(merged.shared.weight, base.shared.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"template": "alpaca"}}, "set data.template to tokenizer"),
        ({"data": {"turns": "all"}}, "set data.turns to last"),
    ],
)
def test_what_an_encoder_decoder_cannot_do_is_one_line(
    spintune: Callable[..., Any],
    values: Callable[..., dict[str, Any]],
    tiny_t5: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values(tmp_path / "run", model=str(tiny_t5), **changes)))
    ended = spintune("run", recipe)
    assert ended.code > 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("spintune:")]
    assert message in line


@pytest.mark.slow
def test_it_is_exported_with_a_card_that_says_how_to_load_it(finished_t5: Path, tmp_path: Path) -> None:
    from spintune.export.model import export_model

    assert export_model(finished_t5, tmp_path / "hub", "iterate-1") == "iterate-1"
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "hub/README.md").read_text()
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hub").config.is_encoder_decoder
