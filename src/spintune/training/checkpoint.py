"""Checkpoints of a training stage: weights, optimizer state and step, as safetensors and JSON, written atomically."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spintune.errors import StorageError
from spintune.storage import atomic_folder, digest_file, read_json, write_json

log = logging.getLogger(__name__)

_FIRST_SECONDS = 60.0
"""The first checkpoint of a stage comes this early, so that a mistake about time or space shows early too."""

_FILES = ("weights.safetensors", "optimizer.safetensors")


class Checkpoints:
    """The checkpoints of one stage. A new checkpoint replaces the older ones.

    Args:
        folder: where they are kept.
        minutes: time between checkpoints; 0 saves one after every step.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.seconds = folder, minutes * 60
        self._last = time.monotonic()
        self._saved = 0  # steps in the newest checkpoint

    def due(self) -> bool:
        """Whether it is time for the next checkpoint. The first one comes after a minute at the latest."""
        wait = self.seconds if self._saved else min(self.seconds, _FIRST_SECONDS)
        return time.monotonic() - self._last >= wait

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Saves the state after ``step`` steps. Raises StorageError; the checkpoint before is then still there."""
        name = f"step-{step:08d}"
        try:
            self._write(name, step, model, optimizer)
        except StorageError as error:
            self._say_what_is_kept(error)
            raise
        self._saved, self._last = step, time.monotonic()
        for other in self._all():
            if other.name != name:
                shutil.rmtree(other, ignore_errors=True)  # the next save tries again; restore takes the newest

    def rescue(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, error: BaseException) -> None:
        """Saves the state after ``step`` steps if it can, since ``error`` ends training, and notes it on the error."""
        if step > self._saved:
            try:
                self._write(f"step-{step:08d}", step, model, optimizer)
                self._saved = step
            except Exception as second:
                error.add_note(f"no checkpoint of step {step} could be written ({second})")
        self._say_what_is_kept(error)

    def _say_what_is_kept(self, error: BaseException) -> None:
        if self._saved:
            error.add_note(f"the checkpoint of step {self._saved} is kept, and the same command goes on from it")

    def _write(self, name: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with atomic_folder(self.folder / name) as temporary:
            save_file({n: p.detach().contiguous() for n, p in _trained(model)}, temporary / _FILES[0])
            save_file(_optimizer_tensors(optimizer), temporary / _FILES[1])
            write_json(
                temporary / "checkpoint.json",
                {"step": step, "sha256": {file: digest_file(temporary / file) for file in _FILES}},
            )

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Loads the newest intact checkpoint into model and optimizer. Returns its number of steps, 0 for none."""
        for folder in reversed(self._all()):
            if not _intact(folder):
                log.warning("%s is damaged; ignoring it", folder)
                continue
            weights = load_file(folder / _FILES[0])
            with torch.no_grad():
                for name, parameter in _trained(model):
                    parameter.copy_(weights[name])
            _restore_optimizer(optimizer, load_file(folder / _FILES[1]))
            self._saved = int(read_json(folder / "checkpoint.json")["step"])
            return self._saved
        return 0

    def clear(self) -> None:
        """Deletes all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-????????") if path.is_dir())


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _intact(folder: Path) -> bool:
    manifest = folder / "checkpoint.json"
    if not manifest.is_file():
        return False
    expected = read_json(manifest)["sha256"]
    return all((folder / file).is_file() and digest_file(folder / file) == expected[file] for file in _FILES)


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
