"""Small real things that tests share: a tiny Llama with a trained tokenizer, and the real alias model."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from required_tools import pytest_make_collect_report, pytest_runtest_makereport
from tiny_folders import new_t5_tokenizer, write_llama, write_t5

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]  # hooks, which pytest finds here

# how long an example takes says something about the machine, not about the code
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# a shell that starts the tests in the background has them ignore Ctrl-C, and the commands that they start would too
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


_LONGEST = (
    *("families/test_families", "worlds/test_resume", "worlds/test_selfplay_options", "kernels/test_native"),
    *("plan/test_resident", "crash/test_sample", "worlds/test_synth_served", "evaluation/test_harness"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process ends with one of them while others have nothing."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.with_suffix("").parts[-2:]), len(places)))


def pytest_collection_finish() -> None:
    """What the imports made stays until the end: no later garbage collection need go through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """A flush takes milliseconds, thousands of times, and whether it was made shows only when the power fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, also for the commands they start.

    Models and compiled kernels are the user's, fetched and compiled once: each has its digest in its name.
    """
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spintune"
    folder = tmp_path_factory.mktemp("cache")
    (folder / "spintune").mkdir()
    for name in ("models", "kernels"):
        (users / name).mkdir(parents=True, exist_ok=True)
        (folder / "spintune" / name).symlink_to(users / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "spintune"


@pytest.fixture(scope="session")
def smollm2(cache: Path) -> Path:
    """Folder of the real model behind the alias; fetched on first use."""
    from spintune.models.loading import unpack_alias

    return unpack_alias("smollm2-135m-instruct", cache)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a random two-layer Llama and a byte-level tokenizer with a ChatML template."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def t5_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer built as T5's is: Unigram with its control tokens among the pieces, and </s> after every text."""
    from transformers import T5Tokenizer

    folder = tmp_path_factory.mktemp("tokenizers") / "t5"
    new_t5_tokenizer().save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory, t5_tokenizer: Any) -> Path:
    """A Hugging Face folder: a random FLAN-T5 of two and two layers, whose head is not tied to its embeddings."""
    return write_t5(tmp_path_factory.mktemp("models") / "tiny-t5", t5_tokenizer)


@pytest.fixture(scope="session")
def alpaca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short examples in Alpaca format."""
    words = ["fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow", "pig", "elk"]
    rows = [
        {"instruction": f"Say {word} {count} times.", "input": "", "output": " ".join([word] * count)}
        for word in words
        for count in (1, 2, 3, 4)
    ]
    path = tmp_path_factory.mktemp("data") / "animals.json"
    path.write_text(json.dumps(rows))
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def spintune(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line in this process: ``spintune("run", path, "seed=1")``."""
    from spintune.cli import main

    def execute(*words: object, stdin: str = "") -> Ended:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["spintune", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ending:
            main()
        return Ended(ending.value.code or 0, *capfd.readouterr())

    return execute
