"""What an earlier model of the run answered to held-out prompts, as drafts for the next one's answers.

All models answer with the same draws (:mod:`spintune.generation.drafts`), so where two hardly differ, neither do their
answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from spintune.evaluation.heldout import HeldoutAnswer, SampledAnswer
from spintune.records import Example, Pair, read_records
from spintune.run_folder import BASE
from spintune.run_models import trained_models
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate, LoadedIterate

R = TypeVar("R", HeldoutAnswer, SampledAnswer, Pair)


def earlier_answers(context: RunContext, iterate: Iterate, place: str, kind: type[R]) -> list[R]:
    """The answers of the last model before ``iterate`` that has some in a folder of the run; none for the first.

    What it answered may be older than the recipe: of drafts only speed depends.
    """
    names = [BASE, *trained_models(context.run.folder)]
    before = names[: names.index(iterate.name)] if iterate.name in names else names
    stages = (f"{place}/{name}" for name in reversed(before))
    stage = next((stage for stage in stages if context.run.lost_file(stage) is None), None)
    return read_records(context.run.folder / stage / "answers.jsonl", kind) if stage else []


def drafts_of_texts(
    player: LoadedIterate, answers: Sequence[HeldoutAnswer | SampledAnswer], examples: Sequence[Example]
) -> list[tuple[int, ...]]:
    """The tokens of answers, for each example in turn those of its next answer. What has none has an empty draft."""
    texts: dict[str, list[str]] = defaultdict(list)
    for answer in reversed(answers):
        texts[answer.id].append(answer.answer)
    drafts = [texts[example.id].pop() if texts[example.id] else "" for example in examples]
    return [tuple(ids) for ids in player.loaded.tokenizer(drafts, add_special_tokens=False).input_ids]
