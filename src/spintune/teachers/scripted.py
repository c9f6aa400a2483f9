"""A teacher whose answers stand in a script: for dry runs, demonstrations and tests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from spintune.errors import DataError, TeacherError
from spintune.storage import digest_file, digest_json
from spintune.teachers.protocol import Failure, Outcome, Reply, Request

Script = Callable[[Request], str | Reply | Failure]


class ScriptedTeacher:
    """Answers each request with what ``replies`` says, in the order of the requests. A text is a complete reply.

    ``replies`` has to be a function of the request alone, as a teacher's identity and a request are what a stored
    answer is found by; change ``name`` with it.
    """

    def __init__(self, replies: Script, name: str) -> None:
        self.name = name
        self.identity: dict[str, Any] = {"kind": "scripted", "name": name}
        self._replies = replies

    @classmethod
    def from_file(cls, path: Path) -> ScriptedTeacher:
        """A script of JSON lines, each a reply or a failure, and optionally when it fits.

        ``when`` is a text that must occur in the messages or in the answer's beginning::

            {"when": "Is it classification?", "reply": "No"}
            {"reply": "1. Name three primary colours.", "ending": "length"}
            {"failure": "rate_limited"}

        Of the lines that fit, lines with ``when`` come before those without; among several, the request's digest
        chooses: always the same one for the same request, and other ones for other draws.

        Raises DataError with ``path:line`` for a line that is no such thing, TeacherError when no line fits a request.
        """
        lines = _read(path)
        teacher = cls(lambda request: _choose(lines, request, path), path.stem)
        teacher.identity = {"kind": "scripted", "script": digest_file(path)}
        return teacher

    def ask(self, requests: Sequence[Request]) -> Generator[tuple[int, Outcome], None, None]:
        for index, request in enumerate(requests):
            reply = self._replies(request)
            yield index, Reply(reply, "stop") if isinstance(reply, str) else reply


@dataclass(frozen=True)
class _Line:
    when: str
    outcome: Outcome


def _read(path: Path) -> list[_Line]:
    try:
        rows = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    lines = [_parse(row, f"{path}:{number}") for number, row in enumerate(rows, 1) if row.strip()]
    if not lines:
        raise DataError(f"{path}: a script without lines; give at least one reply")
    return lines


def _parse(row: bytes, where: str) -> _Line:
    try:
        rest = orjson.loads(row)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(rest, dict) or not isinstance(rest.get("when", ""), str):
        raise DataError(f'{where}: not an object with "reply" or "failure", and perhaps "when", each a text')
    when = rest.pop("when", "")
    match rest:
        case {"reply": str(text), "ending": "stop" | "length" | "refused" as ending} if len(rest) == 2:
            return _Line(when, Reply(text, ending))
        case {"reply": str(text)} if len(rest) == 1:
            return _Line(when, Reply(text, "stop"))
        case {"failure": str(reason)} if len(rest) == 1:
            return _Line(when, Failure(reason))
    raise DataError(
        f'{where}: neither {{"reply": text, "ending": "stop", "length" or "refused"}} nor {{"failure": text}}'
    )


def _choose(lines: list[_Line], request: Request, path: Path) -> Outcome:
    text = "\n".join([*(message.content for message in request.messages), request.begin])
    fitting = [line for line in lines if line.when and line.when in text] or [line for line in lines if not line.when]
    if not fitting:
        end = " ".join(text.split())[-80:]
        raise TeacherError(f"{path}: no line fits the request that ends with {end!r}; add one without when")
    return fitting[int(digest_json(request.to_json()), 16) % len(fitting)].outcome
