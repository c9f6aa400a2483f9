"""How reading, splitting, tokenizing and packing grow with the data: seconds, and memory that should not grow.

    python benchmarks/data.py [--examples 1000,10000,100000,1000000] [--report FILE]

Rows are made up: instructions of 6 to 18 words and answers of 5 to 60, from a vocabulary of 5,000 words, as JSON
lines. Each size runs in a process of its own, through the functions that a run calls. What counts as memory is what
the process holds on top of what it held when everything was imported and the tokenizer loaded, at most.
"""

from __future__ import annotations

import argparse
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
PHASES = ("read", "split", "write", "tokenize", "order", "pack")


def made_up(count: int) -> Iterator[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(5000)]
    for number in range(count):
        instruction = " ".join(draw.choices(words, k=draw.randint(6, 18)))
        answer = " ".join(draw.choices(words, k=draw.randint(5, 60)))
        yield json.dumps({"instruction": f"{instruction} {number}", "input": "", "output": answer})


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each phase, and the most memory above the start [MB]."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # as in the command; the lab turns it off for its contestants

    from spintune.data.sources import Source, read_sources
    from spintune.data.split import split_examples
    from spintune.engine.query import pack
    from spintune.models.loading import load_tokenizer
    from spintune.record_files import RecordFile
    from spintune.records import Example, write_records
    from spintune.tokens.rendering import build_renderer
    from spintune.tokens.rows import render
    from spintune.training.batches import Batches, steps_by_tokens
    from spintune.training.objectives import NegativeLogLikelihood

    tokenizer = load_tokenizer(spec["model"], cache=Path.home() / ".cache" / "spintune")
    renderer = build_renderer(tokenizer, "tokenizer", "last", encoder_decoder=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _peak_megabytes()
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[phase], began = now - began, now

    folder = Path(spec["folder"])
    collection = read_sources([Source(spec["data"])], seed=0)
    lap("read")
    train, heldout = split_examples(collection.examples, 0.1, seed=0, limit=1000)
    lap("split")
    write_records(folder / "train.jsonl", train)
    write_records(folder / "heldout.jsonl", heldout)
    lap("write")
    rendered = render(RecordFile(folder / "train.jsonl", Example), renderer, 512)
    lap("tokenize")
    lengths = [len(row.prompt_ids) + len(row.response_ids) for row in rendered.rows]
    batches = Batches(rendered.rows, steps_by_tokens(lengths, 4096, 1, seed=0))
    lap("order")
    objective = NegativeLogLikelihood()
    forwards = sum(
        len(pack([objective.query(row) for row in batches[step]], lambda query: query.tokens, 1024))
        for step in range(len(batches))
    )
    lap("pack")
    (folder / "train.jsonl").unlink()
    return {
        "seconds": seconds,
        "megabytes": _peak_megabytes() - before,
        "rows": len(rendered.rows),
        "tokens": sum(lengths),
        "forwards": forwards,
    }


def _peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", default=SIZES)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        result = measure(json.loads((options.folder / "spec.json").read_text()))
        (options.folder / "result.json").write_text(json.dumps(result))
        return
    facts: dict[str, Any] = {"machine": describe(), "sizes": {}}
    print(f"{facts['machine']['processor']['name']}, load before {facts['machine']['load_before']:.2f}")
    columns = ["examples", "tokens", *(f"{phase}, s" for phase in PHASES), "examples/s", "more memory, MB"]
    print(f"| {' | '.join(columns)} |")
    print(f"| {' | '.join('---' for _ in columns)} |")
    with tempfile.TemporaryDirectory(prefix="spintune-data-") as temporary:
        lab = Lab(Path(__file__), Path(temporary))
        for count in map(int, options.examples.split(",")):
            data = Path(temporary) / f"{count}.jsonl"
            with data.open("w") as file:
                file.writelines(f"{line}\n" for line in made_up(count))
            found = lab.run("measure", data=str(data), model=options.model)
            data.unlink()
            facts["sizes"][count] = found
            times = " | ".join(f"{found['seconds'][phase]:.1f}" for phase in PHASES)
            rate = count / sum(found["seconds"].values())
            print(f"| {count:,} | {found['tokens']:,} | {times} | {rate:,.0f} | {found['megabytes']:.0f} |", flush=True)
    if options.report:
        options.report.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
