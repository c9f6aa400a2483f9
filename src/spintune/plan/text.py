"""A plan as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from spintune.plan.memory import MemoryParts
from spintune.plan.plan import RunPlan, StagePlan, in_gb


def plan_lines(plan: RunPlan) -> Iterator[str]:
    """What a plan says, from the data to the verdict."""
    share = "all are trained" if plan.trained == plan.parameters else f"{_short(plan.trained)} are trained"
    yield f"model     {plan.model}: {_short(plan.parameters)} parameters, {share}"
    yield f"target    {plan.target}" + (", weights sharded" if plan.is_sharded else "")
    yield f"rows      {_rows(plan)}"
    for stage in plan.stages:
        yield f"{stage.name}: {_work(stage)}"
        yield from _memory(stage, plan)
    if plan.rates:
        yield f"rates     {plan.rates.how}"
    else:
        yield "time      unknown: no speed was measured (--no-probe, or no such model here); name a GPU with --gpu"
    if plan.seconds is not None:
        yield f"time      {_time(plan.seconds)} in all, without evaluation"
    disk = plan.disk
    models = f"{in_gb(disk.final)} of models at the end, {in_gb(disk.peak)} at most with checkpoints"
    yield f"disk      {models}; {in_gb(plan.free)} free"
    yield f"host      {in_gb(plan.host)} of the machine's memory at most" + (
        ", for the processes of a node" if " x " in plan.target else ""
    )
    if plan.limit is None:
        yield f"memory    {in_gb(plan.needed)} on each device; give --memory to compare"
    elif plan.fits:
        yield f"fits: {in_gb(plan.needed)} of {in_gb(plan.limit)} on each device"


def _rows(plan: RunPlan) -> str:
    rows = plan.rows
    counts = f"{rows.sft.rows:,} to train on, {rows.heldout:,} held out"
    mean = sum(rows.sft.lengths) / max(1, len(rows.sft.lengths))
    return f"{counts}, {mean:.0f} tokens each ({rows.how})"


def _work(stage: StagePlan) -> str:
    steps = f"{stage.steps:,} steps, " if stage.steps else ""
    written = f", {stage.written:,} written" if stage.written else ""
    rows = "prompts" if stage.written else "rows"
    time = f", {_time(stage.seconds)}" if stage.seconds is not None else ""
    return f"{steps}{stage.rows:,} {rows}, {stage.tokens:,} tokens read{written}, {stage.operations:.2g} FLOPs{time}"


def _memory(stage: StagePlan, plan: RunPlan) -> Iterator[str]:
    one = "  one device" if stage.sharded is None else "  replicated"
    yield f"{one}  {_parts(stage.memory)}" + (
        f" (activations {stage.how})" if stage.how and stage.how != "by a rehearsal" else ""
    )
    if stage.sharded is not None:
        yield f"  sharded     {_parts(stage.sharded)}"


def _parts(memory: MemoryParts) -> str:
    named = ", ".join(f"{name} {in_gb(size)}" for name, size in memory.parts().items())
    return f"{in_gb(memory.total)}: {named}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def _short(number: float) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
