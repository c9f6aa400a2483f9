"""Pairs stay on disk, and their progress is told while they are written."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spintune import record_files
from spintune.generation.sampling import Sampling, stream_keys
from spintune.progress import Silent
from spintune.record_files import Spool
from spintune.records import Completion, Pair
from spintune.selfplay.artifacts import artifact_warnings
from spintune.selfplay.filters import without_degenerate
from spintune.selfplay.opponent import given_pairs, sample_pairs
from spintune.selfplay.sampler_gap import sampler_gap
from spintune.selfplay.separability import separability
from spintune.selfplay.shards import SHARD_SIZE, Shards
from spintune.tokens.rows import TokenRow

ANSWER = tuple(range(300, 364))


class Repeating:
    """A generator whose every answer is the same."""

    stop_ids = frozenset({ANSWER[-1]})

    def generate(
        self, prompts: Sequence[Any], sampling: Sampling, keys: Any = None, on_token: Any = None
    ) -> list[Completion]:
        for index in range(len(prompts)):
            for token in ANSWER:
                assert not (on_token and on_token(index, token))
        return [Completion(ANSWER, "answer", "stop", -1.0) for _ in prompts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Told(Silent):
    """Progress that remembers the amounts that a task advanced by, whether work could stop there, and tokens."""

    def __init__(self) -> None:
        self.amounts: list[tuple[float, bool]] = []
        self.under_way: list[object] = []

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Any]:
        yield self

    def advance(self, amount: float = 1, safe: bool = True, restored: bool = False, **facts: object) -> None:
        self.under_way.append(facts.get("under_way"))
        if amount or safe:
            self.amounts.append((amount, safe))


def rows(count: int) -> Sequence[TokenRow]:
    spool = Spool(TokenRow)
    for number in range(count):
        real = tuple(range(400 + number % 50, 460))
        spool.add(TokenRow(f"row {number}", (7, number), real, (True,) * len(real), True))
    return spool.records()


def work(count: int, folder: Path) -> None:
    """All that is done with the pairs of an iteration but scores and training."""
    written = sample_pairs(
        Repeating(), rows(count), Sampling(64), 1, 200, "base", Shards(folder, f"{count}", Silent()), "t"
    )
    kept = without_degenerate(written).kept
    assert len(kept) == count
    assert artifact_warnings(kept, separability(kept))
    assert sampler_gap(kept, "base") is None


def most_memory(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of these takes 4 kB in memory: 100 numbers of 28 bytes and their places in tuples, and its texts."""
    monkeypatch.setattr(record_files, "_READ", 1 << 14)  # of a file at once
    work(40, tmp_path)  # imports
    few, many = (most_memory(lambda count=count: work(count, tmp_path)) for count in (SHARD_SIZE, 2 * SHARD_SIZE))
    assert (many - few) / SHARD_SIZE < 1000


def test_answers_are_counted_as_they_end(tmp_path: Path) -> None:
    told = Told()
    count = SHARD_SIZE + 5
    sample_pairs(Repeating(), rows(count), Sampling(64), 1, 200, "base", Shards(tmp_path, "tag", told), "t")
    assert sum(amount for amount, _ in told.amounts) == count
    assert told.amounts == [*[(1, False)] * SHARD_SIZE, (0, True), *[(1, False)] * 5, (0, True)]
    each = [*range(1, len(ANSWER)), 0]  # one after the other
    assert told.under_way == [*each * SHARD_SIZE, 0, *each * 5, 0]
    again = Told()
    sample_pairs(Repeating(), rows(count), Sampling(64), 1, 200, "base", Shards(tmp_path, "tag", again), "t")
    assert again.amounts == [(SHARD_SIZE, True), (5, True)]


def test_keys_are_those_of_all_prompts_at_once(tmp_path: Path) -> None:
    """Each draw of a prompt has a key of its own, wherever a shard begins."""
    asked: dict[tuple[int, ...], list[bytes]] = {}

    class Noting(Repeating):
        def generate(self, prompts: Sequence[Any], *more: Any, **named: Any) -> list[Completion]:
            for prompt, key in zip(prompts, more[1], strict=True):
                asked.setdefault(tuple(prompt), []).append(key)
            return super().generate(prompts, *more, **named)

    few = [row for row in rows(90) for _ in range(2)]
    sample_pairs(Noting(), few, Sampling(64, seed=4), 2, 200, "base", Shards(tmp_path, "tag", Silent()), "t")
    prompts = [row.prompt_ids for row in few for _ in range(2)]
    expected: dict[tuple[int, ...], list[bytes]] = {}
    for prompt, key in zip(prompts, stream_keys(prompts, 4), strict=True):
        expected.setdefault(prompt, []).append(key)
    assert asked == expected
    assert all(len(set(keys)) == 4 for keys in asked.values())


@pytest.mark.parametrize("count", [0, 3])
def test_given_pairs_compare_as_lists(count: int) -> None:
    some = rows(count)
    given = {row.example_id: [row] for row in some}
    found = given_pairs(Repeating(), some, given, 64, 200, "file")
    assert found == list(found)
    assert [pair.example_id for pair in found] == [row.example_id for row in some]
    assert all(isinstance(pair, Pair) for pair in found)
