"""``learning_rate: auto``: a stage that finds the rate, resumes rung by rung, and leaves the model as it was."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
from watching import Watching

from spintune.data.preferences import turns_of_example
from spintune.errors import NonFiniteError, RecipeError
from spintune.evaluation.selection import selection_of
from spintune.progress import Silent
from spintune.recipe import SpinSection
from spintune.records import Example, Message, read_records
from spintune.stages.answers import AnswerSampler
from spintune.stages.iterates import Iterate
from spintune.stages.rates import RateSearch, _Rungs
from spintune.training.ladder import Ladder
from spintune.training.ladder_plan import LadderPlan

Run = Callable[..., dict[str, Any]]
WORDS = ["fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow", "pig", "elk"]


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that finds both rates, on enough examples to choose by."""
    rows = [
        {"instruction": f"Name the animal number {n}.", "input": "", "output": f"It is a {WORDS[n % 10]}."}
        for n in range(150)
    ]
    path = tmp_path_factory.mktemp("auto") / "animals.json"
    path.write_text(json.dumps(rows))
    return {
        "data": {"train": str(path), "max_length": 96, "eval_fraction": 0.4},
        "sft": {"tokens_per_step": 256, "learning_rate": "auto", "samples": 0},
        "spin": {"iterations": 2, "pairs_per_step": 16, "learning_rate": "auto"},
        "eval": [],
    }


@pytest.fixture(scope="module")
def found(one_thread: None, run: Run, auto: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rates") / "run"
    run(out, **auto)
    return out


def rates(out: Path, stage: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / stage / "rates/rates.json").read_text())
    return facts


def real_loss(out: Path) -> float:
    """Of the opponent, in nats a token: the mean over the held-out answers that choose, which a ladder is judged by."""
    lines = (out / "spin/iterate-1/pairs/heldout.jsonl").read_text().splitlines()
    real = {pair["example_id"]: pair["real"] for pair in map(json.loads, lines)}
    examples = read_records(out / "data/heldout.jsonl", Example)
    chosen = [real[example.id] for example in selection_of(examples) if example.id in real]
    chosen = chosen[: rates(out, "spin/iterate-1")["rows"]]
    return fmean(-answer["opponent"] / len(answer["ids"]) for answer in chosen)


