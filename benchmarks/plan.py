"""Memory that a plan predicts beside what real training took, in a process of its own for each setting.

    python benchmarks/plan.py [NAME...]

Each process trains the packaged 135M model (or a random T5 of 60M) for two steps of several calls through the training
loop. "allocated" is the most that torch's allocator held beside the weights, "resident" the most that the process held
beside the interpreter and the weights (VmHWM), both by the system's own counts.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS: dict[str, dict[str, object]] = {
    "sft, 256 tokens": {"tokens": 256},
    "sft, 1024 tokens": {"tokens": 1024},
    "sft, 2048 tokens": {"tokens": 2048},
    "spin, 1024 tokens": {"tokens": 1024, "answers": 2},
    "lora, 1024 tokens": {"tokens": 1024, "lora": True},
    "recompute: 1, 1024 tokens": {"tokens": 1024, "recompute": 1.0},
    "bfloat16 products, 1024 tokens": {"tokens": 1024, "precision": "bfloat16"},
    "adafactor, 1024 tokens": {"tokens": 1024, "optimizer": "adafactor"},
    "t5, 1024 tokens": {"tokens": 1024, "t5": True},
}
MODEL = "smollm2-135m-instruct"
T5_SMALL = {"d_model": 512, "d_ff": 2048, "num_heads": 8, "d_kv": 64, "num_layers": 6, "vocab_size": 32128}
ROW = 64


def resident(name: str) -> int:
    """A number of bytes of this process, by the system."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0


def measure(setting: dict[str, object]) -> dict[str, float]:
    """Trains in this process, and predicts. The profiler counts in a third step, which takes as much as the second."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from spintune.engine.logprobs import LogProbEngine
    from spintune.engine.query import Query
    from spintune.kernels.allocator import tune_malloc
    from spintune.models.loading import load_model
    from spintune.models.lora import new_adapter
    from spintune.plan.memory import step_bytes
    from spintune.plan.rehearsal import Setting, rehearse
    from spintune.plan.shapes import read_shape
    from spintune.recipe import LoraSection
    from spintune.recipe.section import OptimizerName
    from spintune.storage import cache_folder
    from spintune.training.footprint import footprint
    from spintune.training.optimization import Optimization, build_optimizer

    tokens, answers = int(str(setting["tokens"])), int(str(setting.get("answers", 1)))
    autocast = torch.bfloat16 if setting.get("precision") == "bfloat16" else None
    lora = LoraSection() if setting.get("lora") else None
    recompute = float(str(setting.get("recompute", 0.0)))
    name: OptimizerName = "adafactor" if setting.get("optimizer") == "adafactor" else "adamw"
    before = resident("VmRSS")
    if setting.get("t5"):
        config = AutoConfig.for_model("t5", decoder_start_token_id=0, **T5_SMALL)
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32).eval()
    else:
        config = read_shape(MODEL, cache_folder()).config
        model = load_model(MODEL, cache=cache_folder()).model
    if lora:
        new_adapter(model, lora, "benchmark")
    queries = tuple(Query((5,) * ROW, ((7,) * ROW,) * answers) for _ in range(max(1, tokens // (ROW * (1 + answers)))))
    engine = LogProbEngine(model, autocast, recompute=recompute)
    tune_malloc()
    optimizer = build_optimizer(model, Optimization(1e-5, optimizer=name))

    def step() -> None:
        for _ in range(2):
            (-engine(queries).sum_N.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    highest = resident("VmHWM")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    kept = footprint(model, name)
    call = rehearse(config, Setting(torch.float32, autocast, True, recompute, lora), queries)
    moved = max(call.start, step_bytes(model, name))
    return {
        "weights": kept.weights / 1e6,
        "predicted": (kept.total + moved) / 1e6,
        "allocated": (most + kept.weights + kept.moments) / 1e6,
        "resident": (highest - before) / 1e6,
    }


def main() -> None:
    """Prints a table, a row for each setting."""
    if sys.argv[1:2] == ["--child"]:
        Path(sys.argv[3]).write_text(json.dumps(measure(SETTINGS[sys.argv[2]])))
        return
    print("| setting | predicted [MB] | allocated [MB] | error | resident [MB] |\n|---|---|---|---|---|")
    for name in sys.argv[1:] or SETTINGS:
        with tempfile.NamedTemporaryFile() as file:
            command = [sys.executable, __file__, "--child", name, file.name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found = json.loads(Path(file.name).read_text())
        error = found["predicted"] / found["allocated"] - 1
        print(
            f"| {name} | {found['predicted']:,.0f} | {found['allocated']:,.0f} | {error:+.1%} "
            f"| {found['resident']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
