"""Bootstrapping new tasks from a few seeds in rounds: the part that Self-Instruct and Alpaca share.

::

    tasks to show -> requests of a round -> replies -> candidates -> rules -> novelty -> pool
         ^                                                                                |
         +----------------------- the next round may show some of them -------------------+

A request depends only on the seed, on its number, and on the pool before its round. So a run that starts again asks the
same requests, finds their replies on disk, and reaches the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Protocol

from spintune.data.novelty import NoveltyIndex
from spintune.errors import BudgetError, TeacherError
from spintune.progress import Progress, Silent
from spintune.synthesis.decoding import stream
from spintune.synthesis.examples import AnsweredPrompt, GeneratedExample, SeedTask, SynthesisProvenance
from spintune.synthesis.filters import FilterCounts, FilterRules
from spintune.synthesis.parsers import ParsedReply
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Outcome, Request


class BootstrapMethod(Protocol):
    """What a method shows the teacher, asks it, and reads from its reply.

    Attributes:
        name: of the method, for the provenance of examples.
        prompt: name and version of its prompt.
        writes_outputs: whether a new task comes with its output, which is then filtered as well.
    """

    name: ClassVar[str]
    prompt: ClassVar[str]
    writes_outputs: ClassVar[bool]

    def show(self, rng: Random, seeds: Sequence[SeedTask], accepted: Sequence[SeedTask]) -> list[SeedTask]:
        """Draws the tasks that a request shows, from the seeds and from the tasks accepted so far."""

    def request(self, shown: Sequence[SeedTask], number: int) -> Request:
        """The request that shows these tasks; ``number`` counts the requests of the run."""

    def read(self, outcome: Outcome, request: Request) -> ParsedReply:
        """The new tasks in the reply to that request."""


@dataclass(frozen=True)
class BootstrapSettings:
    """When to ask, and when to stop.

    Attributes:
        target: tasks to accept.
        requests_per_round: requests that see the same pool.
        patience: rounds in a row without a new task after which the bootstrap stops.
        seed: of the draws of shown tasks.
    """

    target: int
    requests_per_round: int = 32
    patience: int = 4
    seed: int = 0


@dataclass
class BootstrapResult:
    """The outcome of a bootstrap.

    Attributes:
        accepted: the new tasks in the order in which they were accepted.
        replies: how many replies could be read, and why others could not.
        candidates: how many tasks of these replies were accepted, and why others were dropped.
        rounds: rounds asked.
        stopped: why it stopped before the target; None if it did not.
    """

    accepted: list[GeneratedExample] = field(default_factory=list)
    replies: FilterCounts = field(default_factory=lambda: FilterCounts("replies", "requests"))
    candidates: FilterCounts = field(default_factory=lambda: FilterCounts("candidates", "tasks"))
    rounds: int = 0
    stopped: str | None = None


def bootstrap(
    teacher: CachedTeacher,
    method: BootstrapMethod,
    seeds: Sequence[SeedTask],
    rules: FilterRules,
    settings: BootstrapSettings,
    on_accepted: Callable[[Sequence[GeneratedExample]], None] = lambda tasks: None,
    progress: Progress = Silent(),  # noqa: B008 -- it keeps nothing
) -> BootstrapResult:
    """Asks until ``target`` tasks are accepted, ``patience`` rounds brought nothing new, or the budget is used up.

    A task is accepted if it breaks no rule and is new compared with the seeds and all accepted tasks.

    Args:
        on_accepted: called with the new tasks of each round before the next round begins, so that they can be completed
            while there is a budget.

    Raises TeacherError when the teacher cannot be asked, or no task is accepted; BudgetError if the budget is why.
    """
    pool, rounds_without_new = BootstrapResult(), 0
    index = NoveltyIndex(rules.novelty, rules.word_rule)
    for task in seeds:  # all of them, also one that resembles another
        index.add(task.instruction)
    with progress.task(f"{teacher.name} writes tasks", settings.target, "tasks") as bar:

        def tell(new: int = 0) -> None:
            bar.advance(new, requests=pool.replies.read, dropped=pool.candidates.dropped.total())

        teacher.on_reply = tell
        while pool.stopped is None and len(pool.accepted) < settings.target:
            candidates = _ask_round(teacher, method, seeds, settings, pool)
            useful = _apply_rules(candidates, rules, method.writes_outputs, pool.candidates)
            new = _take_new(useful, index, settings.target - len(pool.accepted), pool.candidates)
            pool.accepted += new
            on_accepted(new)
            tell(len(new))
            rounds_without_new = 0 if new else rounds_without_new + 1
            if teacher.exhausted is not None:
                pool.stopped = teacher.exhausted
            elif rounds_without_new == settings.patience:
                asked = f"{settings.patience} rounds of {settings.requests_per_round} requests"
                pool.stopped = f"{asked} brought nothing new"
    if not pool.accepted and teacher.exhausted is not None:
        raise BudgetError(f"no task was accepted: {teacher.exhausted}")
    if not pool.accepted:
        raise TeacherError(
            f"{teacher.name}: no usable task in {pool.replies.read} replies ({_main_reasons(pool)}); "
            "look at its answers, or choose another teacher or other seeds"
        )
    if pool.stopped:
        progress.note(f"stopped at {len(pool.accepted)} of {settings.target} tasks: {pool.stopped}")
    return pool


def _ask_round(
    teacher: CachedTeacher,
    method: BootstrapMethod,
    seeds: Sequence[SeedTask],
    settings: BootstrapSettings,
    pool: BootstrapResult,
) -> list[GeneratedExample]:
    """The tasks in the replies to one round of requests."""
    accepted = [one.task for one in pool.accepted]
    first = pool.rounds * settings.requests_per_round
    numbers = range(first, first + settings.requests_per_round)
    shown = [method.show(stream(settings.seed, "show", number), seeds, accepted) for number in numbers]
    requests = [method.request(tasks, number) for tasks, number in zip(shown, numbers, strict=True)]
    outcomes = teacher.ask(requests)
    pool.rounds += 1
    candidates = []
    for tasks, request, outcome in zip(shown, requests, outcomes, strict=True):
        parsed = method.read(outcome, request)
        pool.replies.count(parsed.failure)
        pool.candidates.drop_all(parsed.dropped)
        provenance = SynthesisProvenance(
            teacher=teacher.name,
            method=method.name,
            requests=(AnsweredPrompt(method.prompt, teacher.key(request)),),
            demonstrations=tuple(task.id for task in tasks),
        )
        candidates += [GeneratedExample(task, provenance) for task in parsed.tasks]
    return candidates


def _apply_rules(
    candidates: Sequence[GeneratedExample], rules: FilterRules, with_outputs: bool, counts: FilterCounts
) -> list[GeneratedExample]:
    useful = []
    for candidate in candidates:
        reason = rules.instruction_drop_reason(candidate.task.instruction)
        if reason is None and with_outputs:
            reason = rules.instance_drop_reason(candidate.task)
        if reason is None:
            useful.append(candidate)
        else:
            counts.drop(reason)
    return useful


def _take_new(
    candidates: Sequence[GeneratedExample], index: NoveltyIndex, room: int, counts: FilterCounts
) -> list[GeneratedExample]:
    """The candidates that are new, in order; ``room`` of them at most."""
    new: list[GeneratedExample] = []
    verdicts = index.extend([candidate.task.instruction for candidate in candidates])
    for candidate, verdict in zip(candidates, verdicts, strict=True):
        if not verdict.novel:
            counts.drop("not_new")
        elif len(new) == room:
            counts.drop("more_than_wanted")
        else:
            counts.keep()
            new.append(candidate)
    return new


def _main_reasons(pool: BootstrapResult) -> str:
    reasons = pool.replies.dropped + pool.candidates.dropped
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(4)) or "all empty"
