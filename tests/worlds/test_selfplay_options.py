"""Every way to play, on the tiny model: what is written, who writes and scores it, and that stops change nothing."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from spintune.errors import SpintuneError
from spintune.recipe import losses

Run = Callable[..., dict[str, Any]]
SHORT = {"sft": None, "eval": []}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairs(out: Path, iteration: int, file: str = "train") -> list[dict[str, Any]]:
    return rows(out / f"spin/iterate-{iteration}/pairs/{file}.jsonl")


def first_loss(out: Path, iteration: int) -> float:
    (row,) = [r for r in rows(out / "metrics.jsonl") if r["stage"] == f"spin/iterate-{iteration}" and r["step"] == 1]
    return row["loss"]


def score(folder: Path | str, prompt: list[int], response: list[int]) -> float:
    """log p(response | prompt) by one plain forward of transformers' own model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(response)[:, None]).sum().item()


# start values of reference section 6: SPACE μ = 1, GSIL b = 2, IPO 1/(4λ²) with λ = 0.1
STARTS = {
    "space": 2 * math.log(2),
    "gsil_bernoulli": 2.253856,
    "gsil_brier": 0.790013,
    "gsil_hinge": 3.0,
    "gsil_kliep": 5.389056,
    "gsil_lsif": 19.910019,
    "ipo": 25.0,
}


@pytest.mark.parametrize(
    "loss", [name if name == "ipo" else pytest.param(name, marks=pytest.mark.slow) for name in STARTS]
)
def test_every_loss_starts_each_iteration_at_its_known_value(run: Run, tmp_path: Path, loss: str) -> None:
    options = {"shift": 2.0} if loss.startswith("gsil_") else {}
    run(tmp_path / "run", **SHORT, data={"eval_fraction": 0.0}, spin={"loss": loss, **options})
    for iteration in (1, 2):
        assert first_loss(tmp_path / "run", iteration) == pytest.approx(STARTS[loss], rel=2e-5)


def test_the_losses_with_a_lambda_of_their_own_are_those_of_their_papers() -> None:
    default = {loss.name: loss.default_lambda for loss in losses.BUILT_IN}
    assert default["space"] == default["t_spin"] == 1
    assert {value for name, value in default.items() if name.startswith("gsil")} == {0.01}


