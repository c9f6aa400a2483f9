"""The sentence and the numbers behind it: differences that are known by construction, and intervals that agree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import RunError
from spintune.evaluation.judge import Canary
from spintune.evaluation.selection import selects
from spintune.evaluation.statistics import Interval
from spintune.metrics import METRICS, Metric, register_metric
from spintune.report.facts import RunFacts
from spintune.report.findings import belief, finding, finding_across
from spintune.report.measures import (
    EXACT_MATCH as EXACT,
)
from spintune.report.measures import (
    NLL,
    contenders,
    difference,
    estimate,
    measured,
    measures_of,
    rank,
)
from spintune.report.page import render
from spintune.report.reading import read_run
from spintune.report.table import decimals, shown

Make = Callable[..., Any]


def run_of(make: Make, losses: dict[str, float | Sequence[float]], items: int = 60, **changes: Any) -> RunFacts:
    """A run without self-play whose models have these losses in nats an example, of 10 tokens each."""
    made = make(spin=None, **changes).data(items).sft()
    for name, loss in losses.items():
        made.judged(name, loss)
    return read_run(made.path)


def told_interval(sentence: str) -> tuple[str, float, float, str]:
    """What stands before the interval of a sentence, its ends, and what stands behind."""
    found = re.fullmatch(r"(.*) \(95 % interval ([\d.]+) to ([\d.]+)(.*)", sentence)
    assert found
    return found[1], float(found[2]), float(found[3]), found[4]


def test_a_constant_lead_is_told_with_its_interval(folder: Make) -> None:
    # 5 nats an example of 10 tokens: 0.5 nats a token, whatever is resampled
    run = run_of(folder, {"base": [30.0 + n for n in range(60)], "sft": [25.0 + n for n in range(60)]})
    assert finding(run).sentence == (
        "sft is the best model: its held-out loss is 0.500 nats a token lower than that of base "
        "(95 % interval 0.500 to 0.500; 60 held-out examples)."
    )


def test_models_whose_difference_may_be_none_cannot_be_told_apart(folder: Make) -> None:
    swing = [25.0 + (1 if n % 2 else -1.02) for n in range(60)]
    found = finding(run_of(folder, {"base": 25.0, "sft": swing}))
    assert found.sentence == (
        "The models cannot be told apart: on 60 held-out examples, sft has the best held-out loss, but the 95 % "
        "interval of its lead over base includes 0."
    )


def test_the_best_may_be_several(whole: Make) -> None:
    made = whole(heldout=60)
    made.judged("iterate-2", [28.0 + n + (0.5 if n % 2 else -0.52) for n in range(60)])  # as good as iterate-1
    made.judged("sft-more", [28.5 + n for n in range(60)])
    (made.path / "best.json").unlink()  # nothing is decided yet
    found = finding(read_run(made.path))
    told, low, high, rest = told_interval(found.sentence)
    assert told == (
        "iterate-2 and iterate-1 are the best models and cannot be told apart; the held-out loss of iterate-2 is 0.051 "
        "nats a token lower than that of sft-more"
    )
    assert rest == "; 60 held-out examples)."
    # differences of 0.1 and -0.002 nats a token, evenly: mean 0.051 (of 0.5 + 0.01), standard deviation 0.051
    assert (low, high) == pytest.approx((0.051 - 1.96 * 0.051 / 60**0.5, 0.051 + 1.96 * 0.051 / 60**0.5), abs=0.002)


def test_the_decision_is_told_and_then_what_the_other_examples_say_of_it(whole: Make) -> None:
    made = whole(heldout=60)
    swing = [27.0 + n + (1 if n % 2 else -1) for n in range(60)]
    made.judged("sft", swing).judged("sft-more", [26.0 + n for n in range(60)])
    made.best("iterate-2", metric="nll", selection=True)
    run = read_run(made.path)
    found = finding(run)
    assert found.sentence == "iterate-2 is the model to use: iterate-2 was chosen."
    reports = [n for n, example in enumerate(made.examples) if not selects(f"Say word {n}.")]
    assert 0 < len(reports) < 60
    assert len(run.selection) == 60 - len(reports)
    loss = sum(27 + n for n in reports) / 10 / len(reports)
    assert found.remarks[0] == (
        f"On the {len(reports)} held-out examples that did not choose, its held-out loss is {loss:.3f} nats a token: "
        "better than that of iterate-1 by 0.100 nats a token (95 % interval 0.100 to 0.100), and than that of base by "
        "more; not told apart from that of sft; worse than that of sft-more by 0.100 nats a token (95 % interval 0.100 "
        "to 0.100), a caveat to the choice."
    )


def test_the_headline_has_the_first_reason_alone(whole: Make) -> None:
    made = whole(heldout=60)
    made.best("iterate-2", why="it is the newest trained model; none was chosen, since 15 are too few; hold out 50")
    found = finding(read_run(made.path))
    assert found.sentence == "iterate-2 is the model to use: it is the newest trained model."
    assert found.remarks[1] == "None was chosen, since 15 are too few; hold out 50."


def test_a_decision_by_all_examples_is_reported_on_all(whole: Make) -> None:
    found = finding(read_run(whole(heldout=60).path))
    assert found.sentence == "iterate-2 is the model to use: iterate-2 was chosen."
    assert found.remarks[0].startswith("On 60 held-out examples, its held-out loss is ")
    assert found.remarks[0].endswith("and than that of iterate-1, sft and base by more.")


def test_where_higher_is_better_the_higher_one_is_best(folder: Make) -> None:
    made = folder(spin={"metric": "exact_match", "iterations": 1}).data(100).sft()
    made.pairs(1).iterate(1).diagnosis(1).best("iterate-1")
    right = [example.answer for example in made.examples]
    made.judged("base", 20.0).judged("sft", 20.0).judged("iterate-1", 30.0, [*right[:40], *["no"] * 60])
    found = finding(read_run(made.path))
    told, low, high, _ = told_interval(found.remarks[0])
    assert told == (
        "On 100 held-out examples, its exact match is 40.0 % of answers: better than that of base by 40.0 points"
    )
    spread = 100 * 1.96 * (0.4 * 0.6 / 100) ** 0.5
    assert (low, high) == pytest.approx((40 - spread, 40 + spread), abs=1.5)
    assert "For iterate-1, held-out loss is worse than sft's by 1.000 nats a token" in " ".join(found.remarks)


def test_verdicts_of_a_checker_lead_where_there_is_one(folder: Make) -> None:
    made = folder(spin=None, evaluation={"metric": "auto", "checker": "number", "samples": 2}).data(60).sft()
    for name, right in (("base", 20), ("sft", 50)):
        made.judged(name, 20.0)
        assert f"the checked or sampled answers of {name}" in read_run(made.path).missing
        scales = {"checker": {"better": "higher", "right_or_wrong": True}, "rouge_l@T1": {"better": "higher"}}
        items = [
            {"id": example.id, "text": "", "scores": {"checker": float(n < right), "rouge_l@T1": 0.25}, "weights": {}}
            for n, example in enumerate(made.examples)
        ]
        made.lines(f"eval/heldout-measures/{name}/scores.jsonl", items)
        made.stage(f"eval/heldout-measures/{name}", items=60, measures=scales)
    run = read_run(made.path)
    assert not run.missing
    assert finding(run).sentence.startswith(
        "sft is the best model: its accuracy by the checker is 50.0 points higher than that of base "
    )
    assert "ROUGE-L at T = 1" in render([run], made.path)


@pytest.fixture
def brevity() -> Iterator[None]:
    """A metric that a user registered."""
    register_metric(Metric("brevity", lambda prediction, _: -len(prediction), "higher", "Fewer characters."))
    yield
    METRICS.unregister("brevity")


def by_brevity(make: Make, page: Make) -> tuple[str, list[str]]:
    """The finding of a run that chooses by it and whose iterate is shorter; and the iterate's row of measures."""
    made = make(spin={"metric": "brevity", "iterations": 1}).data(60).sft()
    made.pairs(1).iterate(1).diagnosis(1).best("iterate-1")
    for name, length in (("base", 9), ("sft", 9), ("iterate-1", 4)):
        made.judged(name, 20.0, ["x" * length] * 60)
        path = made.path / f"eval/heldout/{name}/answers.jsonl"
        path.write_text(path.read_text().replace("}\n", f', "brevity": {-length}}}\n'))
    read = page(render([read_run(made.path)], made.path))
    return finding(read_run(made.path)).remarks[0], next(row for row in read.row("iterate-1") if len(row) == 7)


