"""How reading, splitting, mixing, tokenizing and packing grow with the data: seconds, and memory that should not grow.

    python benchmarks/data.py [--examples 1000,10000,100000,1000000] [--phases ...] [--short] [--kind parquet]
    python benchmarks/data.py --parts [--examples 1000000,10000000]

Rows are made up: instructions of 6 to 18 words and answers of 5 to 60, from a vocabulary of 5,000 words, as JSON
lines or Parquet; with --short, of 2 and 2 words. Each size runs in a process of its own, through the functions that a
run calls. Seconds are those of the processor. What counts as memory is what a phase holds at most on top of what the
process held when everything was imported and the tokenizer loaded. "rows" stands in for tokenizing, which takes
nine tenths of the time: it writes as many rows of tokens as there are examples. --parts measures what everything else
rests on, with numbers in place of rows: an index of lines, duplicates, a split, and the order of an epoch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import string
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import Lab, describe

SIZES = "1000,10000,100000,1000000"
PHASES = ("read", "split", "write", "tokenize", "order", "pack", "mix")
CHOICES = (*PHASES, "rows")
PARTS = ("lines", "duplicates", "split", "steps", "order")


def made_up(count: int, short: bool) -> Iterator[dict[str, str]]:
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(5000)]
    for number in range(count):
        instruction = " ".join(draw.choices(words, k=2 if short else draw.randint(6, 18)))
        answer = " ".join(draw.choices(words, k=2 if short else draw.randint(5, 60)))
        yield {"instruction": f"{instruction} {number}", "input": "", "output": answer}


def write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    """Writes rows in the format of the path's suffix, a few at a time."""
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(dict.fromkeys(("instruction", "input", "output"), pyarrow.string()))
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while batch := [*itertools.islice(rows, 10_000)]:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


