"""A teacher together with the file of its replies: asks what is missing, and remembers when the budget is used up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spintune.errors import BudgetError, TeacherError
from spintune.teachers.protocol import Failure, Outcome, Request, Teacher, Usage
from spintune.teachers.replies import Replies, answer, request_key

BUDGET = "budget"
"""Reason of a request that the budget did not allow."""


@dataclass
class CachedTeacher:
    """Asks a teacher only what its stored replies do not answer.

    Attributes:
        exhausted: what the teacher said when its budget was used up; None before.
        on_reply: called after each outcome that is stored; it may raise to stop asking.

    Raises TeacherError when the object lacks a member of a teacher.
    """

    teacher: Teacher
    replies: Replies
    exhausted: str | None = None
    on_reply: Callable[[], None] = lambda: None

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
            on_outcome(request, outcome)
            self.on_reply()

        if self.exhausted is None:
            try:
                return answer(self.teacher, self.replies, requests, heard)
            except BudgetError as error:
                self.exhausted = str(error)
        return [self.replies.find(self.key(request)) or Failure(BUDGET) for request in requests]

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
