"""Held-out measures on the user's own data: likelihood of the references, and greedy answers against them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spintune.engine.logprobs import LogProbEngine
from spintune.evaluation.generate_answers import write_answers
from spintune.evaluation.measures import Interval, bootstrap, exact_match, rouge_l
from spintune.generation.protocol import Generator
from spintune.progress import Progress
from spintune.records import Example
from spintune.tokens.rows import TokenRow
from spintune.training.objectives import NegativeLogLikelihood


@dataclass(frozen=True)
class HeldoutLikelihood:
    """How likely a model finds the reference of one held-out example."""

    id: str
    nll: float
    """Minus the log-probability of the reference, in nats, summed over its tokens."""
    tokens: int
    """Scored tokens of the reference, its end-of-turn included."""


@dataclass(frozen=True)
class HeldoutAnswer:
    """One held-out example, answered and measured."""

    id: str
    prompt: str
    reference: str
    answer: str
    finish_reason: str
    answer_tokens: int
    reference_tokens: int
    """As in :class:`HeldoutLikelihood`."""
    nll: float
    """As in :class:`HeldoutLikelihood`."""
    rouge_l: float
    exact_match: bool


def score_heldout(
    engine: LogProbEngine, rows: Sequence[TokenRow], progress: Progress, name: str
) -> list[HeldoutLikelihood]:
    """The likelihood of every row's reference under the model called ``name``."""
    objective = NegativeLogLikelihood()
    with progress.task(f"{name}: held-out likelihood", len(rows), "examples") as task:
        scores = engine.score([objective.query(row) for row in rows], task.advance)
    return [
        HeldoutLikelihood(row.example_id, -logprob, sum(row.trained))
        for row, (logprob,) in zip(rows, scores, strict=True)
    ]


def answer_heldout(
    generator: Generator,
    examples: Sequence[Example],
    rows: Sequence[TokenRow],
    likelihoods: Sequence[HeldoutLikelihood],
    max_new_tokens: int,
    progress: Progress,
    name: str,
) -> list[HeldoutAnswer]:
    """Greedy answers to held-out examples; ``rows`` are the examples as tokens, one for one."""
    prompts = [row.prompt_ids for row in rows]
    completions = write_answers(generator, prompts, max_new_tokens, progress, f"{name}: held-out answers")
    return [
        HeldoutAnswer(
            id=example.id,
            prompt="\n\n".join(message.content for message in example.prompt),
            reference=example.answer,
            answer=completion.text,
            finish_reason=completion.finish_reason,
            answer_tokens=len(completion.ids),
            reference_tokens=likelihood.tokens,
            nll=likelihood.nll,
            rouge_l=rouge_l(example.answer, completion.text),
            exact_match=exact_match(example.answer, completion.text),
        )
        for example, likelihood, completion in zip(examples, likelihoods, completions, strict=True)
    ]


MEASURES = ("nll_per_token", "nll_per_byte", "rouge_l", "exact_match", "answer_tokens", "finished")
_LIKELIHOODS = ("nll_per_token", "nll_per_byte")


def summarise(judged: Sequence[HeldoutAnswer]) -> dict[str, Interval]:
    """Each measure with its 95 % interval, and the perplexities exp(nll) by the token and by the byte.

    Models of different tokenizers are comparable by the byte (UTF-8, of the reference).
    """
    likelihoods = {name: bootstrap([j.nll for j in judged], _denominators(judged, name)) for name in _LIKELIHOODS}
    perplexities = {
        name.replace("nll", "perplexity"): Interval(math.exp(nll.mean), math.exp(nll.low), math.exp(nll.high))
        for name, nll in likelihoods.items()
    }
    return {**likelihoods, **perplexities, **{name: bootstrap(_values(judged, name)) for name in MEASURES[2:]}}


def compare(judged: Sequence[HeldoutAnswer], against: Sequence[HeldoutAnswer]) -> dict[str, Interval]:
    """Paired differences (first minus second) on the same items, each with its 95 % interval."""
    if [j.id for j in judged] != [j.id for j in against]:
        raise ValueError("a paired comparison needs the same items in the same order")
    differences = {
        name: bootstrap([a - b for a, b in zip(_values(judged, name), _values(against, name), strict=True)])
        for name in MEASURES[2:]
    }
    nll = [a.nll - b.nll for a, b in zip(judged, against, strict=True)]
    return {**{name: bootstrap(nll, _denominators(judged, name)) for name in _LIKELIHOODS}, **differences}


def _denominators(judged: Sequence[HeldoutAnswer], name: str) -> list[int]:
    """Tokens or bytes of each reference; an empty one still has its end to be likely, and counts one byte."""
    if name == "nll_per_token":
        return [j.reference_tokens for j in judged]
    return [max(1, len(j.reference.encode())) for j in judged]


def _values(judged: Sequence[HeldoutAnswer], name: str) -> list[float]:
    if name == "finished":
        return [float(j.finish_reason == "stop") for j in judged]
    return [float(getattr(j, name)) for j in judged]
