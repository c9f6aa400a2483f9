"""Instruction tuning and self-play fine-tuning (SPIN), from Python.

::

    import spintune

    model = spintune.load("smollm2-135m-instruct")
    print(model.generate(["Name a color."], temperature=0.7)[0].text)
    print(model.score("Name a color.", ["Blue.", "Seven."]))

    examples = spintune.read("my-data.jsonl")
    results = spintune.run("recipe.yaml", seed=3)

Names are imported when they are first used: ``import spintune`` alone loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from spintune.threads import wait_briefly
from spintune.version import __version__

if TYPE_CHECKING:
    from spintune.api import Model, Score, load, mix, read, run, sweep
    from spintune.checkers import register_checker
    from spintune.data.formats import Format, register_format
    from spintune.data.novelty import NoveltyIndex
    from spintune.errors import SpintuneError
    from spintune.evaluation import statistics
    from spintune.generation.build import register_generator
    from spintune.metrics import Metric, register_metric
    from spintune.recipe import Recipe
    from spintune.recipe.losses import SelfPlayLoss, register_loss
    from spintune.records import Completion, Example, Message
    from spintune.results import RunResults
    from spintune.synthesis.pipeline import synthesize
    from spintune.teachers.registry import register_teacher
    from spintune.trackers import TrackedRun, register_tracker
    from spintune.training import losses

_HOMES = {
    "Completion": "spintune.records",
    "Example": "spintune.records",
    "Format": "spintune.data.formats",
    "Message": "spintune.records",
    "Metric": "spintune.metrics",
    "Model": "spintune.api",
    "NoveltyIndex": "spintune.data.novelty",
    "Recipe": "spintune.recipe",
    "RunResults": "spintune.results",
    "Score": "spintune.api",
    "SelfPlayLoss": "spintune.recipe.losses",
    "SpintuneError": "spintune.errors",
    "TrackedRun": "spintune.trackers",
    "load": "spintune.api",
    "mix": "spintune.api",
    "read": "spintune.api",
    "register_checker": "spintune.checkers",
    "register_format": "spintune.data.formats",
    "register_generator": "spintune.generation.build",
    "register_loss": "spintune.recipe.losses",
    "register_metric": "spintune.metrics",
    "register_teacher": "spintune.teachers.registry",
    "register_tracker": "spintune.trackers",
    "run": "spintune.api",
    "sweep": "spintune.api",
    "synthesize": "spintune.synthesis.pipeline",
}
_MODULES = {"losses": "spintune.training.losses", "statistics": "spintune.evaluation.statistics"}

__all__ = [
    "Completion",
    "Example",
    "Format",
    "Message",
    "Metric",
    "Model",
    "NoveltyIndex",
    "Recipe",
    "RunResults",
    "Score",
    "SelfPlayLoss",
    "SpintuneError",
    "TrackedRun",
    "__version__",
    "load",
    "losses",
    "mix",
    "read",
    "register_checker",
    "register_format",
    "register_generator",
    "register_loss",
    "register_metric",
    "register_teacher",
    "register_tracker",
    "run",
    "statistics",
    "sweep",
    "synthesize",
]


wait_briefly()  # read when torch is loaded, which this package does later


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'spintune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
