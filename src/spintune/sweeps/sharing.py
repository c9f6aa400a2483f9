"""Which runs of a sweep need the same work, told from their recipes before anything runs.

While runs go one after another this decides nothing: a run copies what another has finished for the same inputs
(``sibling_runs``). It is for people (``--dry-run``), and for job arrays, whose runs start together.
"""

from __future__ import annotations

from collections.abc import Sequence

from spintune.recipe import Recipe
from spintune.storage import digest_json

_JUDGING = ("eval", "evaluation", "judge")
_AFTER_SFT = ("sft", "spin", *_JUDGING)
_ANSWERS = (
    "generated",
    "history",
    "max_new_tokens",
    "negatives",
    "prompts",
    "refresh",
    "temperature",
    "top_k",
    "top_p",
    "turns",
)
"""Keys of spin that the answers of iteration 1 depend on."""
_AFTER_TRAINING = ("iterations", "stop", "baseline", "baseline_learning_rate")


def work_of(recipe: Recipe) -> dict[str, str]:
    """A digest of what each costly part of a run depends on, by its name; equal digests are equal work."""
    settings = recipe.identity()
    data = {key: value for key, value in settings.items() if key not in _AFTER_SFT}
    found: dict[str, str] = {}
    if recipe.spin and recipe.spin.prompts:  # a part of the examples is kept out of SFT
        data["unseen"] = [recipe.spin.unseen_share]
    start = digest_json(data)
    if recipe.sft:
        start = found["SFT"] = digest_json([data, {**settings["sft"], "samples": None}])
    if recipe.spin:
        spin = settings["spin"]
        answers = [start, {key: spin[key] for key in _ANSWERS}]
        if recipe.spin.refresh != 1:
            answers.append(_training(spin))
        found["answers"] = digest_json(answers)
        found["self-play"] = digest_json([found["answers"], _training(spin)])
    return found


def _training(spin: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in spin.items() if key not in _AFTER_TRAINING}


def shared_with(recipes: Sequence[Recipe]) -> list[dict[str, int]]:
    """For each run and each part of its work: the first run that needs the same; itself where that is the first."""
    first: dict[str, int] = {}
    return [
        {part: first.setdefault(digest, place) for part, digest in work_of(recipe).items()}
        for place, recipe in enumerate(recipes)
    ]


def waves(recipes: Sequence[Recipe]) -> list[list[int]]:
    """Groups of runs that may start together: of a wave, no two need work that no earlier wave has done."""
    remaining = {place: set(work_of(recipe).values()) for place, recipe in enumerate(recipes)}
    done: set[str] = set()
    found = []
    while remaining:
        wave: list[int] = []
        begun: set[str] = set()
        for place, work in remaining.items():
            if not (work - done) & begun:
                wave.append(place)
                begun |= work
        found.append(wave)
        done |= begun
        remaining = {place: work for place, work in remaining.items() if place not in wave}
    return found
