"""Reads the recipe's sources and splits them into training and held-out examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spintune.data.sources import Source, read_sources, source_digest
from spintune.data.split import split_examples
from spintune.recipe import SYNTH
from spintune.records import write_records
from spintune.stages.synth import examples_file
from spintune.stages.workbench import Workbench


def data_stage(bench: Workbench) -> dict[str, Any]:
    """Writes data/train.jsonl and data/heldout.jsonl; how many rows went where."""
    recipe = bench.recipe
    sources = [Source(**section.model_dump()) for section in recipe.data.train]
    written = str(examples_file(bench.run.folder))
    sources = [replace(source, path=written) if source.path == SYNTH else source for source in sources]
    inputs = {
        "data": bench.settings["data"]["train"],
        "fraction": recipe.data.eval_fraction,
        "seed": recipe.seed,
        "contents": [source_digest(source) for source in sources],
    }
    facts = bench.run.finished("data", inputs)
    if facts is None:
        collection = read_sources(sources, recipe.seed, bench.progress)
        train, heldout = split_examples(collection.examples, recipe.data.eval_fraction, recipe.seed)
        # a source with a weight above 1 repeats rows; judging one twice would only narrow the intervals
        heldout = list({example.id: example for example in heldout}.values())
        write_records(bench.train_file, train)
        write_records(bench.heldout_file, heldout)
        facts = {
            "read": collection.read,
            "repeated": collection.repeated,
            "dropped": dict(collection.dropped),
            "train": len(train),
            "heldout": len(heldout),
        }
        bench.run.finish("data", inputs, [bench.train_file, bench.heldout_file], facts)
    return facts
