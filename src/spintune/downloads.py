"""Shows downloads and conversions of other libraries as tasks of ours, on the same lines as all other progress."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from types import ModuleType

from tqdm.std import tqdm

from spintune.progress import Progress, ProgressTask, Silent

_MEGABYTE = 1e6
_HUB = ("huggingface_hub.utils.tqdm", "tqdm"), ("huggingface_hub._snapshot_download", "hf_tqdm")
_CONVERSION = "transformers.modeling_gguf_pytorch_utils"

_shown_on: Progress = Silent()


def shown_progress() -> Progress:
    """Where downloads and conversions are shown now; nowhere outside of :func:`shown_on`."""
    return _shown_on


@contextlib.contextmanager
def shown_on(progress: Progress) -> Iterator[None]:
    """Inside, what the hub's client downloads is shown on ``progress``."""
    global _shown_on
    import huggingface_hub._snapshot_download
    import huggingface_hub.file_download  # noqa: F401 -- both look the class up where it is replaced

    before, _shown_on = _shown_on, progress
    with contextlib.ExitStack() as stack:
        for module, name in _HUB:
            stack.enter_context(_replaced(sys.modules[module], name))
        try:
            yield
        finally:
            _shown_on = before


@contextlib.contextmanager
def conversion_shown() -> Iterator[None]:
    """Inside, transformers' conversion of a GGUF file is shown where downloads are, not as lines of its own."""
    with _replaced(importlib.import_module(_CONVERSION), "tqdm"):
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, TaskBar)
    try:
        yield
    finally:
        setattr(module, name, before)


class TaskBar(tqdm):
    """A bar of tqdm that draws nothing and counts a task."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        settings.pop("name", None)  # of the hub's own class
        super().__init__(*arguments, **{**settings, "disable": False, "file": io.StringIO(), "leave": False})
        in_bytes = self.unit == "B"
        self._scale, unit = (_MEGABYTE, "MB") if in_bytes else (1.0, "tensors" if "GGUF" in self.desc else "files")
        title = "converting GGUF" if "GGUF" in self.desc else f"downloading {self.desc.strip(' :.')}"
        self._context = _shown_on.task(title[:60], (self.total or 0) / self._scale, unit)
        self._task: ProgressTask | None = self._context.__enter__()
        if self.initial:
            self._task.advance(self.initial / self._scale, restored=True)

    def __iter__(self) -> Iterator[object]:
        """The items, each counted when the next one is asked for."""
        try:
            for item in self.iterable:
                yield item
                self.update(1)
        finally:
            self.close()

    def update(self, n: float | None = 1) -> bool | None:
        """Counts."""
        self.n += n or 0
        if self._task is not None:
            self._task.advance((n or 0) / self._scale)
        return None

    def display(self, *arguments: object, **settings: object) -> None:
        """Draws nothing."""

    def close(self) -> None:
        """Ends the task."""
        task, self._task = getattr(self, "_task", None), None
        if task is not None:
            self._context.__exit__(None, None, None)
        super().close()
