"""A checker of your own: it says how right an answer is, and decides which model of the run is best.

python examples/own_checker.py FILE [MODEL] [OUT]
"""

import sys

import spintune


def names_all(answer: str, reference: str, prompt: str) -> float:
    """The share of what the reference lists, between commas, that the answer names too."""
    wanted = [item.strip(" .").lower() for item in reference.split(",")]
    return sum(item in answer.lower() for item in wanted) / len(wanted)


spintune.register_checker("names_all", names_all)

data = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
out = sys.argv[3] if len(sys.argv) > 3 else "runs/own-checker"
results = spintune.run(
    {
        "model": model,
        "out": out,
        "data": {"train": data, "eval_fraction": 0.15, "max_length": 256},
        "sft": {"max_steps": 10},
        "evaluation": {"checker": "names_all", "samples": 1},
    }
)
for name, measures in results.heldout.items():
    greedy, sampled = measures["checker"], measures["checker@T1"]
    print(f"{name}: names_all {greedy.mean:.0%} greedy, {sampled.mean:.0%} at temperature 1")
