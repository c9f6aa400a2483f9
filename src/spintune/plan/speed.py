"""How long a run takes: by rates that are measured here, or by a share of a GPU's peak."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.peak import arithmetic
from spintune.engine.query import Query
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.models.loading import load_model
from spintune.models.lora import new_adapter
from spintune.plan.calls import Calls
from spintune.plan.devices import Target
from spintune.plan.shapes import parameters
from spintune.progress import Progress
from spintune.recipe import Recipe

PROBE_STEPS = 5
_PROBE_SECONDS = 20.0
"""No step of a probe begins after so long."""
_ANSWERS, _ANSWER_TOKENS = 32, 24
_SLOTS = 128
"""Answers that a GPU writes at once."""
_BANDWIDTH_SHARE = 0.6
"""Of a GPU's memory bandwidth that generation reaches (our choice)."""


@dataclass(frozen=True)
class Rates:
    """Tokens per second of the whole machine.

    Attributes:
        training: read in training.
        scoring: read without gradients.
        writing: of answers.
        how: where the rates are from.
    """

    training: float
    scoring: float
    writing: float
    how: str


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a token that training reads, of one whose logits it needs, and without gradients."""

    token: float
    scored: float

    def of(self, calls: Calls) -> float:
        """Operations of a stage's training."""
        return self.token * calls.tokens + self.scored * calls.scored

    @property
    def forward(self) -> float:
        """Of a token that is only read, with its logits."""
        return (self.token + self.scored) / 3


def operations_of(model: PreTrainedModel) -> Operations:
    """By the products of a model's layers. Each half of an encoder-decoder reads its own tokens."""
    found = arithmetic(model)
    if found is not None:
        return Operations(found.token, found.scored)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Operations((2 * trained + 4 * parameters(model)) / 2, 0.0)


def gpu_rates(target: Target, needs: Operations, weights: int) -> Rates | None:
    """By a share of the peak, and of the memory's bandwidth for answers. None for a GPU of unknown kind.

    Args:
        weights: bytes that are read for each token of all running answers.
    """
    gpu = target.gpu
    if gpu is None:
        return None
    rate = gpu.peak * target.share * target.gpus
    step = weights / (gpu.bandwidth * _BANDWIDTH_SHARE) + _SLOTS * needs.forward / (gpu.peak * target.share)
    return Rates(
        rate / max(1.0, needs.token),
        rate / max(1.0, needs.forward),
        target.gpus * _SLOTS / step,
        f"{target.share:.0%} of {gpu.name}'s peak of {gpu.peak / 1e12:.0f} TFLOP/s ({gpu.source}) and "
        f"{_BANDWIDTH_SHARE:.0%} of its bandwidth; nothing was measured",
    )


def measured_rates(recipe: Recipe, calls: Sequence[Query], cache: Path, progress: Progress) -> Rates:
    """By a few calls of training and some answers of the recipe's model on this machine. Nothing is written."""
    queries = list(calls)
    with progress.task("measuring speed", PROBE_STEPS + 1, "steps") as task:
        loaded = load_model(
            recipe.model,
            cache=cache,
            precision=recipe.precision,
            frozen=recipe.lora is not None and recipe.lora.between == "continue",
            weights=recipe.weights,
            base=recipe.lora.base if recipe.lora else None,
        )
        if recipe.lora:
            new_adapter(loaded.model, recipe.lora, "plan")
        engine = LogProbEngine(loaded.model, loaded.autocast, recompute=recipe.recompute)
        tokens = sum(query.tokens for query in queries)
        seconds: list[float] = []
        for _ in range(PROBE_STEPS):
            began = time.perf_counter()
            (-engine(queries).sum_N.sum()).backward()
            loaded.model.zero_grad()
            seconds.append(time.perf_counter() - began)
            task.advance()
            if sum(seconds) > _PROBE_SECONDS:
                break
        began = time.perf_counter()
        engine.score(queries)
        scoring = time.perf_counter() - began
        writing = _writing(engine, recipe, queries, loaded.tokenizer) if recipe.spin else 0.0
        task.advance()
    usual = sorted(seconds)[len(seconds) // 2]
    how = f"measured here: the median of {len(seconds)} calls of {tokens:,} tokens" + (
        f", and {_ANSWERS} answers" if recipe.spin else ""
    )
    return Rates(tokens / usual, tokens / scoring, writing, how)


def _writing(
    engine: LogProbEngine, recipe: Recipe, queries: Sequence[Query], tokenizer: PreTrainedTokenizerBase
) -> float:
    generator = build_generator(engine, tokenizer, frozenset(), recipe.generator)
    prompts = [queries[number % len(queries)].prompt for number in range(_ANSWERS)]
    sampling = Sampling(_ANSWER_TOKENS, temperature=1.0)
    began = time.perf_counter()
    written = generator.generate(prompts, sampling)
    return sum(len(answer.ids) for answer in written) / (time.perf_counter() - began)
