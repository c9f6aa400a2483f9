"""What a run publishes are ordinary Hugging Face folders, and the pairs and losses are those of SPIN."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import spintune
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.records import Message
from spintune.run_folder import RunFolder
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate
from spintune.tracking import Metrics
from spintune.typed_json import JsonObject

ITERATES = ("sft", "spin/iterate-1", "spin/iterate-2")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("iterate", ITERATES)
def test_an_iterate_is_a_plain_folder_that_stops_where_it_was_trained_to(finished: Path, iterate: str) -> None:
    folder = finished / iterate / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    eos = model.generation_config.eos_token_id
    assert end in (eos if isinstance(eos, list) else [eos])
    config = json.loads((folder / "config.json").read_text())
    assert not {key for key in config if "quantization" in key or "attn" in key or key == "auto_map"}
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say fox 2 times."}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] <= prompt["input_ids"].shape[1] + 3


def test_a_model_that_stopped_elsewhere_stops_at_the_templates_end_of_turn_afterwards(
    run: Callable[..., dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    """As base models do: their generation_config ends at a token that the chat template never writes."""
    model = tmp_path / "base"
    shutil.copytree(tiny_model, model)
    for name in ("generation_config.json", "config.json"):
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({**config, "eos_token_id": 7}))
    run(tmp_path / "run", model=str(model), spin=None, data={"eval_fraction": 0.0}, sft={"max_steps": 1})
    eos = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "sft" / "model").generation_config.eos_token_id
    assert 1 in (eos if isinstance(eos, list) else [eos])  # <|im_end|>


def test_a_folder_holds_what_transformers_writes_and_nothing_more(finished: Path, tiny_model: Path) -> None:
    names = {path.name for path in tiny_model.iterdir()}
    for iterate in ITERATES:
        assert {path.name for path in (finished / iterate / "model").iterdir()} == names


def test_training_moved_every_iterate(finished: Path, tiny_model: Path) -> None:
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders(finished, tiny_model)]
    assert len(set(weights)) == 4


def folders(finished: Path, tiny_model: Path) -> list[Path]:
    return [tiny_model, *(finished / iterate / "model" for iterate in ITERATES)]


def test_the_first_loss_of_every_iteration_is_ln_2(finished: Path) -> None:
    steps = [row for row in rows(finished / "metrics.jsonl") if row["stage"] in ITERATES[1:]]
    first = [row for row in steps if row["step"] == 1]
    assert [row["stage"] for row in first] == ["spin/iterate-1", "spin/iterate-2"]
    for row in first:
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert row["margin"] == pytest.approx(0, abs=1e-3)


def score(folder: Path, prompt: list[int], response: list[int]) -> float:
    """log p(response | prompt) by one plain forward of transformers' own model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(response)[:, None]).sum().item()


@pytest.mark.parametrize(("iteration", "opponent"), [(1, "sft"), (2, "spin/iterate-1")])
@pytest.mark.parametrize("side", ["train", "heldout"])
def test_the_opponent_is_the_previous_iterate_and_no_other(
    finished: Path, tiny_model: Path, iteration: int, opponent: str, side: str
) -> None:
    """Scores in the pairs file are those of the previous iterate's published folder; the others are far off."""
    pairs = rows(finished / "spin" / f"iterate-{iteration}" / "pairs" / f"{side}.jsonl")[:3]
    answers = [(pair["prompt_ids"], answer) for pair in pairs for answer in (pair["real"], *pair["generated"])]
    for folder in folders(finished, tiny_model):
        differences = [abs(score(folder, prompt, answer["ids"]) - answer["opponent"]) for prompt, answer in answers]
        if folder == finished / opponent / "model":
            assert max(differences) < 1e-4
        else:
            assert sum(differences) / len(differences) > 1e-2, folder


