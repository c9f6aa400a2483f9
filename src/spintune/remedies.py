"""What to change when memory does not suffice: the same advice before a run (``spintune plan``) and when it ran out."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spintune.errors import OutOfMemoryError, SpintuneError
from spintune.memory import words_of
from spintune.recipe import Recipe, parse_recipe
from spintune.recipe.section import OptimizerName
from spintune.typed_json import JsonObject

Part = Literal["loading", "generation", "training", "scoring"]

_PARTS: dict[str, Part] = {
    "spintune.models.loading": "loading",
    "spintune.generation": "generation",
    "spintune.training.loop": "training",
    "spintune.engine": "scoring",
}
"""The part of the program that asked for memory, the first that is among the callers."""

BY_MOMENTS: tuple[OptimizerName, ...] = ("adafactor", "adamw8bit", "rmsprop", "muon", "adamw")
"""Optimizers by the memory of their moments, the least first (:func:`spintune.training.footprint.moment_bytes`)."""


@dataclass(frozen=True)
class Remedy:
    """One change of a recipe that saves memory.

    Attributes:
        advice: as a phrase of an error.
        parts: where it helps.
        change: the recipe with it, as plain values; None where it is made already or does not go together.
    """

    advice: str
    parts: frozenset[Part]
    change: Callable[[Recipe], JsonObject | None]


def remedies(recipe: Recipe, part: Part) -> list[tuple[Remedy, JsonObject]]:
    """What can be changed in a recipe to save memory in a part of the program, least costly first."""
    found = [(remedy, remedy.change(recipe)) for remedy in REMEDIES if part in remedy.parts]
    return [(remedy, changed) for remedy, changed in found if changed is not None and _is_recipe(changed)]


def _is_recipe(values: JsonObject) -> bool:
    """Whether a change goes with the other keys of the recipe."""
    try:
        parse_recipe(values, "advice")
    except SpintuneError:
        return False
    return True


def advice(part: Part, recipe: Recipe | None = None) -> str:
    """What to change when memory ran out in a part of the program; of a recipe, only what it does not have yet."""
    known = [remedy for remedy in REMEDIES if part in remedy.parts]
    found = [remedy for remedy, _ in remedies(recipe, part)] if recipe else known
    phrases = [*(remedy.advice for remedy in found), "use a smaller model"]
    return ", ".join(phrases[:-1]) + f"{', or ' if phrases[1:] else ''}{phrases[-1]}"


def _values(recipe: Recipe) -> JsonObject:
    return recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _setting(
    key: str, value: object, unless: Callable[[Recipe], bool] = lambda recipe: False
) -> Callable[[Recipe], JsonObject | None]:
    """The change of one top-level key. A key that this version's recipes do not have changes nothing."""

    def change(recipe: Recipe) -> JsonObject | None:
        if key not in Recipe.model_fields or getattr(recipe, key) == value or unless(recipe):
            return None
        return {**_values(recipe), key: value}

    return change


def _has_lora(recipe: Recipe) -> bool:
    return recipe.lora is not None


def _four_bits(recipe: Recipe) -> JsonObject | None:
    values = _values(recipe)
    if recipe.lora and (recipe.lora.base or recipe.lora.between == "merge"):
        return None
    return {**values, "lora": {**values.get("lora", {}), "base": "nf4"}}


def _fewer_tokens(recipe: Recipe) -> JsonObject | None:
    """The least that still is one row at a time, as long as rows may be."""
    least = min(128, recipe.data.max_length)
    return None if recipe.tokens_per_forward <= least else {**_values(recipe), "tokens_per_forward": least}


def _shorter_rows(recipe: Recipe) -> JsonObject | None:
    values, half = _values(recipe), recipe.data.max_length // 2
    return {**values, "data": {**values.get("data", {}), "max_length": half}} if half >= 16 else None


def _shorter_answers(recipe: Recipe) -> JsonObject | None:
    if recipe.spin is None or recipe.spin.longest_answer < 16:
        return None
    values = _values(recipe)
    return {**values, "spin": {**values["spin"], "max_new_tokens": recipe.spin.longest_answer // 2}}


def _no_copy(recipe: Recipe) -> JsonObject | None:
    """Without the copy of weights and moments that checkpoints are written from."""
    values = _values(recipe)
    sections = {"sft": recipe.sft, "spin": recipe.spin}
    asked = [key for key, section in sections.items() if section and section.checkpoint_write == "async"]
    return {**values, **{key: {**values[key], "checkpoint_write": "sync"} for key in asked}} if asked else None


def _optimizer(name: OptimizerName) -> Callable[[Recipe], JsonObject | None]:
    def change(recipe: Recipe) -> JsonObject | None:
        values = _values(recipe)
        sections = [key for key in ("sft", "spin") if getattr(recipe, key)]
        sections = [
            key for key in sections if BY_MOMENTS.index(name) < BY_MOMENTS.index(getattr(recipe, key).optimizer)
        ]
        if recipe.lora or not sections:
            return None
        return {**values, **{key: {**values[key], "optimizer": name} for key in sections}}

    return change


_TRAINING: frozenset[Part] = frozenset({"training"})
_CALLS: frozenset[Part] = frozenset({"training", "scoring"})

REMEDIES = (
    Remedy("set checkpoint_write: sync", _TRAINING, _no_copy),
    Remedy("lower tokens_per_forward", _CALLS, _fewer_tokens),
    Remedy("set recompute: 1", _TRAINING, _setting("recompute", 1.0)),
    Remedy("set parallel: shard", frozenset({"training"}), _setting("parallel", "shard")),
    Remedy("use weights: bfloat16", frozenset({"loading", "training"}), _setting("weights", "bfloat16", _has_lora)),
    Remedy("use optimizer: adafactor", _TRAINING, _optimizer("adafactor")),
    Remedy("use optimizer: adamw8bit", _TRAINING, _optimizer("adamw8bit")),
    Remedy(
        "use lora",
        frozenset({"training"}),
        _setting("lora", {"rank": 16}, _has_lora),
    ),
    Remedy(
        "use lora with precision: bfloat16, whose frozen weights take half",
        frozenset({"loading", "training"}),
        lambda recipe: (
            None
            if recipe.lora and recipe.precision == "bfloat16"
            else {"lora": {"rank": 16}, **_values(recipe), "precision": "bfloat16"}
        ),
    ),
    Remedy("use lora with base: nf4 (4 bits a weight)", frozenset({"loading", "training"}), _four_bits),
    Remedy("lower data.max_length", frozenset({"training", "scoring", "generation"}), _shorter_rows),
    Remedy("lower spin.max_new_tokens", frozenset({"generation"}), _shorter_answers),
)
"""Least costly first."""


def out_of_memory(error: BaseException, recipe: Recipe | None = None) -> OutOfMemoryError:
    """The error to raise instead of another one: in one line, with what to change and the notes so far."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    parts = [part for place, part in _PARTS.items() if any(f"{name}.".startswith(f"{place}.") for name in names)]
    words = words_of(error)
    said = f" ({words})" if words else ""
    found = OutOfMemoryError(
        f"out of memory{said}; {advice(parts[0], recipe) if parts else 'free some, or use a smaller model'}"
    )
    for note in getattr(error, "__notes__", []):
        found.add_note(note)
    return found
