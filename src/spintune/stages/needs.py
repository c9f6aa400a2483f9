"""What a run will take of disk and memory, told before it trains, and refused where it cannot fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from spintune.errors import StorageError
from spintune.memory import available_memory
from spintune.progress import Progress
from spintune.recipe import Recipe, SftSection
from spintune.remedies import advice
from spintune.training.footprint import TrainingFootprint, footprint

_WORTH_TELLING = 2**26
"""A run that takes less is not told of, and not refused. [bytes]"""


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes of models and checkpoints in a run folder; examples, answers and logs come on top.

    Attributes:
        certain: what will be there at the end, also when self-play stops after its first iteration.
        final: what will be there at the end when it does not.
        peak: the most at any time, if a checkpoint of every stage is written.
    """

    certain: int
    final: int
    peak: int


def disk_needs(recipe: Recipe, model_bytes: int, training: TrainingFootprint) -> DiskNeeds:
    """What a recipe's models and checkpoints take on disk, for a saved model of ``model_bytes``."""
    spin, models = recipe.spin, 1 if recipe.sft else 0
    certain, passing = models, 0
    best = 2 * training.gradients if _keeps_best(recipe) else 0  # the newest, and those that the checkpoint names
    if spin:
        kept = min(spin.iterations, {"all": spin.iterations, "best": spin.history + 1, "last": spin.history}[spin.keep])
        models += kept + (spin.baseline == "sft")
        certain += 1 if spin.stop.model_fields_set else kept
        passing = model_bytes if kept < spin.iterations else 0  # a new iterate, before an old one is deleted

    def more(beside: int) -> int:
        """Two checkpoints stand together, and later one of them and the new model."""
        return beside + max(2 * training.checkpoint - model_bytes, training.checkpoint)

    final = models * model_bytes
    last = more(best if spin is None or spin.baseline == "sft" else 0)
    sft = model_bytes + more(best) if recipe.sft else 0
    return DiskNeeds(certain * model_bytes, final, max(sft, final + max(last, passing)))


def _keeps_best(recipe: Recipe) -> bool:
    """Whether SFT may keep the weights of an earlier step while it trains."""
    section = recipe.sft or SftSection()
    several = section.epochs > (section.eval_every or 1) or (recipe.spin and recipe.spin.baseline == "sft")
    return bool(several) and section.keep != "last" and not (recipe.data.holds_nothing_out and not recipe.data.mixture)


def check_needs(recipe: Recipe, model: nn.Module, model_bytes: int, progress: Progress) -> None:
    """Tells what training takes. Warns when it may not fit, and raises StorageError when it cannot.

    Args:
        model: the model as it will be trained.
        model_bytes: of each saved model.
    """
    sections = [section for section in (recipe.sft, recipe.spin) if section]
    training = max((footprint(model, section.optimizer) for section in sections), key=lambda one: one.total)
    device = next(model.parameters()).device
    lines = [*_disk(recipe, disk_needs(recipe, model_bytes, training)), *_memory(recipe, training, device)]
    for line in lines:
        progress.note(line)


def _disk(recipe: Recipe, needs: DiskNeeds) -> Iterator[str]:
    folder = Path(recipe.out)
    usage = shutil.disk_usage(folder)
    if needs.peak < _WORTH_TELLING or not usage.total:  # some network file systems do not say
        return
    room = usage.free + _taken(folder)
    peak = f"{in_units(needs.peak)} with checkpoints"
    told = f"{folder}: models take {in_units(needs.final)}, {peak}; {in_units(room)} free"
    less = "use spin.keep=best, lora or another out=, or free some space"
    if needs.certain > room:
        raise StorageError(f"{told}, which is too little; {less}")
    if needs.peak > room:
        yield f"warning, {told}; a full disk stops the run, and the same command goes on: {less}"
    else:
        yield told


def _taken(folder: Path) -> int:
    """Bytes of models and checkpoints that are there already."""
    parts = [part for name in ("model", "checkpoints") for part in folder.rglob(name) if part.is_dir()]
    return sum(file.stat().st_size for part in parts for file in part.rglob("*") if file.is_file())


def _memory(recipe: Recipe, training: TrainingFootprint, device: torch.device) -> Iterator[str]:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    more = training.total - training.weights  # the weights are there
    if free is not None and more >= _WORTH_TELLING and more > free:
        yield (
            f"warning: training takes {in_units(more)} of memory beside the weights, without activations, and "
            f"{in_units(free)} are free; {advice('training', recipe)}"
        )


def in_units(size: int) -> str:
    """A number of bytes as people say it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