def test_a_metric_that_a_user_registered_judges_the_run(brevity: None, folder: Make, page: Make) -> None:
    sentence, row = by_brevity(folder, page)
    assert sentence == (
        "On 60 held-out examples, its brevity is −4.000: better than that of base by 5.000 "
        "(95 % interval 5.000 to 5.000), and than that of sft by more."
    )
    assert row[4] == "−4.000−4.000 to −4.000"


def test_without_the_package_of_a_metric_the_loss_judges_the_run(folder: Make, page: Make) -> None:
    sentence, row = by_brevity(folder, page)
    assert sentence.startswith("On 60 held-out examples, its held-out loss is 2.000")
    assert row[4] == "−4.000−4.000 to −4.000"


def test_intervals_are_those_of_results_json(whole: Make) -> None:
    made = whole()
    results = json.loads((made.path / "results.json").read_text())
    by_name = {one.model.name: one for one in contenders([read_run(made.path)])}
    for measure in measures_of(list(by_name.values())):
        for name, one in by_name.items():
            assert asdict(estimate(one, measure, measured(one, measure))) == results["heldout"][name][measure.key]
            if name != "sft":
                gap = difference(one, by_name["sft"], measure, measured(one, measure))
                assert asdict(gap) == results["differences"][f"{name} - sft"][measure.key]
                back = difference(by_name["sft"], one, measure, measured(one, measure))
                assert back.low == -gap.high


