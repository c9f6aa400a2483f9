"""What the published Flan code does wrong, and what must not happen here (flan/v2 at e9e4ec6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from spintune.mixtures.mixture import Mixture, Prompting
from spintune.mixtures.options import STYLES
from spintune.mixtures.rendering import FRAMES, PromptBudget, RenderedPrompt, render
from spintune.mixtures.shares import load_preset
from spintune.mixtures.tasks import MixtureTask
from spintune.recipe.mixture import WeighingSection

TaskOf = Callable[..., MixtureTask]
TEN = [{"input": f"[{n}] {{question}}", "target": "{answer}"} for n in range(10)]


def elements(mixture: Mixture, count: int) -> list[RenderedPrompt]:
    return [mixture.element(position) for position in range(count)]


def only(**quadrants: float) -> WeighingSection:
    return WeighingSection.model_validate({"quadrants": quadrants})


@pytest.mark.parametrize("rows", [1, 7, 9, 13, 29])
def test_round_robin_over_templates_loses_no_rows(additions: TaskOf, rows: int) -> None:
    """There: batches of ten templates with drop_remainder lose the last rows mod 10, and tasks of fewer rows vanish."""
    mixture = Mixture([additions(rows, direct=TEN, cot=None)], 3, only(zero_direct=1.0))
    assert {element.row for element in elements(mixture, rows)} == set(range(1, rows + 1))


def test_a_row_meets_other_phrasings_in_later_passes(additions: TaskOf) -> None:
    """There: row i has template i mod 10 for ever."""
    mixture = Mixture([additions(5, direct=TEN, cot=None)], 3, only(zero_direct=1.0))
    met = Counter(element.phrasing for element in elements(mixture, 500) if element.row == 1)
    assert len(met) == 10


def test_a_single_option_behind_a_bullet_is_no_label(news: TaskOf) -> None:
    """There: one bullet counts as distinct labels, and the target becomes the bullet."""
    task = news(
        4, options=["world"], fields={"text": "text", "answer": {"from": "kind", "pattern": "()", "map": {"": "world"}}}
    )
    way = task.ways("direct")[0]
    targets = {render(task, task.items[0], way, style).target for style in STYLES if style.labels == "none"}
    assert targets == {"world"}


@pytest.mark.parametrize("count", [26, 27, 60])
def test_more_than_26_options_are_shown_whole(task: TaskOf, count: int) -> None:
    """There: at most 26."""
    rows = [{"question": f"q{n}", "names": [f"name-{k}." for k in range(count)], "answer": count - 1} for n in range(6)]
    many = task(
        rows=rows,
        fields={"question": "question", "answer": {"from": "answer", "is": "index"}},
        options={"from": "names"},
        check=None,
        cot=None,
        direct=[{"input": "{question}\n{options}", "target": "{answer}"}],
    )
    for element in elements(Mixture([many], 3, only(zero_direct=1.0)), 60):
        assert element.prompt.count("name-") == count
    targets = {element.target for element in elements(Mixture([many], 3, only(zero_direct=1.0)), 60)}
    assert f"name-{count - 1}." in targets
    assert targets - {f"name-{count - 1}."}  # labels too


def test_separators_differ_within_one_run(additions: TaskOf) -> None:
    """There: drawn once, at import."""
    mixture = Mixture([additions(20, cot=None)], 3, only(few_direct=1.0), Prompting(shots=(1, 1)))
    found = Counter()
    for element in elements(mixture, 300):
        marks = [frame.separator for frame in FRAMES if frame.separator.strip() and frame.separator in element.prompt]
        found[marks[0] if marks else "blank"] += 1
    assert len(found) == 4  # three with a mark, and blank lines


def test_the_budget_counts_separators(additions: TaskOf) -> None:
    """There: inputs and targets only."""
    for limit in range(40, 160, 10):
        prompting = Prompting(shots=(5, 5), budget=PromptBudget(limit, len))
        mixture = Mixture([additions(20, cot=None)], 3, only(few_direct=1.0), prompting)
        assert all(len(element.prompt) <= limit for element in elements(mixture, 50))


def test_rows_that_no_exemplar_fits_beside_stay(additions: TaskOf) -> None:
    """There: dropped without a word."""
    prompting = Prompting(shots=(1, 1), budget=PromptBudget(10, len))
    mixture = Mixture([additions(20, cot=None)], 3, only(few_direct=1.0), prompting)
    made = elements(mixture, 20)
    assert {element.row for element in made} == set(range(1, 21))
    assert {element.quadrant for element in made} == {"zero_direct"}


def test_a_mix_of_exemplars_has_the_querys_phrasing(additions: TaskOf) -> None:
    """There: five_shot "mix" takes exemplars of other templates."""
    mixture = Mixture([additions(20, direct=TEN, cot=None)], 3, only(few_direct=1.0))
    assert all(element.prompt.count(f"[{element.phrasing}]") == element.shots + 1 for element in elements(mixture, 100))


def test_caps_hold_for_every_task_of_niv2(additions: TaskOf) -> None:
    """There: NIV2 is one task of 5,000,000 rows, so its cap of 5,000 a task never applies."""
    tasks = [additions(4, f"niv2-{n}", collection="niv2") for n in range(3)]
    assert load_preset("flan2022").groups is not None
    assert load_preset("flan2022").groups["niv2"].rate_maximum == 5000
    mixture = Mixture(tasks, 3, load_preset("flan2022"))
    assert [share.share for share in mixture.plan.tasks] == pytest.approx([1 / 3] * 3)


def test_rows_are_counted_and_not_looked_up(additions: TaskOf) -> None:
    """There: a table of 287 sizes."""
    mixture = Mixture([additions(10, "a"), additions(30, "b")], 3, load_preset("flan2021"), only_direct())
    assert [share.share for share in mixture.plan.tasks] == pytest.approx([0.25, 0.75])


def only_direct() -> Prompting:
    return Prompting(inversion=0.0)


def test_every_frame_announces_a_question_and_an_answer_once() -> None:
    """There: a missing comma joins two prefixes, "CONVERSATION:Conversation:"."""
    assert all(frame.prefix.count(":") <= 1 and frame.cue.count(":") <= 1 for frame in FRAMES)


def test_the_few_shot_budget_is_1920_tokens() -> None:
    """There: 1,920 in the code, and an input length of 2,056 in the example."""
    assert {load_preset(name).few_shot_tokens for name in ("flan2022", "flan2022-released")} == {1920}


def test_trailing_spaces_go_and_line_breaks_stay(additions: TaskOf) -> None:
    """As there: "A: " becomes "A:"."""
    ways: list[dict[str, Any]] = [
        {"input": "{question}", "cue": cue, "target": "{answer}"} for cue in ("\nA: ", "\nA:\n")
    ]
    task = additions(4, direct=ways, cot=None)
    prompts = [render(task, task.items[0], way).prompt for way in task.ways("direct")]
    assert prompts == ["What is 0 plus 1?\nA:", "What is 0 plus 1?\nA:\n"]
