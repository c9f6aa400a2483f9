"""The replies of teachers, stored on disk so that nothing is asked or paid twice."""

from __future__ import annotations

import contextlib
import secrets
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
_ATTEMPTS = (
    "CREATE TABLE IF NOT EXISTS attempts (session TEXT, key TEXT, teacher TEXT NOT NULL,"
    " prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, PRIMARY KEY (session, key))"
)
_OUTAGES = ("rate_limited", "server_error", "timeout", "disconnected")
"""Reasons of failures that say more about the server than about the request."""
_BUSY_SECONDS = 60


class Replies:
    """A file of outcomes by teacher and request, with the totals of each teacher. A path of None keeps it in memory.

    Every outcome is one SQLite transaction in write-ahead mode: a killed process loses no outcome that it stored, and
    several processes may share the file. A power cut leaves the file whole but may cost the last few outcomes since
    :meth:`sync`: an fsync for each would take longer than many a teacher's answer.

    Raises:
        RunError: the file is damaged, of another kind or version, or locked by another process.
        StorageError: the disk is full, read-only or out of reach.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._session = secrets.token_hex(8)
        self._begun = False
        if path is not None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            # a teacher inside a running event loop works in another thread, while this one waits
            self._database = sqlite3.connect(
                path or ":memory:", timeout=_BUSY_SECONDS, isolation_level="IMMEDIATE", check_same_thread=False
            )
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

    def begin(self, identity: Mapping[str, object], key: str, most: Usage) -> None:
        """Stores what an attempt to answer a request may cost, before it is made.

        It counts as spent until :meth:`add` says what it did cost; for good, if the process is killed before.
        """
        with self._errors(), self._database:
            if not self._begun:
                self._database.execute(_ATTEMPTS)
                self._begun = True
            self._database.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, ?, ?) ON CONFLICT (session, key) DO UPDATE SET"
                " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                " completion_tokens = completion_tokens + excluded.completion_tokens",
                (self._session, key, digest_json(identity), most.prompt_tokens, most.completion_tokens),
            )

    def add(
        self,
        identity: Mapping[str, object],
        usage: Usage,
        outcomes: Iterable[tuple[str, Outcome]] = (),
        ended: Iterable[str] = (),
    ) -> None:
        """Stores outcomes under their keys, and adds to what the teacher was asked: both or neither.

        Args:
            ended: keys of the requests whose attempts this usage covers.
        """
        rows = []
        for key, outcome in outcomes:
            kind = "reply" if isinstance(outcome, Reply) else "failure"
            value = orjson.dumps([kind, outcome])
            rows.append((key, value, _checksum(key, value)))
        totals = (digest_json(identity), usage.requests, usage.prompt_tokens, usage.completion_tokens)
        with self._errors(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", rows)
            if self._begun:
                forget = "DELETE FROM attempts WHERE session = ? AND key = ?"
                self._database.executemany(forget, [(self._session, key) for key in ended])
            self._database.execute(
                "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT (teacher) DO UPDATE SET"
                " requests = requests + excluded.requests,"
                " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
                " completion_tokens = completion_tokens + excluded.completion_tokens",
                totals,
            )

    def spent(self, identity: Mapping[str, object]) -> Usage:
        """What a teacher was asked, by every process that used this file.

        Requests that were under way when a process was killed count with the most that they may have cost.
        """
        teacher = (digest_json(identity),)
        with self._errors():
            row = self._database.execute(
                "SELECT requests, prompt_tokens, completion_tokens FROM spent WHERE teacher = ?", teacher
            ).fetchone()
            spent = Usage(*row) if row else Usage()
            if not self._has_attempts():
                return spent
            attempts = self._database.execute(
                "SELECT count(*), total(prompt_tokens), total(completion_tokens) FROM attempts"
                " WHERE teacher = ? AND prompt_tokens > 0",
                teacher,
            ).fetchone()
        return spent + Usage(*map(int, attempts))

    def _has_attempts(self) -> bool:
        """Whether a run has begun a request in this file; those of earlier versions lack the table."""
        found = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'attempts'"
        return self._begun or self._database.execute(found).fetchone() is not None

    def sync(self) -> None:
        """Makes all that is stored safe from a power cut, before a result that was made of it is called finished."""
        with self._errors():
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Closes the file, with all that is stored safe from a power cut."""
        try:
            self.sync()
        finally:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._database.close()

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
    pending: list[tuple[str, Outcome]] | None = None,
) -> list[Outcome]:
    """The outcomes in the order of the requests: stored ones from the file, the others from the teacher.

    Equal requests are asked once. A reply is on disk before ``on_outcome`` sees it; whatever ends the call
    (TeacherError, BudgetError, an interrupt), the replies before it are kept.

    A failure is final, and stored, once a reply came after it: a run that starts again then meets the same outcomes and
    takes the same path. A failure at the end of a call is final if the call ended without an exception and the request
    is at fault; an outage of the server says nothing about the requests, which are asked again after a restart. What
    failures used counts in any case.

    Args:
        on_outcome: called for every distinct request, stored outcomes first.
        pending: failures at the end of earlier calls, which the next reply makes final; those of this call are added.
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
    failures = [] if pending is None else pending
    if hasattr(teacher, "on_attempt"):
        teacher.on_attempt = lambda index, most: replies.begin(identity, missing[index], most)
    with _asked(teacher, [distinct[key] for key in missing]) as coming:
        for index, outcome in coming:
            key = missing[index]
            request = distinct[key]
            outcomes[key] = outcome
            usage = usage_of(teacher.as_sent(request) if hasattr(teacher, "as_sent") else request, outcome)
            if isinstance(outcome, Failure):
                replies.add(identity, usage, ended=[key])
                failures.append((key, outcome))
            else:
                replies.add(identity, usage, [*failures, (key, outcome)], ended=[key])
                failures.clear()
            on_outcome(request, outcome)
    final = [(key, failure) for key, failure in failures if isinstance(failure, Failure) and not _is_outage(failure)]
    if final:
        replies.add(identity, Usage(), final)
        failures[:] = [one for one in failures if one not in final]
    if unanswered := len(distinct) - len(outcomes):
        raise TeacherError(f"{teacher.name} yielded no outcome for {unanswered} of {len(missing)} requests; correct it")
    return [outcomes[key] for key in keys]


def _is_outage(failure: Failure) -> bool:
    return failure.reason in _OUTAGES


@contextlib.contextmanager
def _asked(teacher: Teacher, requests: Sequence[Request]) -> Iterator[Iterable[tuple[int, Outcome]]]:
    """The teacher's outcomes. At the end, a generator is closed, which cancels requests under way."""
    coming = teacher.ask(requests)
    try:
        yield coming
    finally:
        if isinstance(coming, Generator):
            coming.close()
