"""The kinds of disturbance. Each has numbered cases; a seed and a number give the same case again."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from crash import damage, power, shim
from crash.machine import Ending, Machine
from crash.outcome import LOGS, Tree, Verdict, contents, faults_of_reference, judge
from crash.worlds import SHARD, World, run_folder

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST_STARTS = 40


@dataclass(frozen=True)
class Tried:
    """A case and what came of it.

    Attributes:
        disturbances: how often the run was killed, failed or damaged.
    """

    what: str
    disturbances: int
    verdict: Verdict


class Stage:
    """A world on a machine: its command, how it ends undisturbed, and the disk it starts from.

    Attributes:
        computing: processor time that all starts took. [seconds]
    """

    def __init__(self, machine: Machine, world: World, seed: int) -> None:
        self.machine, self.world, self.seed = machine, world, seed
        self.computing = 0.0
        self.argv = world.prepare(machine)

    @property
    def name(self) -> str:
        return self.world.name

    def reset(self) -> None:
        """The disk before the first start."""
        if self.world.given:
            self.machine.bring_back(self.world.given)
        else:
            self.machine.wipe()

    def start(self, **how: Any) -> Ending:
        ending = self.machine.start(self.argv, shard=SHARD, environment=dict(self.world.environment), **how)
        self.computing += ending.computing
        return ending

    @cached_property
    def reference(self) -> Ending:
        """The undisturbed run. It is started twice: imports of the first one do not count."""
        for log in (None, str(self.machine.log)):
            self.reset()
            ending = self.start(log=log, list_modules=log is None)
            if ending.code:
                raise RuntimeError(f"{self.name}: the undisturbed run ended with {ending.code}: {ending.err[-500:]}")
        faults = faults_of_reference(self.machine.disk)
        if faults:
            raise RuntimeError(f"{self.name}: the undisturbed run: {'; '.join(faults)}")
        self.machine.keep(self.name)
        self._operations = list(shim.read_log(self.machine.log))
        return ending

    @cached_property
    def expected(self) -> Tree:
        """The results of the undisturbed run."""
        _ = self.reference
        return contents(self.machine.aside / self.name)

    @property
    def operations(self) -> list[shim.Operation]:
        """The undisturbed run's operations."""
        _ = self.reference
        return self._operations

    @cached_property
    def states(self) -> list[int]:
        """After how many operations the disk was another one than before: what a kill can leave."""
        counted = [operation for operation in self.operations if operation.counted]
        return [0, *(place for place, operation in enumerate(counted, 1) if operation.changes)]

    def draw(self, kind: str, number: int) -> random.Random:
        """The random numbers of one case."""
        return random.Random(f"{self.name}/{kind}/{self.seed}/{number}")

    def judge(self, ending: Ending, damaged: str | None = None) -> Verdict:
        """The verdict on a command; ``damaged`` is a log that was damaged before."""
        return judge(ending, self.machine.disk, self.expected, damaged)

    def ends(self, ending: Ending | None = None) -> Verdict:
        """The verdict on the same command once more, undisturbed, where nothing was damaged: it must succeed.

        A command without a recipe may find its output there already, and refuse to write over it.
        """
        verdict = self.judge(ending or self.start())
        if verdict.kind == "refused" and self.world.recipe:
            return Verdict("DIFFERENT", f"refused, though nothing was damaged: {verdict.why}")
        return verdict


def kill(stage: Stage, number: int) -> Tried:
    """Starts the command again and again, each time killed after a random part of its work, until it ends."""
    draw = stage.draw("kill", number)
    whole = stage.reference.computing
    stage.reset()
    kills = 0
    for _ in range(MOST_STARTS):
        # longer with every start, since what a start itself takes may be most of it
        share = draw.choice([0.1, 0.2, 0.4]) * (0.3 + draw.random()) * (1 + kills / 5)
        ending = stage.start(computing=whole * share)
        if not ending.killed:
            return Tried(f"{kills} kills", kills, stage.ends(ending))
        kills += 1
    return Tried(f"{kills} kills", kills, stage.ends())


def nth(stage: Stage, number: int) -> Tried:
    """Kills the command after an operation that changed the disk, and starts it again."""
    stage.reset()
    at = stage.states[number] + 1
    ending = stage.start(mode=shim.KILL, at=at)
    told = f"killed at operation {at}"
    if not ending.killed:  # a thread made fewer operations this time
        return Tried(f"{told}, which did not come", 0, stage.ends(ending))
    return Tried(told, 1, stage.ends())


def stop(stage: Stage, number: int) -> Tried:
    """Asks the command to stop, by a signal at an operation, and starts it again."""
    at, way = divmod(number, len(SIGNALS))
    stage.reset()
    ending = stage.start(mode=shim.SIGNAL, at=at + 1, fault=SIGNALS[way])
    told = f"{SIGNALS[way].name} at operation {at + 1}"
    verdict = stage.judge(ending)
    # a command that only writes its output has nothing to save and dies at once, as programs do
    at_once = not stage.world.recipe and ending.code == -SIGNALS[way]
    if verdict.kind == "DIFFERENT" and not at_once:
        return Tried(f"{told}, in the stopped run itself", 1, verdict)
    return Tried(told, 1, stage.ends())


