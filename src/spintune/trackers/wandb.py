"""Weights & Biases: online for who is logged in, else offline, into the run folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from spintune.trackers.protocol import SentOnce, TrackedRun, require

_PROJECT = "spintune"


class WeightsAndBiases(SentOnce):
    """One W&B run under the id of the run folder. Raises MissingExtraError.

    W&B's own variables and settings files hold: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_BASE_URL. It gets no
    source code, git state or screen of the user, and reports no errors to its makers.
    """

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
        wandb: Any = require("wandb", "wandb")
        known = wandb.setup().settings
        offline = known.mode == "offline" or (known.mode == "online" and not _is_logged_in(wandb, known))
        if offline and run.was_killed:
            _begin_anew(run)
        self._run = wandb.init(
            id=run.id,
            name=run.title,
            group=run.group,
            project=known.project or _PROJECT,
            dir=str(run.folder),
            config=dict(run.recipe),
            mode="offline" if offline else None,
            resume=None if offline else "allow",  # offline, W&B would only warn that it cannot look
            settings=wandb.Settings(
                silent=True,
                finish_timeout=300,  # [seconds] without it, a server that is gone holds the process for ever
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_save_requirements=False,
                x_disable_machine_info=offline,  # it would ask the network what machine this is
            ),
        )
        self._stages: set[str] = set()
        self._names: set[str] = set()
        self._finished = False
        self.where = f"wandb sync {run.folder}/wandb/offline-run-*-{run.id}" if offline else str(self._run.url)

    def log(self, place: int, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        row = {f"{stage}/{name}": value for name, value in numbers.items()}
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step", hidden=True)
        for name in row.keys() - self._names:  # by name: sft/* would take in sft/heldout/loss
            self._names.add(name)
            self._run.define_metric(name, step_metric=f"{stage}/step")
        self._run.log({**row, f"{stage}/step": step}, step=place)

    def finish(self, facts: Mapping[str, str]) -> None:
        self._run.summary.update(dict(facts))
        self._finished = True

    def close(self) -> None:
        self._run.finish(exit_code=0 if self._finished else 1)


def _is_logged_in(wandb: Any, settings: Any) -> bool:
    """Whether there is a key for the server, without a question to user or network."""
    return bool(settings.api_key or settings.identity_token_file or wandb.api.api_key)


def _begin_anew(run: TrackedRun) -> None:
    """Removes what W&B kept offline of a run that was killed, and has all sent again.

    Its process ends with ours and does not write what it holds in memory. What was synced already stays.
    """
    folders = list(run.folder.glob(f"wandb/offline-run-*-{run.id}"))
    if not any(list(folder.glob("*.synced")) for folder in folders):
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        run.sent.clear()
