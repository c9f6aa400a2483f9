"""What a run gained, against numbers worked out by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from run_folders import Folder

from spintune.before_after import EXCERPT, print_gain
from spintune.evaluation.gain import Gain, gain_of
from spintune.evaluation.selection import selects
from spintune.evaluation.statistics import Interval
from spintune.terminal import SafeConsole

Make = Callable[..., Folder]


def measured(run: Folder, right: dict[str, list[bool]], **best: Any) -> Folder:
    """A run whose models say the reference to the examples that they get right, and "no" to the others."""
    for name, verdicts in right.items():
        answers = [one.answer if good else "no" for one, good in zip(run.examples, verdicts, strict=True)]
        run.judged(name, 2.0, answers)
    return run.best("sft", metric="exact_match", **best)


@pytest.fixture
def run(folder: Make) -> Folder:
    return folder("run", spin=None, evaluation={"metric": "exact_match"}).data(40)


def test_the_gain_is_the_difference_of_the_shares_that_are_right(run: Folder) -> None:
    """30 of 40 beside 10 of 40 is 75 % beside 25 %: 50 points more."""
    measured(run, {"base": [n < 10 for n in range(40)], "sft": [n < 30 for n in range(40)]})
    gain = gain_of(run.path)
    assert gain is not None
    assert (gain.before, gain.after) == ("base", "sft")
    assert gain.sentence.startswith(
        "Of 40 held-out prompts, sft answers 75 % right by exact match, and base 25 %: +50 points (95 % interval +"
    )
    assert "chance" not in gain.sentence
    assert [(one.prompt, one.before, one.after, one.was_right, one.right) for one in gain.shown] == [
        (f"Say word {n}.", f"word {n}", f"word {n}", True, True) for n in range(3)
    ]


def test_only_examples_that_report_count_and_are_shown(run: Folder) -> None:
    """The examples that chose are all right, those that report all wrong: as many as 1.96²/(22 + 1.96²) may differ."""
    chose = [selects(one.prompt[-1].content) for one in run.examples]
    measured(run, {"base": [False] * 40, "sft": chose}, selection=True)
    gain = gain_of(run.path)
    assert gain is not None
    assert f"Of {chose.count(False)} held-out prompts, sft answers 0 % right" in gain.sentence
    assert chose.count(False) == 22
    assert "+0 points (95 % interval -15 to +15), too little to tell from chance." in gain.sentence
    first = [one.prompt[-1].content for one, chooses in zip(run.examples, chose, strict=True) if not chooses][:3]
    assert [one.prompt for one in gain.shown] == first
    assert not any(one.right for one in gain.shown)


def test_a_run_that_gained_nothing_says_so(run: Folder) -> None:
    measured(run, {"base": [True] * 40, "sft": [n % 2 == 0 for n in range(40)]})
    facts = {"mean": 0.5, "difference": {"mean": 0.0, "low": 0.0, "high": 0.0}, "loss": 2.0}
    run.best("base", metric="exact_match", candidates=[{"name": name, **facts} for name in ("base", "sft")])
    gain = gain_of(run.path)
    assert gain is not None
    assert gain.after == "sft"
    assert "so it got worse. Nothing was gained, so base stays the model to use." in gain.sentence


def test_base_is_kept_without_a_word_against_the_interval(run: Folder) -> None:
    """Of the 22 prompts that report 11 become right, of those that choose none; base was never right."""
    chose = [selects(one.prompt[-1].content) for one in run.examples]
    better = [not chooses and n % 2 == 0 for n, chooses in enumerate(chose)]
    measured(run, {"base": [False] * 40, "sft": better})
    facts = {"mean": 0.5, "difference": {"mean": 0.0, "low": 0.0, "high": 0.0}, "loss": 2.0}
    candidates = [{"name": name, **facts} for name in ("base", "sft")]
    run.best("base", metric="exact_match", selection=True, candidates=candidates)
    gain = gain_of(run.path)
    assert gain is not None
    assert gain.sentence.endswith(
        "). The examples that chose could not tell them apart, so base stays the model to use, though these prompts "
        "favour sft."
    )


def test_few_prompts_have_no_interval(folder: Make) -> None:
    run = folder("few", spin=None, evaluation={"metric": "exact_match"}).data(1)
    measured(run, {"base": [False], "sft": [True]})
    gain = gain_of(run.path)
    assert gain is not None
    assert gain.sentence.endswith("base 0 %: +100 points, too few prompts to tell from chance.")


def test_a_verdict_on_drawn_answers_does_not_stand_beside_greedy_ones(run: Folder) -> None:
    measured(run, {"base": [True] * 40, "sft": [False] * 40})
    for name, drawn in (("base", 0), ("sft", 1)):
        path = run.path / f"eval/heldout/{name}/answers.jsonl"
        rows = [{**json.loads(line), "exact_match@T1": drawn} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.best("sft", metric="sampled:exact_match")
    gain = gain_of(run.path)
    assert gain is not None
    assert "sft answers 100 % right by exact match of answers at temperature 1, and base 0 %" in gain.sentence
    assert {(one.was_right, one.right) for one in gain.shown} == {(None, None)}


def test_a_metric_that_is_no_verdict_is_told_as_a_number(run: Folder) -> None:
    """Greedy answers "sft says word 1" have three words, two of them the reference's two: ROUGE-L 2·2 / (2 + 4)."""
    run.judged("base", 2.0, ["no"] * 40).judged("sft", 1.0)
    run.best("sft", metric="rouge_l")
    gain = gain_of(run.path)
    assert gain is not None
    assert gain.sentence == (
        "ROUGE-L on 40 held-out prompts: 0.667 of sft, 0.000 of base: +0.667 (95 % interval +0.667 to +0.667)."
    )
    assert gain.shown[0].right is None
    run.best("sft", metric="nll")
    gain = gain_of(run.path)
    assert gain is not None
    assert gain.sentence.startswith("Held-out loss (nats a token) on 40 held-out prompts: 0.100 of sft, 0.200 of base:")
    assert "worse" not in gain.sentence


