"""The memory of a recipe's modes beside their plans, for gpu.py."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from memory_modes import LONGEST, Mode, train_in
from transformers import PreTrainedModel
from word_models import word_tokenizer

MODES = {
    "float32": Mode("float32", ""),
    "bfloat16": Mode("bfloat16", "weights: bfloat16", "bfloat16"),
    "adamw8bit": Mode("adamw8bit", "optimizer: adamw8bit", optimizer="adamw8bit"),
    "nf4": Mode("nf4", "lora: {rank: 8, base: nf4}", lora=True, base="nf4"),
    "offload": Mode("offload", "offload: both", offload="both"),
}
"""Memory modes of a recipe that are measured."""


def write_world(model: PreTrainedModel, words: range, count: int, folder: Path) -> None:
    """Writes a model with a tokenizer of words, and rows of so many texts to train on, as a recipe reads them."""
    names = [f"w{number}" for number in range(model.config.vocab_size - 5)]
    word_tokenizer(names).save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(names, k=draw.choice(words))) for _ in range(count)]
    rows = [{"instruction": prompt, "output": answer} for prompt, answer in zip(texts[::2], texts[1::2], strict=True)]
    (folder / "rows.json").write_text(json.dumps(rows))


def memory(
    made: PreTrainedModel, shortest: int, longest: int, options: argparse.Namespace, name: str
) -> dict[str, Any]:
    """A few steps in a memory mode through the training loop of recipes, and what a plan says of the same recipe.

    Args:
        shortest, longest: words of prompts, and of answers.
    """
    mode, tokens = MODES[name], options.budget
    longest_row = min(LONGEST, made.config.max_position_embeddings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, data = folder / "model", folder / "rows.json"
        words = range(shortest, min(longest, longest_row // 2 - 8) + 1)
        write_world(made, words, max(128, options.tokens // 16), folder)
        del made
        spec = {"model": str(model), "data": str(data), "steps": 3, "tokens": tokens, "cache": str(folder / "cache")}
        recipe = {
            "out": str(folder / "run"),
            "model": str(model),
            "data": {"train": str(data), "max_length": longest_row, "eval_fraction": 0.01},
            "sft": {"tokens_per_step": tokens, "epochs": 1.0, "max_steps": 3, "optimizer": mode.optimizer},
            "tokens_per_forward": tokens,
            **({"weights": mode.weights} if mode.weights else {}),
            **({"lora": {"rank": 8, **({"base": mode.base} if mode.base else {})}} if mode.lora else {}),
            **({"offload": mode.offload} if mode.offload else {}),
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        # the plan comes last: what it imports is none of training's memory
        found = train_in(mode, {**spec, "emulated": False})
        planned = subprocess.run(
            [sys.executable, "-m", "spintune", "plan", folder / "recipe.yaml", "--json", "--no-probe"],
            stdout=subprocess.PIPE,
            check=True,
        )
        (stage,) = (stage for stage in json.loads(planned.stdout)["stages"] if stage["name"] == "sft")
    parts = stage["memory"]
    return {
        "keys": mode.keys,
        "bytes_per_weight": sum(found["bytes"].values()) / found["count"],
        "peak_gb": found["peak"],
        # beside what the process held before: no context
        "planned_gb": (parts["total"] - parts["context"]) / 1e9,
        "first_loss": found["losses"][0],
        "last_loss": found["losses"][-1],
    }
