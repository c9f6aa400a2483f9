"""Puts a plan together: each stage's rows, steps, memory, arithmetic and time; the disk; and what would make it fit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from spintune.errors import DoesNotFitError, SpintuneError
from spintune.models.unread import is_read_one_by_one
from spintune.plan.calls import Calls, Sharing, sft_calls, spin_calls
from spintune.plan.devices import GB, PROCESS, Target
from spintune.plan.memory import MemoryParts, MemoryPlan, larger
from spintune.plan.rows import PlannedRows, RowSizes, assumed_rows, read_rows
from spintune.plan.shapes import ModelShape, parameters, read_shape
from spintune.plan.speed import Operations, Rates, gpu_rates, measured_rates, operations_of
from spintune.progress import Progress
from spintune.recipe import Recipe, SftSection
from spintune.recipe.reading import parse_recipe
from spintune.remedies import Remedy, remedies
from spintune.stages.needs import DiskNeeds, disk_needs
from spintune.training.footprint import TrainingFootprint, footprint, outgrows_gpu

_PER_NODE = 8


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run.

    Attributes:
        rows: that are trained on, each as often as it is; or prompts that are answered.
        tokens: that the model reads.
        written: tokens of answers.
        operations: floating-point operations.
        seconds: None where no rate is known.
        memory: by component, of one device that holds all weights.
        sharded: of each device of the mesh, where weights, gradients and moments are shared; None for one device.
        how: where the activations are from.
    """

    name: str
    rows: int
    tokens: int
    steps: int
    written: int
    operations: float
    seconds: float | None
    memory: MemoryParts
    sharded: MemoryParts | None
    how: str = ""


@dataclass(frozen=True)
class Offer:
    """A change that makes a run fit: what to do, and the bytes that the largest stage then takes."""

    change: str
    memory: int


