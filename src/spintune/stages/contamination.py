"""Evaluation items that stand in what was trained on.

::

    contamination/contamination.json    for runs of 8 and of 13 words: each item in training rows, and which rows
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spintune.data.contamination import SIZES, contamination, text_of
from spintune.stages.context import RunContext
from spintune.storage import digest_json, write_json
from spintune.typed_json import to_json

DECIDES = max(SIZES)
"""Words of a shared run that make an item unclean: GPT-3's."""

Clean = dict[str, set[str]]
"""By evaluation, the ids of items that share no such run with any training row."""


def contamination_stage(context: RunContext, items: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, Any], Clean]:
    """How many items of each evaluation share words with training rows, and which do not.

    Args:
        items: by evaluation: the text of each item, by its id.
    """
    stage = "contamination"
    path = context.run.folder / stage / "contamination.json"
    inputs = {"data": context.run.digest("data"), "items": digest_json(items)}
    facts = context.run.finished(stage, inputs)
    if facts is None:
        ids = {name: list(texts) for name, texts in items.items()}
        with context.progress.task("contamination", len(context.train), "training rows") as task:

            def trained() -> Any:
                for example in context.train:
                    task.advance()
                    yield text_of(example)

            found = contamination(trained(), {name: list(texts.values()) for name, texts in items.items()})
        facts = {"training_rows": found.training_rows, "sets": {}}
        for one in found.sets:
            counted = facts["sets"].setdefault(one.evaluation, {"items": one.items, "unclean": []})
            counted[str(one.n)] = len(one.touched)
            if one.n == DECIDES:
                counted["unclean"] = [ids[one.evaluation][item.item] for item in one.touched]
        rows = to_json(found)
        for one in rows["sets"]:
            for item in one["touched"]:
                item["id"] = ids[one["evaluation"]][item["item"]]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, rows)
        context.run.finish(stage, inputs, [path], facts)
    clean = {name: set(texts) - set(facts["sets"][name]["unclean"]) for name, texts in items.items()}
    return facts, clean
