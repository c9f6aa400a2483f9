"""Checkpoints of a training stage: weights, optimizer state and step, as safetensors and JSON, written atomically."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from spintune.background import Background
from spintune.engine.sharing import local
from spintune.errors import NonFiniteError, RunError
from spintune.memory import available_memory
from spintune.ranks.team import end_of_ranks
from spintune.storage import atomic_folder, remove_folder
from spintune.training.optimization import optimizer_tensors, restore_optimizer
from spintune.training.replicas import sharded_team, share_weights
from spintune.unfinished import (
    OPTIMIZER,
    WEIGHTS,
    HeldoutLosses,
    best_name,
    check_inputs,
    checkpoint_name,
    foreign_checkpoint,
    read_checkpoint,
    seal_checkpoint,
)

log = logging.getLogger(__name__)

_FIRST_SECONDS = 60.0
"""The first checkpoint of a stage comes this early, so that a mistake about time or space shows early too."""


_ROOM = 2**23
"""Memory that saving may need beside the tensors. Libraries that find none end the process. [bytes]"""


@dataclass(frozen=True)
class _UnderWay:
    """A checkpoint that is written while training goes on.

    Attributes:
        best: step of the best weights that it names; 0 for none.
    """

    step: int
    best: int
    work: Background


class Checkpoints:
    """The checkpoints of one stage. A new checkpoint replaces the older ones.

    Beside them lie the best weights so far, if training keeps them. Those that the newest checkpoint names stay until
    the next one is written: who goes on from a checkpoint finds what was the best at its step.

    Attributes:
        heldout: the held-out losses so far, which each checkpoint keeps; None without any.

    Args:
        folder: where they are kept.
        minutes: time between checkpoints; 0 saves one after every step.
        before: called before one is saved, to put logs of the same steps on disk first.
        copies: whether :meth:`save` copies the state into the machine's memory, and a thread writes it from there while
            training goes on. It takes as many bytes as the state.
        inputs: what the stage is trained from, shortened; a checkpoint of others is refused. None: nobody looks.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float,
        before: Callable[[], None] = lambda: None,
        copies: bool = False,
        inputs: str | None = None,
    ) -> None:
        self.folder, self.seconds, self._copies, self._inputs = folder, minutes * 60, copies, inputs
        self._before = before
        self._last = time.monotonic()
        self._saved = 0  # steps in the newest checkpoint
        self.heldout: HeldoutLosses | None = None
        self._best = 0  # step of the best weights
        self._named = 0  # the same as the newest checkpoint has it
        self._under_way: _UnderWay | None = None

    def due(self) -> bool:
        """Whether it is time for the next checkpoint. The first one comes after a minute at the latest."""
        wait = self.seconds if self._saved or self._under_way else min(self.seconds, _FIRST_SECONDS)
        return time.monotonic() - self._last >= wait

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Saves the state after ``step`` steps, or begins to, when the one before is complete.

        Raises StorageError for either; the newest complete checkpoint is then still there.
        """
        self.finish()
        self._before()
        beside = self._copies and self._fits(model, optimizer)
        write = partial(self._write, step, _writer(model, optimizer, beside), self._best, self.heldout)
        if beside:
            self._under_way = _UnderWay(step, self._best, Background(write))
        else:
            write()
            self._replaced(step, self._best)
        self._last = time.monotonic()

    def settle(self) -> None:
        """Takes note of a checkpoint that was written meanwhile. Raises StorageError if that failed."""
        if self._under_way and self._under_way.work.is_done:
            self.finish()

    def finish(self) -> None:
        """Waits for the checkpoint that is being written. Raises StorageError if that fails."""
        one, self._under_way = self._under_way, None
        if one is None:
            return
        one.work.wait()
        self._replaced(one.step, one.best)

    def _replaced(self, step: int, best: int) -> None:
        self._saved, self._named = step, best
        self._remove_best()

    @contextlib.contextmanager
    def finished_on_errors(self) -> Iterator[None]:
        """Whatever ends the block, the checkpoint that is being written is complete then, and the error has a note of
        the newest one."""
        try:
            yield
        except BaseException as error:
            try:
                self.finish()
            except Exception as second:
                error.add_note(f"a checkpoint could not be written ({str(second) or type(second).__name__})")
            self.say_what_is_kept(error)
            raise

    def rescue(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, error: BaseException) -> None:
        """Saves the state after ``step`` steps if it can, since ``error`` ends training; else the error has a note."""
        end_of_ranks()
        with contextlib.suppress(Exception):  # then that of this step is written again, or in its place
            self.finish()
        if step > self._saved:
            try:
                bytearray(_ROOM)
                self._before()
                self._write(step, _writer(model, optimizer), self._best, self.heldout)
                self._saved, self._named = step, self._best
            except Exception as second:
                error.add_note(
                    f"no checkpoint of step {step} could be written ({str(second) or type(second).__name__})"
                )

    def say_what_is_kept(self, error: BaseException) -> None:
        """Notes the newest checkpoint on an error that ends training, unless the error comes again from there."""
        if self._saved and not isinstance(error, NonFiniteError | RunError):
            error.add_note(f"the checkpoint of step {self._saved} is kept, and the same command goes on from it")

    def _write(self, step: int, write: Callable[[Path], None], best: int, heldout: HeldoutLosses | None) -> None:
        with atomic_folder(self.folder / checkpoint_name(step)) as temporary:
            write(temporary)
            seal_checkpoint(temporary, step, best or None, heldout, self._inputs)
        for other in self._all():
            if other.name != checkpoint_name(step):
                remove_folder(other)  # the next save tries again; restore takes the newest

    def _fits(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the machine has the memory for a copy, those of its other ranks included."""
        tensors = [*dict(_trained(model)).values(), *optimizer_tensors(optimizer).values()]
        team = sharded_team(model)
        size = sum(local(tensor).nbytes for tensor in tensors) * (team.place.local_size if team else 1)
        free = available_memory()
        if free is None or 1.25 * size < free:
            return True
        log.warning(
            "a copy of weights and moments takes %.1f GB of the machine's memory, of which %.1f GB are free; "
            "training waits for this checkpoint (checkpoint_write: sync)",
            size / 1e9,
            free / 1e9,
        )
        return False

    def save_best(self, step: int, model: nn.Module) -> None:
        """Saves the trained weights after ``step`` steps as the best so far. Raises StorageError as :meth:`save`."""
        self.finish()  # it may name what is deleted here
        self._best = 0
        self._remove_best()  # what no checkpoint names is not needed to go on
        with atomic_folder(self.folder / best_name(step)) as temporary:
            if team := sharded_team(model):
                team.call(_sharded().write_shards, str(temporary), False)
            else:
                save_file({n: p.detach().contiguous() for n, p in _trained(model)}, temporary / WEIGHTS)
            seal_checkpoint(temporary, step, inputs=self._inputs)
        self._best = step

    def load_best(self, model: nn.Module) -> None:
        """Loads the best weights into the model, one tensor at a time. Raises RunError when they are damaged."""
        folder = self.folder / best_name(self._best)
        try:
            read_checkpoint(folder)
        except RunError as error:
            raise RunError(f"{error}; delete {self.folder} and run again") from error
        if sharded_team(model) or not (folder / WEIGHTS).is_file():
            _read_sharded(folder, model, None)
        else:
            with torch.no_grad(), safe_open(folder / WEIGHTS, "pt") as file:
                for name, parameter in _trained(model):
                    parameter.copy_(file.get_tensor(name))
        share_weights(model)

    def _remove_best(self) -> None:
        """Deletes best weights that are neither the newest nor named by the newest checkpoint."""
        for folder in self.folder.glob("best-????????"):
            if folder.name not in (best_name(self._best), best_name(self._named)):
                remove_folder(folder)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest intact checkpoint into model and optimizer. Returns its number of steps, 0 for none.

        One whose best weights are damaged is not intact. Raises RunError for one of other training.
        """
        step = self._restore(model, optimizer)
        share_weights(model)
        self._remove_best()
        return step

    def _restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        for folder in reversed(self._all()):
            try:
                found = {folder: (facts := read_checkpoint(folder))}
                if facts.best:
                    best = self.folder / best_name(facts.best)
                    found[best] = read_checkpoint(best)
                divided = bool(sharded_team(model)) or not (folder / WEIGHTS).is_file()
                weights, state = ({}, {}) if divided else [load_file(folder / name) for name in (WEIGHTS, OPTIMIZER)]
            except (RunError, OSError, SafetensorError) as error:
                log.warning("%s; this checkpoint is not used", error)
                continue
            for place, one in found.items():
                check_inputs(place, one, self._inputs)
            _check_weights(folder, model)
            if divided:
                _read_sharded(folder, model, optimizer)
            else:
                with torch.no_grad():
                    for name, parameter in _trained(model):
                        parameter.copy_(weights[name])
                restore_optimizer(optimizer, state)
            self._saved, self.heldout = facts.step, facts.heldout
            self._best = self._named = facts.best or 0
            return facts.step
        return 0

    def clear(self) -> None:
        """Deletes all checkpoints."""
        remove_folder(self.folder)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-????????") if path.is_dir())


def _sharded() -> ModuleType:
    """What reads and writes sharded checkpoints; imported where there are any."""
    from spintune.training import sharded_checkpoint

    return sharded_checkpoint


def _check_weights(folder: Path, model: nn.Module) -> None:
    """Raises RunError for a checkpoint of other weights, which one of an earlier version may be."""
    if (folder / WEIGHTS).is_file():
        with safe_open(folder / WEIGHTS, "pt") as file:
            kept = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    else:
        kept = _sharded().weight_shapes(folder)
    if kept != {name: tuple(parameter.shape) for name, parameter in _trained(model)}:
        raise foreign_checkpoint(folder)


def _writer(model: nn.Module, optimizer: torch.optim.Optimizer, copied: bool = False) -> Callable[[Path], None]:
    """What writes weights and the optimizer's state into a folder: as they are when it is called, or ``copied`` now."""
    if team := sharded_team(model):
        if copied:
            return team.call(_sharded().copy_shards)
        return lambda folder: team.call(_sharded().write_shards, str(folder), True)
    weights = {name: parameter.detach() for name, parameter in _trained(model)}
    state = optimizer_tensors(optimizer)
    if copied:
        weights, state = ({n: t.to("cpu", copy=True) for n, t in tensors.items()} for tensors in (weights, state))

    def write(folder: Path) -> None:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
        save_file(state, folder / OPTIMIZER)

    return write


def _read_sharded(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    if team := sharded_team(model):
        team.call(_sharded().read_parts, str(folder), optimizer is not None)
    else:
        _sharded().read_into(folder, model, optimizer)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
