"""What gpu.py measures, each part in a process of its own: SFT, SPIN and generation beside TRL and transformers, and
the memory of each mode beside its plan.

A Llama of 1.1 billion random weights; rows of random tokens, since only their lengths matter: prompts of 32 to 512,
answers of 32 to 512. spintune computes as a recipe with ``precision: auto`` would (bfloat16 products over float32
weights, variable-length flash attention over packed rows). TRL 1.x runs with bfloat16 autocast, rows sorted by length
and padded, no gradient checkpointing, and the fastest of the batch sizes tried that fits; its steps are timed without
the scoring by the reference model, as are spintune's.
transformers ``generate`` writes in bfloat16 with the fastest batch of those tried. spintune's own choices are timed
beside each other: recorded steps of generation or single launches, ``compile``, and ``recompute`` with its memory.

Checked: the packed log-probabilities against one row at a time (in the engine, when the model is loaded, and here on
real lengths), and SPIN's loss of ln 2 at the start.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_memory import memory
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query, pack
from spintune.generation.batch import BatchGenerator, GenerationLimits
from spintune.generation.sampling import Sampling
from spintune.records import Answer, Pair
from spintune.tokens.rows import TokenRow
from spintune.training.objectives import NegativeLogLikelihood, SelfPlay
from spintune.training.optimization import Optimization, build_optimizer

BATCHES = (2, 4, 8, 16, 32)
GENERATION_BATCHES = (32, 64, 128, 256)
BETA = 0.1
OPTIONS: dict[str, dict[str, Any]] = {
    "compile: true": {"compiled": True},
    "recompute: 0.5": {"recompute": 0.5},
    "recompute: 1": {"recompute": 1.0},
}
"""What recipes can ask for besides, timed on SFT."""
MOST_DIFFERENCE = 0.05
"""Nats a token that bfloat16 may move a response's log-probability by."""


@dataclass(frozen=True)
class Size:
    """Of the model and of its rows."""

    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    shortest: int
    longest: int


BILLION = Size(2048, 5632, 22, 32, 4, 32000, 32, 512)
TINY = Size(64, 128, 2, 4, 2, 512, 4, 24)


def build(size: Size, device: torch.device) -> LlamaForCausalLM:
    torch.manual_seed(0)
    with device:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size.vocabulary,
                hidden_size=size.hidden,
                intermediate_size=size.inner,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                num_key_value_heads=size.keys,
                max_position_embeddings=4 * size.longest,
            )
        ).eval()


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each call after one to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        finish(device)
        began = time.perf_counter()
        call()
        finish(device)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device, size: Size) -> float:
    """The fastest bfloat16 product [FLOP/s] of a large square and of the model's own shapes."""
    best = 0.0
    large = 8192 if size is BILLION else 512
    for m, k, n in ((large, large, large), (large, size.hidden, size.inner), (large, size.inner, size.hidden)):
        a, b = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
        best = max(best, 2 * m * k * n / min(timed(lambda a=a, b=b: a @ b, 10, device)))
    return best


def rows_of(size: Size, tokens: int) -> list[TokenRow]:
    """Rows of random ids, of ``tokens`` tokens together."""
    draw = random.Random(0)
    rows: list[TokenRow] = []
    while tokens > 0:
        prompt, answer = (
            tuple(draw.choices(range(3, size.vocabulary), k=draw.randint(size.shortest, size.longest)))
            for _ in range(2)
        )
        rows.append(TokenRow(str(len(rows)), prompt, answer, (True,) * len(answer), True))
        tokens -= len(prompt) + len(answer)
    return rows


def pairs_of(size: Size, rows: Sequence[TokenRow], engine: LogProbEngine) -> list[Pair]:
    """A pair of each row, with another answer that is drawn, both scored by the engine's own model."""
    draw = random.Random(1)
    objective = SelfPlay()

    def answer(ids: tuple[int, ...], score: float) -> Answer:
        return Answer(ids, "", True, score)

    drawn = [tuple(draw.choices(range(3, size.vocabulary), k=draw.randint(size.shortest, size.longest))) for _ in rows]
    unscored = [
        Pair(row.example_id, row.prompt_ids, answer(row.response_ids, 0.0), (answer(other, 0.0),))
        for row, other in zip(rows, drawn, strict=True)
    ]
    scores = engine.score([objective.query(pair) for pair in unscored])
    return [
        Pair(pair.example_id, pair.prompt_ids, answer(pair.real.ids, real), (answer(pair.generated[0].ids, other),))
        for pair, (real, other) in zip(unscored, scores, strict=True)
    ]


