"""The replies of teachers, stored on disk so that nothing is asked or paid twice."""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import orjson

from spintune.errors import RunError, StorageError, TeacherError
from spintune.storage import digest_json, storage_errors
from spintune.teachers.protocol import Failure, Outcome, Reply, Request, Teacher, Usage, usage_of

_FORMAT = 1
_BUSY_SECONDS = 60


class Replies:
    """A file of outcomes by teacher and request, with the totals of each teacher. A path of None keeps it in memory.

    Every outcome is one SQLite transaction in write-ahead mode: a killed process loses no outcome that it stored, and
    several processes may share the file. A power cut leaves the file whole but may cost the last few outcomes: an fsync
    for each would take longer than many a teacher's answer.

    Raises:
        RunError: the file is damaged, of another kind or version, or locked by another process.
        StorageError: the disk is full, read-only or out of reach.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._database = sqlite3.connect(path or ":memory:", timeout=_BUSY_SECONDS, isolation_level="IMMEDIATE")
        try:
            with self._errors():
                self._open()
        except BaseException:
            self._database.close()
            raise

    def _open(self) -> None:
        self._database.execute("PRAGMA synchronous = NORMAL")
        # checked before writing: a file of another kind must stay as it is
        if (found := self._format()) == 0:
            self._database.execute("PRAGMA journal_mode = WAL")
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS outcomes"
                    " (key TEXT PRIMARY KEY, outcome BLOB NOT NULL, checksum INTEGER NOT NULL)"
                )
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS spent (teacher TEXT PRIMARY KEY, requests INTEGER NOT NULL,"
                    " prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)"
                )
                self._database.execute(f"PRAGMA user_version = {_FORMAT}")
        elif found != _FORMAT:
            raise RunError(f"{self.path}: not a file of replies that this version can read; choose another out=")

    def _format(self) -> int:
        """Version of the file's layout; 0 for a new file, -1 for a file of another kind."""
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not version and not tables:
            return 0
        return int(version) if {"outcomes", "spent"} <= tables else -1

    def find(self, key: str) -> Outcome | None:
        """The outcome stored under a :func:`request_key`, or None."""
        with self._errors():
            row = self._database.execute("SELECT outcome, checksum FROM outcomes WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if _checksum(key, row[0]) != row[1]:
            raise RunError(self._damaged("a checksum is wrong"))
        kind, value = orjson.loads(row[0])
        if kind != "reply":
            return Failure(**value)
        return Reply(**{**value, "left_out": tuple(value.get("left_out", ()))})

    def add(self, identity: Mapping[str, object], usage: Usage, outcomes: Iterable[tuple[str, Outcome]] = ()) -> None:
        """Stores outcomes under their keys, and adds to what the teacher was asked: both or neither."""
        rows = []
        for key, outcome in outcomes:
            kind = "reply" if isinstance(outcome, Reply) else "failure"
            value = orjson.dumps([kind, outcome])
            rows.append((key, value, _checksum(key, value)))
        totals = (digest_json(identity), usage.requests, usage.prompt_tokens, usage.completion_tokens)
        with self._errors(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", rows)
            self._database.execute(
                "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (teacher) DO UPDATE SET"
                " requests = requests + excluded.requests,"
                " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                " completion_tokens = completion_tokens + excluded.completion_tokens",
                totals,
            )

    def spent(self, identity: Mapping[str, object]) -> Usage:
        """What a teacher was asked, by every process that used this file.

        It leaves out requests that were under way when a process was killed or gave up: nobody knows their cost.
        """
        with self._errors():
            row = self._database.execute(
                "SELECT requests, prompt_tokens, completion_tokens FROM spent WHERE teacher = ?",
                (digest_json(identity),),
            ).fetchone()
        return Usage(*row) if row else Usage()

    def close(self) -> None:
        """Closes the file."""
        with self._errors():
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _damaged(self, how: object) -> str:
        return f"{self.path}: damaged ({how}); restore it, or delete it to ask, and pay, all its requests again"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns SQLite's errors into RunError and StorageError."""
        try:
            yield
        except sqlite3.ProgrammingError:  # ours, not the file's
            raise
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise RunError(f"{self.path}: another process keeps it locked; end it and run again") from error
            raise StorageError(f"{self.path}: {error}; free some space or choose another out=") from error
        except sqlite3.DatabaseError as error:
            raise RunError(self._damaged(error)) from error


def _checksum(key: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key.encode()))


def request_key(identity: Mapping[str, object], request: Request) -> str:
    """The key under which a teacher's outcome is stored."""
    return digest_json({"teacher": identity, "request": request.to_json()})


def answer(
    teacher: Teacher,
    replies: Replies,
    requests: Sequence[Request],
    on_outcome: Callable[[Request, Outcome], None] = lambda request, outcome: None,
) -> list[Outcome]:
    """The outcomes in the order of the requests: stored ones from the file, the others from the teacher.

    Equal requests are asked once. A reply is on disk before ``on_outcome`` sees it; whatever ends the call
    (TeacherError, BudgetError, an interrupt), the replies before it are kept.

    A failure is final, and stored, once a reply came after it in the same call or the call ended without an exception:
    a run that starts again then meets the same outcomes and takes the same path. Failures at the end of a call that
    broke off say more about the teacher than about the requests. Their requests are asked again, and what they used
    counts in any case.

    Args:
        on_outcome: called for every distinct request, stored outcomes first.
    """
    identity = teacher.identity
    keys = [request_key(identity, request) for request in requests]
    distinct = dict(zip(keys, requests, strict=True))
    outcomes: dict[str, Outcome] = {}
    for key, request in distinct.items():
        if (known := replies.find(key)) is not None:
            outcomes[key] = known
            on_outcome(request, known)
    missing = [key for key in distinct if key not in outcomes]
    failures: list[tuple[str, Outcome]] = []
    with _asked(teacher, [distinct[key] for key in missing]) as coming:
        for index, outcome in coming:
            key = missing[index]
            request = distinct[key]
            outcomes[key] = outcome
            usage = usage_of(request, outcome)
            if isinstance(outcome, Failure):
                replies.add(identity, usage)
                failures.append((key, outcome))
            else:
                replies.add(identity, usage, [*failures, (key, outcome)])
                failures.clear()
            on_outcome(request, outcome)
    if failures:
        replies.add(identity, Usage(), failures)
    if unanswered := len(distinct) - len(outcomes):
        raise TeacherError(f"{teacher.name} yielded no outcome for {unanswered} of {len(missing)} requests; correct it")
    return [outcomes[key] for key in keys]


@contextlib.contextmanager
def _asked(teacher: Teacher, requests: Sequence[Request]) -> Iterator[Iterable[tuple[int, Outcome]]]:
    """The teacher's outcomes. At the end, a generator is closed, which cancels requests under way."""
    coming = teacher.ask(requests)
    try:
        yield coming
    finally:
        if isinstance(coming, Generator):
            coming.close()
