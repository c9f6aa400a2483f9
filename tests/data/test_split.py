"""The split keeps prompts apart, has the size asked for, and is stable when data is added or shuffled."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.data.split import split_examples, split_unseen, without_prompts_of
from spintune.errors import DataError
from spintune.recipe import parse_recipe
from spintune.records import Example, Message
from spintune.stages.data import DataOutcome, heldout_sources_of, read_data


def ask(question: str, answer: str = "yes") -> Example:
    return Example((Message("user", question), Message("assistant", answer)))


def questions(count: int) -> list[Example]:
    return [ask(f"question {number}") for number in range(count)]


@pytest.mark.parametrize(
    ("count", "fraction", "heldout"),
    [(100, 0.15, 15), (10, 0.2, 2), (2, 0.01, 1), (20, 0.01, 1), (1, 0.15, 0), (0, 0.5, 0)],
)
def test_the_size_is_the_rounded_fraction_and_at_least_one_of_two(count: int, fraction: float, heldout: int) -> None:
    train, held = split_examples(questions(count), fraction, seed=7)
    assert (len(train), len(held)) == (count - heldout, heldout)


@pytest.mark.parametrize(
    ("count", "heldout"),
    [
        *((1, 0), (2, 1), (10, 3), (200, 60), (333, 100), (334, 100), (999, 100), (1000, 100), (2000, 200)),
        *((20_000, 1000), (124, 37), (125, 50), (145, 50), (166, 50), (170, 51)),  # 50 choose, up to four tenths
    ],
)
def test_without_a_fraction_a_hundred_are_held_out_of_at_most_three_tenths(count: int, heldout: int) -> None:
    _, held = split_examples(questions(count), None, seed=7, limit=1000)
    assert len(held) == heldout


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    examples = questions(5)
    assert split_examples(examples, 0.0, seed=7) == (examples, [])


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.floats(0.0, 0.4), st.integers(0, 5))
def test_a_prompt_is_on_one_side_only_and_no_example_is_lost(letters: list[str], fraction: float, seed: int) -> None:
    examples = [ask(letter, str(number)) for number, letter in enumerate(letters)]
    train, held = split_examples(examples, fraction, seed)
    assert not {e.prompt for e in train} & {e.prompt for e in held}
    assert sorted([*train, *held], key=examples.index) == examples


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.sets(st.sampled_from("abcdefgh")))
def test_given_prompts_are_left_out_whatever_their_answers(letters: list[str], given: set[str]) -> None:
    examples = [ask(letter, str(number)) for number, letter in enumerate(letters)]
    left = without_prompts_of(examples, [ask(letter, "another") for letter in given])
    assert left == [example for example in examples if example.prompt[0].content not in given]


@given(st.integers(0, 5), st.integers(0, 50))
def test_both_sides_keep_the_input_order_and_the_order_does_not_matter(seed: int, shuffle: int) -> None:
    examples = questions(30)
    random.Random(shuffle).shuffle(examples)
    train, held = split_examples(examples, 0.3, seed)
    assert train == [e for e in examples if e not in held]
    assert held == [e for e in examples if e in held]
    assert set(held) == set(split_examples(questions(30), 0.3, seed)[1])


@given(st.integers(2, 60), st.integers(0, 60), st.floats(0.01, 0.45), st.integers(0, 5))
def test_added_examples_only_move_the_boundary(count: int, more: int, fraction: float, seed: int) -> None:
    old = set(questions(count))
    before = set(split_examples(questions(count), fraction, seed)[1])
    after = set(split_examples(questions(count + more), fraction, seed)[1]) & old
    assert before <= after or after <= before


def test_another_seed_holds_out_others() -> None:
    assert split_examples(questions(50), 0.2, seed=1)[1] != split_examples(questions(50), 0.2, seed=2)[1]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_a_fraction_outside_zero_to_one_is_an_error(fraction: float) -> None:
    with pytest.raises(DataError) as caught:
        split_examples(questions(5), fraction, seed=7)
    assert str(caught.value) == f"a held-out fraction of {fraction} cannot be used; give 0 or more, and less than 1"


@pytest.mark.parametrize(("count", "fraction"), [(3, 0.9), (1, 0.6)])
def test_a_fraction_that_empties_the_training_side_is_an_error(count: int, fraction: float) -> None:
    with pytest.raises(DataError) as caught:
        split_examples(questions(count), fraction, seed=7)
    assert str(caught.value) == (
        f"a held-out fraction of {fraction} leaves none of {count} distinct prompts to train on; "
        "lower it or add examples"
    )


def test_no_more_are_held_out_than_allowed_and_they_are_the_first_of_the_same_order() -> None:
    examples = questions(50)
    train, held = split_examples(examples, 0.4, 7, limit=5)
    assert (len(train), len(held)) == (45, 5)
    # of 50 prompts a tenth are five
    assert set(held) == set(split_examples(examples, 0.1, 7)[1])
    assert split_examples(examples, 0.1, 7, limit=99) == split_examples(examples, 0.1, 7)


def test_prompts_that_differ_in_reasoning_alone_stay_on_one_side() -> None:
    turns = [
        (Message("user", "a"), Message("assistant", "b", reasoning=str(n)), Message("user", "c")) for n in range(9)
    ]
    others = questions(9)
    train, held = split_examples([*(Example((*turn, Message("assistant", "d"))) for turn in turns), *others], 0.5, 7)
    assert {sum(len(example.messages) == 4 for example in side) for side in (train, held)} == {0, 9}


def trained_prompts(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    """What is said before each answer that is trained, in conversations that begin with the user."""
    return [
        tuple(message.content for message in example.messages[:place])
        for example in examples
        for place in range(1, len(example.messages), 2)
        if example.messages[place].trained
    ]


def test_with_all_turns_no_held_out_prompt_is_trained_on_and_no_trained_prompt_is_in_the_held_out_loss(
    tmp_path: Path,
) -> None:
    """Half of the conversations begin as another one does, and go on."""
    file = tmp_path / "chats.jsonl"
    talks = [[f"a{n}", f"b{n}", f"c{n}", f"d{n}"][: 2 * turns] for n in range(20) for turns in (1, 2)]
    rows = [
        {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(talk)]}
        for talk in talks
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(turns: str) -> DataOutcome:
        data = {"train": str(file), "eval_fraction": 0.3, "turns": turns}
        return read_data(parse_recipe({"model": "m", "out": "o", "data": data}, "test"), None)

    last, every = read("last"), read("all")
    examples = [example for side in (last.train, last.heldout) for example in side]
    by_place = sorted(examples, key=lambda example: int(example.source.rpartition(":")[2]))
    assert (list(last.train), list(last.heldout)) == tuple(map(list, split_examples(by_place, 0.3, 0)))
    assert last.facts.dropped == {}

    held = {tuple(message.content for message in example.prompt) for example in every.heldout}
    assert held == {tuple(message.content for message in example.prompt) for example in last.heldout}
    assert held & set(trained_prompts(last.train))
    assert not held & set(trained_prompts(every.train))
    assert set(trained_prompts(last.heldout)) & set(trained_prompts(every.train))
    assert not set(trained_prompts(every.heldout)) & set(trained_prompts(every.train))
    # nothing is dropped: a conversation keeps its other turns
    assert every.facts.dropped == {}
    assert [row.source for row in every.train] == [row.source for row in last.train]
    assert all(one.messages[-1].trained for one in every.train)
    assert len(every.train) + len(every.heldout) == every.facts.read == 40


def no_question(example: Example) -> None:
    return None


@given(st.integers(2, 40), st.integers(1, 3), st.floats(0.05, 0.95), st.integers(0, 3))
def test_what_sft_does_not_see_is_the_share_of_prompts_and_keeps_prompts_together(
    count: int, answers: int, share: float, seed: int
) -> None:
    rows = [ask(f"question {number}", f"answer {one}") for one in range(answers) for number in range(count)]
    size = round(share * count)
    if size in (0, count):
        whom = "self-play" if size == 0 else "SFT"
        with pytest.raises(DataError, match=f"of {count} distinct training prompts leaves none for {whom}; "):
            split_unseen(rows, share, seed, no_question)
        return
    seen, unseen = split_unseen(rows, share, seed, no_question)
    prompts = [{example.prompt for example in side} for side in (seen, unseen)]
    assert (len(prompts[0]), len(prompts[1])) == (count - size, size)
    assert not prompts[0] & prompts[1]
    assert sorted(example.id for side in (seen, unseen) for example in side) == sorted(row.id for row in rows)
    assert [row for row in rows if row.prompt in prompts[1]] == list(unseen)  # in the order of the rows


def test_what_sft_does_not_see_hangs_neither_on_the_order_nor_on_the_held_out_split() -> None:
    rows = questions(400)
    _, unseen = split_unseen(rows, 0.5, 7, no_question)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(split_unseen(shuffled, 0.5, 7, no_question)[1]) == set(unseen)
    assert set(split_unseen(rows, 0.5, 8, no_question)[1]) != set(unseen)
    held_out = set(split_examples(rows, 0.5, 7)[1])
    assert 70 < len(held_out & set(unseen)) < 130  # 100 by chance, 7 standard deviations of the two halves' overlap


def test_prompts_that_ask_the_same_are_seen_together() -> None:
    rows = [ask(f"{way} {number}?") for number in range(20) for way in ("What is", "Tell me", "Say")]
    seen, unseen = split_unseen(rows, 0.5, 0, lambda example: example.prompt[0].content.split()[-1])
    numbers = [{example.prompt[0].content.split()[-1] for example in side} for side in (seen, unseen)]
    assert (len(numbers[0]), len(numbers[1])) == (10, 10)
    assert not numbers[0] & numbers[1]


NAMED = {"prompt": "q", "response": "a"}


@pytest.mark.parametrize(
    ("train", "heldout", "expected"),
    [
        ({"format": "alpaca"}, {}, ("alpaca", None)),
        ({"format": "alpaca"}, {"columns": NAMED}, ("auto", NAMED)),
        ({"format": "alpaca"}, {"columns": {"label": None}}, ("alpaca", {"label": None})),
        ({"columns": NAMED}, {"format": "alpaca"}, ("alpaca", None)),
        ({"columns": NAMED}, {"format": "prompt"}, ("prompt", NAMED)),
        ({"columns": {"label": None}}, {"format": "alpaca"}, ("alpaca", {"label": None})),
        ({}, {"format": "alpaca", "columns": NAMED}, ("alpaca", NAMED)),  # an error of the user's own
    ],
)
def test_held_out_rows_are_read_as_training_rows_where_they_do_not_say_otherwise(
    train: dict[str, object], heldout: dict[str, object], expected: tuple[str, object]
) -> None:
    data = {"train": {"path": "x", **train}, "heldout": {"path": "y", **heldout}}
    (source,) = heldout_sources_of(parse_recipe({"model": "m", "out": "o", "data": data}, "test"))
    assert (source.format, source.columns) == expected
