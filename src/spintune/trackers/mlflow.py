"""MLflow: a run in a local store, or on the tracking server that the user set up."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from spintune.trackers.protocol import SentOnce, TrackedRun, require

_EXPERIMENT = "spintune"
_ID = "spintune.id"


class MLflow(SentOnce):
    """One MLflow run, found again by its tag ``spintune.id``. Raises MissingExtraError.

    MLflow's own variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME. Its usage statistics are turned off.
    """

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # training waits for a server that is gone
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        mlflow: Any = require("mlflow", "mlflow")
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{_ID}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {_ID: run.id, **({"sweep": run.group} if run.group else {})}
            self._id = self._client.create_run(experiment, tags=tags, run_name=run.title).info.run_id
            settings = _flat(run.recipe)
            parameters = [self._entities.Param(key, str(value)[:6000]) for key, value in settings.items()]
            for start in range(0, len(parameters), 100):  # as many as a request may have
                self._client.log_batch(self._id, params=parameters[start : start + 100])
        self._finished = False
        self.where = f"{place_without_credentials(mlflow.get_tracking_uri())} (experiment {name})"

    def log(self, place: int, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(f"{stage}/{name}", value, now, step)
            for name, value in numbers.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, facts: Mapping[str, str]) -> None:
        for name, text in facts.items():
            self._client.set_tag(self._id, f"outcome.{name}", text[:5000])
        self._finished = True

    def close(self) -> None:
        self._client.set_terminated(self._id, "FINISHED" if self._finished else "KILLED")


def place_without_credentials(uri: str) -> str:
    """Where a person finds the run: the server, or the command that shows a store. Without credentials."""
    bare = re.sub(r"//[^/]*@", "//", uri)
    return bare if bare.startswith("http") else f"mlflow ui --backend-store-uri {bare}"


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings on one level, by dotted keys; None is left out."""
    level: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            level |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            level[f"{prefix}{key}"] = value
    return level