def test_intervals_of_an_unfinished_run_are_what_results_json_will_say(whole: Make) -> None:
    made = whole()
    results = json.loads((made.path / "results.json").read_text())
    (made.path / "results.json").unlink()
    for one in contenders([read_run(made.path)]):
        for measure in measures_of([one]):
            found = asdict(estimate(one, measure, measured(one, measure)))
            assert found == pytest.approx(results["heldout"][one.model.name][measure.key], rel=1e-12)


def test_results_of_an_earlier_command_are_not_believed_about_newer_answers(whole: Make) -> None:
    made = whole()
    made.judged("iterate-2", 12.0)  # 1.2 nats a token, and results.json does not know
    (one,) = [one for one in contenders([read_run(made.path)]) if one.model.name == "iterate-2"]
    assert estimate(one, NLL, measured(one, NLL)).mean == pytest.approx(1.2)


def test_a_ranking_holds_every_model_once(whole: Make) -> None:
    models = contenders([read_run(whole().path)])
    ranking = rank(models, NLL, measured(models[0], NLL))
    order = [ranking.first, *ranking.tied, *ranking.behind]
    assert [one.label for one in order] == ["iterate-2", "sft-more", "iterate-1", "sft", "base"]
    assert {label: round(gain.mean, 6) for label, gain in ranking.gains.items()} == {
        "sft-more": 0.05,
        "iterate-1": 0.1,
        "sft": 0.2,
        "base": 0.3,
    }


def test_few_examples_are_called_few(folder: Make) -> None:
    few = finding(run_of(folder, {"base": 30.0, "sft": 25.0}, items=49))
    assert any("49 held-out examples are few" in remark for remark in few.remarks)


def test_enough_examples_are_not_called_few(folder: Make) -> None:
    enough = finding(run_of(folder, {"base": 30.0, "sft": 25.0}, items=50))
    assert not any("few" in remark for remark in enough.remarks)


def test_a_model_that_is_judged_alone_is_compared_with_nothing(folder: Make) -> None:
    made = folder(sft=None, spin=None).data(50).judged("base", 30.0)
    assert finding(read_run(made.path)).sentence == (
        "Only base was judged: its held-out loss is 3.000 nats a token (95 % interval 3.000 to 3.000; "
        "50 held-out examples)."
    )


def test_an_unfinished_run_says_so_far(whole: Make) -> None:
    made = whole(heldout=60)
    (made.path / "spin/baseline-sft/manifest.json").unlink()
    assert finding(read_run(made.path)).sentence.startswith("So far, iterate-2 is the model to use: ")
    for name in ("base", "sft", "iterate-1", "iterate-2"):
        made.judged(name, 1.0)
    (made.path / "best.json").unlink()
    assert finding(read_run(made.path)).sentence.startswith("So far, the models cannot be told apart: ")


def test_before_anything_is_judged_the_sentence_says_what_is_known(folder: Make) -> None:
    made = folder()
    assert finding(read_run(made.path)).sentence == "Nothing has been trained yet."
    made.data().sft(steps=5)
    assert finding(read_run(made.path)).sentence == (
        "SFT took the held-out loss from 3.200 to 2.750 nats a token in 2 steps. The models have not been judged "
        "against each other yet."
    )


def test_a_recipe_that_asks_for_no_evaluation_is_not_told_to_wait_for_one(folder: Make) -> None:
    run = read_run(folder(spin=None, eval=[]).data().sft().path)
    assert run.missing == ()
    assert finding(run).sentence.endswith("The recipe asks for no evaluation, so no model is judged.")


def test_warnings_of_self_play_are_told(whole: Make) -> None:
    made = whole()
    made.pairs(2, warnings=["length alone tells real from generated answers"])
    remarks = finding(read_run(made.path)).remarks
    assert "Iteration 2: length alone tells real from generated answers." in remarks


# The judge -----------------------------------------------------------------------------------------------------------


def test_a_judge_whose_budget_ended_is_neither_trusted_nor_distrusted() -> None:
    said = belief("questions", Canary("wise-1", 16, (0.0, 0.0), over_budget=14))
    assert said.startswith("questions: the judge's budget ended after 2 of 16 comparisons")
    assert "whether it can be trusted is not known" in said


