"""The opponent: iterates answer the prompts of the training data, and the opponent says how likely each answer is.

Scores are taken once an iteration, while the player is still its own opponent, with the engine that trains. So training
holds one model, and the opponent is the true previous iterate whatever is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from spintune import streams
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import DataError, RunError
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling, stream_keys
from spintune.progress import Progress
from spintune.records import Answer, Completion, Pair, Record, read_records, write_records
from spintune.tokens.rows import TokenRow

SHARD = 256
"""Answers written, or pairs scored, and stored at once: what a killed run loses at most, and a fixed unit, so that it
ends the same."""

IDENTICAL = "identical"
EMPTY = "empty"

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """Where parts of a long piece of work are kept until it is whole, so that a killed run goes on from there.

    ``tag`` names the inputs; parts of other inputs are not used.
    """

    folder: Path
    tag: str
    progress: Progress

    def map(
        self, what: str, items: Sequence[T], kind: type[Record], compute: Callable[[slice], list[Record]], name: str
    ) -> list[Record]:
        """One record for each item: what ``compute`` makes of a slice of them, shard after shard."""
        records: list[Record] = []
        with self.progress.task(name, len(items), "pairs" if kind is Pair else what) as task:
            for begin in range(0, len(items), SHARD):
                path = self.folder / f"{self.tag}-{what}-{begin:08d}.jsonl"
                part = slice(begin, begin + SHARD)
                if path.exists():
                    shard = read_records(path, kind)
                else:
                    shard = compute(part)
                    write_records(path, shard)
                records.extend(shard)
                task.advance(len(items[part]))
        return records


def write_answers(
    generator: Generator,
    rows: Sequence[TokenRow],
    sampling: Sampling,
    count: int,
    max_length: int,
    writer: str,
    shards: Shards,
    name: str,
) -> list[Pair]:
    """``count`` answers to every row's prompt, beside the real one; nothing is scored yet.

    Args:
        rows: prompts with their real responses, already within ``sampling.max_new_tokens``.
        max_length: tokens of prompt and response together; an answer gets the same room as the real response.
        writer: name of the iterate behind ``generator``.
    """
    prompts = [row.prompt_ids for row in rows for _ in range(count)]
    keys = stream_keys(prompts, sampling.seed)
    completions = shards.map(
        "answers",
        prompts,
        Completion,
        lambda part: generator.generate(prompts[part], sampling, keys[part]),
        name,
    )
    return [
        _pair(
            generator,
            row,
            [_fit(c, max_length - len(row.prompt_ids)) for c in completions[place * count : (place + 1) * count]],
            writer,
        )
        for place, row in enumerate(rows)
    ]


def given_answers(
    generator: Generator,
    rows: Sequence[TokenRow],
    given: Mapping[str, Sequence[TokenRow]],
    max_new_tokens: int,
    max_length: int,
    writer: str,
) -> list[Pair]:
    """Pairs of rows with answers that somebody else wrote: ``given`` has them by example id, rendered."""

    def cut(answer: TokenRow, room: int) -> Answer:
        ids = answer.response_ids[:room]
        return Answer(ids, generator.decode(ids), answer.complete and len(ids) == len(answer.response_ids))

    return [
        _pair(
            generator,
            row,
            [cut(answer, min(max_new_tokens, max_length - len(row.prompt_ids))) for answer in given[row.example_id]],
            writer,
        )
        for row in rows
    ]


def _pair(generator: Generator, row: TokenRow, generated: Sequence[Answer], writer: str) -> Pair:
    real = Answer(row.response_ids, generator.decode(row.response_ids), row.complete)
    return Pair(row.example_id, row.prompt_ids, real, tuple(generated), writer=writer)


def score(
    engine: LogProbEngine,
    pairs: Sequence[Pair],
    under: Literal["opponent", "base"],
    shards: Shards,
    name: str,
) -> list[Pair]:
    """The pairs with the engine's log-probability of every answer, as their ``opponent`` or ``base`` score."""

    def compute(part: slice) -> list[Pair]:
        queries = [Query(pair.prompt_ids, tuple(answer.ids for answer in pair.answers)) for pair in pairs[part]]
        scores = engine.score(queries)
        return [_with_scores(pair, under, sums) for pair, sums in zip(pairs[part], scores, strict=True)]

    return shards.map(f"{under}-scores", pairs, Pair, compute, name)


