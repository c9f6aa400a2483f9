"""A kept model is what was written, by this user; whatever else lies under its name is made again."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spintune.cached_folders import cached_folder
from spintune.errors import StorageError
from spintune.models import kept
from spintune.models.kept import CHECKED, RECORD, kept_model
from spintune.storage import write_json

SOURCE = {"sha256": "of the original"}
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}


class Making:
    """Writes a small model, and counts how often."""

    calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        for name, content in FILES.items():
            (folder / name).write_bytes(content)


@pytest.fixture
def make() -> Making:
    return Making()


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has checked is forgotten."""
    monkeypatch.setattr(kept, "_checked", {})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (RECORD, CHECKED)}


def test_the_second_time_nothing_is_made_and_nothing_is_hashed(
    tmp_path: Path, make: Making, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kept_model(tmp_path / "models", "m", SOURCE, make)
    assert folder == tmp_path / "models" / "m"
    assert content(folder) == FILES
    monkeypatch.setattr(kept, "digest_file", None)
    assert kept_model(tmp_path / "models", "m", SOURCE, make) == folder
    assert make.calls == 1
    assert caplog.text == ""


def flip(folder: Path) -> None:
    """As long as before, with the times of before."""
    file = folder / "model.safetensors"
    times = file.stat()
    with file.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\xff")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(folder: Path) -> None:
    other = folder.parent / "other"
    other.write_bytes(FILES["model.safetensors"][::-1])
    os.utime(other, ns=(0, (folder / "model.safetensors").stat().st_mtime_ns))
    other.replace(folder / "model.safetensors")


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def lose(folder: Path) -> None:
    (folder / "config.json").unlink()


def add(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


def forge(folder: Path) -> None:
    """What an earlier version believed: any folder with a config.json."""
    for file in folder.iterdir():
        file.unlink()
    (folder / "config.json").write_text('{"forged": true}')


def of_another_source(folder: Path) -> None:
    record = kept.read_json(folder / RECORD)
    write_json(folder / RECORD, {**record, "source": {"sha256": "of another"}})


def broken_record(folder: Path) -> None:
    (folder / RECORD).write_text("{")


def record_of_another_shape(folder: Path) -> None:
    (folder / RECORD).write_text("[1]")


def files_of_another_shape(folder: Path) -> None:
    write_json(folder / RECORD, {"source": SOURCE, "files": 3})


def writable(folder: Path) -> None:
    (folder / "config.json").chmod(0o666)


def writable_folder(folder: Path) -> None:
    folder.chmod(0o777)


def a_link_in_its_place(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def a_file_in_its_place(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.write_text("")


def of_another_user(folder: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give a file to another user")
    os.chown(folder / "model.safetensors", 54321, -1)


@pytest.mark.parametrize(
    "damage",
    [
        *(flip, replace, cut, lose, add, link, forge, of_another_source, broken_record, record_of_another_shape),
        *(files_of_another_shape, writable, writable_folder, a_link_in_its_place, a_file_in_its_place, of_another_user),
    ],
)
def test_what_does_not_match_is_made_again_with_a_line(
    damage: Callable[[Path], None], tmp_path: Path, make: Making, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kept_model(tmp_path / "models", "m", SOURCE, make)
    damage(folder)
    assert kept_model(tmp_path / "models", "m", SOURCE, make) == folder
    assert (make.calls, content(folder)) == (2, FILES)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{folder} ")
    assert record.getMessage().endswith("; it is made again")
    kept_model(tmp_path / "models", "m", SOURCE, make)
    assert make.calls == 2


def test_a_copy_with_other_times_is_hashed_once_and_stays(
    tmp_path: Path, make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept_model(tmp_path / "models", "m", SOURCE, make)
    os.utime(folder / "model.safetensors", (1, 1))
    kept_model(tmp_path / "models", "m", SOURCE, make)
    monkeypatch.setattr(kept, "_checked", {})
    monkeypatch.setattr(kept, "digest_file", None)
    kept_model(tmp_path / "models", "m", SOURCE, make)
    assert make.calls == 1


def test_nobody_else_can_write_what_is_kept(tmp_path: Path, make: Making) -> None:
    before = os.umask(0)
    try:
        folder = kept_model(tmp_path / "models", "m", SOURCE, make)
    finally:
        os.umask(before)
    paths = [folder.parent, folder, *folder.iterdir()]
    assert [path.name for path in paths if path.stat().st_mode & 0o022] == []
    assert all(path.stat().st_mode & 0o044 for path in paths)  # others may read it, as the umask says


def test_a_room_that_others_write_is_closed_and_one_of_theirs_is_left(tmp_path: Path, make: Making) -> None:
    room = tmp_path / "models"
    room.mkdir()
    room.chmod(0o777)
    assert kept_model(room, "m", SOURCE, make).parent == room
    assert room.stat().st_mode & 0o777 == 0o755
    if os.getuid() == 0:
        os.chown(room, 54321, -1)
        assert kept_model(room, "m", SOURCE, make).parent == tmp_path / "models-0"
        assert make.calls == 2


@pytest.mark.parametrize("mine", [True, False])
def test_a_link_to_a_room_is_followed_only_if_it_is_the_users_own(tmp_path: Path, make: Making, mine: bool) -> None:
    if os.getuid() and not mine:
        pytest.skip("only root can give a file to another user")
    (tmp_path / "large disk").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "large disk")
    os.chown(tmp_path / "models", os.getuid() if mine else 54321, -1, follow_symlinks=False)
    folder = kept_model(tmp_path / "models", "m", SOURCE, make)
    assert folder.parent.name == ("models" if mine else "models-0")


def test_a_failure_while_it_is_made_leaves_nothing(tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="disk is full; free some space or set XDG_CACHE_HOME to another folder"):
        kept_model(tmp_path / "models", "m", SOURCE, failing)
    assert not list((tmp_path / "models").iterdir())


def test_what_killed_processes_left_goes_after_a_day(tmp_path: Path, make: Making) -> None:
    old, fresh = (tmp_path / f".m.{digit * 16}.spintune-partial" for digit in "01")
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    os.utime(old, (0, 0))
    kept_model(tmp_path, "m", SOURCE, make)
    assert {path.name for path in tmp_path.iterdir()} == {"m", fresh.name}


def test_while_one_process_replaces_a_folder_no_other_puts_its_own_there(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "damaged").touch()
    refused = []

    def complete(folder: Path) -> bool:
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        refused.append(folder)
        return False

    with cached_folder(tmp_path / "m", complete) as folder:
        (folder / "whole").touch()
    assert refused == [tmp_path / "m"]
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["whole"]


RACER = """
import sys, time
from pathlib import Path
from spintune.models.kept import kept_model

def make(folder):
    for number in range(20):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 10_000)
    (folder / "config.json").write_text("{}")

print("ready", flush=True)
for name in sys.stdin:
    folder = kept_model(Path(sys.argv[1]), name.strip(), {"sha256": "x"}, make)
    print(len(list(folder.glob("*.bin"))), flush=True)
"""


def test_processes_that_make_the_same_model_at_once_all_find_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, bufsize=1) for _ in range(3)]
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 3
    for number in range(12):
        if number % 2:  # a damaged one, which all of them replace
            (tmp_path / f"{number}").mkdir()
            (tmp_path / f"{number}" / "config.json").write_text("{}")
        for racer in racers:
            assert racer.stdin
            racer.stdin.write(f"{number}\n")
            racer.stdin.flush()
        found = [racer.stdout.readline() for racer in racers if racer.stdout]
        assert found == ["20\n"] * 3, [racer.communicate() for racer in racers]
    for racer in racers:
        _, errors = racer.communicate()
        assert "Traceback" not in errors
        assert racer.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(12)))
