"""A file or folder has its old or its new content, whatever fails; errors of the system are one clear line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spintune.errors import RunError, StorageError
from spintune.storage import (
    atomic_file,
    atomic_folder,
    digest_file,
    digest_json,
    open_unlinked,
    read_json,
    read_json_lines,
    remove_abandoned,
    remove_partials,
    repeated_key,
    storage_errors,
    temporary_sibling,
    write_json,
    write_json_if_changed,
    write_json_lines,
)


class NthCallFails:
    """Stands before functions of ``os``: their n-th call, counted over all of them, fails as on a broken disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, code: int) -> None:
        self.calls, self.n, self.code = 0, n, code
        for name in ("fsync", "rename", "replace", "mkdir", "open"):
            monkeypatch.setattr(os, name, self.counting(getattr(os, name)))

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.n:
                raise OSError(self.code, os.strerror(self.code))
            return function(*args, **options)

        return called


def write_file(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def write_folder(path: Path, content: bytes) -> None:
    with atomic_folder(path) as folder:
        (folder / "a").write_bytes(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_bytes(content)


def content_of(path: Path) -> Any:
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("write", [write_file, write_folder])
@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_a_failure_of_any_call_leaves_the_old_or_the_new_content(
    tmp_path: Path, write: Callable[[Path, bytes], None], existed: bool, code: int
) -> None:
    """The n-th call to the system fails, n = 1, 2, ... until all succeed (crash-test regime, row 3)."""
    write(tmp_path / "old", b"old")
    write(tmp_path / "new", b"new")
    old, new = content_of(tmp_path / "old"), content_of(tmp_path / "new")
    for n in range(1, 100):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        if existed:
            write(folder / "x", b"old")
        with pytest.MonkeyPatch.context() as patch:
            failing = NthCallFails(patch, n, code)
            try:
                write(folder / "x", b"new")
            except StorageError as error:
                assert str(folder / "x") in str(error)
        assert content_of(folder / "x") in ((old, new) if existed else (None, {}, new))
        remove_partials(folder)
        assert [path.name for path in folder.iterdir() if path.name != "x"] == []
        if failing.calls < n:
            assert content_of(folder / "x") == new
            return
    raise AssertionError("a write never succeeded")


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, RunError])
def test_an_exception_in_the_block_passes_and_leaves_nothing(
    tmp_path: Path, write: Any, exception: type[BaseException]
) -> None:
    with pytest.raises(exception), write(tmp_path / "x"):
        raise exception("stop")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_to_be_seen_under_the_name_before_the_block_ends(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as file, atomic_folder(tmp_path / "folder") as folder:
        file.write(b"part")
        (folder / "a").write_bytes(b"part")
        assert not (tmp_path / "file").exists()
        assert not (tmp_path / "folder").exists()


def test_a_folder_replaces_another_one_whole(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "stale").write_text("")
    write_folder(tmp_path / "x", b"new")
    assert content_of(tmp_path / "x") == {"a": b"new", "sub/b": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Files of a browser or of another program may have any name; only names of this module's own making go."""
    foreign = ["film.mkv.partial", "x.partial", ".x.spintune-partial", ".x.0123.spintune-partial", "y.spintune-partial"]
    inside, outside = tmp_path / "run" / "deep", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    for name in foreign:
        (inside / name).write_text("mine")
    left_file, left_folder = (inside / f".{n}.0123456789abcdef.spintune-partial" for n in ("y", "z"))
    left_file.write_text("")
    left_folder.mkdir()
    (left_folder / "junk").write_text("")
    (outside / left_file.name).write_text("mine")
    (inside / "link").symlink_to(outside)
    (inside / f".{'w'}.0123456789abcdef.spintune-partial").symlink_to(outside)
    remove_partials(tmp_path / "run")
    assert sorted(path.name for path in inside.iterdir()) == sorted([*foreign, "link"])
    assert [path.name for path in outside.iterdir()] == [left_file.name]


def test_a_killed_writer_leaves_a_name_that_is_removed(tmp_path: Path) -> None:
    for write in ("atomic_file(Path('x'))", "atomic_folder(Path('x'))", f"atomic_file(Path('{'ü' * 127}'))"):
        imports = "import os; from pathlib import Path; from spintune.storage import *"
        code = f"{imports}\nwith {write}: os.kill(os.getpid(), 9)"
        assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 3
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_of_an_output_is_removed_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    left = [temporary_sibling(out), temporary_sibling(out)]
    left[0].write_text("half")
    left[1].mkdir()
    (left[1] / "file").write_text("half")
    others = [temporary_sibling(tmp_path / "out.jsonl"), tmp_path / ".out.partial"]
    for path in others:
        path.write_text("of something else")
    with atomic_file(out) as file:
        remove_abandoned(out)
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others)
        file.write(b"all")
    assert out.read_bytes() == b"all"
    out.unlink()
    with atomic_folder(out) as folder:
        remove_abandoned(out)
        (folder / "file").write_text("all")
    assert (out / "file").read_text() == "all"


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    """In a folder that others may write, they cannot know the name, and what is there already is not opened."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("x.partial", "run.lock"):
        (tmp_path / name).symlink_to(victim)
    write_file(tmp_path / "x", b"new")
    names = set()
    for _ in range(2):
        with atomic_file(tmp_path / "x"):
            names |= {path.name for path in tmp_path.iterdir() if path.name.endswith("-partial")}
    assert len(names) == 2
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ELOOP))):
        open_unlinked(tmp_path / "run.lock", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_everything_that_is_written_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "file", b"")
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "sub").mkdir()
            os.close(os.open(folder / "sub" / "private", os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert modes == {"file": files, "folder": folders, "sub": folders, "private": files}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_refusal_of_the_system_names_the_path_and_what_to_do(tmp_path: Path, code: int, words: str) -> None:
    for error in (OSError(code, os.strerror(code)), RuntimeError(f"Error: {os.strerror(code)} (os error {code})")):
        with pytest.raises(StorageError) as caught, storage_errors(tmp_path / "x"):
            raise error
        assert str(caught.value).startswith(f"{tmp_path / 'x'}: ")
        assert words in str(caught.value)
        assert str(caught.value).endswith("choose another out=")
        assert "\n" not in str(caught.value)


def test_other_exceptions_are_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storage_errors(tmp_path):
        raise ZeroDivisionError("no (os) error")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=json_values)
def test_json_comes_back_and_its_digest_forgets_the_order_of_keys(value: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    write_json(path, {"value": value})
    assert read_json(path) == {"value": value} == json.loads(path.read_text())
    if isinstance(value, dict):
        assert digest_json(value) == digest_json(dict(reversed(value.items())))


def test_the_digest_of_json_is_sha256_of_its_canonical_form() -> None:
    value = {"b": [1, 2.5, None], "a": "é"}
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest_json(value) == hashlib.sha256(canonical.encode()).hexdigest()


def test_an_unchanged_document_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json_if_changed(path, {"a": 1})
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_json_if_changed(path, {"a": 1})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    write_json_if_changed(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    for content in (b'{"a": ', b"[]", b"3", b"null", b"", b"\x00\x00", b'{"a": "\xff"}', b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(RunError, match=r"x\.json: damaged .* delete it and run again"):
            read_json(tmp_path / "x.json")


@settings(max_examples=50)
@given(
    value=st.dictionaries(st.text(), json_values, min_size=1),
    key=st.text(),
    spaces=st.sampled_from(["", " ", "\n\t"]),
)
def test_a_repeated_key_is_found_and_no_other_text_is_taken_for_one(value: Any, key: str, spaces: str) -> None:
    """Against the standard library, which shows every pair: texts may hold quotes, colons and backslashes."""

    def text(pairs: list[tuple[str, Any]]) -> bytes:
        return ("{" + ",".join(f"{json.dumps(k)}{spaces}:{spaces}{json.dumps(v)}" for k, v in pairs) + "}").encode()

    assert repeated_key(text(list(value.items())), value) is None
    inside = text([("outer", 1), (key, value), (key + '":', 2)])
    assert repeated_key(inside, json.loads(inside)) is None
    first = next(iter(value))
    inner = text([("a", [value]), ("b", 1), ("b", 1)])
    for twice, which in ((text([*value.items(), (first, 0)]), first), (inner, "b")):
        assert repeated_key(twice, json.loads(twice)) == which


def test_a_document_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    """One reader takes the first, another the last: neither is what was written."""
    (tmp_path / "x.json").write_text('{"step": 3, "step": 5}')
    with pytest.raises(RunError, match=r"x\.json: damaged \(the key 'step' occurs twice"):
        read_json(tmp_path / "x.json")


@given(content=st.binary(max_size=3000))
def test_the_digest_of_a_file_is_sha256_of_its_bytes(content: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("digest") / "x"
    path.write_bytes(content)
    assert digest_file(path) == hashlib.sha256(content).hexdigest()


def test_json_lines_come_back_without_a_line_that_is_still_being_written(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_json_lines(path, ({"a": number} for number in range(2)))
    with path.open("ab") as file:
        file.write(b'{"a": ')
    assert read_json_lines(path) == [{"a": 0}, {"a": 1}]
    path.write_bytes(b'{"a": 0}\n{"a": \n')
    with pytest.raises(RunError, match=r"x\.jsonl:2: damaged .* run the recipe again"):
        read_json_lines(path)
