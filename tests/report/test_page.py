"""The page: its numbers are those of the run's files, it needs nothing else, and no text of a model can act in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from spintune.errors import RunError, StorageError
from spintune.report.page import render, write_report
from spintune.report.reading import read_run

Make = Callable[..., Any]

EVIL = [
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "]]> <!-- <script> -->",
    "a\u2028b\u2029c",
    "\u202eright to left\u202c \u200f",
    "{{ 7 * 7 }} {% raw %} ${7} &lt;b&gt; &#x3c;",
    "'\"><svg/onload=alert(1)>",
]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def test_the_table_shows_the_numbers_of_results_json(whole: Make, page: Make) -> None:
    made = whole()
    results = json.loads((made.path / "results.json").read_text())
    read = page(write_report([made.path]))
    for name, measures in results["heldout"].items():
        row = next(row for row in read.row(name) if len(row) == 6)
        for cell, (key, factor) in zip(
            row[1:],
            [("nll_per_token", 1), ("rouge_l", 1), ("exact_match", 100), ("answer_tokens", 1), ("finished", 100)],
            strict=True,
        ):
            digits = 3 if factor == 1 and key != "answer_tokens" else 1
            mean = f"{measures[key]['mean'] * factor:.{digits}f}"
            assert cell.startswith(mean), (name, key)
            if key in ("nll_per_token", "rouge_l", "answer_tokens"):
                low, high = (f"{measures[key][end] * factor:.{digits}f}" for end in ("low", "high"))
                assert cell == f"{mean}{low} to {high}"


def test_the_differences_are_those_of_results_json(whole: Make, page: Make) -> None:
    made = whole()
    results = json.loads((made.path / "results.json").read_text())
    read = page(write_report([made.path]))
    for names, measures in results["differences"].items():
        (row,) = read.row(names.replace(" - ", " − "))
        mean = number(re.split(r"(?<=\d{3})(?=[+−]|\d+\.)", row[1])[0])
        assert mean == pytest.approx(measures["nll_per_token"]["mean"], abs=5e-4)
        assert row[1].endswith("better" if measures["nll_per_token"]["high"] < 0 else "worse")


def test_a_share_without_spread_has_wilson_s_interval(whole: Make, page: Make) -> None:
    read = page(write_report([whole(heldout=10).path]))
    row = next(row for row in read.row("sft") if len(row) == 6)
    assert row[3] == "0.00.0 to 27.8"  # exact matches: 0 of 10
    assert row[5] == "100.072.2 to 100.0"  # finished: 10 of 10


def test_funnel_and_cost_stand_in_the_page(whole: Make, page: Make) -> None:
    read = page(write_report([whole().path]))
    assert read.row("reading") == [["reading", "70 rows", "60", "", "over limit 10", "48 to train on, 12 held out"]]
    assert read.row("iteration 1")[0][:5] == ["iteration 1", "48 prompts", "45", "", "identical 2, too long 1"]
    assert read.row("SFT")[-1] == ["SFT", "5 steps", "2,500", "250", "62", "–", "–", "–", "30 s"]
    # training 30.5 + 20 + 20 + 18 s, generating 2 x 12.25 s, scoring 2 x 3.5 s
    assert read.row("all") == [["all", "", "", "", "", "", "24 s", "7.0 s", "1 min 28 s"]]


def test_every_curve_of_a_whole_run_is_there(whole: Make, page: Make) -> None:
    read = page(write_report([whole().path]))
    labels = [
        attributes["aria-label"] or "" for tag, attributes in read.tags if tag == "svg" and "viewbox" in attributes
    ]
    titles = [label.split(",")[0].split(".")[0] for label in labels]
    sft = ["Loss", "Gradient norm", "Learning rate"]
    steps = ["Loss", "Margin r − r′", "Accuracy", "Log-ratios to the opponent", "Log-probabilities", "Gradient norm"]
    assert titles == [*sft, *steps, "Held-out loss", "KL divergence", "Length of its answers", *sft]
    assert labels[0].startswith(
        "Loss, nats a token. training from 3 at step 1 to 2.6 at 5; held out from 3.2 at step 1 to 2.75 at 2"
    )


@pytest.mark.parametrize(
    ("spin", "begins_at_ln_2"),
    [
        ({}, True),
        ({"loss": ["logistic", "logistic"]}, True),
        ({"loss": ["logistic", "hinge"]}, False),
        ({"loss": "hinge"}, False),
        ({"gamma": 0.5}, False),
        ({"reference_mixture": 0.5}, False),  # from iteration 2 on the mixture is no player
    ],
)
def test_ln_2_is_marked_where_every_iteration_begins_there(
    whole: Make, page: Make, spin: dict[str, Any], begins_at_ln_2: bool
) -> None:
    assert ("Dashed: ln 2" in page(write_report([whole(spin=spin).path])).text) == begins_at_ln_2


def test_the_curve_of_sft_marks_the_step_that_was_kept(folder: Make, page: Make) -> None:
    note = "Step 2 was kept: it has the least loss on the 25 held-out examples that choose."
    chosen = {"losses": (3.2, 2.5, 2.75), "planned_steps": 5, "kept_step": 2}
    marked = write_report([folder("a").data().sft(**chosen, chosen_by=25).path])
    assert note in page(marked).text
    assert "step 2: kept 2.5 nats a token" in marked.read_text()
    assert "held-out loss from 3.200 to 2.500 nats a token in 2 steps" in page(marked).text
    by_rule = write_report([folder("b").data().sft(**chosen, chosen_by=0).path])
    assert "was kept" not in page(by_rule).text


def test_experts_have_curves_in_sft_and_in_self_play(whole: Make, page: Make) -> None:
    made = whole()
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    routed = [{"expert_load": 1.5, "experts_idle": 0.25} if "tokens" in line else {} for line in lines]
    made.lines("metrics.jsonl", [line | facts for line, facts in zip(lines, routed, strict=True)])
    read = page(write_report([made.path]))
    labels = [attributes.get("aria-label") or "" for tag, attributes in read.tags if tag == "svg"]
    loads = [label for label in labels if label.startswith("Load of the busiest expert, relative to an even spread")]
    assert len(loads) == 3  # SFT, self-play, and further SFT
    assert "from 1.5 at step 1 to 1.5 at 5" in loads[0]
    assert sum(label.startswith("Experts without a token, share") for label in labels) == 3


def test_accuracies_on_the_tasks_of_a_mixture_are_those_of_results_json(whole: Make, page: Make) -> None:
    made = whole()
    results = json.loads((made.path / "results.json").read_text())
    sums, all_right = {"items": 40, "mean": 0.25, "low": 0.125, "high": 0.375}, {"mean": 1.0, "low": 1.0, "high": 1.0}
    accuracy = {
        "base": {"task sums": sums, "held-out tasks": sums},
        "sft": {"task sums": {"items": 40, **all_right}, "held-out tasks": sums},
    }
    made.json("results.json", {**results, "tasks": {"accuracy": accuracy, "differences": {}}})
    read = page(write_report([made.path]))
    assert read.row("held-out tasks") == [["held-out tasks", "40", "25.012.5 to 37.5", "25.012.5 to 37.5"]]
    # Wilson's interval of 40 of 40 begins at 40/(40 + 1.96²)
    assert read.row("task sums") == [
        ["task sums", "40", "25.012.5 to 37.5", f"100.0{4000 / (40 + 1.96**2):.1f} to 100.0"]
    ]


def test_benchmarks_judge_and_contamination_stand_in_the_page(everything: Make, page: Make) -> None:
    made = everything()
    read = page(write_report([made.path]))
    text = " ".join(read.text.split())
    # ifeval: of 2 prompts sft follows 1 in full, and 3 of 4 instructions; questions: 6 of 12; rival: 10 of 10
    base, sft = read.row("base")[0], read.row("sft")[0]
    assert base[1].startswith("0.0")
    assert [cell[:4] for cell in sft[1:5]] == ["50.0", "75.0", "0.50", "50.0"]
    assert sft[3] == "0.5000.125 to 0.875"  # the interval of results.json
    assert read.row("parrotstored answers")[0][3:] == [
        "1.0001.000 to 1.00010 items",
        "100.072.2 to 100.010 items",
        "3.003.00 to 3.0010 items",
        "–",
    ]
    assert "sft is better than base." in text
    assert "questions: constant nonsense lost; it was preferred in 12 % of 4 comparisons" in text.replace("\u00a0", " ")
    assert "mt-bench: constant nonsense did not lose; it was preferred in 75 % of 2" in text.replace("\u00a0", " ")
    assert read.row("sft over base") == [
        ["sft over base", "questions", "7040 to 90", "6030 to 80", "6 / 2 / 2", "20", "1"]
    ]
    assert read.row("sft over parrot") == [["sft over parrot", "questions", "–", "–", "0 / 0 / 0", "–", "11"]]
    assert ["sft", "6.005.00 to 7.00", "6.506.00 to 7.00", "5.005.00 to 5.00", "1"] in read.row("sft")
    assert read.row("questions") == [["questions", "12", "4 (33.3 %)", "3 (25.0 %)"]]
    # without questions 0, 1 and 2 sft answers 3 of 9
    (clean,) = read.row("sftwithout them")
    assert clean[2].startswith("33.3")
    assert clean[2].endswith("9 items")
    assert read.row("judge")[0][:3] == ["judge", "60 requests, $0.25", "1,200"]


def test_only_a_run_with_benchmarks_has_their_sections(whole: Make, everything: Make, page: Make) -> None:
    sections = {"benchmarks", "judge", "contamination"}
    for made, there in ((whole(), set()), (everything("other"), sections)):
        read = page(write_report([made.path]))
        assert {a.get("id") for tag, a in read.tags if tag == "section"} & sections == there


def test_a_benchmark_that_could_not_run_and_a_judge_that_stopped_are_told(everything: Make, page: Make) -> None:
    made = everything(said={"pairs": {}, "ratings": {}, "problems": ["example.org does not answer"]})
    results = json.loads((made.path / "results.json").read_text())
    for file in made.path.glob("eval/ifeval/*/manifest.json"):
        file.unlink()
    made.json("results.json", {**results, "failed": ["ifeval"]})
    text = " ".join(page(write_report([made.path])).text.split())
    assert "Could not be run: ifeval." in text
    assert "example.org does not answer" in text
    assert "Missing: a part of the judge's verdicts." in text


def test_a_run_that_only_evaluates_has_a_page(folder: Make, page: Make) -> None:
    made = folder(spin=None, sft=None, data={"train": [], "eval_fraction": 0.0}, eval=["quiz"]).data(0)
    made.scored("quiz", "base", {"acc": [1.0, 0.0, 1.0, 1.0]}, acc={"right_or_wrong": True})
    read = page(write_report([made.path]))
    assert "No held-out example judges the models; quiz does." in " ".join(read.text.split())
    assert read.row("base")[0][1].startswith("75.0")
    assert "This run is not finished." not in read.text


def test_benchmarks_of_several_runs_stand_side_by_side(everything: Make, page: Make) -> None:
    one, other = everything("one"), everything("other")
    other.questions("sft", ["a b"] * 13)
    read = page(write_report([one.path, other.path]))
    assert read.row("one / sft")[0][4].startswith("50.0")
    assert read.row("other / sft")[0][4].startswith("100.0")
    text = " ".join(read.text.split())
    assert "Different items in different runs, whose rows must not be compared: questions." in text


# Safety -------------------------------------------------------------------------------------------------------------


def test_it_carries_its_styles_and_scripts_and_allows_no_others(whole: Make, page: Make) -> None:
    read = page(write_report([whole().path]))
    (policy,) = [a["content"] for tag, a in read.tags if tag == "meta" and "http-equiv" in a]
    (style,) = read.styles
    (script,) = [text for attributes, text in read.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not [tag for tag, _ in read.tags if tag in ("link", "img", "iframe", "object", "embed", "form", "base")]
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src")], tag
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in script


def test_a_text_of_a_model_stays_text(folder: Make, page: Make) -> None:
    made = folder(spin=None).data([(f"{evil} prompt", f"{evil} reference") for evil in EVIL]).sft()
    made.judged("base", 1.0, EVIL).judged("sft", 1.0, EVIL[::-1])
    path = write_report([made.path])
    read = page(path)
    items = read.data[0]["items"]
    assert [item["answers"][0]["texts"][0][0] for item in items] == EVIL
    assert [item["prompt"][0][1] for item in items] == [f"{evil} prompt" for evil in EVIL]
    assert len(read.scripts) == 2
    html = path.read_text("utf-8")
    assert "\u2028" not in html
    assert "onerror" not in [name for _, attributes in read.tags for name in attributes]


@pytest.mark.parametrize("evil", [*EVIL, "lone \ud800 surrogate", "nul \0 byte"])
def test_a_name_or_a_reason_stays_text(whole: Make, page: Make, evil: str) -> None:
    run = read_run(whole().path)
    html = render(
        [replace(run, name=evil, recipe={**run.recipe, "model": evil}, results=replace(run.results, stopped=evil))],
        run.folder,
    )
    html.encode()
    read = page(html)
    shown = " ".join(evil.replace("\ud800", "\ufffd").replace("\0", "\ufffd").split())
    assert " ".join(read.text.split()).count(shown) >= 3
    assert len(read.scripts) == 2
    assert not [tag for tag, _ in read.tags if tag == "img"]


@pytest.mark.parametrize("evil", EVIL)
def test_what_a_judge_or_an_evaluation_says_stays_text(everything: Make, page: Make, evil: str) -> None:
    made = everything(said={"judge": evil, "problems": [evil]})
    run = read_run(made.path)
    named = tuple(replace(one, name=evil) for one in run.evaluations)
    overlaps = replace(run.contamination, sets=dict.fromkeys([evil], run.contamination.sets["questions"]))
    results = replace(run.results, failed=[evil], conclusions=[evil])
    stages = {**run.stages, "contamination": overlaps}
    html = render([replace(run, evaluations=named, stages=stages, results=results)], run.folder)
    read = page(html)
    assert " ".join(read.text.split()).count(" ".join(evil.split())) >= 8
    assert len(read.scripts) == 2
    assert not [tag for tag, _ in read.tags if tag == "img"]


def test_a_folder_with_a_strange_name_is_linked_right(whole: Make, page: Make, tmp_path: Path) -> None:
    made = whole('a "b" <i> #1 λ')
    read = page(write_report([made.path], tmp_path / "elsewhere" / "page.html"))
    links = [a["href"] for tag, a in read.tags if tag == "a" and a["href"] and not a["href"].startswith("#")]
    assert len(links) > 5
    for link in links:
        assert (tmp_path / "elsewhere" / unquote(urlsplit(link).path)).resolve().exists()


def test_anchors_lead_somewhere_and_names_are_unique(whole: Make, everything: Make, page: Make) -> None:
    for runs in ([whole("one").path], [whole("two").path, everything("three").path], [everything("four").path]):
        read = page(write_report(runs))
        ids = [a["id"] for _, a in read.tags if "id" in a]
        assert len(ids) == len(set(ids))
        anchors = [a["href"][1:] for tag, a in read.tags if tag == "a" and (a["href"] or "").startswith("#")]
        assert set(anchors) <= set(ids)
        labels = [a["for"] for tag, a in read.tags if tag == "label" and "for" in a]
        assert set(labels) <= set(ids)


# Size ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_examples_and_steps_make_a_small_page(folder: Make, page: Make) -> None:
    made = folder(spin=None).data(10_000)
    made.sft(steps=20_000)
    made.judged("base", 3.0).judged("sft", 2.0).results(["base", "sft"])
    path = write_report([made.path])
    assert path.stat().st_size < 1_500_000
    read = page(path)
    assert len(read.data[0]["items"]) == 500
    assert "The first 500 of 10,000" in " ".join(read.text.split())
    assert sum(tag == "circle" for tag, _ in read.tags) < 200
    assert "A line is the mean of stretches of steps" in read.text


# Runs that are not finished, and several -----------------------------------------------------------------------------


def test_a_run_makes_a_page_at_every_stage(folder: Make, page: Make) -> None:
    made = folder(spin={"baseline": "sft"})
    stages: list[Callable[[], Any]] = [
        lambda: made,
        lambda: made.data(),
        lambda: made.sft(),
        lambda: made.pairs(1),
        lambda: made.iterate(1).best("sft"),
        lambda: made.diagnosis(1),
        lambda: made.pairs(2).iterate(2).diagnosis(2),
        lambda: made.baseline(),
        lambda: made.judged("base", 3.0),
        lambda: made.judged("sft", 2.0),
    ]
    sizes = []
    for stage in stages:
        stage()
        read = page(write_report([made.path]))
        assert "This run is not finished." in read.text
        sizes.append(len(read.text))
    assert "the data; SFT; " in page_text_of(folder("empty"), page)
    for name in ("iterate-1", "iterate-2", "sft-more"):
        made.judged(name, 1.0)
    assert "This run is not finished." not in page(write_report([made.path])).text
    assert sizes[-1] > sizes[0]


def page_text_of(made: Any, page: Make) -> str:
    return " ".join(page(write_report([made.path])).text.split())


def test_a_run_without_held_out_examples_says_so(folder: Make, page: Make) -> None:
    text = page_text_of(folder(data={"eval_fraction": 0.0}, spin=None).data(0).sft(), page)
    assert "No example is held out, so no model is judged" in text
    assert "This run is not finished." not in text


def test_several_runs_stand_side_by_side_on_what_they_share(whole: Make, page: Make, tmp_path: Path) -> None:
    texts = [(f"Say word {n}.", f"word {n}") for n in range(30)]
    one, other = whole("one", texts[:20]), whole("other", texts[10:], seed=8)
    other.judged("sft", 25.0)
    path = write_report([one.path, other.path])
    assert path == one.path / "comparison.html"
    read = page(path)
    text = " ".join(read.text.split())
    assert "all rows are of the 10 that all of them share" in text
    (row,) = read.row("other / sft")
    assert row[1].startswith("2.5002.500 to 2.500")
    # losses of run one rise by a nat an example, and examples 10 to 19 are shared: 29 + 14.5 nats of 10 tokens
    assert read.row("one / sft")[0][1].startswith("4.350")
    assert ["seed", "7", "8"] in read.row("seed")
    assert len(read.data[0]["models"]) == 10
    assert len(read.data[0]["items"]) == 10


def test_runs_without_a_common_example_are_not_lined_up(whole: Make, page: Make) -> None:
    texts = [(f"Say word {n}.", f"word {n}") for n in range(30)]
    paths = [whole("one", texts[:10]).path, whole("other", texts[10:]).path]
    text = " ".join(page(write_report(paths)).text.split())
    assert "rows of different runs must not be compared" in text
    assert "These runs hold out different examples" in text


def test_losses_of_other_tokenizers_are_called_incomparable(whole: Make, page: Make) -> None:
    one, other = whole("one"), whole("other")
    told = "tokenizers differ: losses a token cannot be compared"
    assert told not in page(write_report([one.path, other.path])).text
    for path in other.path.glob("likelihood/*/likelihood.jsonl"):
        path.write_text(path.read_text().replace('"tokens": 10', '"tokens": 9'))
    assert told in page(write_report([one.path, other.path])).text


def test_runs_of_the_same_name_are_told_apart(whole: Make, page: Make, tmp_path: Path) -> None:
    one, other = whole("one"), whole("other")
    for made, parent in ((one, "a"), (other, "b")):
        (tmp_path / parent).mkdir()
        made.path.rename(tmp_path / parent / "run")
    read = page(write_report([tmp_path / "a" / "run", tmp_path / "b" / "run"]))
    assert read.row(f"{tmp_path / 'a' / 'run'} / sft")
    assert read.row(f"{tmp_path / 'b' / 'run'} / sft")


def test_the_same_run_gives_the_same_page(whole: Make) -> None:
    made = whole()
    assert write_report([made.path]).read_bytes() == write_report([made.path]).read_bytes()


def test_one_run_that_is_none_stops_the_report(whole: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty is no run folder"):
        write_report([whole().path, tmp_path / "empty"])


def test_a_place_that_cannot_be_written_is_a_clear_error(whole: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_report([whole().path], tmp_path / "file" / "page.html")