def fail(stage: Stage, number: int) -> Tried:
    """Fails the command at an operation, once or from then on, and starts it again without a fault."""
    at, way = divmod(number, 2 * len(ERRORS))
    fault, lasting = ERRORS[way % len(ERRORS)], way >= len(ERRORS)
    stage.reset()
    ending = stage.start(mode=shim.FAIL_ON if lasting else shim.FAIL_ONCE, at=at + 1, fault=fault)
    told = f"{errno.errorcode[fault]} {'from' if lasting else 'once at'} operation {at + 1}"
    verdict = stage.judge(ending)
    if verdict.kind == "DIFFERENT":
        return Tried(f"{told}, in the failed run itself", 1, verdict)
    return Tried(told, 1, stage.ends())


def cut(stage: Stage, number: int) -> Tried:
    """Takes from the disk what was not synced when the power failed before an operation, and starts again."""
    place, way = divmod(number, len(power.VARIANTS))
    at = stage.states[place]
    stage.reset()
    disk = power.replay(stage.machine.disk, stage.operations, at)
    stage.machine.wipe()
    disk.write_after_cut(stage.machine.disk, power.VARIANTS[way], stage.draw("cut", number))
    return Tried(f"power cut before operation {at + 1}, {power.VARIANTS[way]}", 1, stage.ends())


def harm(stage: Stage, number: int, state: str, quietly: bool = False) -> Tried:
    """Damages a file of a kept disk and starts the command again.

    Args:
        quietly: size and time of change are kept, and ``spintune verify`` is asked first.
    """
    stage.machine.bring_back(state)
    ways = damage.QUIET_WAYS if quietly else damage.WAYS
    place, way = divmod(number, len(ways))
    path = damage.files(stage.machine.disk)[place]
    name = str(path.relative_to(stage.machine.disk))
    before = path.stat()
    told = f"{state}: {name}, {damage.damage(path, ways[way], stage.draw('harm', number))}"
    log = name if path.name in LOGS else None
    if quietly:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        ending = stage.machine.start(["verify", str(run_folder(stage.machine)), "--json"])
        if ending.code:
            return Tried(f"{told}; verify", 1, stage.judge(ending))
    return Tried(told, 1, stage.judge(stage.start(), log))


def harm_quietly(stage: Stage, number: int) -> Tried:
    """Damages a file of the finished run so that only its content tells."""
    _ = stage.reference
    return harm(stage, number, stage.name, quietly=True)


def harm_finished(stage: Stage, number: int) -> Tried:
    """Damages a file of the finished run, its cache included."""
    _ = stage.reference
    return harm(stage, number, stage.name)


def harm_half(stage: Stage, number: int) -> Tried:
    """Damages a file of a run that was killed half-way."""
    return harm(stage, number, _half(stage))


def harm_cache(stage: Stage, number: int) -> Tried:
    """Damages a file of the cache before a new run."""
    return harm(stage, number, _cache(stage))


def _half(stage: Stage) -> str:
    name = f"{stage.name}, half"
    if not (stage.machine.aside / name).exists():
        stage.reset()
        stage.start(mode=shim.KILL, at=stage.reference.operations * 6 // 10)
        stage.machine.keep(name)
    return name


def _cache(stage: Stage) -> str:
    name = f"{stage.name}, cache"
    if not (stage.machine.aside / name).exists():
        _ = stage.reference
        stage.machine.bring_back(stage.name)
        for path in stage.machine.disk.iterdir():
            if path.name != "cache":
                shutil.rmtree(path)
        stage.machine.keep(name)
    return name


def _files(state: Callable[[Stage], str], ways: tuple[str, ...] = damage.WAYS) -> Callable[[Stage], int]:
    return lambda stage: len(damage.files(stage.machine.aside / state(stage))) * len(ways)


def _finished(stage: Stage) -> str:
    _ = stage.reference
    return stage.name


@dataclass(frozen=True)
class Kind:
    """A kind of disturbance.

    Attributes:
        cases: how many there are in a world.
        without_recipe: whether it makes sense for a command that only reads a run.
    """

    try_one: Callable[[Stage, int], Tried]
    cases: Callable[[Stage], int]
    without_recipe: bool = True


KINDS = {
    "kill": Kind(kill, lambda stage: 10_000),
    "nth": Kind(nth, lambda stage: len(stage.states)),
    "stop": Kind(stop, lambda stage: stage.reference.operations * len(SIGNALS)),
    "fail": Kind(fail, lambda stage: stage.reference.operations * 2 * len(ERRORS)),
    "cut": Kind(cut, lambda stage: len(stage.states) * len(power.VARIANTS)),
    "finished": Kind(harm_finished, _files(_finished), without_recipe=False),
    "verify": Kind(harm_quietly, _files(_finished, damage.QUIET_WAYS), without_recipe=False),
    "half": Kind(harm_half, _files(_half), without_recipe=False),
    "cache": Kind(harm_cache, _files(_cache), without_recipe=False),
}


def numbers(kind: Kind, stage: Stage, count: int | None) -> Iterator[int]:
    """The cases to try: all, or so many, spread over all and drawn by the seed."""
    cases = kind.cases(stage)
    if count is None or count >= cases:
        yield from range(cases)
        return
    draw = random.Random(f"{stage.name}/{stage.seed}")
    for place in range(count):
        yield draw.randrange(place * cases // count, (place + 1) * cases // count)
