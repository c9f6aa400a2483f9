"""Fine-tune a model on your own file and look at it before and after.

python examples/fine_tune.py FILE [MODEL] [OUT]
"""

import sys

import spintune

data = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
out = sys.argv[3] if len(sys.argv) > 3 else "runs/fine-tune"

examples = spintune.read(data)
print(f"{len(examples)} examples; the first asks: {examples[0].prompt[-1].content!r}")

results = spintune.run(
    {
        "model": model,
        "out": out,
        "data": {"train": data, "eval_fraction": 0.1, "max_length": 512},
        "sft": {"epochs": 1, "learning_rate": 2e-5, "tokens_per_step": 2048},
    }
)
assert results.heldout
for name, measures in results.heldout.items():
    print(f"{name}: held-out loss {measures['nll_per_token'].mean:.3f} nats a token")

question = [examples[0].prompt]
for name in (model, out):
    print(f"{name}: {spintune.load(name).generate(question, max_new_tokens=60)[0].text}")
