"""A tiny world for ranks: a Llama of 32 dimensions, and instructions of a few words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_folders import write_llama
from tiny_models import one_thread, words  # noqa: F401 - pytest finds them here

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]

RECIPE = """
out: {out}
model: {model}
seed: 3
data: {{train: {data}, eval_fraction: 0.2, max_length: 128}}
sft: {{epochs: 1, learning_rate: 1.0e-3, tokens_per_step: 260, samples: 1}}
spin: {{iterations: 2, learning_rate: 1.0e-3, pairs_per_step: 7, max_new_tokens: 6}}
eval: [heldout]
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a recipe into a folder of its own, and returns its file; ``more`` replaces sections."""
    folder = tmp_path_factory.mktemp("ranks")
    model = write_llama(folder / "llama")
    draw = random.Random(0)
    rows = [
        {
            "instruction": " ".join(draw.choices(WORDS, k=draw.randint(2, 12))),
            "input": "",
            "output": " ".join(draw.choices(WORDS, k=draw.randint(1, 9))),
        }
        for _ in range(40)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(name: str, more: str = "") -> Path:
        recipe = folder / f"{name}.yaml"
        text = RECIPE.format(out=folder / "runs" / name, model=model, data=data)
        recipe.write_text(text + more)
        return recipe

    return write
