"""The opponent: it answers the prompts of the training data, and says how likely it finds both answers.

Both happen once an iteration, while the player is still its own opponent, with the engine that trains. So training
holds one model, and the opponent is the true previous iterate whatever is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spintune.models.generation import Generator
from spintune.models.logprobs import LogProbEngine, Query
from spintune.models.sampling import Sampling, stream_keys
from spintune.progress import Progress
from spintune.records import Completion, Pair, read_records, write_records
from spintune.tokens.chat import Row

SHARD = 256
"""Prompts answered and stored at once: what a killed run loses at most, and a fixed unit, so that it ends the same."""

IDENTICAL = "identical"
EMPTY = "empty"


@dataclass(frozen=True)
class Pairs:
    """Pairs worth training on, and why the others were left out; kept + dropped = answered."""

    kept: list[Pair]
    dropped: Counter[str]


def play(
    engine: LogProbEngine,
    generator: Generator,
    rows: Sequence[Row],
    sampling: Sampling,
    max_length: int,
    tokens_per_forward: int,
    shards: Path,
    tag: str,
    progress: Progress,
    name: str,
) -> Pairs:
    """The opponent's answer to every row's prompt, paired with the real one, both scored by the opponent.

    Args:
        rows: prompts with their real responses, already within ``sampling.max_new_tokens``.
        max_length: tokens of prompt and response together; an answer gets the same room as the real response.
        shards: folder in which each finished shard of prompts is kept, so that a killed run goes on from there.
        tag: names the inputs; shards of other inputs are not used.
    """
    keys = stream_keys([row.prompt_ids for row in rows], sampling.seed)
    kept: list[Pair] = []
    with progress.task(name, len(rows), "pairs") as task:
        for begin in range(0, len(rows), SHARD):
            path = shards / f"{tag}-{begin:08d}.jsonl"
            shard = rows[begin : begin + SHARD]
            if path.exists():
                pairs = read_records(path, Pair)
            else:
                pairs = _play_shard(
                    engine, generator, shard, sampling, keys[begin : begin + SHARD], max_length, tokens_per_forward
                )
                write_records(path, pairs)
            kept.extend(pairs)
            task.advance(len(shard))
    return _without_degenerate(kept)


def _play_shard(
    engine: LogProbEngine,
    generator: Generator,
    rows: Sequence[Row],
    sampling: Sampling,
    keys: Sequence[bytes],
    max_length: int,
    tokens_per_forward: int,
) -> list[Pair]:
    completions = generator.generate([row.prompt_ids for row in rows], sampling, keys)
    answers = [
        _fit(completion, max_length - len(row.prompt_ids)) for row, completion in zip(rows, completions, strict=True)
    ]
    queries = [Query(row.prompt_ids, (row.response_ids, ids)) for row, (ids, _) in zip(rows, answers, strict=True)]
    scores = engine.score(queries, tokens_per_forward)
    return [
        Pair(
            example_id=row.example_id,
            prompt_ids=row.prompt_ids,
            real_ids=row.response_ids,
            generated_ids=ids,
            generated_text=completion.text,
            real_complete=row.complete,
            generated_complete=complete,
            opponent_real=real,
            opponent_generated=generated,
        )
        for row, completion, (ids, complete), (real, generated) in zip(rows, completions, answers, scores, strict=True)
    ]


def _fit(completion: Completion, room: int) -> tuple[tuple[int, ...], bool]:
    """The completion's tokens within ``room``, and whether it is whole. What is cut keeps no end token."""
    whole = completion.finish_reason == "stop" and len(completion.ids) <= room
    return completion.ids[:room], whole


def _without_degenerate(pairs: Sequence[Pair]) -> Pairs:
    """Leaves out pairs that cannot teach: equal answers have a constant loss, empty ones are no answer."""
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for pair in pairs:
        if pair.generated_ids == pair.real_ids:
            dropped[IDENTICAL] += 1
        elif not pair.generated_text.strip():
            dropped[EMPTY] += 1
        else:
            kept.append(pair)
    return Pairs(kept, dropped)
