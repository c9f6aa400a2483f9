"""The card counts what is there, and its figure shows the same counts."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

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


EVIL = "<img src=x onerror=harm()>"
NAME = "a|b\r<script>harm()</script>\n# no heading [link](http://x) &lt; ![i](x) `code`"


def card_of(task: SeedTask, who: str = "who") -> str:
    examples = [GeneratedExample(task, SynthesisProvenance(who, "alpaca", (AnsweredPrompt("p", "k"),), ("s",)))]
    removed = [RemovedExample(1, f"exam {EVIL}", 3, "a | b", "Say.", f"exam {EVIL}:4")]
    counts = [FilterCounts("candidates", "tasks", 1, 1)]
    result = SynthesisResult(who, "alpaca", examples, counts, Usage(1, 2, 3), removed=removed, stopped=EVIL)
    return as_markdown(describe(result, [task], f"seeds {EVIL}"))


@pytest.mark.parametrize(
    "output",
    [
        *("1\n```\n</details>", f"lone\r{EVIL}\r\r{EVIL}", f"a\r\n{EVIL}", f"`````\n{EVIL}", f"~~~\n{EVIL}\n~~~~"),
        *(
            f"\u2028{EVIL}\x85{EVIL}\x0b{EVIL}\x0c{EVIL}",
            f"  \t\n\n\n{EVIL}",
            "a" + "`" * 40 + f"\r{EVIL}",
            "[a]: javascript:x",
        ),
    ],
)
def test_the_card_is_markdown_in_which_foreign_text_stays_text(output: str) -> None:
    task = SeedTask("t", f"Say | this. {EVIL}\r{EVIL}", f"# no heading\r{EVIL}", output)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card_of(task, NAME))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "blockquote_open", "bullet_list_open", "code_block"}
    assert [token.content for token in inline if token.type == "image"] == [
        "first words and the words that follow them"
    ]
    (shown,) = [token.content for token in tokens if token.type == "fence"]
    whole = f"instruction: {task.instruction}\ninput: {task.input}\noutput: {output}"
    assert shown.rstrip() == re.sub("\r\n?", "\n", whole).rstrip()
    title = tokens[1].children or []
    assert "".join(part.content for part in title) == f"1 examples written by {' '.join(NAME.split())}"
    rows = [token.content for token in tokens if token.type == "inline" and "exam" in token.content]
    assert rows[-1].startswith("exam")
    assert len([token for token in tokens if token.type == "h1_open" or token.tag == "h1"]) == 2


def test_what_stays_as_it_is_in_a_cell() -> None:
    assert "| exam \\<img src=x onerror=harm()\\>:4 | a \\| b |" in card_of(SeedTask("t", "Say.", "", "1"))


def test_the_card_says_how_the_teacher_was_asked() -> None:
    task = SeedTask("t", "Say.", "", "1")
    examples = [GeneratedExample(task, SynthesisProvenance("who", "alpaca", (AnsweredPrompt("p", "k"),), ("s",)))]
    counts = [FilterCounts("candidates", "tasks", 1, 1)]
    told = {"thoughts": 4, "left_out": {"top_p": 5}}
    card = describe(SynthesisResult("who", "alpaca", examples, counts, Usage(1, 2, 3), **told), [task], "builtin:seeds")
    assert (card.thoughts, card.left_out) == (4, {"top_p": 5})
    shown = r"3 written. 4 replies began with reasoning, which was set apart. 5 were asked for without top_p"
    assert shown in as_markdown(card)
