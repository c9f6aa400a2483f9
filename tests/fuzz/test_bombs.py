"""Small files that are made to take all memory or time: each is refused in one line, before it has either."""

from __future__ import annotations

import bz2
import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from spintune.data.tables import arrow_rows, cells, content, json_rows, rows_of
from spintune.errors import DataError, RecipeError
from spintune.recipe.yaml_files import parse_yaml


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the package divided by a thousand, so that the tests are quick."""
    for module in (content, json_rows, arrow_rows, cells):
        monkeypatch.setattr(module, "MAX_ROW", 64_000)
    monkeypatch.setattr(content, "_ALWAYS_FINE", 1_000_000)
    monkeypatch.setattr(arrow_rows, "_MAX_BATCH", 1_000_000)
    monkeypatch.setattr(arrow_rows, "_MAX_DECODED", 50_000)
    monkeypatch.setattr(cells, "_MAX_SHEETS", 1_000_000)
    monkeypatch.setattr(cells, "_MAX_SHEET_ROWS", 1_000)


def read(path: Path) -> list[dict[str, object]]:
    return [row.values for row in rows_of(path)]


def test_a_value_that_a_parquet_file_repeats_is_read_in_small_batches(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"prompt": ["x" * 30_000] * 1000})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 2_000
    opened = pyarrow.parquet.ParquetFile(path)
    assert arrow_rows._rows_of_batch("here", pyarrow.OSFile(str(path)), opened.metadata, ["prompt"]) < 40
    with pytest.raises(DataError, match=r"rows.parquet: expands to more than 300 times its size"):
        read(path)


def test_categories_count_for_each_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pyarrow.array(["x" * 30_000, "b"] * 500).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), path)
    with pytest.raises(DataError, match=r"rows.parquet: expands to more than 300 times its size"):
        read(path)
    small = pyarrow.array(["a", "b", None] * 500).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": small}), path)
    assert [row["prompt"] for row in read(path)] == ["a", "b", None] * 500


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY"])
def test_long_texts_of_a_parquet_file_are_read_all_the_same(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.parquet"
    texts = [str(place) * 4_000 for place in range(40)]
    table = pyarrow.table({"prompt": texts})
    options = {"use_dictionary": False, "column_encoding": {"prompt": encoding}, "compression": "none"}
    pyarrow.parquet.write_table(table, path, **options)
    assert read(path) == [{"prompt": text} for text in texts]


def test_a_row_that_is_too_long_is_named(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a", "x" * 70_000]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", use_dictionary=False, compression="none")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "' + "x" * 200_000 + '"}\n{"prompt": "b"}\n')
    (tmp_path / "rows.csv").write_text("prompt\na\n" + "x" * 200_000 + "\n")
    for name, where in (("rows.parquet", ": row 2: a row"), ("rows.jsonl", ":2: a row"), ("rows.csv", ":3: a cell")):
        with pytest.raises(DataError, match=f"{name}{where} of more than 0 MB"):
            read(tmp_path / name)


def test_lines_behind_one_that_is_too_long_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "' + "x" * 200_000 + '"}\n{"prompt": "b"}\n')
    found = list(json_rows.json_table(content.DataFile(str(path), path)).rows(None))
    assert [number for number, _ in found] == [1, 2, 3]
    assert found[2][1] == {"prompt": "b"}


def test_one_document_on_a_long_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[" + ", ".join(['{"prompt": "' + "x" * 1000 + '"}'] * 200) + "]")
    assert len(read(path)) == 200


@pytest.mark.parametrize(("suffix", "opener"), [("gz", gzip.open), ("bz2", bz2.open)])
def test_a_compressed_bomb_is_refused(tmp_path: Path, suffix: str, opener: Callable[..., IO[bytes]]) -> None:
    path = tmp_path / f"rows.jsonl.{suffix}"
    with opener(path, "wb") as stream:
        stream.write(b'{"prompt": "' + b"x" * 3_000_000 + b'"}\n')
    with pytest.raises(DataError, match=f"rows.jsonl.{suffix}: expands to more than 300 times its size"):
        read(path)


def test_a_spreadsheet_that_expands_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["prompt"])
    book.active.append(["x"])
    book.save(path)
    assert read(path) == [{"prompt": "x"}]
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/more.xml", b" " * 2_000_000)
    with pytest.raises(DataError, match=r"rows.xlsx: expands to more than 1,000,000 bytes"):
        read(path)


def test_rows_that_a_spreadsheet_only_numbers_are_not_made_up(tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["prompt"])
    book.active.append(["x"])
    book.save(path)
    with zipfile.ZipFile(path) as parts:
        content_of = {name: parts.read(name) for name in parts.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    content_of[sheet] = content_of[sheet].replace(b'r="2"', b'r="999999999999"').replace(b'"A2"', b'"A999999999999"')
    with zipfile.ZipFile(path, "w") as parts:
        for name, data in content_of.items():
            parts.writestr(name, data)
    with pytest.raises(DataError, match="empty"):
        read(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [" + "1," * 450_000 + "1]", "more than 20,000 keys and values"),
        ("a: " + "1:" * 100_000 + "1", "a number of more than 40 characters"),
        ("a: " + "1:" * 100_000 + "1.5", "a number of more than 40 characters"),
        ("a: 0b" + "1" * 500_000, "a number of more than 40 characters"),
    ],
)
def test_yaml_that_takes_long_is_refused(text: str, why: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe:1: {why}"):
        parse_yaml(text, "recipe")


def test_the_size_of_a_dictionary_is_read_from_its_page(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = ["x" * length for length in (1_000, 100, 50_000)]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts * 10}), path, compression="zstd")
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0)
    header = pyarrow.OSFile(str(path)).read_at(24, column.dictionary_page_offset)
    assert arrow_rows._page_size(header) == sum(map(len, texts)) + 4 * 3
    assert arrow_rows._page_size(b"\x16" + header[1:]) is None
    assert arrow_rows._page_size(b"\xff" * 24) is None