def test_likeness_is_no_verdict_though_all_of_it_is_0_or_1(run: Folder) -> None:
    measured(run, {"base": [False] * 40, "sft": [True] * 40})
    run.best("sft", metric="rouge_l")
    gain = gain_of(run.path)
    assert gain is not None
    assert gain.sentence.startswith("ROUGE-L on 40 held-out prompts: 1.000 of sft, 0.000 of base:")
    assert gain.shown[0].right is None


def test_nothing_is_said_without_answers_of_both(run: Folder) -> None:
    assert gain_of(run.path) is None
    run.judged("base", 2.0)
    assert gain_of(run.path) is None
    run.best("sft")
    assert gain_of(run.path) is None


@pytest.mark.parametrize("width", [40, 80, 120])
def test_answers_stand_side_by_side_where_there_is_room(width: int, run: Folder) -> None:
    measured(run, {"base": [False] * 40, "sft": [True] * 40})
    gain = gain_of(run.path)
    assert gain is not None
    file = io.StringIO()
    print_gain(SafeConsole(file=file, width=width, highlight=False), gain)
    lines = file.getvalue().splitlines()
    beside = [line for line in lines if "wrong: no" in line and "right: word 0" in line]
    assert bool(beside) == (width >= 60)
    assert all(len(line) <= width for line in lines if line != gain.sentence and "answered before" not in line)


def test_a_long_text_is_cut_and_cannot_command_a_terminal() -> None:
    from spintune.evaluation.gain import AnswersBeside

    shown = (AnswersBeside("a" * 500, "\x1b[31m[bold]", ""),)
    file = io.StringIO()
    print_gain(SafeConsole(file=file, width=400, highlight=False), Gain("base", "sft", "More.", shown))
    text = file.getvalue()
    assert "a" * (EXCERPT - 1) + "…" in text
    assert "\\x1b[31m[bold]" in text
    assert "(nothing)" in text


def test_a_gap_that_excludes_nothing() -> None:
    from spintune.evaluation.gain import gap_text

    assert gap_text(Interval(0.5, 0.25, 0.75), True) == "+50 points (95 % interval +25 to +75)"
    assert gap_text(Interval(-0.5, -0.75, 0.0), False) == "-0.500 (95 % interval -0.750 to +0.000)"
