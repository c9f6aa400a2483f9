"""Foreign text in Markdown is shown letter by letter, whatever it holds (held against a CommonMark parser)."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from spintune.text.markdown import Markdown, block, code, plain, table

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
# not a null character, which no Markdown may show
TEXT = st.text(
    st.sampled_from("<>`~\r\n|&*_[]()#-=+!$\\.:'\"/ \t0aab&;") | st.characters(exclude_characters="\0", codec="utf-8")
)


def one_line(text: str) -> str:
    return " ".join(text.split())


def shown(markdown: str) -> list[tuple[str, str]]:
    """Kind and text of every leaf."""
    tokens = PARSER.parse(markdown)
    leaves = [part for token in tokens for part in (token.children if token.children is not None else [token])]
    return [(leaf.type, leaf.content) for leaf in leaves if leaf.content]


def words(markdown: str, *kinds: str) -> str:
    leaves = shown(markdown)
    assert {kind for kind, _ in leaves} <= set(kinds), leaves
    return "".join(text for _, text in leaves)


@given(TEXT)
@example("<script>\r</script>")
@example("1. list")
@example("- list")
@example("===")
@example("&lt;b&gt;")
@example("_a_ __b__ a_b _a_b_ a__b .a_b_.")
def test_a_line_is_shown_as_it_is(text: str) -> None:
    assert words(plain(text), "text", "text_special") == one_line(text)
    assert words(f"# {plain(text)}", "text", "text_special") == one_line(text)
    assert words(f"before\n{plain(text)} after", "text", "text_special", "softbreak").replace(
        "before", "", 1
    ) == one_line(text) + " after" * bool(one_line(text)) or not one_line(text)


@given(TEXT)
@example("a\r<b>")
@example("`" * 50)
def test_a_block_holds_all_lines_of_its_text(text: str) -> None:
    ((kind, content),) = shown(block(text)) or [("fence", "")]
    assert kind == "fence"
    assert content.rstrip() == re.sub("\r\n?", "\n", text).rstrip()


@given(TEXT)
@example("a|b")
def test_code_shows_all_but_back_ticks(text: str) -> None:
    assert words(code(text), "code_inline").strip() == one_line(text).replace("`", "'")


@given(st.lists(TEXT, min_size=1, max_size=3))
@example(["|", "\\|", "`|`"])
def test_a_table_has_the_cells_that_it_was_given(cells: list[str]) -> None:
    tokens = PARSER.parse(table([["x"] * len(cells), cells]))
    found = [token.children or [] for token in tokens if token.type == "inline"][len(cells) :]
    assert ["".join(part.content for part in parts) for parts in found] == [one_line(cell) for cell in cells]
    assert {part.type for parts in found for part in parts} <= {"text", "text_special"}


def test_markdown_is_not_escaped_again() -> None:
    assert plain(Markdown("**a**")) == "**a**"
    assert table([["a"], [code("b|c")]]).splitlines()[2] == "| `b\\|c` |"


def test_names_stay_readable() -> None:
    assert plain("empty_output 3.350 (3.158 to 3.5), gpt-4.1") == "empty_output 3.350 (3.158 to 3.5), gpt-4.1"
