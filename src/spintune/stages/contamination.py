"""Evaluation items that are in the training data.

::

    contamination/contamination.json    for runs of 8 and of 13 words: each item in training rows, and which rows
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spintune.data.contamination import Contamination, contamination, text_of
from spintune.results import ContaminationFacts, OverlapFacts
from spintune.stages.context import RunContext
from spintune.storage import digest_json, write_json
from spintune.typed_json import JsonObject, to_json


def contamination_stage(context: RunContext, items: Mapping[str, Mapping[str, str]]) -> ContaminationFacts:
    """How many items of each evaluation share words with training rows, and which do.

    Args:
        items: by evaluation: the text of each item, by its id.
    """
    stage = "contamination"
    path = context.run.folder / stage / "contamination.json"
    inputs = {
        "data": context.run.digest("data"),
        "items": digest_json(items),
        **({"prompts": "seen"} if context.prompts == "seen" else {}),  # the others are not trained on
    }
    facts = context.run.finished(stage, inputs, ContaminationFacts)
    if facts is None:
        texts = {name: list(one.values()) for name, one in items.items()}
        found = contamination(_training_texts(context), texts)
        ids = {name: list(one) for name, one in items.items()}
        write_json(path, _with_ids(found, ids))
        facts = ContaminationFacts(found.training_rows, {name: _overlap(found, name, ids[name]) for name in items})
        context.run.finish(stage, inputs, [path], facts)
    return facts


def _training_texts(context: RunContext) -> Iterator[str]:
    examples = context.seen if context.prompts == "seen" else context.train
    with context.progress.task("contamination", len(examples), "training rows") as task:
        for example in examples:
            task.advance()
            yield text_of(example)


def _overlap(found: Contamination, name: str, ids: list[str]) -> OverlapFacts:
    """Items of one evaluation; those that share 13 words in a row, as for GPT-3, are unclean."""
    touched = {one.n: one.touched for one in found.sets if one.evaluation == name}
    unclean = [ids[item.item] for item in touched[13]]
    items = next(one.items for one in found.sets if one.evaluation == name)
    return OverlapFacts(items, unclean, shared_8=len(touched[8]), shared_13=len(touched[13]))


def _with_ids(found: Contamination, ids: Mapping[str, list[str]]) -> JsonObject:
    rows: JsonObject = to_json(found)
    for one in rows["sets"]:
        for item in one["touched"]:
            item["id"] = ids[one["evaluation"]][item["item"]]
    return rows
