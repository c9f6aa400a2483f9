"""The part for colleagues: sentences from numbers worked out by hand, and examples chosen by the rule that it names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import MIXTURE

from spintune.errors import MissingExtraError
from spintune.report.chromium import chromium, write_pdf, write_png
from spintune.report.colleagues import MAX_CHARACTERS, PlainView, plain_view, quarters, shortened
from spintune.report.page import write_report
from spintune.report.reading import read_run

Make = Callable[..., Any]

needs_chromium = pytest.mark.skipif(chromium() is None, reason="chromium is not installed")


def view_of(made: Any) -> PlainView:
    found = plain_view(read_run(made.path))
    assert found
    return found


def test_the_order_of_the_examples_is_by_what_each_gained(folder: Make) -> None:
    made = folder(spin=None).data(9).sft()
    # answers of one word of the two of "word N" give ROUGE-L 2 x 1/2 x 1 / (1/2 + 1) = 2/3, both 1, none 0
    before = ["no"] * 3 + ["word"] * 3 + [f"word {n}" for n in (6, 7, 8)]
    after = ["word 0", "word", "no", "word 3", "word", "no", "word 6", "word", "no"]
    found = view_of(made.judged("base", 1.0, before).judged("sft", 1.0, after).best("sft"))
    # gains: 1, 2/3, 0, 1/3, 0, -2/3, 0, -1/3, -1
    assert (found.better, found.same, found.worse) == (3, 3, 3)
    prompts = [case.prompt for case in found.cases]
    # sorted 0, 1, 3, then 2, 4, 6 as in the data, then 7, 5, 8; places 1, 3, 5, 7, 9
    assert prompts == [f"Say word {n}." for n in (0, 3, 4, 7, 8)]
    assert [case.verdict for case in found.cases] == ["better", "better", "same", "worse", "worse"]
    assert [case.place for case in found.cases] == [f"place {n} of 9" for n in (1, 3, 5, 7, 9)]
    assert (found.cases[0].before, found.cases[0].after, found.cases[0].reference) == ("no", "word 0", "word 0")
    assert "all 9 were sorted" in found.rule


def test_what_was_gained_is_said_in_everyday_words(folder: Make) -> None:
    made = folder(spin=None).data(12).sft().judged("base", [12.0, 13.0] * 6).judged("sft", [10.0, 11.0] * 6).best("sft")
    found = view_of(made)
    # 2 nats an example of 10 tokens: 0.2 nats a token
    assert f"{math.exp(0.2):.2f} times as likely as before" in found.gained
    assert found.gained.startswith("On 12 examples that were not trained on, the trained model finds")
    assert "sft" in found.advice
    assert "nats" not in found.gained


def test_no_difference_is_called_none(folder: Make) -> None:
    made = folder(spin=None).data(12).sft().judged("base", [12.0, 10.0] * 6).judged("sft", [10.0, 12.0] * 6)
    found = view_of(made.best("base"))
    assert "did not become more or less likely beyond chance" in found.gained
    assert "Training did not help" in found.advice


def test_the_advice_does_not_contradict_the_interval(folder: Make) -> None:
    made = folder(spin=None).data(40).sft().judged("base", [12.0, 13.0] * 20).judged("sft", [10.0, 12.0] * 20)
    assert view_of(made.best("base", selection=True)).advice == (
        "The examples that served to choose could not tell the two apart, so the model from before training stays the "
        "one to use, though these examples favour the trained one."
    )


def test_one_example_is_too_few_to_tell(folder: Make) -> None:
    made = folder(spin=None, evaluation={"metric": "exact_match"}).data(1).sft()
    found = view_of(made.judged("base", 1.0, ["no"]).judged("sft", 1.0, ["word 0"]).best("base", metric="exact_match"))
    assert found.gained == (
        "On 1 example that was not trained on, the share of answers equal to the reference answers was 0 % before "
        "and 100 % after, too few examples to tell from chance."
    )
    assert found.advice == "The model from before training stays the one to use."


def test_where_all_became_right_the_interval_has_a_width(folder: Make) -> None:
    """Of 12 the share of others is at most 1.96²/(12 + 1.96²) = 24.2 %, each of which may differ by 200 points."""
    made = folder(spin=None, evaluation={"metric": "exact_match"}).data(12).sft()
    made.judged("base", 1.0, ["no"] * 12).judged("sft", 1.0, [f"word {n}" for n in range(12)])
    assert "by 52 to 100 points" in view_of(made.best("sft", metric="exact_match")).gained


def test_greedy_answers_are_judged_themselves_where_drawn_ones_decide(folder: Make) -> None:
    """Each greedy answer of sft is right and each drawn one wrong; of base the other way round."""
    made = folder(spin=None, evaluation={"metric": "sampled:exact_match"}).data(12).sft()
    made.judged("base", 1.0, ["no"] * 12).judged("sft", 1.0, [f"word {n}" for n in range(12)])
    for name, drawn in (("base", 1), ("sft", 0)):
        path = made.path / f"eval/heldout/{name}/answers.jsonl"
        rows = [{**json.loads(line), "exact_match@T1": drawn} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = view_of(made.best("sft", metric="sampled:exact_match"))
    assert {case.words for case in found.cases} == {"became right"}
    assert "the share of answers drawn at random equal to the reference answers fell from 100 % to 0 %" in found.gained
    assert "; the share of answers equal to the reference answers rose from 0 % to 100 %" in found.gained


def test_answers_that_are_alike_or_not_at_all_are_not_called_right_or_wrong(folder: Make) -> None:
    made = folder(spin=None, evaluation={"metric": "rouge_l"}).data(10).sft()
    made.judged("base", 1.0, ["no"] * 10).judged("sft", 1.0, [f"word {n}" for n in range(10)])
    assert view_of(made.best("sft", metric="rouge_l")).counts.startswith("Of 10 answers, 10 came closer")


def test_answers_that_are_right_or_wrong_are_counted_so(folder: Make) -> None:
    made = folder(spin=None, evaluation={"metric": "exact_match"}).data(10).sft()
    made.judged("base", 1.0, ["no"] * 9 + ["word 9"]).judged("sft", 1.0, [f"word {n}" for n in range(8)] + ["no", "no"])
    found = view_of(made.best("sft", metric="exact_match"))
    assert found.counts == "Of 10 answers, 8 became right, 1 stayed as they were and 1 became wrong."
    assert "rose from 10 % to 80 %" in found.gained
    assert [case.words for case in found.cases] == [
        "became right",
        "became right",
        "became right",
        "became right",
        "became wrong",
    ]


def test_examples_that_chose_the_model_are_not_counted(folder: Make) -> None:
    made = folder(spin=None).data(40).sft().judged("base", 2.0).judged("sft", 1.0).best("sft", selection=True)
    run = read_run(made.path)
    found = view_of(made)
    assert found.items == 40 - len(run.selection)
    assert f"{len(run.selection)} other examples served to choose" in found.judged


@pytest.mark.parametrize(
    ("train", "sources"), [([], "a mixture of 2 tasks"), ([{"path": "a/c.jsonl"}], "c.jsonl and a mixture of 2 tasks")]
)
def test_a_mixture_is_named_by_its_tasks(folder: Make, train: list[Any], sources: str) -> None:
    made = folder(spin=None, data={"train": train, "mixture": {"tasks": ["a"]}}).data(12)
    facts = json.loads((made.path / "data/manifest.json").read_text())["facts"]
    made.stage("data", **facts, mixture=MIXTURE).sft().judged("base", 2.0).judged("sft", 1.0).best("sft")
    assert f"was trained in 5 steps on examples from {sources} (48 in all), to answer" in view_of(made).asked
    assert sources in write_report([made.path]).read_text()


@pytest.mark.parametrize(
    ("sft", "spin", "name", "asked"),
    [
        (
            {"steps": 10, "rows": 5000},
            {},
            "iterate-2",
            "The language model m was trained in 10 steps on examples from a.jsonl (5,000 in all), to answer as they "
            "do. In 2 further rounds it learned to prefer the reference answers to its own.",
        ),
        (
            None,
            {},
            "iterate-1",
            "In 1 round the language model m learned to prefer the reference answers of a.jsonl to its own.",
        ),
        (
            {"steps": 10, "rows": 5000, "kept_step": 4},
            {},
            "sft-more",
            "The language model m was trained in 4 steps on examples from a.jsonl (5,000 in all), to answer as they "
            "do. It was then trained in 8 steps more.",
        ),
        (
            None,
            {"generated": "b.jsonl"},
            "iterate-2",
            "In 2 rounds the language model m learned to prefer the reference answers of a.jsonl to others.",
        ),
    ],
)
def test_what_was_asked_is_what_was_done(
    folder: Make, sft: dict[str, Any] | None, spin: dict[str, Any], name: str, asked: str
) -> None:
    made = folder(**({} if sft else {"sft": None}), spin=spin, model="x/m", data={"train": [{"path": "d/a.jsonl"}]})
    made.data(12)
    if sft:
        made.sft(**sft)
    for number in (1, 2):
        made.pairs(number).iterate(number).diagnosis(number)
    made.baseline()
    for one in ("base", "iterate-1", "iterate-2", "sft-more"):
        made.judged(one, 1.0)
    view = view_of(made.best(name))
    assert view.asked == asked
    assert "human" not in repr(view)


@pytest.mark.parametrize("missing", ["base", "sft", "both"])
def test_without_answers_of_both_there_is_no_such_part(folder: Make, missing: str) -> None:
    made = folder(spin=None).data(4).sft()
    for name in ("base", "sft"):
        if missing not in (name, "both"):
            made.judged(name, 1.0)
    assert plain_view(read_run(made.path)) is None
    assert 'id="colleagues"' not in write_report([made.path]).read_text()


def test_few_examples_are_all_shown_and_many_at_each_quarter() -> None:
    assert quarters(3) == [0, 1, 2]
    assert quarters(5) == [0, 1, 2, 3, 4]
    assert quarters(1001) == [0, 250, 500, 750, 1000]


def test_long_texts_are_cut_and_say_so() -> None:
    assert shortened("  short\n\n\ntext ") == "short\ntext"
    long = shortened("word " * 200)
    assert long.endswith("word … (cut)")
    assert len(long) < MAX_CHARACTERS + 10
    assert shortened("问题: " + "长" * 300) == f"问题: {'长' * (MAX_CHARACTERS - 4)} … (cut)"  # no spaces to cut at
    assert shortened("\n".join("abcdefgh")) == "a\nb\nc\nd\ne … (cut)"


def test_texts_of_the_part_are_text(folder: Make) -> None:
    evil = "<img src=x onerror=alert(1)>"
    made = folder(spin=None).data([(evil, evil), ("b", "c")]).sft()
    page = write_report([made.judged("base", 1.0, [evil] * 2).judged("sft", 1.0, [evil] * 2).path]).read_text()
    assert "<img" not in page
    assert page.count("&lt;img") >= 4


def test_without_chromium_a_line_says_how_to_print(
    whole: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report([whole().path])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"no Chromium or Chrome.*open .*report.html in a browser and print"):
        write_pdf(page, tmp_path / "x.pdf")
    assert not (tmp_path / "x.pdf").exists()


@pytest.mark.slow
@needs_chromium
def test_the_part_fits_on_two_pages_and_an_image(whole: Make, tmp_path: Path) -> None:
    long = "\n".join(["A sentence of some words that goes on and on and on."] * 9)
    made = whole(heldout=[(f"{n} {long}", f"{n} {long}") for n in range(12)])
    page = write_report([made.path])
    write_pdf(page, tmp_path / "x.pdf")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "x.pdf").read_bytes())) == 2
    write_png(page, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
