"""What was tokenized once is not tokenized again, unless anything that decides the tokens has changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("library", ["tokenizers", "transformers", "jinja2"])
def test_other_versions_of_what_renders_and_encodes_are_other_code(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, version = cache._code(), cache.version
    assert cache._code.__wrapped__() == now
    monkeypatch.setattr(cache, "version", lambda name: "0.0.1" if name == library else version(name))
    assert cache._code.__wrapped__() != now


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


def entry_of(kept: TokenCache) -> Path:
    (entry,) = kept.folder.iterdir()
    return entry


def change_a_digit(entry: Path) -> None:
    rows = entry / "rows.jsonl"
    times = rows.stat()
    rows.write_bytes(rows.read_bytes().replace(b"[1,2]", b"[1,9]"))
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_a_count(entry: Path) -> None:
    facts = entry / "facts.json"
    facts.write_bytes(facts.read_bytes().replace(b'"truncated": 1', b'"truncated": 7'))


def lose_a_row(entry: Path) -> None:
    rows = entry / "rows.jsonl"
    rows.write_bytes(b"".join(rows.read_bytes().splitlines(True)[:-1]))


def empty_rows(entry: Path) -> None:
    (entry / "rows.jsonl").write_bytes(b"")


def cut_facts(entry: Path) -> None:
    (entry / "facts.json").write_text('{"entry"')


def facts_of_another_shape(entry: Path) -> None:
    (entry / "facts.json").write_text("[]")


def others_may_write(entry: Path) -> None:
    (entry / "rows.jsonl").chmod(0o666)


@pytest.mark.parametrize(
    "damage",
    [
        *(change_a_digit, change_a_count, lose_a_row, empty_rows, cut_facts, facts_of_another_shape),
        others_may_write,
    ],
)
def test_what_is_not_as_it_was_written_is_tokenized_anew(damage: Any, tmp_path: Path, render: Counting) -> None:
    kept = TokenCache(tmp_path / "tokens")
    first = kept.rendered(CONTENT, render)
    damage(entry_of(kept))
    for _ in range(2):
        assert kept.rendered(CONTENT, render) == first
        assert render.calls == 2


def test_an_entry_under_the_name_of_another_is_not_used(tmp_path: Path, render: Counting) -> None:
    """Whoever may rename folders there could give one input the tokens of another."""
    kept = TokenCache(tmp_path)
    kept.rendered(CONTENT, render)
    wanted = entry_of(kept).name
    shutil.rmtree(tmp_path / wanted)
    kept.rendered({"other": 1}, render)
    entry_of(kept).rename(tmp_path / wanted)
    kept.rendered(CONTENT, render)
    assert render.calls == 3
    assert json.loads((tmp_path / wanted / "facts.json").read_bytes())["entry"] == wanted


def test_nobody_else_can_write_an_entry(tmp_path: Path, render: Counting) -> None:
    before = os.umask(0o002)
    try:
        kept = TokenCache(tmp_path / "tokens")
        kept.rendered(CONTENT, render)
        kept.rendered(CONTENT, render)
    finally:
        os.umask(before)
    assert render.calls == 1
    entry = entry_of(kept)
    assert [path for path in (kept.folder, entry, *entry.iterdir()) if path.stat().st_mode & 0o022] == []


FILLER = """
import random, sys
from collections import Counter
from pathlib import Path
from spintune.record_files import Spool
from spintune.tokens.cache import TokenCache
from spintune.tokens.rows import RenderedRows, TokenRow

def rows(number):
    spool = Spool(TokenRow)
    for n in range(40):
        spool.add(TokenRow(f"{n}", (number,) * 20, (n, number), None, True))
    return RenderedRows(spool.records(), Counter(), 0, 40)

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
chosen = random.Random(seed)
kept = TokenCache(folder, max_bytes=12_000)
for _ in range(120):
    number = chosen.randrange(8)
    found = kept.rendered({"number": number}, lambda: rows(number))
    assert [row.prompt_ids[0] for row in found.rows] == [number] * 40
"""


def test_processes_fill_and_shrink_it_at_once(tmp_path: Path) -> None:
    """At the limit of its size, where each removes what the others write and read."""
    command = [sys.executable, "-W", "error", "-c", FILLER, str(tmp_path / "tokens")]
    started = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True) for seed in range(4)]
    errors = [process.communicate()[1] for process in started]
    assert ([process.returncode for process in started], "".join(errors)) == ([0] * 4, "")
    left = list((tmp_path / "tokens").iterdir())
    assert 1 <= len(left) <= 8
    assert all(len(path.name) == 32 for path in left)  # nothing unfinished
