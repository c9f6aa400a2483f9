"""Asks a teacher or a judge in rounds, and remembers what it cost and whether its budget is used up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spintune.errors import BudgetError
from spintune.teachers.protocol import Failure, Outcome, Request, Teacher, Usage
from spintune.teachers.replies import Replies, answer, request_key

BUDGET = "budget"
"""Reason of a request that the budget did not allow."""


@dataclass
class CachedTeacher:
    """A teacher with the file of its replies.

    Attributes:
        exhausted: what the budget's end said, once it came.
    """

    teacher: Teacher
    replies: Replies
    exhausted: str | None = None

    def ask(
        self, requests: Sequence[Request], on_outcome: Callable[[Request, Outcome], None] = lambda *_: None
    ) -> list[Outcome]:
        """The outcome of each request. Once the budget is used up, what was not paid for is a Failure of that name.

        Raises TeacherError when asking on is of no use; every reply until then is kept.
        """
        if self.exhausted is None:
            try:
                return answer(self.teacher, self.replies, requests, on_outcome)
            except BudgetError as error:
                self.exhausted = str(error)
        return [self.replies.find(self.key(request)) or Failure(BUDGET) for request in requests]

    def key(self, request: Request) -> str:
        """Under which the outcome of a request is kept."""
        return request_key(self.teacher.identity, request)

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self.teacher.name

    @property
    def spent(self) -> Usage:
        """What this teacher was asked for in all, earlier attempts of the run included."""
        return self.replies.spent(self.teacher.identity)
