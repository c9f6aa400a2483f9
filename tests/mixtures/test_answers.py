"""Nasty predictions, judged by hand."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest

from spintune.mixtures.answers import chosen, correct, number
from spintune.mixtures.tasks import Item, Task


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
        ("xyz", ["x", "y"], None),
    ],
)
def test_the_option_that_a_text_chooses(text: str, options: list[str], expected: int | None) -> None:
    assert chosen(text, options) == expected


def check(task: Task, target: str, prediction: str, *options: str) -> bool:
    item = Item(1, {"answer": target}, options, 0) if options else None
    return correct(task, target, prediction, item)


def test_an_option_counts_by_label_and_by_text(news: Callable[..., Task]) -> None:
    task = news(4)
    assert check(task, "(A)", "rain", "rain", "snow")
    assert check(task, "rain", "(A)", "rain", "snow")
    assert check(task, "It is wet. The answer is (A).", "The answer is rain.", "rain", "snow")
    assert not check(task, "(A)", "snow", "rain", "snow")
    assert not check(task, "(A)", "B", "rain", "snow")


def test_a_digit_label_is_right_even_where_another_option_reads_the_same(news: Callable[..., Task]) -> None:
    assert check(news(4), "1", "1", "2", "1")


def test_without_the_row_the_target_alone_counts(news: Callable[..., Task]) -> None:
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
def test_texts_are_compared_as_squad_does(task: Callable[..., Task], target: str, prediction: str, right: bool) -> None:
    assert check(task(check="text"), target, prediction) == right


def test_a_number_is_compared_by_value_and_not_by_its_rationale(task: Callable[..., Task]) -> None:
    maths = task()
    target = "She sold 48 and then 24. The answer is 72."
    assert correct(maths, target, "48 + 24 = 72.0")
    assert not correct(maths, target, "She sold 48 and then 24. The answer is 73.")
    assert not correct(maths, target, "")
