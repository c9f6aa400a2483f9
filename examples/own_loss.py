"""A self-play loss of your own, and a run that trains with it.

python examples/own_loss.py FILE [MODEL] [OUT]
"""

import sys

from torch import Tensor
from torch.nn.functional import softplus

import spintune


def cautious(margin_D: Tensor, lambda_: float) -> Tensor:
    """The logistic loss, with a small price on large margins. ln 2 at the start, where the margin is 0."""
    return softplus(-lambda_ * margin_D) + 0.01 * (lambda_ * margin_D).square()


spintune.register_loss(spintune.SelfPlayLoss("cautious", cautious, kind="margin"))

data = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct"
out = sys.argv[3] if len(sys.argv) > 3 else "runs/own-loss"
results = spintune.run(
    {
        "model": model,
        "out": out,
        "data": {"train": data, "max_length": 256},
        "spin": {"loss": "cautious", "pairs_per_step": 16, "max_new_tokens": 64, "learning_rate": 5e-6},
    }
)
for iteration in results.spin:
    if iteration.heldout:
        print(f"loss {iteration.heldout.start_loss:.4f} -> {iteration.heldout.loss:.4f}")
