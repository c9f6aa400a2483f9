"""A teacher together with the file of its replies: asks what is missing, and remembers when the budget is used up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spintune.errors import BudgetError, TeacherError
from spintune.teachers.protocol import Failure, Outcome, Reply, Request, Teacher, Usage
from spintune.teachers.replies import Replies, answer, request_key

BUDGET = "budget"
"""Reason of a request that the budget did not allow."""


@dataclass
class CachedTeacher:
    """Asks a teacher only what its stored replies do not answer.

    Attributes:
        exhausted: what the teacher said when its budget was used up; None before.
        on_reply: called after each outcome that is stored; it may raise to stop asking.
        thoughts: replies before which the teacher reasoned, stored ones included.
        left_out: replies to requests without a parameter that the server refuses, by parameter.

    Raises TeacherError when the object lacks a member of a teacher.
    """

    teacher: Teacher
    replies: Replies
    exhausted: str | None = None
    on_reply: Callable[[], None] = lambda: None
    thoughts: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    _counted: set[str] = field(default_factory=set)

    _outages: list[tuple[str, Outcome]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        missing = [member for member in ("name", "identity", "ask") if not hasattr(self.teacher, member)]
        if missing:
            raise TeacherError(
                f"{type(self.teacher).__name__} is not a teacher: it lacks {' and '.join(missing)}; "
                "see spintune.teachers.protocol.Teacher"
            )

    def ask(
        self, requests: Sequence[Request], on_outcome: Callable[[Request, Outcome], None] = lambda *_: None
    ) -> list[Outcome]:
        """The outcome of each request, in order.

        Once the budget is used up, requests without a stored outcome fail with the reason ``BUDGET``.

        Raises TeacherError when asking on is useless; every reply until then is stored.
        """

        def heard(request: Request, outcome: Outcome) -> None:
            self._count(request, outcome)
            on_outcome(request, outcome)
            self.on_reply()

        if self.exhausted is None:
            try:
                return answer(self.teacher, self.replies, requests, heard, self._outages)
            except BudgetError as error:
                self.exhausted = str(error)
        found = [self.replies.find(self.key(request)) or Failure(BUDGET) for request in requests]
        for request, outcome in zip(requests, found, strict=True):
            self._count(request, outcome)
        return found

    def _count(self, request: Request, outcome: Outcome) -> None:
        if not isinstance(outcome, Reply) or not (outcome.reasoning or outcome.left_out):
            return
        if (key := self.key(request)) not in self._counted:
            self._counted.add(key)
            self.thoughts += bool(outcome.reasoning)
            self.left_out.update(outcome.left_out)

    def key(self, request: Request) -> str:
        """The key under which the outcome of a request is stored."""
        return request_key(self.teacher.identity, request)

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self.teacher.name

    @property
    def spent(self) -> Usage:
        """All requests and tokens so far, including those of earlier attempts of the run."""
        return self.replies.spent(self.teacher.identity)
