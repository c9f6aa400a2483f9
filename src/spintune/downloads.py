"""Shows other libraries' downloads, uploads and conversions as tasks of ours, on the same lines as all progress."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

from tqdm.std import tqdm

from spintune.progress import Progress, ProgressTask, Silent

_MEGABYTE = 1e6
_HUB = ("huggingface_hub.utils.tqdm", "tqdm"), ("huggingface_hub._snapshot_download", "hf_tqdm")
_UPLOADS = (
    "huggingface_hub.utils",
    "huggingface_hub.utils.tqdm",
    "huggingface_hub.utils._xet_progress_reporting",
)
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
            stack.enter_context(_replaced(sys.modules[module], name, TaskBar))
        try:
            yield
        finally:
            _shown_on = before


@contextlib.contextmanager
def conversion_shown() -> Iterator[None]:
    """Inside, transformers' conversion of a GGUF file is shown where downloads are, not as lines of its own."""
    with _replaced(importlib.import_module(_CONVERSION), "tqdm", TaskBar):
        yield


@contextlib.contextmanager
def uploads_counted(count: Callable[[float], None]) -> Iterator[None]:
    """Inside, ``count`` is told the megabytes that the hub's client has read of the files that it uploads."""
    modules = [importlib.import_module(name) for name in _UPLOADS]
    hub = modules[0]

    class UploadBar(_Undrawn):
        """Counts bytes. Of Xet's bars, that of all files is the one in the first place."""

        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, **settings)
            self._counts = self.unit == "B" and not settings.get("position")

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts and n:
                count(n / _MEGABYTE)
            return None

    with contextlib.ExitStack() as stack:
        # transformers switches them off for all, and Xet's client counts nothing then
        stack.enter_context(_replaced(hub, "are_progress_bars_disabled", lambda name=None: False))
        for module in modules:
            stack.enter_context(_replaced(module, "tqdm", UploadBar))
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, by: Callable[..., object]) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, before)


class _Undrawn(tqdm):
    """A bar of tqdm that draws nothing."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        for name in ("name", "nrows"):  # of the hub's own class and of newer ones
            settings.pop(name, None)
        super().__init__(*arguments, **{**settings, "disable": False, "file": io.StringIO(), "leave": False})

    def display(self, *arguments: object, **settings: object) -> None:
        """Draws nothing."""


class TaskBar(_Undrawn):
    """Counts a task of its own."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        super().__init__(*arguments, **settings)
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

    def close(self) -> None:
        """Ends the task."""
        task, self._task = getattr(self, "_task", None), None
        if task is not None:
            self._context.__exit__(None, None, None)
        super().close()
