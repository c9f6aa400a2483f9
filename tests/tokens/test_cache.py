"""What was tokenized once is not tokenized again, unless anything that decides the tokens has changed."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from spintune.record_files import Spool
from spintune.tokens import cache
from spintune.tokens.cache import TokenCache
from spintune.tokens.rows import RenderedRows, TokenRow

ROWS = [TokenRow("a", (1, 2), (3, 4), (True, True), True), TokenRow("b", (5,), (6, 7, 8), (True, False, True), False)]
CONTENT = {"examples": "digest", "lengths": [9, None, None]}


class Counting:
    """Renders the same rows whenever it is called, and counts its calls."""

    calls = 0

    def __call__(self) -> RenderedRows:
        self.calls += 1
        spool = Spool(TokenRow)
        for row in ROWS:
            spool.add(row)
        return RenderedRows(spool.records(), Counter(prompt_too_long=2), 1, 4)


@pytest.fixture
def render() -> Counting:
    return Counting()


def test_the_second_time_the_same_comes_from_disk(tmp_path: Path, render: Counting) -> None:
    kept = TokenCache(tmp_path / "tokens")
    first, second = kept.rendered(CONTENT, render), kept.rendered(CONTENT, render)
    assert render.calls == 1
    assert first == second
    assert (second.rows, second.dropped, second.truncated, second.read) == (ROWS, {"prompt_too_long": 2}, 1, 4)
    assert [row.trained for row in second.rows] == [(True, True), (True, False, True)]


def test_other_content_and_other_code_are_tokenized_anew(
    tmp_path: Path, render: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = TokenCache(tmp_path)
    kept.rendered(CONTENT, render)
    kept.rendered({**CONTENT, "lengths": [8, None, None]}, render)
    monkeypatch.setattr(cache, "_code", lambda: "another release")
    kept.rendered(CONTENT, render)
    assert render.calls == 3


def test_what_was_deleted_or_left_half_written_is_tokenized_anew(tmp_path: Path, render: Counting) -> None:
    kept = TokenCache(tmp_path)
    for damage in ("rows.jsonl", "facts.json", ""):
        kept.rendered(CONTENT, render)
        (entry,) = tmp_path.iterdir()
        shutil.rmtree(entry) if not damage else (entry / damage).unlink()
        calls = render.calls
        assert kept.rendered(CONTENT, render).rows == ROWS
        assert render.calls == calls + 1
        assert kept.rendered(CONTENT, render).rows == ROWS
        assert render.calls == calls + 1


def test_beyond_its_size_the_longest_unused_goes(tmp_path: Path, render: Counting) -> None:
    kept = TokenCache(tmp_path)
    for name in "abc":
        kept.rendered({"name": name}, render)
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.json*")) // 3
    small = TokenCache(tmp_path, max_bytes=2 * size + 1)
    small.rendered({"name": "a"}, render)  # used again, so b is the oldest
    assert render.calls == 3
    small.rendered({"name": "d"}, render)
    assert len([*tmp_path.iterdir()]) == 2
    small.rendered({"name": "a"}, render)
    small.rendered({"name": "d"}, render)
    assert render.calls == 4
    small.rendered({"name": "b"}, render)
    assert render.calls == 5


def test_one_entry_larger_than_the_whole_cache_is_kept(tmp_path: Path, render: Counting) -> None:
    kept = TokenCache(tmp_path, max_bytes=1)
    kept.rendered(CONTENT, render)
    kept.rendered(CONTENT, render)
    assert render.calls == 1


def test_where_nothing_can_be_kept_the_rows_come_all_the_same_with_a_warning(
    tmp_path: Path, render: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokens").write_text("a file where the folder should be")
    found = TokenCache(tmp_path / "tokens").rendered(CONTENT, render)
    assert found.rows == ROWS
    assert "will tokenize again" in caplog.text
    assert (tmp_path / "tokens").is_file()
