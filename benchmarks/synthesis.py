"""The whole Alpaca pipeline without a model: scripted replies, parsed, filtered, kept, and written, at full size.

    python benchmarks/synthesis.py --data builtin:seeds FILE...

A script recombines clauses of real instructions into replies of 17 blocks; spintune asks for them in rounds, keeps
every reply on disk, and accepts tasks until the target is reached. Then the run is made again from the replies.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from machine import describe, peak_memory
from novelty import candidates, clauses

from spintune.synthesis.alpaca import Alpaca
from spintune.synthesis.bootstrap import BootstrapResult, BootstrapSettings, bootstrap
from spintune.synthesis.examples import read_seeds
from spintune.synthesis.filters import KEYWORDS, FilterRules
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Request
from spintune.teachers.replies import Replies
from spintune.teachers.scripted import ScriptedTeacher

BLOCKS = 17
PER_ROUND = 64


def reply(number: int, instructions: list[str]) -> str:
    """A list of tasks; every tenth block is broken, and the outputs are short."""
    blocks = []
    for place, instruction in enumerate(instructions, 4):
        output = "" if (number + place) % 50 == 0 else f"Answer {number} to task {place}."
        context = f"input {number}" if place % 3 == 0 else "<noinput>"
        middle = "" if (number + place) % 40 == 0 else f"{place}. Input:\n{context}\n"
        blocks.append(f"{place}. Instruction: {instruction}\n{middle}{place}. Output:\n{output}")
    return "\n###\n".join(blocks)


def run(folder: Path, instructions: list[str], target: int) -> tuple[BootstrapResult, float]:
    def script(request: Request) -> str:
        first = request.draw * BLOCKS
        return reply(request.draw, [instructions[place % len(instructions)] for place in range(first, first + BLOCKS)])

    with Replies(folder / "replies.sqlite") as replies:
        started = time.perf_counter()
        pool = bootstrap(
            CachedTeacher(ScriptedTeacher(script, "script"), replies),
            Alpaca(),
            read_seeds("builtin:seeds"),
            FilterRules(keywords=KEYWORDS["alpaca"]),
            BootstrapSettings(target, PER_ROUND),
        )
        return pool, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", default=["builtin:seeds"], help="builtin:NAME or files that spintune reads"
    )
    parser.add_argument("--target", type=int, default=52_000, help="tasks to accept")
    parser.add_argument("--candidates", type=int, default=120_000, help="instructions in the script")
    options = parser.parse_args()
    first, others = clauses(options.data)
    stream: Iterator[str] = candidates(first, others, 0)
    instructions = list(itertools.islice(stream, options.candidates))
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        pool, seconds = run(Path(folder), instructions, options.target)
        again, replayed = run(Path(folder), instructions, options.target)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    assert [one.task for one in again.accepted] == [one.task for one in pool.accepted]
    print(f"{describe()['processor']['name']}, one core")
    print(
        f"{pool.replies.read:,} replies, {pool.candidates.read:,} candidates, {len(pool.accepted):,} kept "
        f"in {seconds:.1f} s; again from the replies on disk in {replayed:.1f} s, the same tasks"
    )
    print(f"dropped: {', '.join(f'{reason} {count:,}' for reason, count in sorted(pool.candidates.dropped.items()))}")
    print(f"peak memory {before:.2f} GB before, {peak_memory():.2f} GB after; replies on disk {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
