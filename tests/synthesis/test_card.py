"""The card counts what is there, and its figure shows the same counts."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from spintune.synthesis.card import Opening, WordCount, as_markdown, describe, nearest_seed, openings
from spintune.synthesis.examples import AnsweredPrompt, GeneratedExample, SeedTask, SynthesisProvenance
from spintune.synthesis.figure import openings_figure
from spintune.synthesis.filters import FilterCounts
from spintune.synthesis.pipeline import RemovedExample, SynthesisResult
from spintune.teachers.protocol import Usage

TEXTS = ["Write a short poem.", "Write the poem again.", "Write an email!", "Describe your day.", "What's a noun?"]


def test_openings_count_first_words_and_the_next_word_that_says_something() -> None:
    rows = openings(TEXTS)
    assert rows[0] == Opening("write", 3, [WordCount("short", 1), WordCount("poem", 1), WordCount("email", 1)])
    assert {row.word: row.next[0].word for row in rows[1:]} == {"describe": "day", "what's": "noun"}


def test_the_nearest_seed_is_the_one_with_the_largest_overlap() -> None:
    """ "a b c d" shares three of four words with the second seed: 2·3/8 = 0.75; "x y" shares nothing."""
    seeds = [SeedTask("1", "a b q r"), SeedTask("2", "a b c z")]
    found = nearest_seed(["a b c d", "x y"], seeds, "reference")
    assert found.mean == pytest.approx(0.375)
    assert [bound.count for bound in found.histogram] == [1, 0, 0, 0, 0, 0, 0, 1]


def test_the_figure_has_a_slice_for_each_word_whose_angle_is_its_share() -> None:
    root = ElementTree.fromstring(openings_figure(openings(TEXTS)))
    titles = [path[0].text for path in root.iter("{http://www.w3.org/2000/svg}path")]
    assert titles == ["write: 3", "short: 1", "poem: 1", "email: 1", "describe: 1", "day: 1", "what's: 1", "noun: 1"]
    first = next(root.iter("{http://www.w3.org/2000/svg}path")).get("d")
    x, y = map(float, re.findall(r"1 (-?[\d.]+) (-?[\d.]+)L", first or "")[0])
    # three of five instructions: 216 degrees clockwise from the top
    assert math.degrees(math.atan2(x, -y)) % 360 == pytest.approx(216, abs=0.1)


def test_one_word_alone_is_a_whole_ring_and_text_is_escaped() -> None:
    figure = openings_figure([Opening("<b>&", 2, [WordCount("", 2)])])
    assert "<b>" not in figure
    ElementTree.fromstring(figure)
    ElementTree.fromstring(openings_figure([]))


def test_the_card_is_markdown_in_which_a_teachers_text_stays_text() -> None:
    task = SeedTask("t", "Say | this.", "# no heading", "1\n```\n</details>")
    examples = [GeneratedExample(task, SynthesisProvenance("who", "alpaca", (AnsweredPrompt("p", "k"),), ("s",)))]
    removed = [RemovedExample(1, "exam", 3, "a | b", "Say.")]
    counts = [FilterCounts("candidates", "tasks", 1, 1)]
    result = SynthesisResult("who", "alpaca", examples, counts, Usage(1, 2, 3), removed=removed)
    card = describe(result, [task], "builtin:seeds")
    text = as_markdown(card)
    assert "| exam | 3 | a \\| b |" in text
    assert "\n    input: # no heading\n" in text
    assert "\n    ```\n    </details>\n" in text
    assert card.words["output"]["max"] == 3