def _with_scores(pair: Pair, under: str, sums: Sequence[float]) -> Pair:
    scored = zip(pair.answers, sums, strict=True)
    real, *generated = [replace(a, opponent=s) if under == "opponent" else replace(a, base=s) for a, s in scored]
    first = generated.pop() if pair.first is not None else None
    return replace(pair, real=real, generated=tuple(generated), first=first)


def _fit(completion: Completion, room: int) -> Answer:
    """The completion within ``room`` tokens. What is cut keeps no end token."""
    whole = completion.finish_reason == "stop" and len(completion.ids) <= room
    sampled = completion.logprob if len(completion.ids) <= room else None
    return Answer(completion.ids[:room], completion.text, whole, sampled=sampled)


@dataclass(frozen=True)
class FilteredPairs:
    """Pairs worth training on, and why answers were left out; answers kept + dropped = answers written."""

    kept: list[Pair]
    dropped: Counter[str]


def without_degenerate(pairs: Sequence[Pair], keep_identical: bool = False) -> FilteredPairs:
    """Leaves out answers that cannot teach. A pair stays while one of its generated answers does.

    An empty answer is none. One that equals the real answer gives a margin of 0 whatever the player does; losses that
    look at more than the margin keep it. (It holds single ratios at 0, without which p_data is not their fixed point.)
    """
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for pair in pairs:
        teaching = []
        for answer in pair.generated:
            if answer.ids == pair.real.ids and not keep_identical:
                dropped[IDENTICAL] += 1
            elif not answer.text.strip():
                dropped[EMPTY] += 1
            else:
                teaching.append(answer)
        if teaching:
            kept.append(replace(pair, generated=tuple(teaching)))
    return FilteredPairs(kept, dropped)


def check_sampler(pairs: Sequence[Pair], opponent: str, tolerance: float) -> None:
    """The opponent's score of its own answer is the log-probability that its generator drew it with.

    Else generator and engine disagree about prompt or model, and the answers are no draws from the opponent. Looks at
    the mean over answers; other writers' are left out.

    Raises RunError.
    """
    answers = [answer for pair in pairs if pair.writer == opponent for answer in pair.generated]
    gaps = [abs(a.opponent - a.sampled) for a in answers if a.opponent is not None and a.sampled is not None]
    if gaps and not sum(gaps) / len(gaps) <= tolerance:
        raise RunError(
            f"{opponent}'s scores of its own answers differ from its generator's by {sum(gaps) / len(gaps):.3f} nats "
            f"on average (rounding is below {tolerance:g}): a bug; please report it with the model's name"
        )


def with_first(pairs: Sequence[Pair], first: Mapping[str, Answer]) -> list[Pair]:
    """The pairs with iterate 0's answer to each prompt, by example id.

    Raises DataError when one is missing.
    """
    if missing := [pair.example_id for pair in pairs if pair.example_id not in first]:
        raise DataError(
            f"spin.loss reads iterate 0's answers, and {len(missing)} of {len(pairs)} prompts have none "
            f"(example {missing[0]}); play iteration 1 again, or choose another spin.loss"
        )
    return [replace(pair, first=first[pair.example_id]) for pair in pairs]


def draw_writer(example_id: str, iteration: int, history: int, seed: int) -> int:
    """Which of the latest ``history`` iterates answers a prompt in ``iteration``: iteration - 1, or one before it.

    Drawn uniformly, by a hash, so it depends on nothing else. Iterate 0 is the first there is.
    """
    choices = min(history, iteration)
    return iteration - 1 - streams.integer(f"writer/{seed}/{iteration}/{example_id}") % choices
