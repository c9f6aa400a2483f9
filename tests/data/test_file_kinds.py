"""Every kind of file holds the same rows, and what is damaged or no data is one line that says so."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from data_files import ROW, answers, error, json_lines, numbered, places, read, turns

from spintune.data.file_rows import FileRow
from spintune.data.formats import FORMATS, Conversation, Format, register_format
from spintune.data.sources import Source, read_sources
from spintune.data.tables import rows_of
from spintune.errors import DataError, MissingExtraError
from spintune.records import Message

ROWS = [
    {"instruction": 'Say "hi", twice;\nthen stop.', "output": "hi, hi"},
    {"instruction": "Größe?\tJa.", "input": "x", "output": "5"},
]
EXPECTED = [('Say "hi", twice;\nthen stop.', "hi, hi"), ("Größe?\tJa.\n\nx", "5")]


def table_of(rows: list[dict[str, Any]]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(rows, pyarrow.schema([(key, pyarrow.string()) for key in (*ROW, "input")]))


def cells_of(rows: list[dict[str, str]]) -> list[list[str]]:
    keys = ["instruction", "input", "output"]
    return [keys, *([row.get(key, "") for key in keys] for row in rows)]


def delimited(delimiter: str) -> bytes:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells_of(ROWS)]
    return "\r\n".join(map(delimiter.join, quoted)).encode()


def parquet_of(table: pyarrow.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, **options)
    return stream.getvalue()


def arrow_of(table: pyarrow.Table, new: Callable[..., Any]) -> bytes:
    stream = io.BytesIO()
    with new(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return stream.getvalue()


def feather_of(table: pyarrow.Table) -> bytes:
    stream = io.BytesIO()
    pyarrow.feather.write_feather(table, stream)
    return stream.getvalue()


def workbook_of(**sheets: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


CONTENTS: dict[str, Callable[[], bytes]] = {
    "rows.jsonl": lambda: json_lines(ROWS),
    "rows.ndjson": lambda: json_lines(ROWS),
    "rows.JSONL": lambda: json_lines(ROWS),
    "rows.csv": lambda: delimited(","),
    "bom.csv": lambda: b"\xef\xbb\xbf" + delimited(","),
    "semicolons.csv": lambda: delimited(";"),
    "rows.tsv": lambda: delimited("\t"),
    "rows.xlsx": lambda: workbook_of(data=cells_of(ROWS)),
    "rows.parquet": lambda: parquet_of(table_of(ROWS)),
    "file.arrow": lambda: arrow_of(table_of(ROWS), pyarrow.ipc.new_file),
    "stream.arrow": lambda: arrow_of(table_of(ROWS), pyarrow.ipc.new_stream),
    "rows.feather": lambda: feather_of(table_of(ROWS)),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name]())
    assert turns(tmp_path / name) == EXPECTED


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "file.arrow", "rows.xlsx"])
def test_every_kind_may_be_compressed(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESSED[suffix](CONTENTS[name]()))
    assert turns(path) == EXPECTED


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_compressed_parts_one_after_another_are_all_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(b"".join(COMPRESSED[suffix](json_lines([row])) for row in numbered(1, 2)))
    assert answers(path) == ["1", "2"]
    assert places(path) == [f"{path}:1", f"{path}:2"]


# --- compressed files that are damaged ---


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_cut_compressed_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(COMPRESSED[suffix](json_lines(numbered(*range(5000))))[:-30])
    assert error(path).startswith(f"{path}: damaged or incomplete {suffix} file (")


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0), gzip.compress(b"\n", mtime=0)], ids=repr)
def test_an_empty_compressed_file_is_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    assert error(path) == f"{path}: empty; give a file with at least one row"


def test_a_name_that_wrongly_says_compressed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(json_lines([ROW]))
    assert error(path) == f"{path}: not a .gz file; if it is not compressed, rename it to rows.jsonl"


def test_a_name_that_hides_a_compression_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(json_lines([ROW])))
    assert error(path) == f"{path}: a compressed file; rename it to rows.jsonl.gz"


# --- what takes the place of data ---


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.jsonl.gz", "rows.xlsx"])
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert error(path) == (
        f"{path}: a Git LFS pointer in place of the data; run git lfs pull there, or download the file"
    )


@pytest.mark.parametrize("head", [b"<!DOCTYPE html>", b"\n <html class='x'>", b"\xef\xbb\xbf<HTML>"])
@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "rows.csv"])
def test_a_web_page_is_named(tmp_path: Path, name: str, head: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(head + b"<head></head></html>")
    assert error(path).startswith(f"{path}: a web page (HTML) in place of the data; download the file itself")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv"])
def test_utf16_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("instruction,output\nx,y\n".encode("utf-16"))
    assert error(path) == f"{path}:1: not UTF-8 (byte 0xff); save the file as UTF-8"


@pytest.mark.parametrize(
    ("name", "kind"), [("rows.zip", ".zip"), ("rows.txt", ".txt"), ("rows.gz", ".gz"), ("rows", "rows")]
)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(json_lines([ROW]))
    assert error(tmp_path / name) == (
        f"{tmp_path / name}: '{kind}' is not a supported data file; use .json, .jsonl, .ndjson, .csv, .tsv, .xlsx, "
        ".parquet, .arrow or .feather"
    )


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.feather", "rows.xlsx"])
def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no such file at all")
    assert error(tmp_path / name).startswith(f"{tmp_path / name}: not a readable ")


# --- csv and tsv ---


def csv(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_place_is_the_line_where_a_row_begins(tmp_path: Path) -> None:
    path = csv(tmp_path, 'instruction,output\n"two\nlines",1\n\n,,,\n ,\nb,2\n')
    assert places(path) == [f"{path}:2", f"{path}:7"]


def test_cells_are_verbatim_text_and_empty_ones_missing(tmp_path: Path) -> None:
    path = csv(tmp_path, 'instruction,input,output\r\n007,,1.50\r\n x ," ",true\r\n')
    assert turns(path) == [("007", "1.50"), (" x ", "true")]
    path = csv(tmp_path, "instruction,output\na,\nb,2\n")
    assert error(path) == f"{path}:2: a row without an answer ('output' is missing); fill it in or delete the row"


def test_a_column_without_a_name_is_not_read(tmp_path: Path) -> None:
    path = csv(tmp_path, ",instruction, output \n0,a,1\n1,b,2\n")
    assert [row.values for row in rows_of(path)] == [
        {"instruction": "a", "output": "1"},
        {"instruction": "b", "output": "2"},
    ]


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    assert len(answers(csv(tmp_path, f"question,answer\nq,{'x' * 200_000}\n"))[0]) == 200_000


def test_a_header_is_needed(tmp_path: Path) -> None:
    assert "the rows fit no known format; keys found: What is 2+2?, 4;" in error(csv(tmp_path, "What is 2+2?,4\na,b\n"))


@pytest.mark.parametrize("text", ["", "instruction,output\n", "instruction,output\n,\n"])
def test_a_file_without_rows_is_empty(tmp_path: Path, text: str) -> None:
    path = csv(tmp_path, text)
    assert error(path) == f"{path}: empty; give a file with at least one row"


UNQUOTED = "under a header of 2; quote cells with delimiters or line breaks in them"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,answer,q\n1,2,3\n", "1: two columns are called q; rename or delete one"),
        (
            "question,answer\na,b\nc,1,2\n",
            "3: 3 cells under a header of 2; quote cells with delimiters or line breaks in them",
        ),
        (
            "question,answer\na,b\nc\n",
            "3: 1 cells under a header of 2; quote cells with delimiters or line breaks in them",
        ),
        ('question,answer\na,b\n"c" d,e\n', "3: not valid CSV (',' expected after '\"'); fix or delete it"),
        ('question,answer\na,b\n"c,d\ne,f\n', "3: a quoted cell that begins here is never closed; close it"),
        (b"question,answer\na,b\ncaf\xe9,d\n", "3: not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ],
)
def test_a_damaged_csv_is_an_error_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = csv(tmp_path, text)
    assert error(path) == f"{path}:{message}"


def test_a_damaged_csv_row_may_be_dropped_and_the_next_is_read(tmp_path: Path) -> None:
    path = csv(tmp_path, b'question,answer\na,1\n"c" d,e\ncaf\xe9,d\nc,1,2\n"x\ny",2\n')
    result = read(path, on_bad_row="drop")
    assert [example.source for example in result.examples] == [f"{path}:2", f"{path}:6"]
    assert result.dropped == {"bad_cells": 2, "not_utf8": 1}


# --- xlsx ---


def xlsx(folder: Path, **sheets: list[list[Any]]) -> Path:
    path = folder / "rows.xlsx"
    path.write_bytes(workbook_of(**sheets))
    return path


def test_cells_of_a_sheet_become_the_text_that_it_shows(tmp_path: Path) -> None:
    values = [3.0, 3, 0.1 + 0.2, -2.5, 1e20, True, datetime.datetime(2024, 5, 1), datetime.date(2024, 5, 1),
              datetime.datetime(2024, 5, 1, 13, 30), datetime.time(9, 5), "007", "a_x000D_\nb", " x "]  # fmt: skip
    expected = ["3", "3", "0.3", "-2.5", "1e+20", "TRUE", "2024-05-01", "2024-05-01",
                "2024-05-01 13:30:00", "09:05:00", "007", "a\r\nb", " x "]  # fmt: skip
    path = xlsx(tmp_path, data=[["question", "answer"], *([f"q{place}", value] for place, value in enumerate(values))])
    assert answers(path) == expected


def test_places_are_rows_of_the_sheet(tmp_path: Path) -> None:
    path = xlsx(
        tmp_path, data=[[], ["question", None, "answer", "note"], ["a", 7, "b"], [None], ["c", None, None, "d"]]
    )
    assert error(path) == f"{path}: row 5: a row without an answer ('answer' is missing); fill it in or delete the row"
    assert [row.values for row in rows_of(path)] == [{"question": "a", "answer": "b"}, {"question": "c", "note": "d"}]


def test_one_of_several_sheets_has_to_be_named(tmp_path: Path) -> None:
    sheets = {"old": [["question", "answer"], ["a", "1"]], "new": [["question", "answer"], ["a", "2"]], "blank": [[]]}
    path = xlsx(tmp_path, **sheets)
    assert error(path) == f"{path}: holds several sheets; choose one by config: old, new"
    assert error(path, config="nw") == f"{path}: has no sheet nw; config may be: old, new, blank"
    assert answers(path, config="new") == ["2"]
    assert error(path, config="blank") == f"{path}: empty; give a file with at least one row"


def test_a_blank_workbook_is_empty(tmp_path: Path) -> None:
    path = xlsx(tmp_path, data=[])
    assert error(path) == f"{path}: empty; give a file with at least one row"


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("the name _xD83D_ of 2024", "the name \N{REPLACEMENT CHARACTER} of 2024"),
        ("_xD83D__xDE00_", "\N{GRINNING FACE}"),
    ],
)
def test_half_of_an_escaped_pair_is_no_character(tmp_path: Path, cell: str, text: str) -> None:
    """U+1F600 is D83D DE00 in UTF-16. openpyxl escapes no underscore, so cells stand in the file as they are here."""
    path = xlsx(tmp_path, data=[["question", "answer"], ["q", cell]])
    assert answers(path) == [text]


def test_xlsx_without_openpyxl_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = xlsx(tmp_path, data=[["question", "answer"], ["a", "1"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtraError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: .xlsx files need openpyxl; pip install 'spintune[xlsx]', or save the sheet as .csv"
    )


@pytest.mark.parametrize("value", [datetime.datetime(2024, 5, 1), b"\xff"])
def test_tools_that_json_cannot_hold_are_the_rows_error(tmp_path: Path, value: object) -> None:
    path = tmp_path / "rows.parquet"
    tool = {"name": "look", "parameters": {"since": value}}
    good, bad = [{"prompt": "Hi", "completion": "Hello", "tools": tools} for tools in ([], [tool])]
    path.write_bytes(parquet_of(pyarrow.Table.from_pylist([good, bad])))
    with pytest.raises(DataError, match=r"rows\.parquet: row 2: tools 1: cannot be written as JSON \(Object of type "):
        read_sources([Source(str(path))], 0)
    assert read_sources([Source(str(path), on_bad_row="drop")], 0).dropped == {"wrong_type": 1}


# --- parquet and arrow: only needed columns are decoded ---

OFFSETS, BYTES = b"\0\0\0\0\1\0\0\0\2\0\0\0", b"\xffx"
UNDECODABLE = {
    "far": pyarrow.array([10**14, 1], pyarrow.timestamp("s")),
    "zone": pyarrow.array([1, 2], pyarrow.timestamp("s", tz="Mars/Olympus")),
    "text": pyarrow.StringArray.from_buffers(2, pyarrow.py_buffer(OFFSETS), pyarrow.py_buffer(BYTES)),
}


def with_column(name: str, values: pyarrow.Array) -> pyarrow.Table:
    return pyarrow.table({"ask": ["a", "b"], "reply": ["1", "2"]}).append_column(name, values)


WRITERS: dict[str, Callable[[pyarrow.Table], bytes]] = {
    "rows.parquet": parquet_of,
    "rows.arrow": lambda table: arrow_of(table, pyarrow.ipc.new_file),
}


@pytest.fixture
def asked() -> Iterator[None]:
    def conversations(row: FileRow) -> Iterator[Conversation]:
        yield Message("user", row.text("ask", "a prompt")), Message("assistant", row.text("reply", "an answer"))

    register_format(Format("asked", (("ask", "reply"),), conversations, frozenset(("ask", "reply"))))
    yield
    FORMATS.unregister("asked")


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("column", UNDECODABLE)
@pytest.mark.parametrize("name", WRITERS)
def test_a_column_that_nobody_needs_is_not_decoded(tmp_path: Path, name: str, column: str) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](with_column(column, UNDECODABLE[column])))
    assert turns(tmp_path / name) == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize("name", WRITERS)
def test_a_needed_column_that_cannot_be_decoded_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    table = pyarrow.table({"question": UNDECODABLE["text"].take([1, 0]), "answer": ["1", "2"]})
    path = tmp_path / name
    path.write_bytes(WRITERS[name](table))
    with pytest.raises(DataError) as caught:
        read(path)
    start = f"{path}: row 2: 'question' cannot be decoded (UnicodeDecodeError: "
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith("); fix or delete the row")
    result = read(path, on_bad_row="drop")
    assert (answers(path, on_bad_row="drop"), result.dropped) == (["1"], {"undecodable": 1})


@pytest.mark.parametrize("name", WRITERS)
def test_lists_of_objects_are_whole(tmp_path: Path, name: str) -> None:
    turns_ = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    table = pyarrow.Table.from_pylist([{"id": 1, "messages": turns_}, {"id": 2, "messages": turns_[::-1] + turns_}])
    path = tmp_path / name
    path.write_bytes(WRITERS[name](table))
    assert [[(m.role, m.content) for m in one.messages][-2:] for one in read(path).examples] == [
        [("user", "Hi"), ("assistant", "Hello")]
    ] * 2


def test_a_column_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["answer", "answer"])
    path.write_bytes(parquet_of(table))
    assert error(path) == f"{path}: two columns are called answer; rename or delete one"


def test_rows_of_many_batches_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet_of(pyarrow.Table.from_pylist(numbered(*range(2345))), row_group_size=700))
    assert answers(path) == [str(number) for number in range(2345)]
    assert places(path)[-1] == f"{path}:2345"


# --- one line of JSON ---


def test_a_row_alone_in_its_file_keeps_its_nested_list(tmp_path: Path) -> None:
    row = {"history": [{"question": "old", "answer": "older"}], "question": "new", "answer": "newer"}
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json_lines([row]))
    assert [found.values for found in rows_of(path)] == [row]
    path.write_bytes(json_lines([{"history": row["history"], "q": "new", "a": "newer"}]))
    assert "keys found: history, q, a;" in error(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_row_of_one_list_is_a_row_where_columns_name_the_list(tmp_path: Path, name: str) -> None:
    turns = [{"role": "user", "content": "new"}, {"role": "assistant", "content": "newer"}]
    path = tmp_path / name
    path.write_bytes(json_lines([{"dialog": turns}]))
    assert answers(path, columns={"messages": "dialog"}) == ["newer"]
    path.write_bytes(json_lines([{"made": {"dialog": turns}}]))
    assert answers(path, columns={"messages": "made.dialog"}) == ["newer"]
    path.write_bytes(json_lines([{"rows": [{"ask": "old", "say": "older"}]}]))
    assert answers(path, columns={"prompt": "ask", "response": "say"}) == ["older"]


def test_a_broken_first_line_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'{"question": \n' + json_lines([{"question": "a", "answer": "b"}]))
    assert error(path).startswith(f"{path}:1: not valid JSON (")
    assert places(path, on_bad_row="drop") == [f"{path}:2"]


def test_a_column_without_a_use_is_counted_once_for_each_row_that_has_it(tmp_path: Path) -> None:
    path = csv(tmp_path, "instruction,output,ticket\na,b,1\nc,d,2\ne,f,\n")
    assert read(path).ignored == {"ticket": 2}
