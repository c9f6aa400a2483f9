"""The stages of a run as its files show them: which are done, which is under way, and about how long the rest takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ValidationError

from spintune.errors import SpintuneError
from spintune.evaluation.selection import selection_of, too_few
from spintune.progress import KINDS, TRIAL_STEPS, ExpectedStage
from spintune.recipe import Recipe
from spintune.recipe.checking import section_in
from spintune.records import Example, parse_record
from spintune.report.facts import RunFacts
from spintune.results import DataFacts, PairFacts
from spintune.run_folder import BASE, BASELINE, MANIFEST, SFT
from spintune.stages import schedule
from spintune.stages.schedule import DataSize, data_size, expected_stages, guessed_lengths
from spintune.time_left import RunTimes, TimeLeft
from spintune.typed_json import JsonObject
from spintune.watch.follow import modified

_LOOKED_AT = 200
"""Examples whose length is looked at, from the beginning of the data."""

State = Literal["done", "running", "stopped", "to come"]


@dataclass(frozen=True)
class ShownStage:
    """A stage of the list.

    Attributes:
        seconds: how long it took, as far as its manifest says; None for others.
        did: how far it is, in words; empty where the files do not say.
        share: of it that is done; None where the files do not say.
        left: seconds until it ends; None where nothing was measured.
    """

    name: str
    state: State
    seconds: float | None = None
    did: str = ""
    share: float | None = None
    left: float | None = None


@dataclass(frozen=True)
class StageList:
    """The stages of a run in order, and about how long it still takes. ``left`` is None where nobody can say."""

    stages: tuple[ShownStage, ...] = ()
    left: TimeLeft | None = None

    @property
    def current(self) -> ShownStage | None:
        """The first stage that is not done."""
        return next((one for one in self.stages if one.state != "done"), None)

    @property
    def number(self) -> int:
        """Of the current stage, from 1."""
        return sum(one.state == "done" for one in self.stages) + 1


def stage_list(run: RunFacts, metrics: Mapping[str, Sequence[JsonObject]], running: bool) -> StageList:
    """The stages of a run.

    Args:
        metrics: rows of metrics.jsonl by stage, which may be newer than those of ``run``.
        running: whether a process works on it.
    """
    try:
        recipe = Recipe.model_validate({**_chosen(run.recipe, Recipe), "out": str(run.folder)})
    except (ValidationError, SpintuneError):  # of another version
        return StageList()
    size = _size(run, recipe)
    expected = expected_stages(recipe, "eval", size)
    done = list(_done(run, expected, size))
    place = done.index(False) if False in done else len(done)
    counted = _Counted(run, metrics)
    clock = _Clock()
    times = RunTimes(now=clock)
    times.expect(expected)
    for one in expected[:place]:
        times.begin_stage(one.name)
        _replay(times, clock, one, counted.of(one.name, done=True))
        times.end_stage()
    shown = [ShownStage(one.name, "done", counted.took(one.name)) for one in expected[:place]]
    if place == len(expected):
        return StageList(tuple(shown), TimeLeft(0.0))
    now = expected[place]
    work = counted.of(now.name, done=False)
    times.begin_stage(now.name)
    _replay(times, clock, now, work)
    if running:
        clock.seconds += max(0.0, time.time() - _last_sign(run.folder, now.name))
    state: State = "running" if running else "stopped"
    shown.append(ShownStage(now.name, state, None, work.words(now), times.share_done(), times.stage_left()))
    left = times.run_left()
    shown += [ShownStage(one.name, "to come") for one in expected[place + 1 :]]
    return StageList(tuple(shown), left)


def _chosen(values: JsonObject, section: type[BaseModel]) -> JsonObject:
    """What a resolved recipe sets apart from defaults: an option that does nothing is refused where it is written."""
    fields = {field.alias or name: field for name, field in section.model_fields.items()}
    kept: JsonObject = {}
    for key, value in values.items():
        field = fields.get(key)
        if field is not None and value == field.default:
            continue
        inside = section_in(field.annotation) if field else None
        kept[key] = _chosen(value, inside) if inside and isinstance(value, dict) else value
    return kept


@dataclass
class _Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


# What is done -------------------------------------------------------------------------------------------------------


def _size(run: RunFacts, recipe: Recipe) -> DataSize | None:
    """The size of the data, from its counts and the first examples."""
    data = run.facts("data", DataFacts)
    if data is None:
        return None
    first = list(_first(run.folder / "data/train.jsonl"))
    chooses = too_few(len(selection_of(run.heldout)), len(run.heldout)) is None
    measured = chooses and not (recipe.spin and recipe.spin.keep == "last")
    lengths = partial(guessed_lengths, characters=characters) if (characters := _characters(run)) else guessed_lengths
    some = data_size(first, first, data.heldout, recipe.data.max_length, chooses, measured, lengths)
    seen = data.train if data.seen is None else data.seen
    played = data.unseen if data.unseen and recipe.spin and recipe.spin.prompts == "unseen" else seen
    return replace(some, seen=seen, played=played)


def _characters(run: RunFacts) -> float | None:
    """Characters (bytes of UTF-8) of a token, by the references that a model was measured on; None before that."""
    likely = next((model.likely.values() for model in run.models if model.likely), ())
    whole = [one for one in likely if one.bytes]  # none that a limit cut
    tokens = sum(one.tokens - 1 for one in whole)  # without the end of the turn
    return sum(one.bytes or 0 for one in whole) / tokens if tokens > 0 else None


def _first(path: Path) -> Iterator[Example]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(islice(file, _LOOKED_AT), 1):
                yield parse_record(line, Example, path, number)
    except (OSError, SpintuneError):
        return


def _model_of(name: str) -> str | None:
    """The model that a stage makes or measures."""
    fixed = {schedule.MEASURE: BASE, schedule.SFT_TRAINING: SFT, schedule.BASELINE_TRAINING: BASELINE}
    if name.endswith(": training"):
        return f"iterate-{name.split()[1].rstrip(':')}"
    return fixed.get(name)


def _done(run: RunFacts, expected: Sequence[ExpectedStage], size: DataSize | None) -> Iterator[bool]:
    """Whether each stage is done. One that a later one has overtaken is, too."""
    flags = []
    for one in expected:
        folder, model = schedule.folder_of(one.name), _model_of(one.name)
        there = not run.missing if folder is None else (run.folder / folder / MANIFEST).is_file()
        measured = not (model and size and size.measured and size.heldout)
        flags.append(there and (measured or (run.folder / "likelihood" / str(model) / MANIFEST).is_file()))
    last = max((place for place, flag in enumerate(flags) if flag), default=-1)
    yield from (place <= last for place in range(len(flags)))


def _last_sign(folder: Path, stage: str) -> float:
    """When a stage wrote something last: its log, its shards, or the manifest of the stage before."""
    place = schedule.folder_of(stage)
    files = [folder / "metrics.jsonl", *folder.glob(f"*/{MANIFEST}"), *folder.glob(f"spin/*/{MANIFEST}")]
    files += [*folder.glob(f"likelihood/*/{MANIFEST}"), *folder.glob(f"eval/*/*/{MANIFEST}")]
    files += folder.glob(f"{place}/shards/*.jsonl") if place else []
    return max(map(modified, files), default=0.0) or time.time()


# What was measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _WorkDone:
    """What a stage has done.

    Attributes:
        items: that are done, by unit.
        seconds: of each kind of work, as far as they are known.
        tried: whether the learning rate is known, for whose short runs nobody keeps the time.
    """

    items: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tried: bool = True

    def words(self, stage: ExpectedStage) -> str:
        """How far the stage is."""
        for unit, count in self.items.items():
            of = sum(task.items for task in stage.tasks or () if task.unit == unit)
            if math.isinf(count):
                return "measuring its model"
            if count and of > count:
                return f"{count:,.0f} of about {of:,.0f} {unit}"
            if count:
                return f"{count:,.0f} {unit}"
        return ""


@dataclass(frozen=True)
class _Counted:
    run: RunFacts
    metrics: Mapping[str, Sequence[JsonObject]]

    def of(self, name: str, done: bool) -> _WorkDone:
        """What a stage has done."""
        folder = schedule.folder_of(name)
        if folder is None:
            return _WorkDone()
        if name.endswith(": answers"):
            facts = self.run.facts(folder, PairFacts)
            if done and facts:
                return _WorkDone({"answers": math.inf, "pairs": math.inf}, dict(facts.seconds))
            return _WorkDone(_in_shards(self.run.folder / folder / "shards"))
        rows = self.metrics.get(folder, ())
        spent = math.fsum(row.get("seconds") or 0.0 for row in rows)
        # of a long stage, rows are left out
        seconds = {"train": spent * rows[-1]["step"] / len(rows) if rows else 0.0}
        items = {"steps": float(rows[-1]["step"]) if rows else 0.0}
        tried = bool(rows) or done or (self.run.folder / folder / "rates" / MANIFEST).is_file()
        if not done and folder in self.run.stages:  # trained, and measured now
            return _WorkDone({"steps": math.inf}, seconds)
        if done:
            return _WorkDone({"steps": math.inf, "answers": math.inf, "pairs": math.inf}, seconds if rows else {})
        return _WorkDone(items, seconds, tried)

    def took(self, name: str) -> float | None:
        """How long a finished stage took, as far as its manifest says."""
        facts = self.run.stages.get(schedule.folder_of(name) or "")
        seconds = getattr(facts, "seconds", None)
        return math.fsum(seconds.values()) if seconds else None


def _in_shards(folder: Path) -> dict[str, float]:
    """Records in the finished shards of answers and of pairs."""
    found = {"answers": 0.0, "pairs": 0.0}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            with path.open("rb") as file:
                records = orjson.loads(file.readline()).get("records", 0)
        except (OSError, orjson.JSONDecodeError, AttributeError):
            continue
        found["answers" if "-answers-" in path.name else "pairs"] += records
    return found


def _replay(times: RunTimes, clock: _Clock, stage: ExpectedStage, work: _WorkDone) -> None:
    """Tells what a stage has done as if it happened now; ends in the task that is under way."""
    left = dict(work.items)
    tasks = [one for one in stage.tasks or () if one.unit != TRIAL_STEPS or not work.tried]
    whole = _tokens_by_kind([(KINDS[one.unit], one.items * one.tokens) for one in tasks])
    for one in tasks:
        kind, count = KINDS[one.unit], min(left.get(one.unit, 0.0), one.items)
        endless = math.isinf(left.get(one.unit, 0.0))
        task = times.begin_task(stage.name, max(one.items, count), one.unit)
        known = work.seconds.get(kind)
        if known and count:
            share = count * one.tokens / whole[kind] if endless and whole[kind] else 1.0
            clock.seconds += known * share
        times.advance(task, count, restored=not known)
        left[one.unit] = left.get(one.unit, 0.0) - count
        if count < one.items:
            return
        times.end_task(task)


def _tokens_by_kind(found: Sequence[tuple[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for kind, tokens in found:
        totals[kind] = totals.get(kind, 0.0) + tokens
    return totals
