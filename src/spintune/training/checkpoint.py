"""Checkpoints of a training stage: weights, optimizer state and step, as safetensors and JSON, written atomically."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spintune.errors import RunError, StorageError
from spintune.storage import atomic_folder, remove_folder
from spintune.training.replicas import sharded_team, share_weights
from spintune.unfinished import (
    OPTIMIZER,
    WEIGHTS,
    HeldoutLosses,
    best_name,
    checkpoint_name,
    read_checkpoint,
    seal_checkpoint,
)

log = logging.getLogger(__name__)

_FIRST_SECONDS = 60.0
"""The first checkpoint of a stage comes this early, so that a mistake about time or space shows early too."""


_ROOM = 2**23
"""Memory that saving may need beside the tensors. Libraries that find none end the process. [bytes]"""


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
    """

    def __init__(self, folder: Path, minutes: float, before: Callable[[], None] = lambda: None) -> None:
        self.folder, self.seconds = folder, minutes * 60
        self._before = before
        self._last = time.monotonic()
        self._saved = 0  # steps in the newest checkpoint
        self.heldout: HeldoutLosses | None = None
        self._best = 0  # step of the best weights
        self._named = 0  # the same as the newest checkpoint has it

    def due(self) -> bool:
        """Whether it is time for the next checkpoint. The first one comes after a minute at the latest."""
        wait = self.seconds if self._saved else min(self.seconds, _FIRST_SECONDS)
        return time.monotonic() - self._last >= wait

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Saves the state after ``step`` steps. Raises StorageError; the checkpoint before is then still there."""
        try:
            self._write(step, model, optimizer)
        except StorageError as error:
            self._say_what_is_kept(error)
            raise
        self._last = time.monotonic()
        for other in self._all():
            if other.name != checkpoint_name(step):
                remove_folder(other)  # the next save tries again; restore takes the newest
        self._remove_best()

    def rescue(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, error: BaseException) -> None:
        """Saves the state after ``step`` steps if it can, since ``error`` ends training, and notes it on the error."""
        if step > self._saved:
            try:
                bytearray(_ROOM)
                self._write(step, model, optimizer)
            except Exception as second:
                error.add_note(
                    f"no checkpoint of step {step} could be written ({str(second) or type(second).__name__})"
                )
        self._say_what_is_kept(error)

    def _say_what_is_kept(self, error: BaseException) -> None:
        if self._saved:
            error.add_note(f"the checkpoint of step {self._saved} is kept, and the same command goes on from it")

    def _write(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._before()
        with atomic_folder(self.folder / checkpoint_name(step)) as temporary:
            if team := sharded_team(model):
                team.call(_sharded().write_shards, str(temporary), True)
            else:
                save_file({n: p.detach().contiguous() for n, p in _trained(model)}, temporary / WEIGHTS)
                save_file(_optimizer_tensors(optimizer), temporary / OPTIMIZER)
            seal_checkpoint(temporary, step, self._best or None, self.heldout)
        self._saved, self._named = step, self._best

    def save_best(self, step: int, model: nn.Module) -> None:
        """Saves the trained weights after ``step`` steps as the best so far. Raises StorageError as :meth:`save`."""
        self._best = 0
        self._remove_best()  # what no checkpoint names is not needed to go on
        try:
            with atomic_folder(self.folder / best_name(step)) as temporary:
                if team := sharded_team(model):
                    team.call(_sharded().write_shards, str(temporary), False)
                else:
                    save_file({n: p.detach().contiguous() for n, p in _trained(model)}, temporary / WEIGHTS)
                seal_checkpoint(temporary, step)
        except StorageError as error:
            self._say_what_is_kept(error)
            raise
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

        One whose best weights are damaged is not intact.
        """
        step = self._restore(model, optimizer)
        share_weights(model)
        self._remove_best()
        return step

    def _restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        for folder in reversed(self._all()):
            try:
                facts = read_checkpoint(folder)
                if facts.best:
                    read_checkpoint(self.folder / best_name(facts.best))
                divided = bool(sharded_team(model)) or not (folder / WEIGHTS).is_file()
                weights, state = ({}, {}) if divided else [load_file(folder / name) for name in (WEIGHTS, OPTIMIZER)]
            except (RunError, OSError, SafetensorError) as error:
                log.warning("%s; this checkpoint is not used", error)
                continue
            if divided:
                _read_sharded(folder, model, optimizer)
            else:
                with torch.no_grad():
                    for name, parameter in _trained(model):
                        parameter.copy_(weights[name])
                _restore_optimizer(optimizer, state)
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


def _read_sharded(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    if team := sharded_team(model):
        team.call(_sharded().read_parts, str(folder), optimizer is not None)
    else:
        _sharded().read_into(folder, model, optimizer)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