def test_what_the_opponent_reads_is_the_templates_prompt_and_what_it_should_say_the_reference(finished: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "sft" / "model")
    examples = rows(finished / "data" / "train.jsonl")
    pairs = rows(finished / "spin" / "iterate-1" / "pairs" / "train.jsonl")
    by_prompt = {example["messages"][0]["content"]: example["messages"][1]["content"] for example in examples}
    for pair in pairs:
        instruction = tokenizer.decode(pair["prompt_ids"]).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        real, (generated,) = pair["real"], pair["generated"]
        answer = tokenizer.decode(real["ids"])
        if real["complete"]:
            assert answer == by_prompt[instruction] + "<|im_end|>"
            assert real["text"] == by_prompt[instruction]
        else:
            assert len(real["ids"]) == 12  # max_new_tokens
            assert by_prompt[instruction].startswith(answer)
        assert len(generated["ids"]) <= 12
        assert (tokenizer.decode(generated["ids"][-1:]) == "<|im_end|>") == generated["complete"]


def test_no_prompt_disappears_uncounted(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    data = results["data"]
    assert data["train"] + data["heldout"] + sum(data["dropped"].values()) == data["read"] == 40
    for entry in results["spin"]:
        for side, count in (("train", data["train"]), ("heldout", data["heldout"])):
            facts = entry["pairs"][side]
            written = rows(finished / "spin" / f"iterate-{entry['iteration']}" / "pairs" / f"{side}.jsonl")
            assert facts["kept"] + sum(facts["dropped"].values()) == count
            assert len(written) == facts["kept"]


def test_identical_answers_are_counted_and_left_out(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """A model that learned four answers by heart gives them back, greedily; what equals the real answer teaches
    nothing."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Say {w}.", "output": w}) + "\n" for w in "abcdefgh"))
    results = run(
        tmp_path / "run",
        data={"train": str(data), "eval_fraction": 0.0},
        sft={"epochs": 40.0, "learning_rate": 1e-2, "checkpoint_minutes": 10.0, "tokens_per_step": 64},
        spin={"iterations": 1, "temperature": 0.7},
    )
    facts = results["spin"][0]["pairs"]["train"]
    assert facts["dropped"].get("identical", 0) >= 1
    assert facts["kept"] + sum(facts["dropped"].values()) == 8


def test_a_held_out_prompt_is_never_trained_on(finished: Path) -> None:
    train, heldout = (
        {json.dumps(row["messages"][:-1]) for row in rows(finished / "data" / f"{side}.jsonl")}
        for side in ("train", "heldout")
    )
    assert train
    assert heldout
    assert not train & heldout


def test_template_options_are_inputs_of_stages_where_there_are_some(
    values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """So a run folder from before there were any stays as it is."""

    def inputs(**data: Any) -> JsonObject:
        recipe = parse_recipe(values(tmp_path, data=data), "test")
        context = RunContext(recipe, RunFolder(recipe), tmp_path, Silent(), Metrics(tmp_path, []), {})
        return context.model_inputs(Iterate("base", "model", "digest"))

    plain = inputs()
    assert "template_options" not in plain
    assert inputs(template_options={}) == plain
    assert inputs(template_options={"mood": "quick"}) == {**plain, "template_options": {"mood": "quick"}}


@pytest.mark.slow
def test_template_options_are_trained_served_and_saved(
    run: Callable[..., dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    """The prompts of training, of generation and of the saved model are those that transformers writes with them."""
    model = tmp_path / "base"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% if mood is defined %}{{ mood }}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(model)
    options = {"mood": "quick"}
    asked = [{"role": "user", "content": "Say fox 2 times."}]
    theirs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False, **options)
    spin = {"iterations": 1}
    run(
        tmp_path / "run", model=str(model), spin=spin, data={"template_options": options}, sft={"max_steps": 1}, eval=[]
    )
    mood = tokenizer.encode("quick", add_special_tokens=False)
    pairs = rows(tmp_path / "run" / "spin" / "iterate-1" / "pairs" / "train.jsonl")
    assert all(pair["prompt_ids"][: len(mood)] == mood for pair in pairs)
    for name in ("sft", "spin/iterate-1"):
        saved = AutoTokenizer.from_pretrained(tmp_path / "run" / name / "model")
        assert saved.apply_chat_template(asked, add_generation_prompt=True, return_dict=False) == theirs
    question = [Message("user", "Say fox 2 times.")]
    assert spintune.load(tmp_path / "run")._renderer.prompt(question) == tuple(theirs)
    assert spintune.load(model, template_options=options)._renderer.prompt(question) == tuple(theirs)
    assert spintune.load(model)._renderer.prompt(question) != tuple(theirs)