class Laps:
    """Processor seconds of each phase, and the most memory that it held above the start [MB]."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.megabytes: dict[str, float] = {}
        self._start = _peak_megabytes()
        self._began = time.process_time()

    def lap(self, phase: str) -> None:
        now = time.process_time()
        self.seconds[phase], self._began = now - self._began, now
        self.megabytes[phase] = _peak_megabytes() - self._start
        print(f"{phase}: {self.seconds[phase]:.1f} s, {self.megabytes[phase]:.0f} MB", flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the next peak counts from here


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Takes the phases one after another."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # as in the command; the lab turns it off for its contestants

    from spintune.data.sources import Source, read_sources
    from spintune.data.split import split_examples
    from spintune.engine.query import pack
    from spintune.models.loading import load_tokenizer
    from spintune.progress import Silent
    from spintune.record_files import RecordFile
    from spintune.records import Example, write_records
    from spintune.tokens.rendering import build_renderer
    from spintune.tokens.rows import render, row_lengths
    from spintune.training.batches import Batches, steps_by_tokens
    from spintune.training.objectives import NegativeLogLikelihood

    tokenizer = load_tokenizer(spec["model"], cache=Path.home() / ".cache" / "spintune")
    renderer = build_renderer(tokenizer, "tokenizer", "last", encoder_decoder=False)
    Path("/proc/self/clear_refs").write_text("5")
    laps, phases, folder = Laps(), spec["phases"], Path(spec["folder"])
    tokens = forwards = 0
    if "read" in phases:
        collection = read_sources([Source(spec["data"])], seed=0)
        laps.lap("read")
        train, heldout = split_examples(collection.examples, 0.1, seed=0, limit=1000)
        laps.lap("split")
        write_records(folder / "train.jsonl", train)
        write_records(folder / "heldout.jsonl", heldout)
        del collection, train, heldout
        laps.lap("write")
    if "tokenize" in phases:
        rows = render(RecordFile(folder / "train.jsonl", Example), renderer, 512).rows
        laps.lap("tokenize")
    elif "rows" in phases:
        rows = token_rows(spec["count"])
        laps.lap("rows")
    if "order" in phases:
        lengths = row_lengths(rows, Silent())
        batches = Batches(rows, steps_by_tokens(lengths, 4096, 1, seed=0))
        laps.lap("order")
    if "pack" in phases:
        objective = NegativeLogLikelihood()
        for step in range(len(batches)):
            queries = [objective.query(row) for row in batches[step]]
            forwards += len(pack(queries, lambda query: query.tokens, 1024))
            tokens += sum(query.tokens for query in queries)
        laps.lap("pack")
    (folder / "train.jsonl").unlink(missing_ok=True)
    if "mix" in phases:
        mix(Path(spec["data"]), spec["count"], folder)
        laps.lap("mix")
    return {"seconds": laps.seconds, "megabytes": laps.megabytes, "tokens": tokens, "forwards": forwards}


def measure_parts(spec: dict[str, Any]) -> dict[str, Any]:
    """The index of a file of lines, duplicates among hashes, a split by hashes, and the steps of an epoch."""
    import numpy as np

    from spintune.number_files import KeyFile, NumberFile, first_of_each
    from spintune.record_files import RecordFile
    from spintune.records import Example
    from spintune.training.batches import steps_by_tokens

    count, line = spec["count"], b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'
    draw = np.random.default_rng(0)
    ids = KeyFile(8)
    prompts = KeyFile(32)
    path = Path(spec["folder"]) / "lines.jsonl"
    with path.open("wb") as file:
        for begin in range(0, count, 10_000):
            size = min(10_000, count - begin)
            file.write(line * size)
            keys = draw.bytes(40 * size)
            for place in range(0, 40 * size, 40):
                ids.add(keys[place : place + 8])
                prompts.add(keys[place + 8 : place + 40])
    Path("/proc/self/clear_refs").write_text("5")
    laps = Laps()
    stored = RecordFile(path, Example)
    assert stored[count // 2] == stored[count - 1]
    laps.lap("lines")
    assert first_of_each([ids], [None])[0].kept == count
    laps.lap("duplicates")
    threshold = prompts.smallest(1000)
    held = prompts.up_to(threshold)
    assert int(np.unpackbits(held).sum()) == 1000
    laps.lap("split")
    lengths = NumberFile(draw.integers(50, 300, 10_000, np.int32) for _ in range(count // 10_000))
    steps = steps_by_tokens(lengths, 4096, 1, seed=0)
    laps.lap("steps")
    assert sum(map(len, steps)) == len(lengths)
    laps.lap("order")
    path.unlink()
    return {"seconds": laps.seconds, "megabytes": laps.megabytes}


def token_rows(count: int) -> Any:
    """Rows of 8 tokens."""
    from spintune.record_files import Spool
    from spintune.tokens.rows import TokenRow

    spool = Spool(TokenRow)
    for number in range(count):
        spool.add(TokenRow(f"{number:016x}", (1, number % 30_000, 3, 4), (5, 6, number % 7, 2), None, True))
    return spool.records()


def mix(data: Path, count: int, folder: Path) -> None:
    """A mixture of one task, as many examples as the task has rows, half of them with an exemplar."""
    from spintune.mixtures.mixture import Mixture, Prompting
    from spintune.mixtures.report import materialize
    from spintune.mixtures.tasks import load_tasks
    from spintune.records import write_records

    task = {
        "name": "made-up",
        "file": str(data),
        "fields": {"question": "instruction", "answer": "output"},
        "direct": [{"input": "{question}", "target": "{answer}"}, {"input": "Task: {question}", "target": "{answer}"}],
    }
    (folder / "task.yaml").write_text(json.dumps(task))
    mixture = Mixture(load_tasks([str(folder / "task.yaml")]).tasks, 0, prompting=Prompting(shots=(1, 1)))
    write_records(folder / "mixed.jsonl", materialize(mixture, count).examples)
    (folder / "mixed.jsonl").unlink()


def _peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", default=SIZES)
    parser.add_argument("--phases", default=",".join(PHASES), help=f"of {', '.join(CHOICES)}; read includes two more")
    parser.add_argument("--parts", action="store_true", help="what the phases rest on, without rows")
    parser.add_argument("--short", action="store_true", help="rows of a few words")
    parser.add_argument("--kind", choices=["jsonl", "parquet"], default="jsonl")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        take = measure if options.role == "measure" else measure_parts
        result = take(json.loads((options.folder / "spec.json").read_text()))
        (options.folder / "result.json").write_text(json.dumps(result))
        return
    facts: dict[str, Any] = {"machine": describe(), "sizes": {}}
    print(f"{facts['machine']['processor']['name']}, load before {facts['machine']['load_before']:.2f}")
    phases = [phase for phase in CHOICES if phase in options.phases.split(",")]
    more = ("split", "write") if "read" in phases else ()
    shown = PARTS if options.parts else tuple(phase for phase in CHOICES if phase in (*phases, *more))
    columns = ["examples", *(f"{phase}, s" for phase in shown), *(f"{phase}, MB" for phase in shown)]
    print(f"| {' | '.join(columns)} |")
    print(f"| {' | '.join('---' for _ in columns)} |")
    with tempfile.TemporaryDirectory(prefix="spintune-data-") as temporary:
        lab = Lab(Path(__file__), Path(temporary))
        for count in map(int, options.examples.split(",")):
            data = Path(temporary) / f"{count}.{options.kind}"
            if options.parts:
                found = lab.run("parts", count=count)
            else:
                write_rows(data, made_up(count, options.short))
                found = lab.run("measure", data=str(data), model=options.model, phases=phases, count=count)
                data.unlink()
            facts["sizes"][count] = found
            times = " | ".join(f"{found['seconds'][phase]:.1f}" for phase in shown)
            peaks = " | ".join(f"{found['megabytes'][phase]:.0f}" for phase in shown)
            print(f"| {count:,} | {times} | {peaks} |", flush=True)
    if options.report:
        options.report.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