@dataclass(frozen=True)
class RunPlan:
    """What a run takes.

    Attributes:
        parameters: numbers of the model; ``trained`` of them are.
        limit: bytes of a device; None where nobody knows.
        needed: bytes of the stage that needs the most, as the run would be on the target.
        host: bytes of the machine's memory for all processes of a node, at their most.
        disk: models and checkpoints of the run folder.
        free: bytes on the disk of the run folder.
        offers: what would make it fit; empty where it does.
    """

    model: str
    target: str
    parameters: int
    trained: int
    rows: PlannedRows
    stages: list[StagePlan]
    rates: Rates | None
    is_sharded: bool
    limit: int | None
    needed: int
    host: int
    disk: DiskNeeds
    free: int
    offers: list[Offer]

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice, as far as they are known."""
        return (self.limit is None or self.needed <= self.limit) and self.disk.certain <= self.free

    @property
    def seconds(self) -> float | None:
        """Of all stages that are planned."""
        times = [stage.seconds for stage in self.stages]
        return None if None in times else sum(time for time in times if time is not None)

    def refusal(self) -> DoesNotFitError:
        """The error of a plan that does not fit, with what would make it fit."""
        largest = max(self.stages, key=lambda stage: _on_target(stage, self.is_sharded).total)
        if self.limit is not None and self.needed > self.limit:
            told = f"{largest.name} needs {in_gb(self.needed)} on each device, which has {in_gb(self.limit)}"
            would = "; ".join(f"{offer.change} ({in_gb(offer.memory)})" for offer in self.offers)
            return DoesNotFitError(f"does not fit: {told}; {f'would fit: {would}' if would else 'use a smaller model'}")
        told = f"models take {in_gb(self.disk.certain)} and {in_gb(self.free)} are free"
        return DoesNotFitError(f"does not fit: {told}; use spin.keep: best, lora, or another out")


def in_gb(size: float) -> str:
    """Bytes as gigabytes, in three digits."""
    return f"{size / GB:.3g} GB" if size >= GB / 10 else f"{size / 1e6:.3g} MB"


@dataclass(frozen=True)
class Planner:
    """Plans a recipe for a target.

    Attributes:
        shape: of the model.
        rows: of the recipe's data.
    """

    recipe: Recipe
    shape: ModelShape
    target: Target
    rows: PlannedRows

    def memory(self, sharded: bool) -> MemoryPlan:
        """The memory of the recipe's model, replicated or sharded."""
        return MemoryPlan(self.recipe, self.shape, self.target, sharded)

    @property
    def is_sharded(self) -> bool:
        """Whether the run shares weights among its devices: as the recipe says, else where a run does so by itself."""
        recipe, target = self.recipe, self.target
        if target.gpus == 1 or recipe.parallel not in (None, "auto"):
            return target.gpus > 1 and recipe.parallel == "shard"
        if not target.on_gpu or recipe.needs_whole_weights:
            return False
        optimizers = [section.optimizer for section in (recipe.sft, recipe.spin) if section]
        return target.memory is None or outgrows_gpu(self.memory(False).model, optimizers, target.memory)

    def needed(self, sharded: bool) -> int:
        """Bytes of a device in the stage that needs the most."""
        return max((self.peak(name, calls, sharded)[0].total for name, calls in self.trainings()), default=0)

    def trainings(self) -> list[tuple[str, Calls]]:
        """The training stages of the recipe, by name, as one rank computes them."""
        recipe, found = self.recipe, list[tuple[str, Calls]]()
        sharing = Sharing(self.target.gpus, bool(self.shape.config.is_encoder_decoder))
        if recipe.sft:
            found.append(("sft", sft_calls(recipe, recipe.sft, self.rows.sft, sharing)))
        if spin := recipe.spin:
            calls = [spin_calls(recipe, spin, t, self.rows.spin, sharing) for t in range(1, spin.iterations + 1)]
            found += [(f"spin/iterate-{number}", one) for number, one in enumerate(calls, 1)]
            if spin.baseline == "sft":
                section = recipe.sft or SftSection()
                played = self.rows.spin if spin.prompts == "unseen" else self.rows.sft
                same = sft_calls(recipe, section, played, sharing)
                tokens = sum(one.tokens for one in calls)
                share = tokens / max(1, same.tokens)
                rows, scored = round(same.rows * share), round(same.scored * share)
                steps = sum(one.steps for one in calls)
                more = replace(same, steps=steps, tokens=tokens, rows=rows, scored=scored)
                found.append(("spin/baseline-sft", more))
        return found

    def peak(self, name: str, calls: Calls, sharded: bool) -> tuple[MemoryParts, str]:
        """The parts of memory when a stage needs the most: in a step, or while it writes answers."""
        plan = self.memory(sharded)
        section = (self.recipe.spin if name.startswith("spin/iterate") else self.recipe.sft) or SftSection()
        training, how = plan.training(section, calls)
        if name.startswith("spin/iterate"):
            written, sizes = self._longest_answer if self.recipe.spin else 0, self.rows.spin
            prompts = sizes.rows * (self.recipe.spin.negatives if self.recipe.spin else 1)
            return larger(training, plan.generation(prompts, max(sizes.prompts), written)), how
        # a few short texts, by which the generator is checked
        return larger(training, plan.generation(2, 1, 1, checks=True)), how

    def stages(self, needs: Operations, rates: Rates | None) -> list[StagePlan]:
        """Every stage that computes, in order."""
        found, several = list[StagePlan](), self.target.gpus > 1
        for name, calls in self.trainings():
            if name.startswith("spin/iterate"):
                found.append(self._answers(name, needs, rates))
            parts, how = self.peak(name, calls, False)
            sharded = self.peak(name, calls, True)[0] if several else None
            seconds = calls.tokens / rates.training if rates else None
            found.append(
                StagePlan(name, calls.rows, calls.tokens, calls.steps, 0, needs.of(calls), seconds, parts, sharded, how)
            )
        return found

    @property
    def _longest_answer(self) -> int:
        """Of self-play. [tokens]"""
        spin = self.recipe.spin
        return spin.settled(max(self.rows.spin.answers)).longest_answer if spin else 1

    def _answers(self, name: str, needs: Operations, rates: Rates | None) -> StagePlan:
        """The prompts of an iteration, answered and scored."""
        sizes: RowSizes = self.rows.spin
        spin = self.recipe.spin
        negatives, longest = spin.negatives if spin else 1, self._longest_answer
        prompts = sizes.rows + self.rows.heldout
        written = round(prompts * negatives * sizes.mean_answer)
        read = round(prompts * sum(sizes.lengths) / max(1, len(sizes.lengths))) + written
        operations = needs.forward * (written + 2 * read)
        seconds = written / rates.writing + read / rates.scoring if rates and rates.writing else None
        parts = [self.memory(s).generation(prompts * negatives, max(sizes.prompts), longest) for s in (False, True)]
        several = self.target.gpus > 1
        return StagePlan(
            f"{name}/pairs", prompts, read, 0, written, operations, seconds, parts[0], parts[1] if several else None
        )

    def offers(self) -> list[Offer]:
        """The changes that make the run fit, each alone; where none does, the first few together that do."""
        limit = self.target.memory
        if limit is None or not self.trainings():
            return []
        found, together, names = list[Offer](), self, list[str]()
        for remedy, _ in remedies(self.recipe, "training"):
            alone = self._changed(remedy)
            if alone and (size := alone.least_needed()) <= limit:
                found.append(Offer(remedy.advice, size))
            more = together._changed(remedy)
            if not found and more and (size := more.least_needed()) < together.least_needed():
                together, names = more, [*names, remedy.advice]
                if size <= limit:
                    return [Offer(", ".join(names) + ", all together", size)]
        if self.target.gpus == 1 and not found:
            found += self._more_devices(limit)
        return found

    def least_needed(self) -> int:
        """Bytes of a device as the run would be."""
        return self.needed(self.is_sharded)

    def _changed(self, remedy: Remedy) -> Planner | None:
        values = remedy.change(self.recipe)
        if values is None:
            return None
        try:
            return replace(self, recipe=parse_recipe(values, remedy.advice))
        except SpintuneError:  # a key that does not go with another one of this recipe
            return None

    def _more_devices(self, limit: int) -> list[Offer]:
        if not self.target.on_gpu or self.recipe.needs_whole_weights:
            return []
        for gpus in (2, 4, 8, 16, 32, 64, 128):
            wider = replace(self, target=replace(self.target, gpus=gpus))
            if (size := wider.needed(sharded=True)) <= limit:
                return [Offer(f"{gpus} GPUs with parallel: shard", size)]
        return []


