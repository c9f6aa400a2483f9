"""What was found in data, as lines for people, and the reasons that stand in the recipe."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping

from spintune.data.row_reader import named
from spintune.data.split import ENOUGH_HELDOUT
from spintune.survey.data import NEAR, DataSurvey
from spintune.typed_json import JsonObject


def survey_lines(found: DataSurvey, max_length: int, context: int | None, template: str | None) -> Iterator[str]:
    """What was found, a fact on each line."""
    yield f"format     {found.format}; columns: {', '.join(found.keys)}" + (
        f" (without a use: {named(found.ignored)})" if found.ignored else ""
    )
    yield f"rows       {found.read:,} read, {found.kept:,} kept, {found.prompts:,} distinct prompts" + _counts(
        "; not kept: ", found.dropped
    )
    if found.near:
        of = f"{found.looked_at:,} examples"
        yield f"copies     {found.near:,} of {of} nearly repeat an earlier one (ROUGE-L above {NEAR})"
    prompts, answers, rows = found.lengths.prompts, found.lengths.answers, found.lengths.rows
    yield (
        f"tokens     prompts {_middle(prompts)}, answers {_middle(answers)}, together {_middle(rows)}"
        f"; {_fitting(found, max_length, context)}"
    )
    if found.languages:
        total = found.languages.total()
        shares = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in found.languages.most_common(3))
        yield f"language   {shares} of {total} examples looked at"
    yield f"chat       {_template(found, template)}"
    if found.checker:
        yield f"answers    have the form that evaluation.checker: {found.checker} checks"


def heldout_line(held: DataSurvey, shared: int) -> str:
    """What was found in held-out examples that are given.

    Args:
        shared: training examples that have their prompts.
    """
    text = f"held out   {held.read:,} rows read, {held.kept:,} kept, {held.prompts:,} distinct prompts"
    text += _counts("; not kept: ", held.dropped)
    return text + (f"; {shared:,} rows above have their prompts and are not trained on" if shared else "")


def reasons_for(values: JsonObject, found: DataSurvey, given: DataSurvey | None = None) -> Mapping[str, str]:
    """Why settings have their values, by dotted key.

    Args:
        given: held-out examples that are given.
    """
    data = values["data"]
    limit = data["train"].get("limit")
    if given:
        held = min(given.prompts, data["heldout"].get("limit", given.prompts))
    else:
        prompts = min(found.prompts, limit or found.prompts)
        held = min(round(data["eval_fraction"] * prompts), data.get("eval_limit", prompts))
    few = "" if held >= ENOUGH_HELDOUT else f", fewer than the {ENOUGH_HELDOUT} by which a model can be chosen"
    cut, dropped = found.lengths.beyond(data["max_length"])
    longest = max(found.lengths.rows, default=0)
    reasons = {
        "data.train": f"The first {limit:,} rows, about what this machine trains in half an hour; leave limit out for "
        "all."
        if limit
        else "",
        "data.eval_fraction": f"About {held:,} here{few}.",
        "data.heldout": f"These are {held:,} prompts{few}.",
        "data.max_length": f"The longest row has {longest:,} tokens."
        + (f" Of {found.looked_at:,} rows, {cut:,} are cut and {dropped:,} left out." if cut or dropped else ""),
        "data.template": "The model's own cannot write this data.",
        "data.turns": f"{found.multi_turn:,} conversations have earlier answers.",
        "data.on_bad_row": f"Here {(found.unreadable + (given.unreadable if given else Counter())).total():,} "
        "rows cannot be read.",
        "sft.learning_rate": "A rate of your own saves the time of the trials.",
        "lora": "All weights would not fit into this machine's memory.",
        "evaluation.checker": "The answers in the data have this form.",
        "spin.baseline": "It says whether self-play was worth its time.",
    }
    return {key: text for key, text in reasons.items() if text}


def _middle(counts: tuple[int, ...] | list[int]) -> str:
    return f"{statistics.median(counts):,.0f} (at most {max(counts):,})"


def _fitting(found: DataSurvey, max_length: int, context: int | None) -> str:
    cut, dropped = found.lengths.beyond(max_length)
    reads = f"the model reads {context:,}" if context else "how much the model reads is not known"
    if not cut and not dropped:
        return f"all fit max_length {max_length:,}, {reads}"
    return f"at max_length {max_length:,} ({reads}) {cut:,} answers are cut and {dropped:,} rows left out"


def _template(found: DataSurvey, template: str | None) -> str:
    has = {"system messages": found.system, "earlier turns": found.multi_turn, "tools": found.tools}
    inside = ", ".join(f"{kind} in {count:,}" for kind, count in has.items() if count)
    whose = f"template {template}, since the model's own cannot write all rows" if template else "the model's template"
    return f"{whose} fits: {inside or 'one question and one answer a row'}"


def _counts(before: str, counts: Mapping[str, int]) -> str:
    found = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
    return before + found if found else ""