@pytest.mark.parametrize(
    ("items", "preferences", "told"),
    [
        (4, (0.0, 0.0, 0.5, 0.0), "constant nonsense lost; it was preferred in 12 % of 4"),
        (2, (1.0, 0.5), "constant nonsense did not lose; it was preferred in 75 % of 2"),
        (
            4,
            (0.0,),
            "only 1 of 4 comparisons of constant nonsense with real answers got a verdict, so the judge is not",
        ),
        (4, (), "only 0 of 4"),
    ],
)
def test_a_judge_is_trusted_where_nonsense_loses(items: int, preferences: tuple[float, ...], told: str) -> None:
    canary = Canary("wise-1", items, preferences, 0.2)
    said = belief("questions", canary)
    assert said.startswith(f"questions: {told}")
    assert ("not trusted" in said) == (not canary.trusted)


# Several runs -------------------------------------------------------------------------------------------------------


def test_the_best_models_of_runs_are_compared_on_the_examples_they_share(whole: Make) -> None:
    texts = [(f"Say word {n}.", f"word {n}") for n in range(80)]
    one, other = whole("one", texts[:60]), whole("other", texts[20:])
    for name in ("base", "sft", "iterate-1", "iterate-2", "sft-more"):
        other.judged(name, 20.0)
        one.judged(name, 30.0)
    other.judged("sft-more", 10.0)  # is not the one that the run uses
    found = finding_across([read_run(one.path), read_run(other.path)])
    assert found.sentence == (
        "other / iterate-2 is the best model: its held-out loss is 1.000 nats a token lower than that of one / "
        "iterate-2 (95 % interval 1.000 to 1.000; 40 held-out examples)."
    )


def test_runs_with_other_examples_are_not_compared(whole: Make) -> None:
    texts = [(f"Say word {n}.", f"word {n}") for n in range(20)]
    runs = [read_run(whole("one", texts[:10]).path), read_run(whole("other", texts[10:]).path)]
    assert finding_across(runs).sentence == (
        "These runs hold out different examples, so their models cannot be compared."
    )


def test_losses_of_other_tokens_are_not_compared(whole: Make) -> None:
    one, other = whole("one"), whole("other")
    for path in other.path.glob("likelihood/*/likelihood.jsonl"):
        path.write_text(path.read_text().replace('"tokens": 10', '"tokens": 9'))
    found = finding_across([read_run(one.path), read_run(other.path)])
    assert "different tokens" in found.sentence
    assert found.ranking is None


# Numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(1.23456, False, "1.235"), (-0.5, True, "−0.500"), (0.5, True, "+0.500"), (-0.0001, True, "0.000")],
)
def test_numbers_have_a_real_minus_and_no_signed_nothing(value: float, sign: bool, text: str) -> None:
    assert shown(value, NLL, 3, sign) == text


def test_shares_are_told_in_percent() -> None:
    assert shown(0.1234, EXACT, 1) == "12.3"


@pytest.mark.parametrize(
    ("half", "digits"),
    [(0.5, 3), (0.004, 4), (0.00123, 4), (0.000456, 5), (1e-9, 6), (0.0, 3)],  # two figures of the half width
)
def test_digits_follow_the_narrowest_interval(half: float, digits: int) -> None:
    assert decimals([Interval(0, -half, half), Interval(0, -9, 9)], NLL) == digits


def test_only_the_run_folder_is_read(whole: Make, tmp_path: Path) -> None:
    made = whole()
    before = sorted(path.stat().st_mtime_ns for path in made.path.rglob("*"))
    finding(read_run(made.path))
    assert sorted(path.stat().st_mtime_ns for path in made.path.rglob("*")) == before


def test_models_that_were_judged_on_other_examples_are_left_out_of_the_ranking(whole: Make) -> None:
    made = whole()
    path = made.path / "likelihood/base/likelihood.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    found = finding(read_run(made.path))
    assert found.ranking is not None
    assert found.ranking.first.label == "iterate-2"
    assert "base" not in found.ranking.gains
    for name in ("sft", "iterate-1", "iterate-2"):
        (made.path / f"likelihood/{name}/likelihood.jsonl").write_text("")
    assert "No two models were judged on the same examples" in finding(read_run(made.path)).remarks[0]
    (made.path / "best.json").unlink()
    assert "No two models were judged on the same examples" in finding(read_run(made.path)).sentence


def test_a_file_that_was_cut_at_the_end_of_a_line_is_named(whole: Make) -> None:
    made = whole()
    path, manifest = (made.path / f"likelihood/base/{name}" for name in ("likelihood.jsonl", "manifest.json"))
    facts = {"bytes": path.stat().st_size, "mtime_ns": 0, "sha256": ""}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {path.name: facts}}))
    assert read_run(made.path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(RunError, match=r"likelihood\.jsonl: was changed after the run wrote it"):
        read_run(made.path)
