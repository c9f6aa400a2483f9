"""A teacher by script, its replies on disk, and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spintune.synthesis.examples import SeedTask
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Failure, Reply, Request
from spintune.teachers.replies import Replies
from spintune.teachers.scripted import ScriptedTeacher

Script = Callable[[Request], str | Reply | Failure]


@pytest.fixture
def replies(tmp_path: Path) -> Iterator[Replies]:
    with Replies(tmp_path / "replies.sqlite") as file:
        yield file


@pytest.fixture
def teacher_of(replies: Replies) -> Callable[[Script], CachedTeacher]:
    return lambda script: CachedTeacher(ScriptedTeacher(script, "script"), replies)


@pytest.fixture
def seeds() -> list[SeedTask]:
    """Ten of no common words."""
    words = ["amber", "bronze", "cedar", "dusk", "ember", "flint", "garnet", "hazel", "indigo", "jade"]
    return [
        SeedTask(f"seed-{w}", f"{w}1 {w}2 {w}3 {w}4", f"in {w}", f"out {w}", i % 3 == 0) for i, w in enumerate(words)
    ]
