"""Folders, patterns, saved data sets, addresses and the hub: what is read, and what is said about the rest."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from data_files import ROW, Notes, answers, error, json_lines, numbered, places, read, write_files

from spintune.data import sources
from spintune.data.sources import Source
from spintune.data.tables import RowTable, rows_of, source_digest
from spintune.data.tables.arrow_rows import _streamed
from spintune.data.tables.hub import hub_table
from spintune.errors import DataError


def lines(*numbers: int) -> bytes:
    return json_lines(numbered(*numbers))


# --- folders ---


def test_a_folder_is_its_data_files_by_name(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "b.jsonl": lines(2),
            "a/z.csv": b"instruction,output\nSay 1.,1\n",
            "c.json": b"[" + lines(3).strip() + b"]",
            "empty.jsonl": b"",
            "README.md": b"# Data",
            "dataset_infos.json": b"{}",
            "notes.txt": b"x",
            ".git/d.jsonl": lines(9),
            "__MACOSX/b.jsonl": lines(9),
            ".hidden.jsonl": lines(9),
        },
    )
    notes = Notes()
    assert [example.answer for example in read(tmp_path, notes).examples] == ["1", "2", "3"]
    assert places(tmp_path) == [f"{tmp_path}/a/z.csv:2", f"{tmp_path}/b.jsonl:1", f"{tmp_path}/c.json:1"]
    assert notes.lines == [f"{tmp_path}: reads 4 of 7 files, not README.md, dataset_infos.json, notes.txt"]
    assert [row.values["output"] for row in rows_of(tmp_path)] == ["1", "2", "3"]


def test_errors_and_counts_of_a_folder_name_the_files(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": lines(1, 2) + b"{\n", "b.jsonl": lines(1, 3)})
    assert error(tmp_path).startswith(f"{tmp_path}/a.jsonl:3: not valid JSON (")
    result = read(tmp_path, on_bad_row="drop")
    assert (result.read, result.dropped) == (5, {"invalid_json": 1, "duplicate": 1})


def test_a_folder_whose_names_tell_splits_gives_one_of_them(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "data/train-00000-of-00002.jsonl": lines(1),
            "data/train-00001-of-00002.jsonl": lines(2),
            "data/test-00000-of-00001.jsonl": lines(3),
            "data/dev.jsonl": lines(4),
        },
    )
    notes = Notes()
    assert [example.answer for example in read(tmp_path, notes).examples] == ["1", "2"]
    told = "reads 2 of 4 files (split train), not dev.jsonl, test-00000-of-00001.jsonl"
    assert notes.lines == [f"{tmp_path}: {told}"]
    assert (answers(tmp_path, split="test"), answers(tmp_path, split="validation")) == (["3"], ["4"])
    assert answers(tmp_path, split="dev") == ["4"]
    expected = f"{tmp_path}: has no files of split other; set split to one of: dev, test, train"
    assert error(tmp_path, split="other") == expected


def test_a_split_is_the_whole_name_before_the_number_of_a_shard(tmp_path: Path) -> None:
    names = ("train_sft-00000-of-00002", "train_sft-00001-of-00002-a09b74b3ef9c3b56", "train_gen-00000-of-00001",
             "test_sft-00000-of-00001")  # fmt: skip
    write_files(tmp_path, {f"data/{name}.jsonl": lines(number) for number, name in enumerate(names)})
    assert answers(tmp_path, split="train_sft") == ["0", "1"]
    assert answers(tmp_path, split="train-gen") == ["2"]
    assert answers(tmp_path, split="test") == ["3"]
    assert error(tmp_path, split="train") == (
        f"{tmp_path}: has several splits train; set split to one of: train_gen, train_sft, or give a pattern"
    )
    write_files(tmp_path, {"data/train-00000-of-00001.jsonl.gz": gzip.compress(lines(4))})
    assert answers(tmp_path, split="train") == ["4"]


def test_a_split_in_several_folders_is_several_data_sets(tmp_path: Path) -> None:
    for number, name in enumerate(("main", "socratic")):
        shards = [f"{name}/{split}-00000-of-00001.jsonl" for split in ("train", "test")]
        write_files(tmp_path, dict.fromkeys(shards, lines(number)))
    assert error(tmp_path) == (
        f"{tmp_path}: has split train in several folders (main, socratic); give one of them, or a pattern"
    )
    assert answers(tmp_path / "socratic") == ["1"]
    assert answers(f"{tmp_path}/*/train*") == ["0", "1"]
    write_files(tmp_path / "parts", {"train/a.jsonl": lines(1), "train/b/c.jsonl": lines(2), "train-2.jsonl": lines(3)})
    assert answers(tmp_path / "parts") == ["1", "2", "3"]


def test_a_folder_above_does_not_tell_the_split(tmp_path: Path) -> None:
    write_files(tmp_path / "test", {"trainer.jsonl": lines(1)})
    assert answers(tmp_path / "test") == ["1"]


def test_files_of_a_folder_share_a_format(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": lines(1), "b.jsonl": json_lines([{"question": "a", "answer": "b"}])})
    assert error(tmp_path) == (
        f"{tmp_path}/b.jsonl: its rows have the format qa, those of {tmp_path}/a.jsonl alpaca; make them two sources"
    )


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    kinds = ".json, .jsonl, .ndjson, .csv, .tsv, .xlsx, .parquet, .arrow or .feather"
    assert error(tmp_path) == f"{tmp_path}: holds no data file; give {kinds} files"
    write_files(tmp_path, {"README.md": b"x", "a.zip": b"x"})
    assert error(tmp_path) == f"{tmp_path}: holds no data file (it has README.md, a.zip); give {kinds} files"


def test_a_folder_of_empty_files_is_empty(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": b"", "b.jsonl": b"\n"})
    assert error(tmp_path) == f"{tmp_path}: empty; give a file with at least one row"


# --- patterns ---


def test_a_pattern_is_the_data_files_that_it_matches(tmp_path: Path) -> None:
    rows = {"b1.jsonl": lines(2), "a1.jsonl": lines(1), "c.jsonl": lines(3), "s/e.jsonl": lines(4)}
    write_files(tmp_path, {**rows, "d1.md": b"x"})
    notes = Notes()
    assert [example.answer for example in read(f"{tmp_path}/*1.*", notes).examples] == ["1", "2"]
    assert notes.lines == [f"{tmp_path}/*1.*: reads 2 of 3 files, not d1.md"]
    assert answers(f"{tmp_path}/[ab]1.jsonl") == ["1", "2"]
    assert answers(f"{tmp_path}/**/*.jsonl") == ["1", "2", "3", "4"]
    assert error(f"{tmp_path}/*.csv") == f"no file matches {tmp_path}/*.csv; check the pattern"
    assert error(f"{tmp_path}/*.md").startswith(f"{tmp_path}/*.md: holds no data file (it has d1.md); give ")


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"rows [1].jsonl": lines(1)})
    assert answers(tmp_path / "rows [1].jsonl") == ["1"]


# --- digests ---


def test_a_digest_covers_every_file_that_is_read(tmp_path: Path) -> None:
    write_files(tmp_path / "data", {"a.jsonl": lines(1), "train/b.jsonl": lines(2), "README.md": b"x"})
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "train.jsonl")
    folder, pattern = str(tmp_path / "data"), f"{tmp_path}/data/*.jsonl"

    def digests() -> list[str | None]:
        return [source_digest(folder), source_digest(pattern)]

    first = digests()
    write_files(tmp_path / "data", {"README.md": b"y", "test.csv": b"x"})
    assert digests() == first
    write_files(tmp_path / "data", {"train/b.jsonl": lines(3)})
    second = digests()
    assert (second[0] != first[0], second[1]) == (True, first[1])
    write_files(tmp_path / "data", {"train-2.jsonl": lines(4)})
    assert all(one != other for one, other in zip(digests(), second, strict=True))
    moved = Path(shutil.copytree(tmp_path / "data", tmp_path / "moved"))
    assert source_digest(str(moved)) == source_digest(folder)
    assert source_digest("owner/name") is None


# --- save_to_disk ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    alone = datasets.Dataset.from_list(numbered(1, 2, 3)).filter(lambda row: row["output"] != "2")
    alone.save_to_disk(folder / "alone")
    both = {"train": datasets.Dataset.from_list(numbered(1, 2)), "extra": datasets.Dataset.from_list(numbered(3))}
    datasets.DatasetDict(both).save_to_disk(folder / "both")
    datasets.Dataset.from_list([{"id": 1, "messages": turns}]).save_to_disk(folder / "chats")
    return folder


def test_a_saved_data_set_is_read(saved: Path) -> None:
    assert answers(saved / "alone") == ["1", "3"]
    assert places(saved / "alone") == [f"{saved}/alone:1", f"{saved}/alone:2"]
    assert [message.content for message in read(saved / "chats").examples[0].messages] == ["Hi", "Hello"]


def test_a_split_of_saved_data_sets_is_read(saved: Path) -> None:
    assert (answers(saved / "both"), answers(saved / "both", split="extra")) == (["1", "2"], ["3"])
    expected = f"{saved}/both: has no split test; set split to one of: train, extra"
    assert error(saved / "both", split="test") == expected


def test_a_damaged_saved_data_set_is_an_error(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "alone", tmp_path / "alone")
    for file in folder.glob("*.arrow"):
        file.write_bytes(b"no such data")
    assert error(folder).startswith(f"{folder}: not a readable folder of save_to_disk (")


def test_the_digest_of_a_saved_data_set_follows_its_content(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "alone", tmp_path / "alone"))
    assert source_digest(str(folder)) == source_digest(str(saved / "alone"))
    next(folder.glob("*.arrow")).write_bytes(b"x")
    assert source_digest(str(folder)) != source_digest(str(saved / "alone"))


# --- the hub ---


def test_a_data_set_with_configurations_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write_files(
        tmp_path / "hub",
        {
            "README.md": b"---\nconfigs:\n- config_name: main\n  data_files: a.jsonl\n"
            b"- config_name: socratic\n  data_files: b.jsonl\n---\n",
            "a.jsonl": lines(1),
            "b.jsonl": lines(2),
        },
    )
    # the datasets library finds configurations in a folder as it does on the hub
    with pytest.raises(DataError) as caught:
        hub_table(str(folder), "train", None)
    names = "set config to one of: main, socratic"
    assert str(caught.value) == f"{folder}: the data set has several configurations; {names}"
    with pytest.raises(DataError) as caught:
        hub_table(str(folder), "train", "man")
    assert str(caught.value) == f"{folder}: the data set has no configuration man; {names}"


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("hf://datasets/tatsu-lab/alpaca/data/a.parquet", "give a hub data set by its name, tatsu-lab/alpaca, or"),
        ("hf://datasets/tatsu-lab/alpaca@main/a.parquet", "give a hub data set by its name, tatsu-lab/alpaca, or"),
        ("https://huggingface.co/datasets/tatsu-lab/alpaca", "give a hub data set by its name, tatsu-lab/alpaca, or"),
        ("https://example.com/rows.jsonl", "data is not read from addresses; download the file and give its path"),
        ("s3://bucket/rows.jsonl", "data is not read from addresses; download the file and give its path"),
    ],
)
def test_an_address_is_an_error_that_says_what_to_give(address: str, advice: str) -> None:
    assert error(address).startswith(f"{address}: {advice}")


# --- what cannot be ---


@pytest.mark.parametrize("name", ["rows.jsonl", "builtin:seeds", "", "*.jsonl"])
def test_a_config_that_would_do_nothing_is_an_error(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {"rows.jsonl": json_lines([ROW])})
    path = name if name.startswith("builtin:") else str(tmp_path / name)
    assert error(path, config="main").startswith(f"{path}: config is for hub data sets and .xlsx files; leave it out")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/rows.jsonl", "x" * 300 + "/rows.jsonl"])
def test_a_path_that_cannot_be_is_one_line(path: str) -> None:
    assert error(path).startswith(f"{path}: cannot be read (")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_stream_gives_the_rows_of_a_download(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    folder.mkdir()
    for shard in range(3):
        rows = [{"instruction": f"q{shard}-{n}", "output": "a" * n, "kind": n} for n in range(1, 8)]
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"train-{shard}.parquet", 3)
        else:
            (folder / f"train-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # no hub is asked here: the datasets library streams a folder's files as it does a hub's
    stream, download = (hub_table(str(folder), "train", None, stream) for stream in (True, False))
    assert (stream.columns, stream.streamed, stream.total) == (download.columns, True, math.inf)
    for keys in (None, frozenset({"output", "instruction"})):
        assert list(stream.rows(keys)) == list(download.rows(keys))
    assert stream.sample(2) == download.sample(2)


def test_a_stream_ends_soon_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def rows(keys: frozenset[str] | None) -> Iterator[tuple[int, object]]:
        for number in range(1, 10_001):
            read.append(number)
            yield number, {"instruction": f"q{number // 2}", "output": "a"}

    table = RowTable("owner/name", rows, math.inf, streamed=True)
    monkeypatch.setattr(sources, "open_tables", lambda *arguments: [lambda: table])
    result = sources.read_source(Source("owner/name", stream=True, limit=20))
    assert len(result.examples) == 20
    assert len(result.examples) + result.dropped.total() == result.read < 100
    assert len(read) < 200


def test_only_a_hub_data_set_streams(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(3))
    for one in (str(path), str(tmp_path), "builtin:seeds"):
        with pytest.raises(DataError, match="stream is for hub data sets; files are read a piece at a time"):
            sources.read_source(Source(one, stream=True))


def test_a_stream_that_breaks_off_is_one_line() -> None:
    def broken() -> Iterator[None]:
        raise ConnectionError("the hub is gone\nand more")
        yield

    with pytest.raises(DataError, match=r"^owner/name: the stream broke off \(ConnectionError: the hub is gone\); run"):
        next(_streamed("owner/name", broken()))