class StopsAfter(Silent):
    """Stops the run at its n-th optimizer step of a ladder."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, name: str, total: float, unit: str) -> Any:
        task = super().task(name, total, unit)
        if name.endswith("learning rate"):
            return _Counting(task, self)
        return task


class _Counting:
    def __init__(self, task: Any, owner: StopsAfter) -> None:
        self.task, self.owner = task, owner

    def __enter__(self) -> _Counting:
        self.task.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.task.__exit__(*error)

    def advance(self, amount: float = 1, **facts: object) -> None:
        self.owner.left -= 1
        if self.owner.left == 0:
            raise KeyboardInterrupt


def test_the_chosen_rate_is_of_the_ladder_and_is_trained_with(found: Path) -> None:
    results = json.loads((found / "results.json").read_text())
    for stage, facts in (("sft", results["sft"]), ("spin/iterate-1", results["spin"][0])):
        ladder = rates(found, stage)
        losses = {rung["learning_rate"]: rung["loss"] for rung in ladder["rungs"] if rung["loss"] is not None}
        best = min(losses, key=losses.__getitem__)
        assert ladder["rate"] == facts["learning_rate"]
        if stage == "sft":
            short = facts["steps"] < 8 * ladder["rungs"][0]["steps"]
            assert ladder["rate"] in losses
            assert (ladder["rate"] == best) if short else (ladder["rate"] >= best)
        else:
            assert ladder["rate"] == pytest.approx(
                best * math.sqrt(ladder["rungs"][0]["steps"] / facts["steps"]), rel=0.05
            )
        # the usual rate of so small a model is half a decade of ten below the highest that is tried
        assert 3 <= len(ladder["rungs"]) <= 6
        assert ladder["rows"] >= 20
        assert f"{ladder['rate']:g}" in ladder["why"]
    assert rates(found, "spin/iterate-1")["start_loss"] == pytest.approx(math.log(2) + real_loss(found), abs=1e-3)
    # found once, used in both iterations
    assert results["spin"][1]["learning_rate"] == results["spin"][0]["learning_rate"]
    assert not (found / "spin/iterate-2/rates").exists()
    assert not list(found.rglob("checkpoints")) + list(found.rglob("shards"))


def test_the_half_that_chose_the_rate_reports_nothing(found: Path) -> None:
    iteration = json.loads((found / "results.json").read_text())["spin"][0]
    examples = read_records(found / "data/heldout.jsonl", Example)
    chose = {example.id for example in selection_of(examples)}
    folder = found / "spin/iterate-1"
    every = [json.loads(line) for line in (folder / "standing.jsonl").read_text().splitlines()]
    rows = [row for row in every if row["id"] not in chose]
    assert len(chose) >= 20
    assert 0 < len(rows) < len(every)
    assert iteration["heldout"]["pairs"] == len(rows)
    for key in ("loss", "margin", "accuracy"):
        assert iteration["heldout"][key] == pytest.approx(fmean(row[key] for row in rows))
    lines = map(json.loads, (found / "likelihood/iterate-1/likelihood.jsonl").read_text().splitlines())
    likely = [row for row in lines if row["id"] not in chose]
    nats = sum(row["nll"] for row in likely) / sum(row["tokens"] for row in likely)
    assert iteration["diagnosis"]["nll_per_token"] == pytest.approx(nats)
    assert iteration["diagnosis"]["answers"]["answers"] == len(examples) - len(chose)


def test_turns_are_of_the_half_of_their_conversation() -> None:
    """By their own prompts they would fall into both: two choose, one reports."""
    texts = [str(number) for number in range(6)]
    talk = Example(tuple(Message(role, text) for role, text in zip(["user", "assistant"] * 3, texts, strict=True)))
    turns = turns_of_example(talk)
    other = Example((Message("user", "?"), Message("assistant", "!")))
    context: Any = SimpleNamespace(heldout=[talk, other])
    every = AnswerSampler(context, SpinSection(turns="all"))
    assert every.ids_of([talk]) == {turn.id for turn in turns}
    assert every.ids_of([other]) == {other.id}
    assert len(selection_of(turns)) == 2
    assert AnswerSampler(context, SpinSection()).ids_of([talk]) == {talk.id}


@pytest.mark.slow
def test_a_rate_is_for_the_steps_of_all_phases(run: Run, auto: dict[str, Any], tmp_path: Path) -> None:
    """The pairs of the first phase are there to try rates on; the stage has three times as many steps."""
    spin = {**auto["spin"], "iterations": 1, "refresh": 3, "pairs_per_step": 4}
    results = run(tmp_path / "run", **{**auto, "sft": None, "spin": spin})
    ladder, steps = rates(tmp_path / "run", "spin/iterate-1"), results["spin"][0]["steps"]
    losses = {rung["learning_rate"]: rung["loss"] for rung in ladder["rungs"] if rung["loss"] is not None}
    best = min(losses, key=losses.__getitem__)
    assert steps == math.ceil(90 / 4)
    assert ladder["rate"] == pytest.approx(best * math.sqrt(ladder["rungs"][0]["steps"] / steps), rel=0.05)


def test_a_run_at_the_found_rate_has_the_same_weights(
    run: Run, auto: dict[str, Any], found: Path, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    """The ladder leaves no trace in the model, so naming the rate that it found gives the same bits."""
    rate = rates(found, "sft")["rate"]
    run(tmp_path / "run", **{**auto, "spin": None, "sft": {**auto["sft"], "learning_rate": rate}})
    name = "sft/model/model.safetensors"
    assert contents(tmp_path / "run")[name] == contents(found)[name]


def test_a_second_start_climbs_no_ladder(run: Run, auto: dict[str, Any], found: Path) -> None:
    watching = Watching()
    run(found, watching, **auto)
    assert watching.tasks == []


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 9, 14])
def test_a_ladder_that_was_stopped_goes_on_with_the_next_rung(
    run: Run, auto: dict[str, Any], found: Path, contents: Callable[[Path], Any], tmp_path: Path, steps: int
) -> None:
    short = {**auto, "spin": None}
    out, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        run(out, StopsAfter(steps), **short)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl") if path.parent.name == "shards"}
    assert bool(done) == (steps > 2) or steps == 2
    second = StopsAfter(10**6)
    run(out, second, **short)
    run(whole, **short)
    mine, theirs = contents(out), contents(whole)
    for tree in (mine, theirs):
        ladder = [name for name in tree if name.endswith(("rates/rates.json", "rates/manifest.json"))]
        assert len(ladder) == 2
        for name in ladder:  # it has its own duration
            del tree[name]
    assert mine == theirs
    assert rates(out, "sft")["rungs"] == rates(whole, "sft")["rungs"] == rates(found, "sft")["rungs"]


@pytest.mark.slow
def test_each_iteration_of_a_list_and_the_baseline_find_their_own(
    run: Run, auto: dict[str, Any], tmp_path: Path
) -> None:
    spin = {**auto["spin"], "learning_rate": [1e-4, "auto"], "baseline": "sft", "baseline_learning_rate": "auto"}
    results = run(tmp_path / "run", **{**auto, "sft": {"learning_rate": 1e-3}, "spin": spin})
    assert results["spin"][0]["learning_rate"] == 1e-4
    assert results["spin"][1]["learning_rate"] == rates(tmp_path / "run", "spin/iterate-2")["rate"]
    assert results["baseline"]["learning_rate"] == rates(tmp_path / "run", "spin/baseline-sft")["rate"]
    assert not (tmp_path / "run/spin/iterate-1/rates").exists()


def test_with_too_few_examples_to_choose_by_the_usual_rate_is_told(
    run: Run, auto: dict[str, Any], tmp_path: Path
) -> None:
    few = {**auto, "data": {**auto["data"], "eval_fraction": 0.1}, "spin": None}
    results = run(tmp_path / "run", **few)
    facts = rates(tmp_path / "run", "sft")
    assert results["sft"]["learning_rate"] == facts["rate"] == 3.2e-3  # 1e-4 * sqrt(135e6 / 1e5), at most 3.2e-3
    assert facts["rungs"] == []
    assert facts["start_loss"] is None
    assert facts["tokens"] == 0
    assert re.match(r"learning rate 0\.0032 is the usual one .* and was not tried: \d+ of 15 held-out", facts["why"])


def test_auto_without_held_out_examples_or_answers_is_refused(run: Run, auto: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sft.learning_rate: auto needs held-out examples"):
        run(tmp_path / "one", **{**auto, "data": {**auto["data"], "eval_fraction": 0.0}})
    with pytest.raises(RecipeError, match=r"with refresh: step, give a rate"):
        run(tmp_path / "two", **{**auto, "spin": {**auto["spin"], "refresh": "step"}})


def test_a_ladder_that_breaks_before_any_rate_is_tried_says_so(
    run: Run, auto: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_output_embeddings().weight.data *= 1e30
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "broken")
    judged = {"eval": ["heldout"], "evaluation": {"metric": "nll"}}  # its answers would be long
    with pytest.raises(NonFiniteError) as raised:
        run(tmp_path / "run", **{**auto, **judged, "model": str(tmp_path / "broken"), "spin": None})
    assert re.fullmatch(
        r"sft\.learning_rate: auto found no rate: training breaks before any is tried \(step 1: loss [\d.]+, "
        r"gradient norm nan\); look at the rows and the model",
        str(raised.value),
    )


def test_a_ladder_that_diverges_at_every_rate_says_what_to_change(
    spintune: Callable[..., Any],
    values: Callable[..., dict[str, Any]],
    auto: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[float] = []
    monkeypatch.setattr(Ladder, "train", lambda self, rate: tried.append(rate))  # None, as False: it diverged
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values(tmp_path / "out", **{**auto, "spin": None})))
    result = spintune("run", path, "--quiet")
    assert result.code == NonFiniteError.exit_code
    assert len(tried) >= 3
    assert tried[0] == max(tried) == 3.2e-3
    assert result.err == (
        f"spintune: sft.learning_rate: auto found no rate: at every one of {min(tried):g} to 0.0032 a loss or gradient "
        f"became infinite or undefined; look at the rows and the model, or give a rate below {min(tried):g}\n"
    )


def test_only_sft_takes_a_higher_rate_than_the_best_of_its_rungs(auto: dict[str, Any]) -> None:
    plan = LadderPlan(moments=4, steps=4, parts=1, heldout=20, share=0.2)
    context: Any = None
    start = Iterate("base", "m", "d")
    sft, spin = (RateSearch(context, f"{section}.learning_rate", "", "", start, {}) for section in ("sft", "spin"))
    assert [sft.kept(plan, steps) for steps in (4, 18, 100)] == [1, 1, 0.5]
    assert spin.kept(plan, 100) == 1


@pytest.mark.parametrize("content", [b"", b'{"records":1}', b"\xff\xfe", None])
def test_a_damaged_rung_is_told_and_tried_again(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    rungs = _Rungs(tmp_path, "tag")
    assert rungs.losses(1e-4, lambda: [1.5, 2.5]) == [1.5, 2.5]
    assert rungs.losses(1e-4, lambda: []) == [1.5, 2.5]  # read
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.4") if content is None else content)
    assert rungs.losses(1e-4, lambda: [3.0]) == [3.0]
    assert f"{path}: damaged" in caplog.text
    assert caplog.text.count("this rate is tried again") == 1
    assert rungs.losses(1e-4, lambda: []) == [3.0]
