"""The page in a real browser while a real run goes on, and how the command ends."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from event_stream import Stream
from tiny_folders import write_llama

from spintune.watch import run as watched

pytestmark = pytest.mark.slow
needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("google-chrome")), reason="chromium is not installed"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    place = Path(__file__).parents[1] / "report" / "browser.py"
    spec = importlib.util.spec_from_file_location("browser", place)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Browser(tmp_path / "profile") as one:
        yield one


def command(*words: str) -> subprocess.Popen[str]:
    told = [sys.executable, "-m", "spintune", *words]
    return subprocess.Popen(told, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def watching(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The command, and the address that it prints."""
    process = command("watch", str(folder))
    assert process.stdout
    line = process.stdout.readline()
    return process, line.split(" at ")[1].split()[0]


def recipe(folder: Path) -> Path:
    """A run of a tiny model, of some seconds."""
    rows = [
        {"instruction": f"My lamp {n} is dark. What now?", "output": f"Turn lamp {n} off and on again."}
        for n in range(80)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {write_llama(folder / 'model')}\nout: {folder / 'run'}\n"
        f"data: {{train: {{path: {folder / 'data.jsonl'}}}, eval_fraction: 0.5, max_length: 96}}\n"
        "sft: {epochs: 3, learning_rate: 1e-3, tokens_per_step: 256, eval_every: 5}\n"
        "spin: {iterations: 1, pairs_per_step: 8, max_new_tokens: 8, learning_rate: 1e-4, baseline: none}\n"
    )
    return path


@needs_chromium
def test_a_run_is_drawn_while_it_goes_on_and_its_report_at_the_end(tmp_path: Path, browser: Any) -> None:
    path, out = recipe(tmp_path), tmp_path / "run"
    process, address = watching(out)
    try:
        browser.look(1280)
        browser.go(address)
        browser.wait("document.body.textContent.includes('no run has begun here yet')")
        browser.run("window.first = true")
        seen = []
        run = command("run", str(path))
        while run.poll() is None:
            seen.append(browser.run("document.querySelector('.status').textContent"))
            time.sleep(0.2)
        assert run.returncode == 0
        assert any("running: stage" in text for text in seen), set(seen)
        browser.wait("document.querySelector('.status').textContent === 'finished'")
        for part in (
            "#curves polyline",
            "#samples .answers",
            "#comparison table",
            "#answers .example",
            ".stages .done",
        ):
            browser.wait(f"document.querySelector('{part}') !== null")
        assert browser.run("window.first") is True  # the page was never loaded again
        assert browser.run("document.querySelectorAll('.stages li:not(.done)').length") == 0
        browser.run("document.getElementById('search').value = 'lamp 7'")
        browser.run("document.getElementById('search').dispatchEvent(new Event('input'))")
        browser.wait("document.getElementById('count').textContent.includes(' of ')")
        assert [text for text in browser.complaints if "asked for http://127.0.0.1" not in text] == []
    finally:
        process.kill()
        process.wait()
    browser.wait("!document.getElementById('line').hidden")


def test_an_open_page_goes_on_with_a_run_that_is_killed_and_begun_again(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "SILENT_SECONDS", 2.0)
    path, out = recipe(tmp_path), tmp_path / "run"
    site = serve(out)
    stream = Stream(site.get("/events"))
    stream.wait("head", "no run has begun here yet")
    words = ("run", str(path), "sft.epochs=15")
    killed = command(*words)
    stream.wait("head", "running: stage")
    stream.wait("curves", "<polyline")
    killed.kill()
    killed.wait()
    assert not (out / "sft/done.json").exists()  # it was in the middle of SFT
    stream.wait("head", "killed, or its machine is gone")
    again = command(*words)
    try:
        stream.wait("head", "running: stage")
        stream.wait("head", "finished")
        assert again.wait(60) == 0
    finally:
        again.kill()
        again.wait()
    new = Stream(site.get("/events"))
    for name, text in {"head": "finished", "curves": "Self-play, iterate by iterate"}.items():
        stream.wait(name, new.wait(name, text))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_also_with_open_streams(tmp_path: Path, number: int) -> None:
    process, address = watching(tmp_path)
    streams = [urllib.request.urlopen(f"{address}events", timeout=60) for _ in range(3)]
    for stream in streams:
        assert stream.readline()
    process.send_signal(number)
    assert process.wait(30) == 0
    for stream in streams:
        stream.close()
    assert list(tmp_path.iterdir()) == []
