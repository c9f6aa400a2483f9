"""spintune's side: its own engine and training loop, fed with the workload's ids."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import peak_memory
from workload import BETA, LEARNING_RATE, ModelShape, PreferencePair, TrainingRow, Workload

from spintune.data.sources import Source, read_sources
from spintune.engine.logprobs import LogProbEngine
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling, stream_keys
from spintune.models.loading import LoadedModel, load_model, locate_model
from spintune.records import Answer, Pair
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rows import TokenRow, fit
from spintune.training.batches import Batches
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood, Objective, SelfPlay
from spintune.training.optimization import Optimization

MAX_LENGTH = 1024
SPARE = 8
"""Answers generated beyond those asked for, in place of the identical and the empty."""


def prepare(spec: dict[str, Any]) -> Workload:
    """Renders the rows, and lets the model answer the pairs' prompts at T = 1.

    Rows are taken evenly over the data, so that they hold short and long ones. Real answers of pairs are cut to
    ``answer_tokens``, generated ones end there.
    """
    cache = Path(spec["cache"])
    loaded = load_model(spec["model"], cache=cache, precision="float32")
    renderer = ChatRenderer(loaded.tokenizer)
    examples = read_sources([Source(spec["data"])], seed=0).examples
    whole = [row for row in (fit(row, MAX_LENGTH) for row in renderer.rows(examples)) if isinstance(row, TokenRow)]
    if len(whole) < max(spec["rows"], spec["pairs"]):
        raise SystemExit(f"{spec['data']} has {len(whole)} usable examples; lower --rows and --pairs, or give --data")
    rows = [
        TrainingRow(list(row.prompt_ids), list(row.response_ids), list(row.trained))
        for row in _spread(whole, spec["rows"])
    ]
    pairs = _play(loaded, renderer, _spread(whole, spec["pairs"] + SPARE), spec)
    folder, _ = locate_model(spec["model"], cache)
    return Workload(folder, shape_of(loaded), rows, pairs)


def _play(
    loaded: LoadedModel, renderer: ChatRenderer, rows: Sequence[TokenRow], spec: dict[str, Any]
) -> list[PreferencePair]:
    longest: int = spec["answer_tokens"]
    engine = LogProbEngine(loaded.model, loaded.autocast)
    generator = build_generator(engine, loaded.tokenizer, renderer.stop_ids)
    prompts = [row.prompt_ids for row in rows]
    sampling = Sampling(max_new_tokens=longest, seed=spec["seed"])
    completions = generator.generate(prompts, sampling, stream_keys(prompts, sampling.seed))
    pairs = [
        PreferencePair(list(row.prompt_ids), list(row.response_ids[:longest]), list(completion.ids))
        for row, completion in zip(rows, completions, strict=True)
        if completion.text.strip() and completion.ids != row.response_ids[:longest]
    ]
    if len(pairs) < spec["pairs"]:
        raise SystemExit(f"only {len(pairs)} of {len(rows)} generated answers make a pair; lower --pairs")
    return _spread(pairs, spec["pairs"])


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def shape_of(loaded: LoadedModel) -> ModelShape:
    """The numbers that the count of operations needs."""
    model = loaded.model
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    body = sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2 and p is not embedding)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * head_width,
        body_parameters=body,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
    )


def measure(spec: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """Trains ``spec["steps"]`` steps on all rows, the first of them to warm up.

    Seconds of a step are the time between the ends of two steps. SPIN's scoring by the opponent happens once, before
    training, as the pipeline does it, after two pairs to warm up.
    """
    torch.set_num_threads(spec["threads"])
    task, steps = spec["task"], spec["steps"]
    loaded = load_model(workload.model, cache=Path(spec["cache"]), precision=spec["precision"])
    engine = LogProbEngine(loaded.model, loaded.autocast)
    result: dict[str, Any] = {"loaded_gb": peak_memory()}
    rows: Sequence[Any]
    objective: Objective[Any]
    if task == "sft":
        rows, objective = _rows(workload), NegativeLogLikelihood()
    else:
        objective = SelfPlay("logistic", BETA)
        queries = [objective.query(pair) for pair in _pairs(workload, [(0.0, 0.0)] * len(workload.pairs))]
        engine.score(queries[:2])
        started = time.perf_counter()
        scores = engine.score(queries)
        result["score_seconds"] = time.perf_counter() - started
        result["logprobs"] = scores
        rows = _pairs(workload, scores)

    reports: list[StepReport] = []
    ends: list[float] = []
    started = time.perf_counter()

    def report(step: StepReport) -> None:
        reports.append(step)
        ends.append(time.perf_counter())

    train(
        engine,
        Batches(rows, [list(range(len(rows)))] * steps),
        objective,
        Optimization(LEARNING_RATE[task], schedule="constant", warmup=0.0),
        Checkpoints(Path(spec["folder"]) / "checkpoints", minutes=1e6),
        TrainingHooks(on_step=report),
    )
    return {
        **result,
        "first_seconds": ends[0] - started,
        "seconds": [end - begin for begin, end in itertools.pairwise(ends)],
        "losses": [step.loss for step in reports],
        "grad_norms": [step.grad_norm for step in reports],
        "peak_gb": peak_memory(),
    }


def _rows(workload: Workload) -> list[TokenRow]:
    return [
        TokenRow(str(i), tuple(r.prompt), tuple(r.response), tuple(r.trained), True)
        for i, r in enumerate(workload.rows)
    ]


def _pairs(workload: Workload, scores: Sequence[Sequence[float]]) -> list[Pair]:
    return [
        Pair(
            str(i),
            tuple(p.prompt),
            Answer(tuple(p.real), "", True, real),
            (Answer(tuple(p.generated), "", True, generated),),
        )
        for i, (p, (real, generated)) in enumerate(zip(workload.pairs, scores, strict=True))
    ]
