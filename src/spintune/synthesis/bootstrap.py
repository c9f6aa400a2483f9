"""New tasks from a few, round after round: what both Self-Instruct and Alpaca do first.

::

    tasks to show -> requests of a round -> replies -> candidates -> rules -> novelty -> pool
         ^                                                                                |
         +------------------------- the next round shows some of them --------------------+

A request depends on the seed, its number, and what the rounds before it left in the pool. So a run that is started
again asks the same, finds the same replies on disk, and comes to where it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spintune.data.novelty import NoveltyIndex
from spintune.errors import TeacherError
from spintune.progress import Progress
from spintune.synthesis.decoding import stream
from spintune.synthesis.examples import GeneratedExample, SeedTask, SynthesisProvenance
from spintune.synthesis.filters import FilterCounts, FilterRules
from spintune.synthesis.parsers import ParsedReply
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Outcome, Request


@dataclass(frozen=True)
class BootstrapMethod:
    """How a method shows, asks and reads.

    Attributes:
        show: tasks for a request, drawn from the seeds and from what was accepted so far.
        request: what is asked when these tasks are shown; the number tells requests apart.
        read: the tasks of a reply to that request.
        prompt: name and version of its prompt.
        whole: whether a candidate comes with its output, which is then judged as well.
    """

    name: str
    show: Callable[[random.Random, Sequence[SeedTask], Sequence[SeedTask]], list[SeedTask]]
    request: Callable[[Sequence[SeedTask], int], Request]
    read: Callable[[Outcome, Request], ParsedReply]
    prompt: str
    whole: bool


@dataclass
class BootstrapResult:
    """What a bootstrap left behind.

    Attributes:
        written: accepted tasks, in their order.
        replies: how many replies could be read, and why others could not.
        candidates: what became of the tasks in them.
        rounds: how many rounds were asked.
        stopped: why it ended before the wanted number, or None.
    """

    written: list[GeneratedExample] = field(default_factory=list)
    replies: FilterCounts = field(default_factory=lambda: FilterCounts("replies", "requests"))
    candidates: FilterCounts = field(default_factory=lambda: FilterCounts("candidates", "tasks"))
    rounds: int = 0
    stopped: str | None = None


def bootstrap(
    asker: CachedTeacher,
    method: BootstrapMethod,
    seeds: Sequence[SeedTask],
    rules: FilterRules,
    index: NoveltyIndex,
    wanted: int,
    requests_per_round: int,
    patience: int,
    seed: int,
    on_accepted: Callable[[Sequence[GeneratedExample]], None],
    progress: Progress,
) -> BootstrapResult:
    """Asks until ``wanted`` tasks are accepted, nothing new came in ``patience`` rounds, or the budget is used up.

    A task is accepted when it breaks no rule and is new to the seeds and to all that was accepted. ``index`` is empty
    at first and holds their instructions in the end. ``on_accepted`` hears of each round's tasks before the next one
    begins, so that they can be completed while there is a budget.

    Raises TeacherError when the teacher cannot be asked, or not one task came of it.
    """
    index.extend([task.instruction for task in seeds])
    pool, barren = BootstrapResult(), 0
    with progress.task(f"{asker.teacher.name} writes tasks", wanted, "tasks") as bar:
        while len(pool.written) < wanted:
            accepted = [written.task for written in pool.written]
            first = pool.rounds * requests_per_round
            shown = [
                method.show(stream(seed, "show", number), seeds, accepted)
                for number in range(first, first + requests_per_round)
            ]
            requests = [method.request(tasks, number) for number, tasks in enumerate(shown, first)]
            outcomes = asker.ask(requests)
            pool.rounds += 1
            before = len(pool.written)
            candidates: list[GeneratedExample] = []
            for tasks, request, outcome in zip(shown, requests, outcomes, strict=True):
                provenance = SynthesisProvenance(
                    asker.teacher.name,
                    method.name,
                    ((method.prompt, asker.key(request)),),
                    tuple(task.id for task in tasks),
                )
                candidates += [
                    GeneratedExample(task, provenance) for task in _read(method.read(outcome, request), pool)
                ]
            _accept(candidates, method, rules, index, wanted, pool)
            found = len(pool.written) - before
            on_accepted(pool.written[before:])
            bar.advance(found, requests=pool.replies.read, dropped=pool.candidates.dropped.total())
            barren = 0 if found else barren + 1
            if asker.exhausted is not None:
                pool.stopped = asker.exhausted
                break
            if barren == patience:
                pool.stopped = f"{patience} rounds of {requests_per_round} requests brought nothing new"
                break
    if not pool.written:
        raise TeacherError(
            f"{asker.teacher.name}: no task of use in {pool.replies.read} replies ({_reasons(pool)}); "
            "look at its answers, or give another teacher or other seeds"
        )
    if pool.stopped:
        progress.note(f"stopped at {len(pool.written)} of {wanted} tasks: {pool.stopped}")
    return pool


def _read(parsed: ParsedReply, pool: BootstrapResult) -> list[SeedTask]:
    if parsed.failure:
        pool.replies.drop(parsed.failure)
    else:
        pool.replies.keep()
    for reason, count in parsed.dropped.items():
        pool.candidates.drop(reason, count)
    return parsed.tasks


def _accept(
    candidates: Sequence[GeneratedExample],
    method: BootstrapMethod,
    rules: FilterRules,
    index: NoveltyIndex,
    wanted: int,
    pool: BootstrapResult,
) -> None:
    """Puts what is of use and new into the pool, in the order of the candidates."""
    useful = []
    for candidate in candidates:
        reason = rules.flaw_of_instruction(candidate.task.instruction)
        if reason is None and method.whole:
            reason = rules.flaw_of_instance(candidate.task)
        if reason:
            pool.candidates.drop(reason)
        else:
            useful.append(candidate)
    verdicts = index.extend([candidate.task.instruction for candidate in useful])
    for candidate, verdict in zip(useful, verdicts, strict=True):
        if not verdict.novel:
            pool.candidates.drop("not_new")
        elif len(pool.written) == wanted:
            pool.candidates.drop("more_than_wanted")
        else:
            pool.candidates.keep()
            pool.written.append(candidate)


def _reasons(pool: BootstrapResult) -> str:
    reasons = pool.replies.dropped + pool.candidates.dropped
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(4)) or "all empty"
