"""A metric of your own: it stands in the held-out table, and can choose the best iterate.

python examples/own_metric.py FILE [MODEL] [OUT]
"""

import sys
from collections.abc import Sequence

import spintune


def starts_alike(prediction: str, references: Sequence[str]) -> float:
    """1 when the answer begins with the first word of a reference, else 0."""
    first = prediction.lower().split()[:1]
    return float(any(first == reference.lower().split()[:1] for reference in references))


spintune.register_metric(
    spintune.Metric("starts_alike", starts_alike, "higher", "Begins like a reference.", right_or_wrong=True)
)

data = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
out = sys.argv[3] if len(sys.argv) > 3 else "runs/own-metric"
results = spintune.run(
    {
        "model": model,
        "out": out,
        "data": {"train": data, "eval_fraction": 0.15, "max_length": 256},
        "evaluation": {"metric": "starts_alike"},
        "spin": {"pairs_per_step": 16, "max_new_tokens": 32, "learning_rate": 5e-6},
    }
)
for name, measures in results.heldout.items():
    print(f"{name}: starts_alike {measures['starts_alike'].mean:.2f}")