def operations(model: LlamaForCausalLM, tokens: int, scored: int) -> float:
    """6 for each weight below the head and token read, 6 for each of the head's and token scored."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters() if p.ndim == 2) - 2 * head
    return 6.0 * (body * tokens + head * scored)


def train_step(
    engine: LogProbEngine, objective: Any, items: Sequence[Any], budget: int, optimizer: torch.optim.Optimizer
) -> float:
    """Forward, backward and optimizer on all items; the loss."""
    weight = sum(map(objective.weight, items))
    total = 0.0
    for run in pack(items, lambda item: objective.query(item).tokens, budget):
        result = objective(run, engine([objective.query(item) for item in run]))
        (result.total / weight).backward()
        total += result.total.item()
    torch.nn.utils.clip_grad_norm_(engine.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total / weight


def training(size: Size, options: argparse.Namespace, device: torch.device, best: float) -> dict[str, Any]:
    """spintune's SFT and SPIN."""
    model = build(size, device)
    engine = LogProbEngine(model, torch.bfloat16, tokens_per_forward=options.budget)
    if not engine.packed:
        raise SystemExit("the packed path does not agree with one row at a time; nothing is timed")
    rows = rows_of(size, options.tokens)
    difference = packed_difference(engine, rows[:4])
    if difference > MOST_DIFFERENCE:
        raise SystemExit(f"packed log-probabilities differ by {difference:.3f} nats a token from one row at a time")
    found: dict[str, Any] = {"packed_difference": difference}
    for name, objective in (("sft", NegativeLogLikelihood()), ("spin", SelfPlay("logistic", BETA))):
        items: Sequence[Any] = rows if name == "sft" else pairs_of(size, rows, engine)
        tokens = sum(objective.query(item).tokens for item in items)
        scored = sum(sum(map(len, objective.query(item).responses)) for item in items)
        optimizer = build_optimizer(model, Optimization(1e-6, schedule="constant", warmup=0.0))
        losses: list[float] = []

        def step(objective: Any = objective, items: Any = items, optimizer: Any = optimizer, to: Any = losses) -> None:
            to.append(train_step(engine, objective, items, options.budget, optimizer))

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(timed(step, options.repeats, device))
        found[name] = {
            "seconds": seconds,
            "rows": len(items),
            "tokens_per_second": tokens / seconds,
            "share_of_peak": operations(model, tokens, scored) / seconds / best,
            "first_loss": losses[0],
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
        }
        if name == "spin" and abs(losses[0] - math.log(2)) > 0.02:
            raise SystemExit(f"SPIN's first loss is {losses[0]}, not ln 2")
    found["options"] = {
        name: _with_option(LogProbEngine(model, torch.bfloat16, **settings), rows, options, device)
        for name, settings in OPTIONS.items()
    }
    return found


