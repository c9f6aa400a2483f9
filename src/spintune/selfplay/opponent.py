"""Pairs of real and generated answers, and the opponent's log-probability of each.

The opponent scores all answers once, before training, with the engine that trains. Training therefore needs only one
model in memory, and the opponent is the true previous iterate even if adapters are trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from spintune import streams
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import RunError
from spintune.generation.answer_counter import Counted
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling, StreamKeys
from spintune.generation.sharing import generate_parts
from spintune.record_files import LazySequence, Spool
from spintune.records import Answer, Completion, Pair
from spintune.selfplay.sampler_gap import SamplerGap, sampler_gap
from spintune.selfplay.shards import Shards
from spintune.tokens.rows import TokenRow


def sample_pairs(
    generator: Generator,
    rows: Sequence[TokenRow],
    sampling: Sampling,
    count: int,
    max_length: int,
    writer: str,
    shards: Shards,
    title: str,
) -> Sequence[Pair]:
    """Samples ``count`` answers to the prompt of every row. The pairs are not scored yet.

    Args:
        rows: prompts with their real responses, which are within ``sampling.max_new_tokens``.
        max_length: maximum tokens of prompt and response together, for generated as for real answers.
        writer: name of the generator's iterate.
        title: of the progress bar.
    """
    prompts = _Prompts(rows, count)
    keys = StreamKeys(prompts, sampling.seed)

    def sample(parts: list[slice], counted: Counted) -> list[list[Completion]]:
        written = [([*prompts[part]], keys[part]) for part in parts]
        return generate_parts(generator, written, sampling, counted)

    completions = iter(shards.map("answers", prompts, Completion, sample, title))
    pairs = Spool(Pair)
    for row in rows:
        room = max_length - len(row.prompt_ids)
        pairs.add(_pair(generator, row, [_fit(generator, next(completions), room) for _ in range(count)], writer))
    return pairs.records()


class _Prompts(LazySequence[tuple[int, ...]]):
    """The prompt of every row, ``count`` times."""

    def __init__(self, rows: Sequence[TokenRow], count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return len(self._rows) * self._count

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (row.prompt_ids for row in self._rows for _ in range(self._count))

    def _item(self, position: int) -> tuple[int, ...]:
        return self._rows[position // self._count].prompt_ids


def given_pairs(
    generator: Generator,
    rows: Sequence[TokenRow],
    given: Mapping[str, Sequence[TokenRow]],
    max_new_tokens: int,
    max_length: int,
    writer: str,
) -> Sequence[Pair]:
    """Pairs with answers from another source: ``given`` has them as rendered rows, by example id."""

    def cut(answer: TokenRow, room: int) -> Answer:
        ids = answer.response_ids[:room]
        return Answer(ids, generator.decode(ids), answer.complete and len(ids) == len(answer.response_ids))

    pairs = Spool(Pair)
    for row in rows:
        room = min(max_new_tokens, max_length - len(row.prompt_ids))
        pairs.add(_pair(generator, row, [cut(answer, room) for answer in given[row.example_id]], writer))
    return pairs.records()


def _pair(generator: Generator, row: TokenRow, generated: Sequence[Answer], writer: str) -> Pair:
    real = Answer(row.response_ids, generator.decode(row.response_ids), row.complete)
    return Pair(row.example_id, row.prompt_ids, real, tuple(generated), writer=writer)


def _fit(generator: Generator, completion: Completion, room: int) -> Answer:
    """The completion cut to ``room`` tokens. A cut answer has no end token."""
    fits = len(completion.ids) <= room
    complete = fits and completion.finish_reason == "stop"
    text = completion.text if fits else generator.decode(completion.ids[:room])
    return Answer(completion.ids[:room], text, complete, sampled=completion.logprob if fits else None)


def draw_writer(example_id: str, iteration: int, history: int, seed: int) -> int:
    """The iterate that answers a prompt in ``iteration``: one of the latest ``history``, iteration - 1 or earlier.

    The draw is uniform and depends only on the arguments. If there are fewer iterates, it is one of those.
    """
    choices = min(history, iteration)
    return iteration - 1 - streams.integer(f"writer/{seed}/{iteration}/{example_id}") % choices


def score_pairs(
    engine: LogProbEngine, pairs: Sequence[Pair], under: Literal["opponent", "base"], shards: Shards, title: str
) -> Sequence[Pair]:
    """The pairs with the engine's log-probability of every answer, as its ``opponent`` or ``base`` score."""

    def compute(parts: list[slice], _: Counted) -> list[list[Pair]]:
        found = engine.score_parts([[_query(pair) for pair in pairs[part]] for part in parts])
        return [
            [_with_scores(pair, under, sums) for pair, sums in zip(pairs[part], scores, strict=True)]
            for part, scores in zip(parts, found, strict=True)
        ]

    return shards.map(f"{under}-scores", pairs, Pair, compute, title)


def _query(pair: Pair) -> Query:
    return Query(pair.prompt_ids, tuple(answer.ids for answer in pair.answers))


def _with_scores(pair: Pair, under: str, sums: Sequence[float]) -> Pair:
    scored = zip(pair.answers, sums, strict=True)
    real, *generated = [replace(a, opponent=s) if under == "opponent" else replace(a, base=s) for a, s in scored]
    first = generated.pop() if pair.first is not None else None
    return replace(pair, real=real, generated=tuple(generated), first=first)


def check_sampler(pairs: Iterable[Pair], opponent: str, tolerance: float) -> SamplerGap | None:
    """Compares the opponent's scores of its own answers with the log-probabilities at which they were sampled.

    If they differ, generator and engine disagree about the prompt or the model, and the answers are not samples of the
    opponent. Answers of other writers are ignored.

    Raises RunError when they differ by more than ``tolerance`` on average. [nats per answer]
    """
    gap = sampler_gap(pairs, opponent)
    if gap and not gap.mean <= tolerance:
        raise RunError(
            f"{opponent}'s scores of its own answers differ from its generator's by {gap.mean:.3f} nats on average "
            f"(rounding is below {tolerance:g}): a bug; please report it with the model's name"
        )
    return gap
