"""Asks a teacher in rounds, and remembers what it cost and whether its budget is used up."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spintune.errors import BudgetError
from spintune.storage import digest_json
from spintune.teachers.protocol import Failure, Outcome, Request, Teacher, Usage
from spintune.teachers.replies import Replies, answer, request_key

BUDGET = "budget"
"""Reason of a request that the budget did not allow."""


@dataclass(frozen=True)
class Decoding:
    """How a teacher writes; see :class:`Request`."""

    max_tokens: int
    temperature: float
    top_p: float
    presence_penalty: float = 0.0


@dataclass
class Asker:
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
    def spent(self) -> Usage:
        """What this teacher was asked for in all, earlier attempts of the run included."""
        return self.replies.spent(self.teacher.identity)


def stream(seed: int, *name: Any) -> random.Random:
    """Random numbers for one purpose: a pure function of the seed and the purpose's name."""
    return random.Random(int(digest_json([seed, *name])[:16], 16))  # noqa: S311 -- not for secrets
