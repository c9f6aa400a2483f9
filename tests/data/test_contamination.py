"""Contamination against a brute force over all pairs, examples by hand, and texts made to break it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spintune.data.contamination import SHORTEST, Removed, TouchingRow, contamination, decontaminate, text_of
from spintune.records import Example, Message, ToolCall
from spintune.text.ngrams import NgramIndex
from spintune.text.words import split_words
from spintune.typed_json import to_json

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = split_words(text)
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


class Overlap(NamedTuple):
    """An n-gram of a text that an item has too: its first place in the text, the item, its words."""

    start: int
    item: int
    ngram: tuple[str, ...]


def overlaps(index: NgramIndex, text: str) -> list[Overlap]:
    found: dict[tuple[int, tuple[str, ...]], int] = {}
    for _, shared in index.shared([split_words(text)]):
        for item, start, place in zip(shared.item.tolist(), shared.start.tolist(), shared.place.tolist(), strict=True):
            found[item, index.ngram(item, start)] = place
    return sorted(Overlap(place, item, ngram) for (item, ngram), place in found.items())


def brute_force(items: Sequence[str], text: str, n: int, shortest: int) -> list[tuple[int, int, tuple[str, ...]]]:
    """(start in the text, item, n-gram), each item against the text by comparing words."""
    found = set()
    for number, item in enumerate(items):
        length = len(split_words(item))
        if length >= shortest:
            size = min(n, length)
            candidates = ngrams(text, size)
            found |= {(candidates.index(gram), number, gram) for gram in ngrams(item, size) if gram in candidates}
    return sorted(found)


# The index against the brute force -----------------------------------------------------------------------------------

few = st.lists(st.sampled_from("aabc"), max_size=14).map(" ".join)
unknown = st.lists(st.sampled_from("aabcxy"), max_size=24).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(items=st.lists(few, max_size=6), text=unknown, n=st.integers(1, 13), shortest=st.integers(1, 6))
def test_overlaps_are_those_of_the_brute_force(items: list[str], text: str, n: int, shortest: int) -> None:
    found = overlaps(NgramIndex(items, n, shortest), text)
    assert sorted((o.start, o.item, o.ngram) for o in found) == brute_force(items, text, n, shortest)
    assert [(o.start, o.item) for o in found] == sorted((o.start, o.item) for o in found)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    first=st.lists(few, max_size=4),
    second=st.lists(few, max_size=4),
    rows=st.lists(unknown, max_size=6),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    shortest=st.integers(1, 4),
)
def test_the_report_is_that_of_the_brute_force(
    first: list[str], second: list[str], rows: list[str], sizes: list[int], shortest: int
) -> None:
    evaluation = {"first": first, "second": second}
    report = contamination(iter(rows), evaluation, sizes, shortest)
    assert report.training_rows == len(rows)
    assert [(found.n, found.evaluation) for found in report.sets] == [(n, name) for n in sizes for name in evaluation]
    for found in report.sets:
        items = evaluation[found.evaluation]
        hits = [brute_force(items, row, found.n, shortest) for row in rows]
        touching = {
            item: [row for row, hit in enumerate(hits) if any(i == item for _, i, _ in hit)]
            for item in range(len(items))
        }
        assert {item.item: item.rows for item in found.touched} == {i: rows for i, rows in touching.items() if rows}
        assert found.clean == [item for item, rows in touching.items() if not rows]
        assert found.items == len(items)
        lengths = [len(split_words(item)) for item in items]
        assert found.unmatched == sum(length < shortest for length in lengths)
        assert found.short == sum(shortest <= length < found.n for length in lengths)
        for item in found.touched:
            shared = [{gram for _, i, gram in hits[row] if i == item.item} for row in item.rows]
            assert tuple(item.ngram.split()) in shared[0]
            best = max(covered(split_words(items[item.item]), grams) for grams in shared)
            assert item.coverage == pytest.approx(best / lengths[item.item])
        expected_rows = {row: len({i for _, i, _ in hit}) for row, hit in enumerate(hits) if hit}
        assert {one.row: one.items for one in found.rows} == expected_rows
    assert json.loads(json.dumps(to_json(report))) == to_json(report)


def covered(tokens: list[str], grams: set[tuple[str, ...]]) -> int:
    inside = set()
    for gram in grams:
        for start in range(len(tokens) - len(gram) + 1):
            if tuple(tokens[start : start + len(gram)]) == gram:
                inside |= set(range(start, start + len(gram)))
    return len(inside)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(items=st.lists(few, max_size=5), rows=st.lists(unknown, max_size=6), n=st.integers(1, 6))
def test_decontamination_removes_the_rows_that_touch_an_item_and_no_others(
    items: list[str], rows: list[str], n: int
) -> None:
    examples = [Example((Message("user", row), Message("assistant", "z"))) for row in rows]
    kept, removed = decontaminate(examples, {"set": items}, n)
    hits = [brute_force(items, text_of(example), n, shortest=4) for example in examples]
    assert kept == [example for example, hit in zip(examples, hits, strict=True) if not hit]
    assert [one.row for one in removed] == [row for row, hit in enumerate(hits) if hit]
    for one in removed:
        start, item, _ = hits[one.row][0]
        assert one.item == item
        assert (start, item, tuple(one.ngram.split())) in hits[one.row]


# By hand -------------------------------------------------------------------------------------------------------------

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def test_a_copied_question_is_found_whatever_its_case_and_punctuation() -> None:
    copy = "Q: NATALIA sold clips to 48 of her friends in April - and then, she went home."
    (found,) = contamination(["nothing here", copy], {"gsm8k": [QUESTION, "Another one."]}, [8]).sets
    assert len(split_words(QUESTION)) == 20
    (item,) = found.touched
    # 13 words in a row of 20 are shared: natalia ... she
    assert (item.item, item.rows, item.coverage) == (0, [1], 13 / 20)
    assert item.ngram == "natalia sold clips to 48 of her friends"
    assert (found.share, found.clean, found.unmatched, found.rows) == (0.5, [1], 1, [TouchingRow(1, 1)])


def test_thirteen_words_in_a_row_are_a_13_gram_and_twelve_are_none() -> None:
    index = NgramIndex([QUESTION], 13, SHORTEST)
    thirteen = " ".join(split_words(QUESTION)[3:16])
    assert [(o.item, o.start, o.ngram) for o in overlaps(index, "so " + thirteen)] == [(0, 1, tuple(thirteen.split()))]
    assert overlaps(index, " ".join(split_words(QUESTION)[3:15]) + " x " + " ".join(split_words(QUESTION)[15:])) == []


def test_an_ngram_does_not_reach_from_one_item_or_row_to_the_next() -> None:
    index = NgramIndex(["a b c d", "e f g h"], 4, SHORTEST)
    assert overlaps(index, "c d e f") == []
    report = contamination(["a b", "c d e f", "g h"], {"set": ["a b c d", "e f g h"]}, [4])
    assert report.sets[0].touched == []


def test_a_short_item_is_found_whole_and_a_tiny_one_never() -> None:
    items = ["Answer the following question.", "Yes.", "", "Name three primary colours quickly please"]
    (found,) = contamination(["Please answer the following question: yes or no?"], {"set": items}, [8]).sets
    assert [(item.item, item.coverage, item.ngram) for item in found.touched] == [
        (0, 1.0, "answer the following question")
    ]
    assert (found.items, found.short, found.unmatched, found.clean) == (4, 2, 2, [1, 2, 3])
    (all_of_them,) = contamination(["yes"], {"set": items}, [8], shortest=1).sets
    assert [item.item for item in all_of_them.touched] == [1]
    assert all_of_them.unmatched == 1


def test_removal_names_the_set_the_item_and_the_ngram() -> None:
    def say(text: str) -> Example:
        return Example((Message("user", text), Message("assistant", "three four five six")))

    rows = [say("hello"), say("one two"), say("seven")]
    evaluation = {"other": ["p q r s"], "mine": ["u v w x", "zero one two three four nine"]}
    kept, removed = decontaminate(rows, evaluation, n=4)
    assert kept == [rows[0], rows[2]]
    assert removed == [Removed(1, "mine", 1, "one two three four")]  # from the prompt into the answer


def test_no_items_and_no_rows_give_empty_reports() -> None:
    assert to_json(contamination([], {})) == {"training_rows": 0, "sets": []}
    (found,) = contamination(["a b c d e"], {"none": []}, [8]).sets
    assert (found.items, found.share, found.touched) == (0, 0.0, [])
    (found,) = contamination([], {"one": [QUESTION]}, [13]).sets
    assert (found.clean, found.share) == ([0], 0.0)
    (found,) = contamination(["", " ", "!"], {"one": [QUESTION, ""]}, [13]).sets
    assert found.clean == [0, 1]
    assert decontaminate([], {"one": [QUESTION]}) == ([], [])


@pytest.mark.parametrize(("n", "shortest"), [(0, 1), (-1, 1), (8, 0)])
def test_sizes_below_one_are_an_error(n: int, shortest: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        NgramIndex(["a"], n, shortest)


# Texts made to break it ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_megabytes_of_one_word_match_a_repeated_item_once() -> None:
    index = NgramIndex(["ab " * 1000, "ab " * 7, "ba " * 9], 8, SHORTEST)
    found = overlaps(index, "ab " * (10_000_000 // 3))
    assert [(o.item, o.start, o.ngram) for o in found] == [(0, 0, ("ab",) * 8), (1, 0, ("ab",) * 7)]


def test_ten_megabytes_without_a_space_are_one_word() -> None:
    assert overlaps(NgramIndex(["a b c d e f g h"], 8, SHORTEST), "a" * 10_000_000) == []


def test_a_needle_at_the_very_end_of_a_long_text_is_found() -> None:
    text = "hay " * 1_000_000 + QUESTION
    assert [o.start for o in overlaps(NgramIndex([QUESTION], 13, SHORTEST), text)] == list(range(1_000_000, 1_000_008))


def test_rows_keep_their_numbers_over_many_batches() -> None:
    """Two million words come in several batches; every hundredth row is a copy."""
    rows = [f"{QUESTION} {row}" if row % 100 == 7 else "w x y z " * 25 + str(row) for row in range(20_000)]
    (found,) = contamination(rows, {"set": [QUESTION]}, [13]).sets
    assert found.touched[0].rows == list(range(7, 20_000, 100))
    assert found.touched[0].coverage == 1


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SHARED / name).read_text().splitlines()]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the repository")
def test_the_seed_task_that_is_an_evaluation_item_is_found() -> None:
    """The Self-Instruct seed "Answer the following question." is also one of the 252, where it stands twice."""
    seeds = [row["instruction"] for row in read("self_instruct_seed_tasks.jsonl")]
    tasks = [row["instruction"] for row in read("user_oriented_instructions.jsonl")]
    twice = [number for number, task in enumerate(tasks) if task.strip() == "Answer the following question."]
    assert len(twice) == 2
    (found,) = contamination(seeds, {"user-oriented": tasks}, [13]).sets
    assert set(twice) <= {item.item for item in found.touched}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the repository")
def test_the_pairs_of_gsm8k_train_and_test_are_those_of_a_dictionary_of_tuples() -> None:
    rows = [f"{row['question']} {row['answer']}" for row in read("gsm8k_train.jsonl")]
    items = [row["question"] for row in read("gsm8k_test.jsonl")]
    (found,) = contamination(rows, {"gsm8k": items}, [13]).sets
    holders: dict[tuple[str, ...], set[int]] = {}
    for number, item in enumerate(items):
        for gram in ngrams(item, 13):
            holders.setdefault(gram, set()).add(number)
    pairs = {
        (item, row) for row, text in enumerate(rows) for gram in ngrams(text, 13) for item in holders.get(gram, ())
    }
    assert {(item.item, row) for item in found.touched for row in item.rows} == pairs
    assert (len(found.touched), len(pairs)) == (3, 4)


def test_reasoning_and_calls_are_part_of_the_text() -> None:
    answer = Message(
        "assistant", "Rain.", reasoning="Ask the tool.", tool_calls=(ToolCall("weather", '{"city": "Oslo"}'),)
    )
    assert text_of(Example((Message("user", "Hi"), answer))) == 'Hi\n\nAsk the tool.\n\nRain.\n\n{"city": "Oslo"}'
    assert text_of(Example((Message("user", ""), Message("assistant", "b")))) == "\n\nb"
