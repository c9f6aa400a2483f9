"""Nasty predictions, judged by hand."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest

from spintune.evaluation.heldout import HeldoutAnswer
from spintune.mixtures.answers import TaskRules, correct
from spintune.mixtures.rendering import MixtureProvenance
from spintune.mixtures.tasks import MixtureTask, TaskItem, TaskSet
from spintune.stages.task_accuracy import _correct
from spintune.text.answers import chosen, number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72", "72"),
        ("The answer is 72.", "72"),
        ("the answer is $1,234.50.", "1234.5"),
        ("Natalia sold 48/2 = 24 clips.\nThe answer is 72 clips.", "72"),
        ("Natalia sold 48 + 24 = 72 clips", "72"),
        ("#### 1,080", "1080"),
        ("The answer is 3 * 4 = 12. I hope that helps 100%.", "12"),
        ("Answer: -3", "-3"),
        ("The answer is \u22123", "-3"),
        ("**Final answer:** 18", "18"),
        ("Answer:\n18", "18"),
        ("so the answer is: $-5", "-5"),
        ("The answer is 3/4.", "3/4"),
        ("The answer is 1 1/2 cups", "3/2"),
        ("The answer is 1½ cups", "3/2"),
        ("The answer is 10%", "10"),
        ("The answer is 72. That answer is right.", "72"),
        ("The answer is 7 - 3 = 4", "4"),
        ("He pays 10-3 dollars", "3"),
        ("The answer is .5", "1/2"),
        (r"The answer is \boxed{72}.", "72"),
        ("1,2,3", "3"),
        ("10,000,000", "10000000"),
        ("The answer is approx. 5", "5"),
        ("The answer is 5.0", "5"),
        ("It takes x12 hours", None),
        ("The answer is unknown.", None),
        ("", None),
        ("The answer is " + "9" * 5000, None),
        ("5/0", "5"),
        ("1e-5", "1/100000"),
        ("6.02e23", "602" + "0" * 21),
        ("The answer is 6.02 × 10²³.", "602" + "0" * 21),
        ("The answer is -2.5E+3.", "-2500"),
        ("10^5", "100000"),
        ("10²", "100"),
        ("10⁻²", "1/100"),
        ("3²/4", "9/4"),
        ("42 m²", "42"),
        ("The answer is 101₂", "101"),
        ("x^2", None),
        ("1e999999999", None),
        ("9^999999999", None),
        ("0^-1", None),
        ("7e", "7"),
        ("12e3x", "12"),
    ],
)
def test_the_number_of_an_answer(text: str, expected: str | None) -> None:
    assert number(text) == (None if expected is None else Fraction(expected))


MEANING = ["equivalent", "not equivalent"]
CAPITALS = ["Washington", "D.C.", "New York", "Boston"]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("yes", ["yes", "no"], 0),
        ("No, because fish do not fly.", ["yes", "no"], 1),
        ("Not at all", ["yes", "no"], None),
        ("I know nothing", ["yes", "no"], None),
        ("yes or no", ["yes", "no"], 0),  # it begins with yes
        ("It could be yes or no", ["yes", "no"], None),
        ("not equivalent", MEANING, 1),
        ("They are not equivalent.", MEANING, 1),
        ("They are equivalent.", MEANING, 0),
        ("The answer is (B).", MEANING, 1),
        ("b", MEANING, 1),
        ("Option B: not equivalent", MEANING, 1),
        ("2.", MEANING, 1),
        ("(C)", MEANING, None),
        ("0.", MEANING, None),
        ("D.C. is where it is", CAPITALS, 1),
        ("D", CAPITALS, 3),
        ('The answer is "New York".', CAPITALS, 2),
        ("Boston? No. The answer is Washington", CAPITALS, 0),
        ("The answer is Boston. My answer is final.", CAPITALS, 3),
        ("A dog", ["cat", "dog"], 1),
        ("-5", ["5", "-5"], 1),
        ("", ["+", "-"], None),
        ("+", ["+", "-"], 0),
        ("?", ["!", "?"], 1),
        ("12", ["1", "2", "12"], 2),
        ("1.5", ["1", "2"], None),
        ("1/11", ["1", "11"], None),
        ("12,000", ["12", "7"], None),
        ("It must be -5", ["5", "7"], None),
        ("It must be 5, I think", ["5", "7"], 0),
        ("8!", ["8", "8!", "7!"], 1),
        ("The answer is 8.", ["8", "8!", "7!"], 0),
        ("The answer is 8!", ["8", "9"], 0),  # no factorial among them
        ("(0, 1].", ["[0, 1]", "(0, 1]"], 1),
        ("xyz", ["x", "y"], None),
    ],
)
def test_the_option_that_a_text_chooses(text: str, options: list[str], expected: int | None) -> None:
    assert chosen(text, options) == expected


def check(task: MixtureTask, target: str, prediction: str, *options: str) -> bool:
    item = TaskItem(1, {"answer": target}, options, 0) if options else None
    return correct(task, target, prediction, item)


def test_an_option_counts_by_label_and_by_text(news: Callable[..., MixtureTask]) -> None:
    task = news(4)
    assert check(task, "(A)", "rain", "rain", "snow")
    assert check(task, "rain", "(A)", "rain", "snow")
    assert check(task, "It is wet. The answer is (A).", "The answer is rain.", "rain", "snow")
    assert not check(task, "(A)", "snow", "rain", "snow")
    assert not check(task, "(A)", "B", "rain", "snow")


def test_a_digit_label_is_right_even_where_another_option_reads_the_same(news: Callable[..., MixtureTask]) -> None:
    assert check(news(4), "1", "1", "2", "1")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("-12", "12"),
        ("9", "-9"),
        ("-f(x)", "f(x)"),
        ("x+1", "x-1"),
        ("x < y", "x > y"),
        ("11/1", "1/11"),
        ("8!", "8"),
        ("27(26^3)  + 26^5", "27(26^3 + 26^5)"),
        ("x^2-2x+10", "x^2+2x+10"),
    ],
)
@pytest.mark.parametrize("said", ["{}", "The answer is {}.", "It is {}"])
def test_options_that_differ_in_signs_alone_are_told_apart(
    news: Callable[..., MixtureTask], right: str, wrong: str, said: str
) -> None:
    algebra = news(4)
    for options in ((right, wrong), (wrong, right)):
        item = TaskItem(1, {"answer": right}, options, options.index(right))
        for target in (right, f"({'AB'[item.choice or 0]})", f"Thus it holds. The answer is {right}."):
            assert correct(algebra, target, said.format(right), item)
            assert not correct(algebra, target, said.format(wrong), item)


def test_options_that_read_the_same_are_the_same_answer(news: Callable[..., MixtureTask]) -> None:
    item = TaskItem(1, {"answer": "12"}, ("12", "27", "12."), 2)
    assert correct(news(4), "(C)", "12", item)
    assert not correct(news(4), "(C)", "27", item)


def test_without_the_row_the_target_alone_counts(news: Callable[..., MixtureTask]) -> None:
    assert check(news(4), "(A)", "a")
    assert not check(news(4), "(A)", "rain")


@pytest.mark.parametrize(
    ("target", "prediction", "right"),
    [
        ("A", "A", True),
        ("A", "the", False),
        ("A", "B", False),
        ("A", "", False),
        ("The cat sat.", "cat sat", True),
        ("The cat sat.", "The cat sat. It purred.", True),
        ("The cat sat.", "It purred. The cat sat.", False),
        ("St. Louis", "The answer is St. Louis.", True),
        ("Paris", "The answer is Paris. It lies on the Seine.", True),
        ("Paris", "The answer is not Paris.", False),
        ("Paris", "Paris\n\nIt lies on the Seine.", True),
        ("?", "!", False),
        ("?", "?", True),
    ],
)
def test_texts_are_compared_as_squad_does(
    task: Callable[..., MixtureTask], target: str, prediction: str, right: bool
) -> None:
    assert check(task(check="text"), target, prediction) == right


def test_a_number_is_compared_by_value_and_not_by_its_rationale(task: Callable[..., MixtureTask]) -> None:
    maths = task()
    target = "She sold 48 and then 24. The answer is 72."
    assert correct(maths, target, "48 + 24 = 72.0")
    assert not correct(maths, target, "She sold 48 and then 24. The answer is 73.")
    assert not correct(maths, target, "")


def test_accuracy_on_tasks_is_that_of_what_follows_the_reasoning(task: Callable[..., MixtureTask]) -> None:
    where = MixtureProvenance("sums", 1, "direct", inverted=False, phrasing=0, shots=0)
    answers = ["<think>Is it 5?</think>42", "<think>... 40 + 2 = 42", "42", "41"]
    rows = [HeldoutAnswer(str(n), "", "42", answer, "stop", 1, 1, 1.0, {}) for n, answer in enumerate(answers)]
    questions = dict.fromkeys("0123", (task(), where))
    assert list(_correct(rows, questions).values()) == [True, False, True, False]


@pytest.mark.parametrize(("name", "repeated"), [("aqua", 19), pytest.param("qasc", 7, marks=pytest.mark.slow)])
def test_every_option_of_the_real_rows_is_judged_as_the_row_says(
    real: Callable[[str], TaskSet], name: str, repeated: int
) -> None:
    (loaded,) = real(f"builtin:{name}").tasks
    rows_with_the_answer_twice = 0
    for item in loaded.items:
        readings = [" ".join(option.casefold().split()).rstrip(".") for option in item.options]
        same = [reading == readings[item.choice or 0] for reading in readings]
        rows_with_the_answer_twice += sum(same) > 1
        for target in (item.answer, f"({'ABCDEFGH'[item.choice or 0]})"):
            judged = [correct(loaded, target, f"The answer is {option}.", item) for option in item.options]
            assert judged == same, item
    assert rows_with_the_answer_twice == repeated


def test_rules_judge_an_answer_by_the_task_and_row_that_its_source_names(
    news: Callable[..., MixtureTask], additions: Callable[..., MixtureTask]
) -> None:
    rules = TaskRules([news(4), additions(4)])
    second, sums = (f"mixture:{name}/direct/zero-shot/template-0:row-2" for name in ("news", "sums"))
    answers = ("Sports.", "(B)", "science", "The answer is sports")
    assert [rules.verdict(answer, "sports", "", second) for answer in answers] == [1, 1, 0, 1]
    assert [rules.verdict(answer, "1 + 2 = 3. The answer is 3.", "", sums) for answer in ("3.0", "1 and 2")] == [1, 0]
    # of no task: the text alone counts
    assert [rules.verdict(answer, "Paris", "", "x.jsonl:3") for answer in (" paris ", "It is Paris")] == [1, 0]