@pytest.mark.slow
def test_t_spin_looks_back_to_iterate_0s_own_answers(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "run"
    run(out, **SHORT, spin={"loss": "t_spin"})
    written = {pair["example_id"]: pair["generated"][0]["ids"] for pair in pairs(out, 1, "answers")}
    assert all(pair["first"] is None for pair in pairs(out, 1))
    for pair in pairs(out, 2):
        assert pair["first"]["ids"] == written[pair["example_id"]]
    pair = pairs(out, 2)[0]
    expected = score(out / "spin/iterate-1/model", pair["prompt_ids"], pair["first"]["ids"])
    assert pair["first"]["opponent"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_t_spin_needs_no_held_out_examples(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "run", **SHORT, data={"eval_fraction": 0.0}, spin={"loss": "t_spin"})
    assert all(pair["first"] for pair in pairs(tmp_path / "run", 2))


@pytest.mark.slow
def test_replay_adds_the_earlier_pairs_scored_by_the_current_opponent(run: Run, tmp_path: Path) -> None:
    """The paper trains on the answers of two opponents, and takes log-probabilities from the last one alone."""
    out = tmp_path / "run"
    results = run(out, **SHORT, spin={"replay": 1, "replay_weight": 0.5})
    assert pairs(out, 1, "replay") == []
    replayed, earlier = pairs(out, 2, "replay"), pairs(out, 1)
    assert [p["generated"][0]["ids"] for p in replayed] == [p["generated"][0]["ids"] for p in earlier]
    assert {p["weight"] for p in replayed} == {0.5}
    for pair in replayed[:3]:
        expected = score(out / "spin/iterate-1/model", pair["prompt_ids"], pair["generated"][0]["ids"])
        assert pair["generated"][0]["opponent"] == pytest.approx(expected, abs=1e-4)
    assert first_loss(out, 2) == pytest.approx(math.log(2), abs=1e-4)
    entry = results["spin"][1]
    assert entry["pairs"]["train"]["replayed"] == len(earlier)
    assert entry["pairs_seen"] == len(earlier) + entry["pairs"]["train"]["kept"]


@pytest.mark.slow
def test_a_reference_mixture_is_scored_under_iterate_0_and_moves_the_start(run: Run, tmp_path: Path) -> None:
    """θ equals the opponent at the start, so r = α (log p_θt - log p_θ0), and the loss is no longer ln 2."""
    out = tmp_path / "run"
    run(out, spin={"reference_mixture": 0.25, "pairs_per_step": 64}, eval=[])
    assert first_loss(out, 1) == pytest.approx(math.log(2), abs=1e-4)
    losses = []
    for pair in pairs(out, 2):
        ratios = []
        for answer in (pair["real"], pair["generated"][0]):
            ratios.append(0.25 * (answer["opponent"] - answer["base"]))
        losses.append(math.log1p(math.exp(-0.1 * (ratios[0] - ratios[1]))))
        expected = score(out / "sft/model", pair["prompt_ids"], pair["real"]["ids"])
        assert pair["real"]["base"] == pytest.approx(expected, abs=1e-4)
    mean = sum(losses) / len(losses)
    assert abs(mean - math.log(2)) > 1e-4
    assert first_loss(out, 2) == pytest.approx(mean, abs=1e-4)


@pytest.mark.slow
def test_a_history_of_opponents_shares_the_prompts(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, spin={"history": 2, "temperature": 0.0}, eval=[])
    assert {pair["writer"] for pair in pairs(out, 1, "answers")} == {"sft"}
    second = pairs(out, 2, "answers")
    assert {pair["writer"] for pair in second} == {"sft", "iterate-1"}
    model = AutoModelForCausalLM.from_pretrained(out / "sft/model")
    for pair in [p for p in second if p["writer"] == "sft"][:3]:  # greedy answers of iterate 0 itself
        prompt = torch.tensor([pair["prompt_ids"]])
        written = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :].tolist()
        assert pair["generated"][0]["ids"] == written
    assert first_loss(out, 2) == pytest.approx(math.log(2), abs=1e-4)


def test_several_negatives_a_prompt(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = run(out, **SHORT, spin={"iterations": 1, "negatives": 3})
    facts = results["spin"][0]["pairs"]["train"]
    assert all(len(pair["generated"]) == 3 for pair in pairs(out, 1, "answers"))
    assert facts["kept"] + sum(facts["dropped"].values()) == 32
    assert facts["answers"] == 3 * facts["kept"]
    assert first_loss(out, 1) == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("refresh", [2, pytest.param("step", marks=pytest.mark.slow)])
def test_each_phase_begins_at_ln_2_with_answers_of_the_current_player(run: Run, tmp_path: Path, refresh: Any) -> None:
    out = tmp_path / "run"
    results = run(out, **SHORT, spin={"iterations": 1, "refresh": refresh, "pairs_per_step": 8})
    steps = {row["step"]: row for row in rows(out / "metrics.jsonl") if row["stage"] == "spin/iterate-1"}
    assert len(steps) == 4
    begins = {2: (1, 3), "step": (1, 2, 3, 4)}[refresh]
    for step, row in steps.items():
        assert (abs(row["loss"] - math.log(2)) < 1e-5) == (step in begins), step
    # the opponent answers the first phase alone
    assert len(pairs(out, 1, "answers")) == {2: 16, "step": 8}[refresh]
    (entry,) = results["spin"]
    assert entry["pairs_seen"] == 32
    kept = entry["pairs"]["train"]["kept"] + entry["later"]["kept"]
    assert kept + sum(entry["pairs"]["train"]["dropped"].values()) + sum(entry["later"]["dropped"].values()) == 32
    assert len(rows(out / "spin/iterate-1/later.jsonl")) == entry["later"]["kept"]


def test_every_assistant_turn_can_be_played(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    words = ["fox", "dog", "owl", "cat"]
    chats = [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"Say {word}."},
            {"role": "assistant", "content": word},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": f"{word} {word}"},
        ]
        for word in words
    ]
    data.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    changes = {"data": {"train": str(data), "eval_fraction": 0.0}, **SHORT}
    run(tmp_path / "last", **changes, spin={"iterations": 1})
    run(tmp_path / "all", **changes, spin={"iterations": 1, "turns": "all"})
    assert [p["real"]["text"] for p in pairs(tmp_path / "last", 1, "answers")] == [f"{w} {w}" for w in words]
    every = pairs(tmp_path / "all", 1, "answers")
    assert [p["real"]["text"] for p in every] == [text for w in words for text in (w, f"{w} {w}")]
    # a prompt holds the system message and the turns before, the earlier answer included
    longer = every[1]["prompt_ids"]
    assert longer[: len(every[0]["prompt_ids"])] == every[0]["prompt_ids"]
    assert longer[len(every[0]["prompt_ids"]) :][: len(every[0]["real"]["ids"])] == every[0]["real"]["ids"]


@pytest.mark.parametrize("between", ["continue", pytest.param("merge", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "flavour", [{}, pytest.param({"dropout": 0.2, "rslora": True, "dora": True}, marks=pytest.mark.slow)]
)
def test_with_lora_the_opponent_of_the_second_iteration_is_the_first_iterate_and_not_the_base(
    run: Run, tmp_path: Path, tiny_model: Path, between: str, flavour: dict[str, Any]
) -> None:
    """Merged folders load in plain transformers and give the cached scores (uclaml/SPIN's peft option compares with
    the base model instead, whatever the iteration)."""
    out = tmp_path / "run"
    lora = {"rank": 4, "alpha": 16.0, "between": between, **flavour}
    sft = {"learning_rate": 1e-2, "tokens_per_step": 512}
    run(out, lora=lora, sft=sft, spin={"learning_rate": 1e-2, "pairs_per_step": 32}, eval=[])
    for iteration, opponent in ((1, "sft"), (2, "spin/iterate-1")):
        far = []
        for pair in pairs(out, iteration)[:4]:
            answer = pair["generated"][0]
            near = score(out / opponent / "model", pair["prompt_ids"], answer["ids"])
            assert answer["opponent"] == pytest.approx(near, abs=2e-4)
            far.append(abs(score(tiny_model, pair["prompt_ids"], answer["ids"]) - answer["opponent"]))
        assert sum(far) / len(far) > 1e-2
    assert {path.name for path in (out / "spin/iterate-2/adapter").iterdir()} >= {"adapter_model.safetensors"}
    config = json.loads((out / "spin/iterate-2/model/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.slow
def test_lora_trains_its_adapter_alone(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    """What is merged differs from the base by a matrix of the adapter's rank; embeddings and norms are untouched."""
    from safetensors.torch import load_file

    run(tmp_path / "run", lora={"rank": 2}, sft={"learning_rate": 1e-2}, spin=None, eval=[])
    mine = load_file(tmp_path / "run/sft/model/model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    for name in base:
        change = mine[name] - base[name]
        if "proj" in name:
            singular = torch.linalg.svdvals(change.double())
            assert singular[0] > 1e-4
            assert singular[2] < 1e-6
        else:
            assert not change.any(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": 2, "dropout": 0.3}, "spin": {"refresh": 2}},
        pytest.param(
            {"lora": {"rank": 2, "between": "merge"}, "spin": {"loss": "t_spin", "replay": 1}}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"spin": {"reference_mixture": 0.3, "history": 2, "negatives": 2, "baseline": "sft", "gamma": 0.1}},
            marks=pytest.mark.slow,
        ),
        pytest.param({"spin": {"refresh": "step", "turns": "all", "length_normalize": True}}, marks=pytest.mark.slow),
    ],
    ids=["lora-refresh", "lora-merge-t_spin", "mixture-history", "on-the-fly"],
)
def test_a_run_of_any_kind_stopped_at_many_points_equals_an_uninterrupted_one(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    from tests.worlds.test_resume import each_step_once, no_leftovers, until_done

    run(tmp_path / "straight", **changes)
    until_done(run, tmp_path / "stopped", iter([2, 5, 9, 6, 11, 7, 13, 8, 17, 21, 10, 30, 10_000]), **changes)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")
    each_step_once(tmp_path / "stopped")
    no_leftovers(tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("between", ["continue", "merge"])
def test_in_bfloat16_the_merged_model_is_the_one_that_was_trained(run: Run, tmp_path: Path, between: str) -> None:
    """Merging into bfloat16 weights would round most of a small update away."""
    from safetensors.torch import load_file

    out = tmp_path / "run"
    lora = {"rank": 4, "alpha": 4.0, "between": between}
    run(out, precision="bfloat16", lora=lora, sft={"learning_rate": 1e-5}, spin=None, eval=[])
    adapter = load_file(out / "sft/adapter/adapter_model.safetensors")
    merged = load_file(out / "sft/model/model.safetensors")
    base = load_file(Path(json.loads((out / "recipe.json").read_text())["recipe"]["model"]) / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    below = base[f"{name}.weight"]
    if between == "continue":  # frozen weights are kept in bfloat16
        below = below.bfloat16()
    change = merged[f"{name}.weight"].double() - below.double()
    assert (b @ a).abs().max() > 0
    assert (change - b @ a).norm() < 0.01 * (b @ a).norm()


@pytest.mark.slow
def test_a_fresh_adapter_goes_on_the_merged_model_and_not_on_its_rounding(run: Run, tmp_path: Path) -> None:
    """In bfloat16 too: what iteration 1 adds to the SFT model is its adapter's product, and nothing of it is lost."""
    from safetensors.torch import load_file

    out = tmp_path / "run"
    lora = {"rank": 4, "alpha": 4.0, "between": "merge"}
    run(out, precision="bfloat16", lora=lora, sft={"learning_rate": 1e-4}, spin={"iterations": 1}, eval=[])
    adapter = load_file(out / "spin/iterate-1/adapter/adapter_model.safetensors")
    after, before = (load_file(out / stage / "model/model.safetensors") for stage in ("spin/iterate-1", "sft"))
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    change = after[f"{name}.weight"].double() - before[f"{name}.weight"].double()
    assert (change - b @ a).norm() < 0.01 * (b @ a).norm()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_only_one_model_is_ever_in_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    """At each load of an iterate, every model that was loaded before is gone."""
    import gc
    import weakref

    # adapters import it; it logs an error then, and pytest keeps the record with all frames under it
    importlib.import_module("bitsandbytes")

    from spintune.stages import context

    load, alive = context.load_model, []

    def watched(*words: Any, **options: Any) -> Any:
        gc.collect()
        assert [model for reference in alive if (model := reference()) is not None] == []
        loaded = load(*words, **options)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(context, "load_model", watched)
    changes = {"lora": lora} if lora else {}
    run(tmp_path / "run", **changes, spin={"history": 2, "reference_mixture": 0.2, "baseline": "sft"})
    assert len(alive) > 8


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_dropout_of_adapters_changes_what_they_learn(run: Run, tmp_path: Path, dora: bool) -> None:
    weights = set()
    for dropout in (0.0, 0.5):
        out = tmp_path / f"{dropout}"
        run(out, lora={"rank": 2, "dora": dora, "dropout": dropout}, sft={"max_steps": 3}, spin=None, eval=[])
        weights.add((out / "sft/model/model.safetensors").read_bytes())
    assert len(weights) == 2


@pytest.mark.slow
def test_replay_goes_on_when_the_loss_no_longer_looks_back(run: Run, tmp_path: Path) -> None:
    loss = ["t_spin", "t_spin", "logistic"]
    run(tmp_path / "run", **SHORT, spin={"iterations": 3, "loss": loss, "replay": 1})
    assert first_loss(tmp_path / "run", 3) == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.slow
def test_a_model_that_knows_all_answers_ends_self_play_and_loses_nothing(run: Run, tmp_path: Path) -> None:
    """SPACE learns from answers that equal the real ones, the logistic loss of iteration 2 cannot."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Say {w}.", "output": w}) + "\n" for w in "ab"))
    results = run(
        tmp_path / "run",
        data={"train": str(data), "eval_fraction": 0.0},
        sft={"epochs": 200.0, "learning_rate": 1e-2, "checkpoint_minutes": 10.0, "tokens_per_step": 64},
        spin={"loss": ["space", "logistic"], "learning_rate": 1e-9, "temperature": 0.0},
    )
    assert len(results["spin"]) == 1
    assert "identical: 2" in results["stopped"]
    assert results["best"]["name"] == "iterate-1"


def test_a_held_out_turn_is_never_a_training_prompt_and_weights_count_for_turns(run: Run, tmp_path: Path) -> None:
    """Every conversation begins with the same exchange."""
    data = tmp_path / "chats.jsonl"
    said = [("user", "Hello"), ("assistant", "hi")]
    words = ["fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow"]
    chats = [[*said, ("user", f"Say {word}."), ("assistant", word)] for word in words]
    messages = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    data.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in messages))
    out = tmp_path / "run"
    sources = [{"path": str(data), "weight": 2.0}]
    run(out, **SHORT, data={"train": sources, "eval_fraction": 0.25}, spin={"iterations": 1, "turns": "all"})
    trained = [tuple(pair["prompt_ids"]) for pair in pairs(out, 1, "answers")]
    heldout = [tuple(pair["prompt_ids"]) for pair in rows(out / "spin/heldout/base/answers.jsonl")]
    assert len(heldout) == 2
    assert not set(heldout) & set(trained)
    assert len(trained) == 2 * 6 + 2  # each last turn twice; the shared beginning of one conversation, twice


def test_self_play_on_every_turn_leaves_out_what_a_held_out_conversation_ends_with(run: Run, tmp_path: Path) -> None:
    """SFT trains on last turns alone, so that nothing but self-play could train on the held-out prompt."""
    beginning = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "hi"}]
    ends = [
        [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}] for word in ("fox", "dog")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": beginning + end}) + "\n" for end in ends))
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"messages": beginning}) + "\n")
    data = {"train": str(tmp_path / "train.jsonl"), "heldout": str(tmp_path / "heldout.jsonl"), "eval_fraction": None}
    out = tmp_path / "run"
    run(out, **SHORT, data=data, spin={"iterations": 1, "turns": "all"})
    assert [pair["real"]["text"] for pair in pairs(out, 1, "answers")] == ["fox", "dog"]
    assert [pair["real"]["text"] for pair in rows(out / "spin/heldout/base/answers.jsonl")] == ["hi"]


# In and out ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exported_pairs_come_back_as_the_same_pairs(
    run: Run, spintune: Callable[..., Any], tmp_path: Path, tiny_model: Path, alpaca_file: Path
) -> None:
    """prompt, chosen, rejected as texts; given back as answers of iteration 1 they make the same token ids."""
    run(tmp_path / "one", **SHORT, spin={"iterations": 1})
    file = tmp_path / "pairs.jsonl"
    assert spintune("pairs", tmp_path / "one", file).code == 0
    exported = rows(file)
    before = pairs(tmp_path / "one", 1)
    complete = [pair for pair in before if pair["generated"][0]["complete"]]
    assert [row["rejected"] for row in exported] == [pair["generated"][0]["text"] for pair in complete]
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in exported)
    references = {
        row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows(tmp_path / "one/data/train.jsonl")
    }
    assert all(row["chosen"] == references[row["prompt"]] for row in exported)
    run(tmp_path / "two", **SHORT, spin={"iterations": 1, "generated": str(file)})
    after = {pair["example_id"]: pair for pair in pairs(tmp_path / "two", 1)}
    assert complete
    for pair in complete:
        again = after[pair["example_id"]]
        assert again["writer"] == str(file)
        assert again["real"]["ids"] == pair["real"]["ids"]


@pytest.mark.slow
def test_pairs_of_data_that_changed_since_are_not_exported(
    run: Run, spintune: Callable[..., Any], tmp_path: Path, alpaca_file: Path
) -> None:
    """The rows that are left are still there, but iteration 2's answers came from a model of other data."""
    data = tmp_path / "data.json"
    data.write_text(alpaca_file.read_text())
    run(tmp_path / "run", **SHORT, data={"train": str(data)}, spin={"iterations": 2})
    data.write_text(json.dumps([*json.loads(alpaca_file.read_text()), {"instruction": "Say hen.", "output": "hen"}]))
    run(tmp_path / "run", **SHORT, data={"train": str(data)}, spin={"iterations": 1})
    out = tmp_path / "pairs.jsonl"
    result = spintune("pairs", str(tmp_path / "run"), str(out), "--iteration", "2")
    assert result.code == 3
    assert "iterate-2/pairs/train.jsonl: pairs of other data" in result.err
    assert not out.exists()
    assert spintune("pairs", str(tmp_path / "run"), str(out)).code == 0  # of the iteration that the recipe asks for
    first = tmp_path / "first.jsonl"
    assert spintune("pairs", str(tmp_path / "run"), str(first), "--iteration", "1").code == 0
    assert first.read_text() == out.read_text()


def test_pairs_that_were_all_cut_are_not_exported(run: Run, spintune: Callable[..., Any], tmp_path: Path) -> None:
    run(tmp_path / "run", **SHORT, spin={"iterations": 1, "max_new_tokens": 1})
    result = spintune("pairs", tmp_path / "run", tmp_path / "pairs.jsonl")
    assert result.code == 3
    assert "raise spin.max_new_tokens" in result.err
    assert not (tmp_path / "pairs.jsonl").exists()


def test_rows_of_the_spin_authors_give_examples_and_answers(run: Run, tmp_path: Path, alpaca_file: Path) -> None:
    made = [
        {
            "real": [{"role": "user", "content": f"Say {w}."}, {"role": "assistant", "content": w}],
            "generated": [{"role": "user", "content": f"Say {w}."}, {"role": "assistant", "content": f"No {w}"}],
        }
        for w in ("fox", "dog", "owl", "cat")
    ]
    data = tmp_path / "iter0.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in made))
    out = tmp_path / "run"
    changes = {"data": {"train": str(data), "eval_fraction": 0.0}, **SHORT}
    run(out, **changes, spin={"iterations": 1, "generated": str(data)})
    assert [(p["real"]["text"], p["generated"][0]["text"]) for p in pairs(out, 1)] == [
        (w, f"No {w}") for w in ("fox", "dog", "owl", "cat")
    ]


@pytest.mark.slow
def test_another_iteration_goes_on_in_the_same_folder(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    """What chooses and how far it goes may change; the iterates that are there stay, to the bit."""
    run(tmp_path / "grown", **SHORT, spin={"iterations": 1})
    before = contents(tmp_path / "grown")
    results = run(tmp_path / "grown", **SHORT, spin={"iterations": 2, "baseline": "sft"})
    run(tmp_path / "straight", **SHORT, spin={"iterations": 2, "baseline": "sft"})
    after = contents(tmp_path / "grown")
    assert {name: after[name] for name in before if "iterate-1/" in name} == {
        name: digest for name, digest in before.items() if "iterate-1/" in name
    }
    assert len(results["spin"]) == 2
    assert after == contents(tmp_path / "straight")


# Judging, stopping, comparing -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_self_play_that_does_harm_ends_and_leaves_the_model_it_started_from(
    run: Run, many: dict[str, Any], tmp_path: Path
) -> None:
    """A rate that ruins the model: nothing is better than iterate 0, and the run says so and offers it."""
    from spintune.run_models import final_model

    spin = {"learning_rate": 0.3, "stop": {"patience": 1}}
    results = run(tmp_path / "run", data=many, spin=spin, eval=[], evaluation={"metric": "nll"})
    assert results["best"]["name"] == "sft"
    assert "is the best of 3 models" in results["best"]["why"]
    assert len(results["spin"]) == 1
    assert "no better iterate on nll for 1 iteration (spin.stop.patience)" in results["stopped"]
    assert final_model(tmp_path / "run") == str(tmp_path / "run" / "sft/model")
    files = [tmp_path / f"run/likelihood/{name}/likelihood.jsonl" for name in ("sft", "iterate-1")]
    sft, iterate = (sum(row["nll"] for row in rows(file)) for file in files)
    assert iterate > sft


@pytest.mark.slow
def test_self_play_stops_when_real_answers_become_unlikely(run: Run, tmp_path: Path) -> None:
    results = run(tmp_path / "run", spin={"learning_rate": 0.3, "stop": {"real_logprob_drop": 1.0}}, eval=[])
    assert len(results["spin"]) == 1
    assert "real answers lost" in results["stopped"]


@pytest.mark.slow
def test_self_play_stops_when_the_loss_does_not_leave_its_start(run: Run, tmp_path: Path) -> None:
    results = run(tmp_path / "run", spin={"learning_rate": 1e-12, "stop": {"start_loss": True}}, eval=[])
    assert len(results["spin"]) == 1
    assert "is not significantly below its start 0.6931" in results["stopped"]
    assert results["spin"][0]["diagnosis"]["identical_to_opponent"] == 1.0


@pytest.mark.slow
def test_without_stop_rules_every_iteration_is_played(run: Run, tmp_path: Path) -> None:
    results = run(tmp_path / "run", spin={"learning_rate": 1e-12}, eval=[])
    assert len(results["spin"]) == 2
    assert results["stopped"] is None


def test_the_divergence_from_opponent_and_base_is_that_of_plain_forwards(finished: Path) -> None:
    """KL(player || other) by the player's own held-out answers, from the published folders alone."""
    written = rows(finished / "spin/heldout/iterate-2/answers.jsonl")
    facts = json.loads((finished / "spin/iterate-2/diagnosis/diagnosis.json").read_text())
    for key, other in (("kl_opponent", "spin/iterate-1"), ("kl_base", "sft")):
        differences = []
        for pair in written:
            answer = pair["prompt_ids"], pair["generated"][0]["ids"]
            differences.append(
                score(finished / "spin/iterate-2/model", *answer) - score(finished / other / "model", *answer)
            )
        assert facts[key]["mean"] == pytest.approx(sum(differences) / len(differences), abs=1e-3)


@pytest.mark.slow
def test_the_baseline_takes_as_many_steps_and_tokens_as_self_play(run: Run, tmp_path: Path) -> None:
    results = run(tmp_path / "run", spin={"baseline": "sft"}, eval=["heldout"])
    metrics = rows(tmp_path / "run/metrics.jsonl")
    spent = {"spin": [0, 0], "baseline": [0, 0]}
    for row in metrics:
        if row["stage"] in ("spin/iterate-1", "spin/iterate-2"):
            which = "spin"
        elif row["stage"] == "spin/baseline-sft":
            which = "baseline"
        else:
            continue
        spent[which][0] += 1
        spent[which][1] += row["tokens"]
    assert spent["spin"][0] == spent["baseline"][0]
    assert spent["baseline"][1] == pytest.approx(spent["spin"][1], abs=30)  # a row at each end
    assert results["baseline"]["learning_rate"] == results["sft"]["learning_rate"]
    assert "sft-more" in results["heldout"]
    assert "iterate-2 - sft-more" in results["differences"]


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spin": {"refresh": 2, "replay": 1}}, "leave out replay"),
        ({"spin": {"refresh": "step", "reference_mixture": 0.1}}, "leave out reference_mixture"),
        ({"spin": {"lambda": -1.0}}, "greater than 0"),
        ({"spin": {"lambda": [0.1, 0.2, 0.3]}}, "3 values for 2 iterations"),
        ({"spin": {"stop": {"patience": 1}}, "data": {"eval_fraction": 0.0}}, "set data.eval_fraction above 0"),
        ({"lora": {"targets": ["q_proj", "nowhere"]}}, "lora.targets: no layer nowhere; known: "),
        ({"lora": {"targets": "*"}}, "lora.targets: '*' is not a regular expression"),
        ({"lora": {"targets": []}}, "lora.targets"),
        ({"lora": {"targets": ["lm_head"]}}, "lm_head shares its weights"),
        ({"spin": {"refresh": "steps"}}, "spin.refresh"),
        ({"spin": {"loss": "t_spin", "refresh": 2}}, "leave out refresh"),
        ({"spin": {"loss": ["logistic", "space"], "reference_mixture": 0.5}}, "works only with logistic"),
        ({"spin": {"negatives": 2, "temperature": 0.0}}, "greedy answers"),
        ({"spin": {"generated": "nowhere.jsonl"}}, "nowhere.jsonl does not exist"),
        ({"data": {"max_length": 8}}, "raise data.max_length"),
    ],
)
def test_bad_settings_end_in_one_clear_line(run: Run, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpintuneError) as caught:
        run(tmp_path / "run", **{**SHORT, **changes})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_held_out_examples_that_do_not_fit_are_called_so(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    questions = [f"Say {w}." for w in ("fox", "dog", "owl", "cat")]
    long = "Say " + "fox " * 200
    data.write_text("".join(json.dumps({"instruction": q, "output": "fox"}) + "\n" for q in [*questions, long]))
    seed = 0
    from spintune.data.split import split_examples
    from spintune.records import Example, Message

    examples = [Example((Message("user", q), Message("assistant", "fox"))) for q in [*questions, long]]
    while split_examples(examples, 0.2, seed)[1][0].prompt[0].content != long:
        seed += 1
    with pytest.raises(SpintuneError, match=r"^held-out examples: max_length .* set data.eval_fraction to 0$"):
        run(tmp_path / "run", seed=seed, data={"train": str(data)}, spin=None)
    assert not (tmp_path / "run/sft/model").exists()


def test_a_file_without_answers_to_these_prompts_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "else", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(SpintuneError, match="none of its answers is to a training prompt"):
        run(tmp_path / "run", **SHORT, spin={"generated": str(file)})
    file.write_text(json.dumps({"prompt": "else", "completion": "a"}) + "\n")
    with pytest.raises(SpintuneError, match=r"pairs\.jsonl:1: no real and generated"):
        run(tmp_path / "run2", **SHORT, spin={"generated": str(file)})


@pytest.mark.slow
def test_the_baseline_has_a_rate_of_its_own(run: Run, tmp_path: Path) -> None:
    results = run(tmp_path / "run", **SHORT, spin={"baseline": "sft", "baseline_learning_rate": 3e-3, "iterations": 1})
    rates = [r["learning_rate"] for r in rows(tmp_path / "run/metrics.jsonl") if r["stage"] == "spin/baseline-sft"]
    assert max(rates) == pytest.approx(3e-3, rel=0.35)  # of few steps none need be the very peak
    assert max(rates) <= 3e-3
    assert results["baseline"]["learning_rate"] == 3e-3


@pytest.mark.slow
def test_the_time_of_every_kind_of_work_is_told(run: Run, tmp_path: Path) -> None:
    results = run(tmp_path / "run", spin={"iterations": 1, "refresh": 2}, eval=[])
    (entry,) = results["spin"]
    assert set(entry["pairs"]["seconds"]) == {"generate", "score"}
    assert set(entry["seconds"]) == {"generate", "score", "train"}  # a phase is answered while the player trains
    assert min(*entry["pairs"]["seconds"].values(), *entry["seconds"].values(), results["sft"]["seconds"]["train"]) > 0


def test_generated_answers_are_no_longer_than_real_ones_may_be(run: Run, tmp_path: Path) -> None:
    """Else length alone would tell them apart."""
    run(tmp_path / "run", **SHORT, data={"max_target_length": 4}, spin={"iterations": 1, "max_new_tokens": 12})
    lengths = [len(pair["generated"][0]["ids"]) for pair in rows(tmp_path / "run/spin/iterate-1/pairs/answers.jsonl")]
    assert max(lengths) == 4
