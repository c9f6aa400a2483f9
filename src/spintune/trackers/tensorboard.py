"""TensorBoard: event files in the run folder, a folder for each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from spintune.trackers.protocol import OUTCOME, TrackedRun, require


class TensorBoard:
    """Event files in ``tensorboard/``, the recipe and the decision as texts. Raises MissingExtraError."""

    def __init__(self, run: TrackedRun) -> None:
        self._open = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder, self._recipe = run.folder / "tensorboard", run.recipe
        self._sent = run.sent
        self._writers: dict[str, Any] = {}
        self.where = f"tensorboard --logdir {self._folder}"

    def begin(self, stage: str, step: int) -> None:
        if stage in self._writers:
            self._writers[stage].close()
        self._writers[stage] = self._open(str(self._folder / stage), purge_step=step + 1)

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if stage in self._writers:
            for name, value in numbers.items():
                self._writers[stage].add_scalar(name, value, step)
            self._writers[stage].flush()

    def finish(self, facts: Mapping[str, str]) -> None:
        if self._sent.get(OUTCOME):
            return
        with self._open(str(self._folder), purge_step=0) as writer:  # a decision about other weights is void
            writer.add_text("recipe", f"```\n{json.dumps(self._recipe, indent=2)}\n```", 0)
            for name, text in facts.items():
                writer.add_text(name, text, 0)
        self._sent[OUTCOME] = 1

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