def make_plan(
    recipe: Recipe,
    target: Target,
    cache: Path,
    progress: Progress,
    stated: tuple[int, int] | None = None,
    probe: bool = True,
    known: Rates | None = None,
) -> RunPlan:
    """Plans a run; nothing is written, and of a model at most its config and tokenizer are fetched.

    Args:
        stated: rows and tokens of each, instead of the recipe's data.
        probe: whether speed may be measured where the target is this machine.
        known: rates of an earlier plan on the same machine, instead of measuring them.

    Raises SpintuneError for a recipe, model or data that a run would refuse.
    """
    shape = read_shape(recipe.model, cache)
    rows = assumed_rows(recipe, *stated) if stated else read_rows(recipe, shape, cache, progress)
    planner = Planner(recipe, shape, target, rows)
    model = planner.memory(False).model
    needs, rates = operations_of(model), known or _rates(planner, cache, progress, probe)
    progress.note("rehearsing memory")
    stages, is_sharded = planner.stages(needs, rates), planner.is_sharded
    needed = max((_on_target(stage, is_sharded).total for stage in stages), default=0)
    sections = [section for section in (recipe.sft, recipe.spin) if section]
    training = max(
        (footprint(model, section.optimizer) for section in sections),
        key=lambda one: one.total,
        default=footprint(model),
    )
    saved = (2 if recipe.weights and not recipe.lora else 4) * parameters(shape.whole())
    found = RunPlan(
        model=recipe.model,
        target=str(target),
        parameters=parameters(shape.whole()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        rows=rows,
        stages=stages,
        rates=rates,
        is_sharded=is_sharded,
        limit=target.memory,
        needed=needed,
        host=host_bytes(planner, training, needed),
        disk=disk_needs(recipe, saved, training),
        free=_free(Path(recipe.out)),
        offers=[],
    )
    return found if target.memory is None or needed <= target.memory else replace(found, offers=planner.offers())


def _on_target(stage: StagePlan, is_sharded: bool) -> MemoryParts:
    return stage.sharded if is_sharded and stage.sharded else stage.memory


def _rates(planner: Planner, cache: Path, progress: Progress, probe: bool) -> Rates | None:
    target, trainings = planner.target, planner.trainings()
    if target.measured and probe and planner.shape.is_here and trainings:
        return measured_rates(planner.recipe, trainings[-1][1].largest, cache, progress)
    model = planner.memory(False).model
    weights = footprint(model).weights if planner.memory(False).autocast is None else 2 * parameters(model)
    return gpu_rates(target, operations_of(model), weights)


def host_bytes(planner: Planner, training: TrainingFootprint, needed: int) -> int:
    """On a CPU all is in the machine's memory. For a GPU, each process reads the weights there first.

    Of shards each reads a layer after the other, where its model's kind allows. The first process has the whole model
    twice when it saves it. A checkpoint is written from a copy there, of all shards or of the first process.
    """
    recipe, target = planner.recipe, planner.target
    if not target.on_gpu:
        return needed
    processes, away = min(target.gpus, _PER_NODE), recipe.offload in ("optimizer", "both")
    sections = [section for section in (recipe.sft, recipe.spin) if section]
    copy = any(recipe.copies_checkpoints(one, on_gpu=True) for one in sections) * training.checkpoint
    if planner.is_sharded:
        copy = round(copy * processes / target.gpus)
        if is_read_one_by_one(planner.memory(True).model):
            kept = round(training.total * processes / target.gpus) if away else 0
            return max(kept + copy, 2 * training.weights) + processes * PROCESS
    moments = training.moments if away else 0
    return max(processes * training.weights, processes * moments + copy) + processes * PROCESS


def _free(folder: Path) -> int:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
