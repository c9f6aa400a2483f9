"""trackio: a local database; a Space or server only where the user names one in trackio's own variables."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from typing import Any

from spintune.trackers.protocol import OUTCOME, SentOnce, TrackedRun, require

_PROJECT = "spintune"


class Trackio(SentOnce):
    """One run in the project ``spintune``, or that of TRACKIO_PROJECT. Raises MissingExtraError.

    trackio finds a run by its name, so the name ends in the id.
    """

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when its packages are imported
        self._trackio: Any = require("trackio", "trackio")
        project = os.environ.get("TRACKIO_PROJECT") or _PROJECT
        with _quiet():
            self._run = self._trackio.init(
                project,
                name=f"{run.title}-{run.id}",
                group=run.group,
                config=dict(run.recipe),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
            )
        self.where = f"trackio show --project {project}"

    def log(self, place: int, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        row = {f"{stage}/{name}": value for name, value in numbers.items()}
        self._run.log({**row, f"{stage}/step": step}, step=place)

    def finish(self, facts: Mapping[str, str]) -> None:
        if self.run.sent.get(OUTCOME):
            return
        place = sum(last + 1 for last in self.run.sent.values())
        self._run.log({f"{OUTCOME}/{name}": text for name, text in facts.items()}, step=place)
        self.run.sent[OUTCOME] = 1

    def close(self) -> None:
        with _quiet():
            self._trackio.finish()  # also keeps it from printing when the process exits


def _quiet() -> contextlib.AbstractContextManager[object]:
    """trackio prints where it writes to; standard output belongs to results."""
    return contextlib.redirect_stdout(io.StringIO())
