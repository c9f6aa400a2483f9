"""Drafts a recipe for data and a model: sizes that teach, and that leave enough held-out prompts to decide by.

The numbers are our choices, for a first run; each stands in the recipe with its meaning, to be changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from spintune.data.split import usual_fraction
from spintune.recipe import measured
from spintune.recipe.training import answer_limit
from spintune.survey.data import DataSurvey
from spintune.typed_json import JsonObject

HELDOUT_ON_CPU = 200
"""Prompts that every model answers; more take long without a GPU."""
_LONGEST = 2048  # tokens of a row in a first run
_ROUND = 32  # tokens that max_length is a multiple of
_STEPS = 60  # optimizer steps that are aimed at
_STEP_SIZES = (256, 4096)  # tokens of a step, at least and at most
_SPLIT = 60  # distinct prompts from which on some are kept for self-play alone
_TRAINING = ("sft", "spin", "evaluation", "eval")  # sections that stand behind lora


@dataclass(frozen=True)
class Choices:
    """What a person decides.

    Attributes:
        source: the source of data.train, as plain values.
        heldout: that of data.heldout, where held-out examples are given.
        unreadable: whether there are rows that cannot be read, which are dropped then.
        template: data.template where the model's own does not serve.
        context: tokens that the model reads at most; None where nobody knows.
    """

    out: str
    model: str
    source: JsonObject
    unreadable: bool
    template: str | None
    all_turns: bool
    checker: str | None
    self_play: bool
    context: int | None
    on_gpu: bool
    heldout: JsonObject | None = None


def draft(found: DataSurvey, chosen: Choices) -> JsonObject:
    """The recipe, as plain values. All weights are trained; :func:`with_lora` and :func:`with_limit` change that."""
    longest = max_length_for(found, chosen.context)
    fraction = 0.0 if chosen.heldout else heldout_fraction(found.prompts)
    held: JsonObject = {"heldout": chosen.heldout} if chosen.heldout else {"eval_fraction": fraction}
    data: JsonObject = {"train": chosen.source, **held}
    if not chosen.on_gpu and fraction * found.prompts > HELDOUT_ON_CPU:
        data["eval_limit"] = HELDOUT_ON_CPU
    data["max_length"] = longest
    if chosen.template:
        data["template"] = chosen.template
    if chosen.all_turns:
        data["turns"] = "all"
    if chosen.unreadable:
        data["on_bad_row"] = "drop"
    values: JsonObject = {"out": chosen.out, "model": chosen.model, "seed": 0, "data": data}
    values["sft"] = sft_for(found, longest, fraction)
    if chosen.self_play:
        values["spin"] = {
            "iterations": 1,
            **({"prompts": "unseen", "unseen_share": 0.34} if found.prompts >= _SPLIT else {}),
            **measured.RATE,
            **measured.LOSS,
            **measured.STEP,
            "max_new_tokens": answer_limit(max(found.lengths.answers), longest),
            **measured.BASELINE,
        }
    if chosen.checker:
        values["evaluation"] = {"checker": chosen.checker}
    values["eval"] = ["heldout"]
    return values


def max_length_for(found: DataSurvey, context: int | None) -> int:
    """The length of the longest row, up to what the model reads and :data:`_LONGEST`. [tokens]"""
    limit = min(_LONGEST, context or _LONGEST)
    longest = max(found.lengths.rows, default=_ROUND)
    return max(8, min(limit, _ROUND * math.ceil(longest / _ROUND)))


def heldout_fraction(prompts: int) -> float:
    """The usual share, in hundredths."""
    return math.ceil(100 * usual_fraction(prompts) - 1e-9) / 100


def sft_for(found: DataSurvey, max_length: int, fraction: float) -> JsonObject:
    """Passes, rate and step size: small data is read more often, in small steps."""
    rows = found.kept * (1 - fraction)
    epochs = 3 if rows < 500 else 2 if rows < 5_000 else 1
    return {"epochs": epochs, **measured.RATE, "tokens_per_step": _tokens_per_step(found, max_length, rows * epochs)}


def _tokens_per_step(found: DataSurvey, max_length: int, rows: float) -> int:
    """For so many rows, over all passes."""
    mean = sum(min(row, max_length) for row in found.lengths.rows) / max(1, len(found.lengths.rows))
    low, high = _STEP_SIZES
    return min(high, max(low, 256 * round(rows * mean / _STEPS / 256)))


def with_lora(values: JsonObject) -> JsonObject:
    """The recipe with adapters in place of all weights."""
    before = {key: value for key, value in values.items() if key not in _TRAINING}
    return {**before, "lora": {"rank": 16}, **{key: values[key] for key in _TRAINING if key in values}}


def with_limit(values: JsonObject, rows: int, found: DataSurvey) -> JsonObject:
    """The recipe on the first ``rows`` examples alone, with as many passes, of which enough are held out."""
    data = {**values["data"], "train": {**values["data"]["train"], "limit": rows}}
    fraction = 0.0
    if "heldout" not in data:
        data["eval_fraction"] = fraction = heldout_fraction(min(rows, found.prompts))
    epochs = values["sft"]["epochs"]
    step = {"tokens_per_step": _tokens_per_step(found, data["max_length"], rows * (1 - fraction) * epochs)}
    return {**values, "data": data, "sft": {**values["sft"], **step}}
