"""SFT, two iterations of self-play, and a rival at equal compute: which model is the best, and why.

python examples/self_play.py FILE [MODEL] [OUT]
"""

import sys

import spintune
from spintune.progress_display import open_progress

data = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
out = sys.argv[3] if len(sys.argv) > 3 else "runs/self-play"

recipe = {
    "model": model,
    "out": out,
    "data": {"train": data, "eval_fraction": 0.15, "max_length": 256},
    "sft": {"epochs": 1, "tokens_per_step": 2048},
    "spin": {"iterations": 2, "pairs_per_step": 16, "max_new_tokens": 64, "learning_rate": 5e-6, "baseline": "sft"},
}
with open_progress(as_json=False) as progress:
    results = spintune.run(recipe, progress=progress)

for iteration in results.spin:
    if heldout := iteration.heldout:
        print(f"iteration {iteration.iteration}: loss {heldout.loss:.4f}, margin {heldout.margin:.3f}")
if results.best:
    print(f"use {results.best.name} ({results.best.model}): {results.best.why}")