def _with_option(
    engine: LogProbEngine, rows: Sequence[TokenRow], options: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Seconds and peak memory of an SFT step of an engine with another recipe's settings."""
    optimizer = build_optimizer(engine.model, Optimization(1e-6, schedule="constant", warmup=0.0))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step() -> float:
        return train_step(engine, NegativeLogLikelihood(), rows, options.budget, optimizer)

    seconds = statistics.median(timed(step, options.repeats, device))
    return {
        "seconds": seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
    }


@torch.no_grad()
def packed_difference(engine: LogProbEngine, rows: Sequence[TokenRow]) -> float:
    """Largest difference a token [nats] of packed log-probabilities from one row at a time."""
    queries = [
        Query(row.prompt_ids, (row.response_ids, row.response_ids[: len(row.response_ids) // 2])) for row in rows
    ]
    together = engine(queries)
    alone = torch.cat([engine([Query(q.prompt, (answer,))]).sum_N for q in queries for answer in q.responses])
    return float(((together.sum_N - alone).abs() / together.count_N).max())


def with_trl(size: Size, options: argparse.Namespace, device: torch.device, task: str) -> dict[str, Any] | None:
    """TRL's trainer on the same rows; the fastest batch that fits."""
    from datasets import Dataset
    from peer_trl import Clock, TimedDPOTrainer
    from trl import DPOConfig, SFTConfig, SFTTrainer

    engine = LogProbEngine(build(size, device), torch.bfloat16, tokens_per_forward=options.budget)
    rows = rows_of(size, options.tokens)
    pairs = pairs_of(size, rows, engine) if task == "spin" else []
    del engine
    best: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(size, torch.device("cpu")).save_pretrained(folder / "model")
        tokenizer = made_up_tokenizer(size)
        for batch in BATCHES:
            # a step holds whole batches
            count = len(rows) // batch * batch
            if not count:
                continue
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            clock = Clock()
            common: dict[str, Any] = {
                "output_dir": str(folder / "trl"),
                "use_cpu": device.type != "cuda",
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": count // batch,
                "max_steps": options.repeats + 1,
                "learning_rate": 1e-6,
                "lr_scheduler_type": "constant",
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                "bf16": True,
                "gradient_checkpointing": False,
                "train_sampling_strategy": "sequential",
            }
            shared: dict[str, Any] = {
                "model": str(folder / "model"),
                "processing_class": tokenizer,
                "callbacks": [clock],
            }
            try:
                if task == "sft":
                    ordered = sorted(rows[:count], key=lambda row: len(row.prompt_ids) + len(row.response_ids))
                    data = Dataset.from_dict(
                        {
                            "input_ids": [[*row.prompt_ids, *row.response_ids] for row in ordered],
                            "labels": [[-100] * len(row.prompt_ids) + [*row.response_ids] for row in ordered],
                        }
                    )
                    settings = SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})
                    SFTTrainer(args=settings, train_dataset=data, **shared).train()
                else:
                    chosen = sorted(pairs[:count], key=lambda pair: len(pair.prompt_ids) + len(pair.real.ids))
                    data = Dataset.from_dict(
                        {
                            "prompt_ids": [[*pair.prompt_ids] for pair in chosen],
                            "chosen_ids": [[*pair.real.ids] for pair in chosen],
                            "rejected_ids": [[*pair.generated[0].ids] for pair in chosen],
                        }
                    )
                    settings = DPOConfig(**common, beta=BETA, loss_type=["sigmoid"], precompute_ref_log_probs=True)
                    TimedDPOTrainer(args=settings, train_dataset=data, **shared).train()
            except torch.cuda.OutOfMemoryError:
                print(f"TRL {task}, batch {batch}: out of memory")
                break
            seconds = (
                statistics.median(end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False))
                * len(rows)
                / count
            )
            print(f"TRL {task}, batch {batch}: {seconds:.3f} s")
            if best is None or seconds < best["seconds"]:
                best = {"seconds": seconds, "batch": batch, "first_loss": float(clock.logs[0]["loss"])}
    return best


def made_up_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """Trainers want one; the rows are ids already."""
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w2")


def generation(size: Size, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """New tokens a second, spintune's and transformers', greedy, with no token that ends an answer."""
    draw = random.Random(2)
    prompts = [
        tuple(draw.choices(range(3, size.vocabulary), k=draw.randint(size.shortest, size.longest)))
        for _ in range(options.prompts)
    ]
    launched = _written(size, options, device, prompts, fixed=False)
    seconds = _written(size, options, device, prompts, fixed=True)
    written = options.prompts * options.new_tokens
    found: dict[str, Any] = {"seconds": seconds, "tokens_per_second": written / seconds, "not_recorded": launched}
    peer = build(size, device).to(torch.bfloat16)
    config = GenerationConfig(do_sample=False, max_new_tokens=options.new_tokens, pad_token_id=0, eos_token_id=None)
    peer.generation_config = config
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for batch in GENERATION_BATCHES:
        if "peer" in found and batch > len(prompts):
            break

        def write_padded(batch: int = batch) -> None:
            for begin in range(0, len(order), batch):
                rows = [prompts[place] for place in order[begin : begin + batch]]
                longest = max(map(len, rows))
                ids = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rows], device=device)
                mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
                with torch.inference_mode():
                    peer.generate(ids, attention_mask=mask)

        took = statistics.median(timed(write_padded, 1, device))
        print(f"transformers generate, batch {batch}: {written / took:.0f} tokens/s")
        if "peer" not in found or took < found["peer"]["seconds"]:
            found["peer"] = {"seconds": took, "batch": batch, "tokens_per_second": written / took}
    return found


def _written(
    size: Size, options: argparse.Namespace, device: torch.device, prompts: Sequence[tuple[int, ...]], fixed: bool
) -> float:
    """Seconds of spintune, its steps recorded or not; its model is gone afterwards."""
    engine = LogProbEngine(build(size, device), torch.bfloat16)
    limits = GenerationLimits(cache_megabytes=16384, fixed_shapes=fixed)
    generator = BatchGenerator(engine, made_up_tokenizer(size), frozenset(), limits)
    sampling = Sampling(options.new_tokens, temperature=0)
    return statistics.median(timed(lambda: generator.generate(prompts, sampling), options.repeats, device))


def compute(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a part, by its name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = TINY if options.rehearse else BILLION
    kind, _, what = part.partition(" ")
    if kind == "memory":
        return memory(build(size, torch.device("cpu")), size.shortest, size.longest, options, what)
    if kind == "trl":
        return with_trl(size, options, device, what) or {"failed": "no batch fits"}
    if kind == "generation":
        return generation(size, options, device)
    best = peak(device, size)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "peak": best, **training(size, options, device, best)}
