"""Where the numbers of a run go besides ``metrics.jsonl``: TensorBoard, trackio, Weights & Biases, MLflow, or your own.

A tracker's package is imported only when the recipe names it, and none calls home unless the user set it up to.
"""

from spintune.trackers.protocol import (
    OUTCOME,
    TRACKERS,
    SentOnce,
    TrackedRun,
    Tracker,
    TrackerFactory,
    register_tracker,
)

__all__ = ["OUTCOME", "TRACKERS", "SentOnce", "TrackedRun", "Tracker", "TrackerFactory", "register_tracker"]
