"""Trains one model in each memory mode on the same rows: bytes a weight, peak memory, and losses beside float32.

    python benchmarks/memory_modes.py [--model NAME] [--data FILE] [--steps 40] [--tokens 512] [--only MODE,...]
                                      --report FILE
    python benchmarks/memory_modes.py --sizes

Results of earlier calls that are in FILE are kept, so a call that was stopped goes on. Modes with 8-bit moments or a
4-bit base need ``pip install "spintune[memory]"``. Each mode runs in processes of its own, through the functions that a
recipe runs: the same rows in the same order, warm-up and cosine schedule. The player is scored before and after on the
same held-out rows. No times are taken, so other work on the machine changes nothing.

``--sizes`` prints what training keeps of a model with the shape of Mistral-7B, without numbers, in seconds.

* bytes: what training keeps all the time (weights, gradients, moments), by
  :func:`spintune.training.footprint.footprint`, which tests compare with real tensors, for each weight of the model.
* peak: most memory of the process in two steps, beyond what it held before it loaded the model: with activations.
* losses: mean training loss of each quarter of the steps.
* nearest: no mode, but what bfloat16 weights lose without stochastic rounding; with float32 products everywhere.

A processor that does not multiply bfloat16 takes eight times as long for it as for float32. There, losses of bfloat16
weights are measured with float32 products and gradients: weights have bfloat16 values and are rounded to such after
each update, by the same function. Peaks are those of the mode itself everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe, peak_memory, processor

from spintune.recipe.section import OptimizerName

FULL_RATE, LORA_RATE = 5e-5, 5e-4
HELDOUT = 12  # rows
LONGEST = 256  # tokens of a row


@dataclass(frozen=True)
class Mode:
    """Keys of a recipe that change what training keeps."""

    name: str
    keys: str
    weights: str | None = None
    optimizer: OptimizerName = "adamw"
    lora: bool = False
    base: str | None = None
    offload: str | None = None


MODES = (
    Mode("float32", ""),
    Mode("bfloat16", "weights: bfloat16", "bfloat16"),
    Mode("nearest", "", "bfloat16"),
    Mode("8-bit moments", "optimizer: adamw8bit", optimizer="adamw8bit"),
    Mode("LoRA", "lora: {rank: 8}", lora=True),
    Mode("LoRA on NF4", "lora: {rank: 8, base: nf4}", lora=True, base="nf4"),
    Mode("bfloat16, 8-bit moments", "weights: bfloat16, optimizer: adamw8bit", "bfloat16", "adamw8bit"),
    Mode("LoRA on bfloat16", "lora: {rank: 8}, weights: bfloat16", "bfloat16", lora=True),
    Mode("bfloat16, adafactor", "weights: bfloat16, optimizer: adafactor", "bfloat16", "adafactor"),
    Mode("LoRA on NF4 and bfloat16", "lora: {rank: 8, base: nf4}, weights: bfloat16", "bfloat16", "adamw", True, "nf4"),
)


def is_emulated(mode: Mode, spec: dict[str, Any]) -> bool:
    """Whether bfloat16 weights are float32 ones that are rounded after each update."""
    return mode.name == "nearest" or (mode.weights is not None and spec["emulated"])


def train_in(mode: Mode, spec: dict[str, Any]) -> dict[str, Any]:
    """Trains in one mode, in this process. ``emulated``: bfloat16 values in float32 weights."""
    import torch

    from spintune.data.sources import Source, read_sources
    from spintune.engine.logprobs import LogProbEngine
    from spintune.models.loading import load_model
    from spintune.models.lora import new_adapter
    from spintune.models.quantized import count_of
    from spintune.recipe import LoraSection
    from spintune.tokens.rows import render
    from spintune.training.batches import Batches, steps_by_tokens
    from spintune.training.checkpoint import Checkpoints
    from spintune.training.footprint import footprint
    from spintune.training.loop import StepReport, TrainingHooks, train
    from spintune.training.objectives import NegativeLogLikelihood
    from spintune.training.optimization import Optimization
    from spintune.training.rounding import round_stochastically
    from spintune.training.sft import row_losses

    before, emulated = peak_memory(), is_emulated(mode, spec)
    more: dict[str, Any] = {"weights": None if emulated else mode.weights, "base": mode.base, "frozen": mode.lora}
    loaded = load_model(spec["model"], cache=Path(spec["cache"]), **more)
    if emulated:
        for parameter in loaded.model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16().float()
    count = sum(map(count_of, loaded.model.parameters()))
    if mode.lora:
        new_adapter(loaded.model, LoraSection(rank=8, alpha=16.0, base=mode.base), "memory-modes")
    moved = mode.offload in ("activations", "both")
    engine = LogProbEngine(loaded.model, loaded.autocast, tokens_per_forward=spec["tokens"], offload=moved)
    rows = render(read_sources([Source(spec["data"])], seed=0).examples, loaded.renderer("tokenizer"), LONGEST).rows
    rows = [row for row in rows if row.tokens <= spec["tokens"]]
    heldout, rows = rows[:HELDOUT], rows[HELDOUT:]
    losses: list[float] = []

    def after(report: StepReport) -> None:
        losses.append(report.loss)
        if emulated and not mode.lora:
            for number, parameter in enumerate(loaded.model.parameters()):
                wide, name = parameter.detach(), f"emulated/{report.step}/{number}"
                rounded = wide.bfloat16() if mode.name == "nearest" else round_stochastically(wide, name)
                wide.copy_(rounded)

    def loss() -> float:
        return sum(row_losses(engine, heldout)) / len(heldout)

    start = loss()
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_by_tokens([row.tokens for row in rows], spec["tokens"], spec["steps"], 0)[: spec["steps"]]
        rate, away = LORA_RATE if mode.lora else FULL_RATE, mode.offload in ("optimizer", "both")
        settings = Optimization(rate, optimizer=mode.optimizer, offload=away)
        checkpoints, hooks = Checkpoints(Path(folder), 1e9), TrainingHooks(on_step=after)
        train(engine, Batches(rows, steps), NegativeLogLikelihood(), settings, checkpoints, hooks)
    on_gpu = torch.cuda.is_available()  # the allocator's peak there: what was there before is none of its
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else peak_memory() - before
    kept = footprint(loaded.model, mode.optimizer)
    sizes = {"weights": kept.weights, "gradients": kept.gradients, "moments": kept.moments}
    return {"losses": losses, "start": start, "end": loss(), "count": count, "bytes": sizes, "peak": peak}


def measure(mode: Mode, spec: dict[str, Any]) -> dict[str, Any]:
    """Runs a mode in a process of its own."""
    how = " (products in float32)" * is_emulated(mode, spec)
    print(f"{mode.name}{how}: {spec['steps']} steps", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--role", mode.name, "--spec", json.dumps(spec)]
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def parts_of(mode: Mode, spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is run of a mode, by name: its losses, and where those are emulated its bytes and peak in two real steps."""
    if not is_emulated(mode, spec):
        return {mode.name: spec}
    real = {} if mode.name == "nearest" else {f"{mode.name}, real": {**spec, "emulated": False, "steps": 2}}
    return {mode.name: spec, **real}


