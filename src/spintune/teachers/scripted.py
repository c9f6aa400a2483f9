"""A teacher whose answers come from a function or a file: for dry runs, demonstrations and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from spintune.errors import DataError, TeacherError
from spintune.storage import digest_file, digest_json
from spintune.teachers.protocol import Ending, Failure, Outcome, Reply, Request
from spintune.text.words import one_line

Script = Callable[[Request], str | Reply | Failure]


class ScriptedTeacher:
    """Answers each request with ``replies(request)``; a text is a complete reply.

    ``replies`` must depend on the request alone, because a stored answer is found by the teacher's name and the
    request. A function that answers differently needs another name.
    """

    def __init__(self, replies: Script, name: str) -> None:
        self.name = name
        self.identity: dict[str, str] = {"kind": "scripted", "name": name}
        self._replies = replies

    @classmethod
    def from_file(cls, model: Path | str) -> ScriptedTeacher:
        """A script of JSON lines, each a reply or a failure; ``when`` restricts a line to some requests.

        ``when`` is a text that must occur in the messages or in the beginning of the answer::

            {"when": "Is it classification?", "reply": "No"}
            {"reply": "1. Name three primary colors.", "ending": "length"}
            {"failure": "rate_limited"}

        Of the lines that match a request, those with ``when`` come before those without. Among several, the digest of
        the request chooses, so that equal requests get equal replies and other draws get others.

        Args:
            model: path of the script; a recipe's ``teacher: {kind: scripted, model: PATH}`` gives it.

        Raises DataError, with ``path:line`` for a malformed line; ``ask`` raises TeacherError when no line matches.
        """
        path = Path(model)
        lines = _read(path)
        teacher = cls(lambda request: _choose(lines, request, path), path.stem)
        teacher.identity = {"kind": "scripted", "script": digest_file(path)}
        return teacher

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        for index, request in enumerate(requests):
            reply = self._replies(request)
            yield index, Reply(reply) if isinstance(reply, str) else reply


@dataclass(frozen=True)
class _Line:
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    when: str = ""
    reply: str | None = None
    ending: Ending | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        if (self.reply is None) == (self.failure is None):
            raise ValueError("give a reply or a failure, and not both")
        if self.ending and self.reply is None:
            raise ValueError("ending is for a reply")

    @property
    def outcome(self) -> Outcome:
        if self.reply is None:
            return Failure(self.failure or "")
        return Reply(self.reply, self.ending or "stop")


_LINE = TypeAdapter(_Line)


def _read(path: Path) -> list[_Line]:
    try:
        rows = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    lines = [_parse(row, f"{path}:{number}") for number, row in enumerate(rows, 1) if row.strip()]
    if not lines:
        raise DataError(f"{path}: the script has no lines; give at least one reply")
    return lines


def _parse(row: bytes, where: str) -> _Line:
    try:
        return _LINE.validate_json(row)
    except ValidationError as error:
        problem = error.errors()[0]
        field = "".join(f"{part}: " for part in problem["loc"])
        raise DataError(f"{where}: {field}{problem['msg'].removeprefix('Value error, ')}; correct the line") from None


def _choose(lines: list[_Line], request: Request, path: Path) -> Outcome:
    text = "\n".join([*(message.content for message in request.messages), request.begin])
    matching = [line for line in lines if line.when and line.when in text] or [line for line in lines if not line.when]
    if not matching:
        end = one_line(text)[-80:]
        raise TeacherError(f"{path}: no line matches the request that ends with {end!r}; add one without when")
    return matching[int(digest_json(request.to_json()), 16) % len(matching)].outcome
