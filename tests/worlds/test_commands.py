"""The commands end to end: what they print, where they stop, what machines read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.run_models import final_model

Spintune = Callable[..., Any]


@pytest.fixture
def recipe(values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(values(tmp_path / "out", **changes)))
        return path

    return write


def test_json_is_one_document_on_stdout_and_events_on_stderr(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    result = spintune("run", recipe(spin={"iterations": 1}), "--json")
    assert result.code == 0
    assert json.loads(result.out) == json.loads((tmp_path / "out" / "results.json").read_text())
    events = [json.loads(line) for line in result.err.splitlines()]
    kinds = ({"note"}, {"task", "done", "total", "unit"}, {"stages"}, {"stage", "state"})
    assert all(any(kind <= event.keys() for kind in kinds) for event in events)
    *_, names = (event["stages"] for event in events if "stages" in event)
    data_is_done = events.index(next(event for event in events if event.get("state") == "done"))
    assert all("stages" not in event for event in events[data_is_done:])  # so no line counts them otherwise
    assert [event["stage"] for event in events if event.get("state") == "done"] == names
    losses = [event["loss"] for event in events if event.get("task") == "SFT" and "loss" in event]
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert losses == [row["loss"] for row in logged if row["stage"] == "sft"]


@pytest.mark.slow
def test_every_task_ends_at_its_total(spintune: Spintune, recipe: Callable[..., Path]) -> None:
    result = spintune("run", recipe(spin={"iterations": 1}), "--json")
    last = {event["task"]: event for event in map(json.loads, result.err.splitlines()) if "task" in event}
    assert len(last) > 8
    for event in last.values():
        assert event["done"] == event["total"], event


def test_the_tables_show_the_numbers_of_the_results(
    spintune: Spintune, finished: Path, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    brief = spintune("run", recipe()).out
    assert "answered before and after training" in brief
    assert "too few prompts to tell from chance" in " ".join(brief.split())
    assert "was not measured" not in brief  # although nothing chose a model by it
    assert "The same command with --details prints the tables" in brief
    assert " iterate-1 " not in brief
    result = spintune("run", recipe(), "--details")
    assert "answered before and after training" in result.out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "Data: 40 read, 32 to train on, 8 held out; dropped: none" in result.out
    for name in ("base", "sft", "iterate-1", "iterate-2"):
        (row,) = [line for line in result.out.splitlines() if line.startswith(f" {name} ")]
        assert f"{found['heldout'][name]['nll_per_token']['mean']:.3f}" in row
        assert f"{found['heldout'][name]['rouge_l']['mean']:.3f}" in row
    for entry in found["spin"]:
        assert f"0.693→{entry['heldout']['loss']:.3f}" in result.out
    assert f"spintune chat {tmp_path / 'out'}" in result.out.replace("\n", "")


@pytest.mark.slow
def test_sft_stops_after_sft_and_run_goes_on_from_there(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, finished: Path, contents: Callable[[Path], Any]
) -> None:
    out = tmp_path / "out"
    assert spintune("sft", recipe()).code == 0
    assert (out / "sft" / "model" / "config.json").is_file()
    assert not (out / "spin").exists()
    assert not (out / "eval").exists()
    assert spintune("spin", recipe()).code == 0
    assert (out / "spin" / "iterate-2" / "model" / "config.json").is_file()
    assert not (out / "eval").exists()
    assert spintune("run", recipe()).code == 0
    assert contents(out) == contents(finished)


def test_one_stage_of_a_finished_run_does_not_forget_the_others(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    assert spintune("run", recipe()).code == 0
    before = (tmp_path / "out" / "results.json").read_text()
    assert spintune("sft", recipe()).code == 0
    assert (tmp_path / "out" / "results.json").read_text() == before


@pytest.mark.parametrize("command", ["sft", "spin"])
def test_a_command_whose_section_the_recipe_lacks_says_so(
    spintune: Spintune, recipe: Callable[..., Path], command: str
) -> None:
    result = spintune(command, recipe(**{command: None}))
    assert result.code == 2
    assert f"has no {command} section" in result.err


@pytest.mark.slow
def test_self_play_from_flags_alone(
    spintune: Spintune, tiny_model: Path, alpaca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--model", tiny_model, "--data", alpaca_file)
    result = spintune("spin", *flags, "--out", tmp_path / "o", "spin.max_new_tokens=8", "data.max_length=96", "--json")
    assert result.code == 0, result.err
    assert list(json.loads(result.out)["heldout"]) == ["base", "iterate-1", "sft-more"]
    first = json.loads((tmp_path / "o/spin/iterate-1/pairs/train.jsonl").read_text().splitlines()[0])
    assert len(first["generated"][0]["ids"]) <= 8
    # without --out it goes to runs/COMMAND; a name that looks like a number or a mapping is still a name
    assert spintune("sft", *flags, "data.max_length=96", "sft.max_steps=1", "data.eval_fraction=0").code == 0
    assert (tmp_path / "runs" / "sft" / "sft" / "model").is_dir()


@pytest.mark.parametrize("name", ["2024", "1e5", "a: b", "null", "é #x"])
def test_a_flag_is_taken_literally_beside_a_recipe(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"sft": {"max_steps": 1}, "spin": None, "data": {"eval_fraction": 0.0}}
    result = spintune("sft", recipe(**changes), "--out", name)
    assert result.code == 0
    assert "How good it is was not measured: hold out more examples" in " ".join(result.out.split())
    assert (tmp_path / name / "sft" / "model").is_dir()


@pytest.mark.parametrize("arguments", [(), ("--model", "m"), ("--data", "d"), ("seed=1",)])
def test_a_stage_without_a_recipe_needs_model_and_data(spintune: Spintune, arguments: tuple[str, ...]) -> None:
    result = spintune("spin", *arguments)
    assert result.code == 2
    assert "--model and --data" in result.err


# inspect -------------------------------------------------------------------------------------------------------------


def test_inspect_shows_exactly_the_trained_text_and_counts(
    spintune: Spintune, recipe: Callable[..., Path], alpaca_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    rows = json.loads(alpaca_file.read_text())
    result = spintune("inspect", recipe(), "--rows", 4, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert len(found["shown"]) == 4
    total = trained = 0
    for row in rows:  # what the template writes, by transformers alone
        conversation = [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
        prompt = tokenizer.apply_chat_template(conversation[:1], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(conversation)["input_ids"]
        whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]  # nothing after the end of turn
        total, trained = total + len(whole), trained + len(whole) - len(prompt)
    assert (found["read"], found["rows"], found["dropped"]) == (40, 40, {})
    assert (found["tokens"], found["trained_tokens"]) == (total, trained)
    for shown, row in zip(found["shown"], rows, strict=False):
        assert tokenizer.decode(shown["response_ids"]) == row["output"] + "<|im_end|>"
        assert all(shown["trained"])
    assert not (tmp_path / "out").exists()

    text = spintune("inspect", recipe(), "--rows", 1).out
    assert f"trained: {rows[0]['output'] + '<|im_end|>'!r}" in text
    assert f"trained tokens: {trained}" in text
    assert "models are judged by " in text
    assert found["metric"]["name"] in ("exact_match", "rouge_l")


def test_inspect_counts_what_does_not_fit(spintune: Spintune, recipe: Callable[..., Path]) -> None:
    found = json.loads(spintune("inspect", recipe(), "data.max_length=30", "--json").out)
    assert found["rows"] + sum(found["dropped"].values()) == found["read"] == 40
    assert found["longest"] <= 30
    assert found["truncated"] > 0
    words = ("data.heldout=builtin:seeds", "data.eval_fraction=null", "data.max_length=60", "--json")
    given = json.loads(spintune("inspect", recipe(), *words).out)
    assert given["read"] - found["read"] > given["held_out"] > 0
    assert given["rows"] + given["held_out"] + sum(given["dropped"].values()) == given["read"]


def test_inspect_counts_what_a_weight_repeats(
    spintune: Spintune, recipe: Callable[..., Path], alpaca_file: Path
) -> None:
    found = json.loads(spintune("inspect", recipe(), f"data.train={{path: {alpaca_file}, weight: 2}}", "--json").out)
    assert (found["read"], found["repeated"], found["rows"], found["dropped"]) == (40, 40, 80, {})


def test_inspect_tells_what_was_cut_off_and_what_had_no_use(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "More"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"talk": turns[: 2 + n], "topic": n}) + "\n" for n in range(2)))
    words = ("inspect", recipe(), f"data.train={{path: {path}, columns: {{messages: talk}}}}")
    found = json.loads(spintune(*words, "--json").out)
    assert (found["cut_after_last_answer"], found["ignored_keys"]) == (1, {"topic": 2})
    assert "ignored keys: topic (2)" in spintune(*words).out


# chat ----------------------------------------------------------------------------------------------------------------


def test_chat_answers_with_the_model_that_a_run_chose(spintune: Spintune, finished: Path, tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(final_model(finished))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say owl."}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        for _ in range(5):  # greedy, by plain forwards
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    expected = tokenizer.decode(ids[0, -5:], skip_special_tokens=True)
    words = ("--prompt", "Say owl.", "--max-new-tokens", 5)
    assert spintune("chat", finished, *words).out == expected + " [...]\n"
    assert spintune("chat", folder, *words).out == spintune("chat", finished, *words).out
    assert spintune("chat", tiny_model, *words).out != spintune("chat", finished, *words).out


def test_chat_remembers_the_turns_until_reset(spintune: Spintune, finished: Path) -> None:
    told: list[str] = []

    def answers(stdin: str) -> list[str]:
        result = spintune("chat", finished, "--max-new-tokens", 6, "--temperature", 1, stdin=stdin)
        assert result.code == 0, result.err
        told.append(result.err)
        return result.out.split(" [...]\n")[:-1]

    first, second, again = answers("Say owl.\n/help\nSay fox.\n/rest\n/reset\nSay owl.\n/exit\nnever read\n")
    assert again == first
    (fresh,) = answers("\n  \nSay fox.\n")  # empty lines are no messages, and the end of input ends it
    assert second != fresh  # read after the first turn
    assert "  /reset  start over" in told[0]  # chat itself answers commands
    assert "chat has no command /rest; it has /help, /reset, /exit" in told[0]


def test_chat_with_a_model_folder_inside_of_a_run_takes_only_what_the_run_wrote(
    spintune: Spintune, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    model = tmp_path / "run/sft/model"
    ask = ("--prompt", "Say fox 2 times.", "--max-new-tokens", "2")
    assert spintune("chat", model, *ask).code == 0
    (model / "adapter_config.json").write_text("{}")
    (tmp_path / "link").symlink_to(model)
    for name in (model, tmp_path / "link", tmp_path / "run/spin/../sft/model"):
        result = spintune("chat", name, *ask)
        assert result.code == 5
        assert "adapter_config.json: the run did not write this file" in result.err
    model.rename(tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    assert "is a link, and the run wrote none" in spintune("chat", model, *ask).err


def test_chat_with_a_run_that_has_no_model_yet(spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path) -> None:
    assert spintune("run", recipe(sft=None, spin=None)).code == 0
    result = spintune("chat", tmp_path / "out", "--prompt", "Hi")
    assert result.code == 4
    assert "no finished model yet" in result.err


def test_chat_with_a_template_that_does_not_exist(spintune: Spintune, tiny_model: Path) -> None:
    result = spintune("chat", tiny_model, "--prompt", "Hi", "--template", "llama")
    assert result.code == 4
    assert "llama" in result.err
    assert "plain" in result.err


# the real thing ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_installed_command_runs_a_recipe(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """As a user starts it: another process, no terminal; the module and the script are the same."""
    script = Path(sys.executable).with_name("spintune")
    path = recipe(spin={"iterations": 1})
    for command in ([str(script)], [sys.executable, "-m", "spintune"]):
        result = subprocess.run([*command, "run", str(path)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "iterate-1" in result.stdout
        assert "Traceback" not in result.stderr
        assert "%|" not in result.stderr  # no bars of other libraries


@pytest.mark.slow
def test_tensorboard_shows_the_numbers_of_a_run(
    spintune: Spintune, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert spintune("run", recipe(tracking=["tensorboard"])).code == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    for stage in {row["stage"] for row in rows}:
        events = EventAccumulator(str(tmp_path / "out" / "tensorboard" / stage))
        events.Reload()
        mine = [row for row in rows if row["stage"] == stage]
        for name in mine[0].keys() - {"stage", "step"}:
            shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]
            assert [(row["step"], row[name]) for row in mine] == shown