def table(results: dict[str, Any]) -> str:
    """The results as a table in Markdown."""
    columns = ("mode", "bytes a weight", "peak", "held-out before", "after", "training loss, by quarters")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    runs = results["runs"]
    for mode in (mode for mode in MODES if mode.name in runs):
        name, one = mode.name, runs[mode.name]
        real = runs.get(f"{name}, real") if is_emulated(mode, results["spec"]) else one
        held = f"{sum(real['bytes'].values()) / real['count']:.2f}" if real else ""
        peak = f"{real['peak']:.2f} GB" if real else ""
        quarter = max(1, len(one["losses"]) // 4)
        parts = [one["losses"][i : i + quarter] for i in range(0, 4 * quarter, quarter)]
        means = " ".join(f"{sum(part) / len(part):.4f}" for part in parts if part)
        lines.append(f"| {name} | {held} | {peak} | {one['start']:.4f} | {one['end']:.4f} | {means} |")
    return "\n".join(lines)


def sizes() -> str:
    """What training keeps of seven billion weights, as a table in Markdown."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    from spintune.models.lora import new_adapter
    from spintune.models.quantized import count_of, pack_on_meta
    from spintune.recipe import LoraSection
    from spintune.training.footprint import footprint

    lines = ["| mode | GB | bytes a weight |", "|---|---|---|"]
    for mode in MODES:
        if mode.name in ("nearest", "LoRA on NF4"):
            continue
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(MistralConfig(num_key_value_heads=8))
        model.to(torch.bfloat16 if mode.weights else torch.float32)
        count = sum(map(count_of, model.parameters()))
        if mode.base:
            pack_on_meta(model)
        if mode.lora:
            new_adapter(model, LoraSection(rank=16), "sizes")
        total = footprint(model, mode.optimizer).total
        lines.append(f"| {mode.name} | {total / 1e9:.1f} | {total / count:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the modes that are asked for and not in the report yet, and prints all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default="builtin:seeds")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--only", default=",".join(mode.name.replace(",", "") for mode in MODES))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.sizes:
        print(sizes())
        return
    if given.role:
        mode = next(mode for mode in MODES if mode.name == given.role)
        print(json.dumps(train_in(mode, json.loads(given.spec))))
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spintune"
    spec = {"model": given.model, "data": given.data, "steps": given.steps, "tokens": given.tokens, "cache": str(cache)}
    spec["emulated"] = not processor()["native_bfloat16"]
    results: dict[str, Any] = {"machine": describe(), "spec": spec, "runs": {}}
    if given.report and given.report.is_file():
        results = json.loads(given.report.read_text())
        if results["spec"] != spec:
            sys.exit(f"{given.report} has other settings ({results['spec']}); give another --report")
    asked = [mode for mode in MODES if mode.name.replace(",", "") in given.only.split(",")]
    parts = [(mode, name, part) for mode in asked for name, part in parts_of(mode, spec).items()]
    for mode, name, part in parts:
        if name not in results["runs"]:
            results["runs"][name] = measure(mode, part)
            if given.report:
                given.report.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
