"""Prompts, exemplars and budgets, against texts written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spintune.mixtures.options import OptionStyle
from spintune.mixtures.rendering import FRAMES, ExemplarFrame, MixtureProvenance, PromptBudget, provenance, render
from spintune.mixtures.tasks import MixtureTask

TaskOf = Callable[..., MixtureTask]
QA = ExemplarFrame("Q: ", "\nA: ", "\n\n")
LETTERS = OptionStyle("", "{label}. {text}", "\n", "upper", "label")


def characters(limit: int) -> PromptBudget:
    return PromptBudget(limit, len)


def test_zero_shot_is_the_question_and_its_cue_without_trailing_spaces(task: TaskOf) -> None:
    sums = task()
    direct, cot = sums.ways("direct")[0], sums.ways("cot")[0]
    assert render(sums, sums.items[2], direct).prompt == "What is 2 plus 3?"
    made = render(sums, sums.items[2], cot)
    assert made.prompt == "What is 2 plus 3? Explain.\nWhy:"
    assert made.target == "2 + 3 = 5. The answer is 5."
    assert made.source == "mixture:sums/cot/zero-shot/template-0:row-3"


def test_trailing_line_breaks_of_a_prompt_stay(task: TaskOf) -> None:
    sums = task(direct=[{"input": "{question}", "cue": "\nSum:  \n", "target": "{answer}"}], cot=None)
    assert render(sums, sums.items[0], sums.ways("direct")[0]).prompt == "What is 0 plus 1?\nSum:  \n"


def test_exemplars_stand_before_the_query_in_the_frame(task: TaskOf) -> None:
    sums = task()
    made = render(sums, sums.items[0], sums.ways("direct")[0], frame=QA, exemplars=sums.items[1:3])
    assert made.prompt == "Q: What is 1 plus 2?\nA: 3\n\nQ: What is 2 plus 3?\nA: 5\n\nQ: What is 0 plus 1?\nA:"
    assert (made.target, made.shots, made.quadrant) == ("1", 2, "few_direct")


def test_a_phrasing_with_a_cue_takes_only_the_separator_from_the_frame(task: TaskOf) -> None:
    sums = task()
    made = render(sums, sums.items[0], sums.ways("cot")[0], frame=QA, exemplars=[sums.items[1]])
    assert made.prompt == (
        "What is 1 plus 2? Explain.\nWhy: 1 + 2 = 3. The answer is 3.\n\nWhat is 0 plus 1? Explain.\nWhy:"
    )


def test_the_query_and_rows_that_ask_the_same_are_no_exemplars(task: TaskOf) -> None:
    rows = [{"question": "q", "why": "w", "sum": n} for n in (1, 2)] + [{"question": "other", "why": "w", "sum": 1}]
    sums = task(rows=rows)
    made = render(sums, sums.items[0], sums.ways("direct")[0], frame=QA, exemplars=sums.items)
    assert made.prompt == "Q: other\nA: 1\n\nQ: q\nA:"
    assert (made.requested_shots, made.available_shots, made.shots) == (3, 1, 1)


def test_turned_around_an_equal_answer_is_an_equal_input(task: TaskOf) -> None:
    rows = [{"question": q, "why": "w", "sum": s} for q, s in (("a", 1), ("b", 1), ("c", 2))]
    sums = task(rows=rows, inverted=[{"input": "Ask for {answer}.", "target": "{question}"}])
    way = sums.ways("direct", inverted=True)[0]
    made = render(sums, sums.items[0], way, frame=QA, exemplars=sums.items[1:])
    assert made.prompt == "Q: Ask for 2.\nA: c\n\nQ: Ask for 1.\nA:"
    assert made.source == "mixture:sums/direct-inverted/few-shot(1)/template-0:row-1"


@pytest.mark.parametrize("shots", [0, 1, 2, 3])
def test_as_many_exemplars_as_fit_separators_and_all(task: TaskOf, shots: int) -> None:
    sums = task()
    block, query = "Q: What is 1 plus 2?\nA: 3\n\n", "Q: What is 0 plus 1?\nA:"
    exactly = shots * len(block) + len(query)
    way = sums.ways("direct")[0]
    for room, expected in ((exactly, shots), (exactly + len(block) - 1, shots)):
        made = render(sums, sums.items[0], way, frame=QA, exemplars=sums.items[1:4], budget=characters(room))
        assert (made.shots, made.available_shots) == (expected, 3)
        assert len(made.prompt) <= room


def test_without_room_for_an_exemplar_a_prompt_is_zero_shot(task: TaskOf) -> None:
    sums = task()
    made = render(
        sums, sums.items[0], sums.ways("direct")[0], frame=QA, exemplars=[sums.items[1]], budget=characters(5)
    )
    assert (made.prompt, made.quadrant, made.requested_shots) == ("What is 0 plus 1?", "zero_direct", 1)


def test_options_labels_and_targets_of_exemplars_and_query_share_one_style(news: TaskOf) -> None:
    task = news(4, phrasings=None, direct=[{"input": "{text}\n{options}", "target": "{answer}"}])
    made = render(task, task.items[1], task.ways("direct")[0], LETTERS, QA, [task.items[3]])
    listed = "A. world\nB. sports\nC. business\nD. science"
    assert made.prompt == f"Q: Headline number 3\n{listed}\nA: D\n\nQ: Headline number 1\n{listed}\nA:"
    assert (made.target, made.labeled, made.hides_options) == ("B", True, False)


def test_hidden_options_leave_no_gap_and_no_label(news: TaskOf) -> None:
    task = news(4, phrasings=None, direct=[{"input": "{text}\n\n{options}", "cue": "\nKind: ", "target": "{answer}"}])
    made = render(task, task.items[1], task.ways("direct")[0], style=None)
    assert (made.prompt, made.target, made.hides_options) == ("Headline number 1\nKind:", "sports", True)


def test_text_that_looks_like_a_pattern_is_never_filled(task: TaskOf) -> None:
    rows = [{"question": "{answer} {{x}} {0}", "why": "{question}", "sum": "{rationale}"}]
    odd = task(rows=rows, check="text")
    made = render(odd, odd.items[0], odd.ways("cot")[0])
    assert made.prompt == "{answer} {{x}} {0} Explain.\nWhy:"
    assert made.target == "{question} The answer is {rationale}."


def test_the_example_is_a_question_and_its_answer(task: TaskOf) -> None:
    sums = task()
    example = render(sums, sums.items[0], sums.ways("direct")[0]).example()
    assert [(message.role, message.content) for message in example.messages] == [
        ("user", "What is 0 plus 1?"),
        ("assistant", "1"),
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mixture:gsm8k/cot/few-shot(3)/template-4:row-17", MixtureProvenance("gsm8k", 17, "cot", False, 4, 3)),
        ("mixture:t0/a_b/direct/zero-shot/template-0:row-1", MixtureProvenance("t0/a_b", 1, "direct", False, 0, 0)),
        ("mixture:x/cot-inverted/zero-shot/template-2:row-9", MixtureProvenance("x", 9, "cot", True, 2, 0)),
        ("data.json:17", None),
        ("", None),
    ],
)
def test_provenance_reads_a_source(source: str, expected: MixtureProvenance | None) -> None:
    assert provenance(source) == expected


def test_frames_are_distinct_and_vary_prefixes_and_separators() -> None:
    assert len(set(FRAMES)) == len(FRAMES)
    assert len({frame.separator for frame in FRAMES}) == 5
    assert len({(frame.prefix, frame.cue) for frame in FRAMES}) == 10
