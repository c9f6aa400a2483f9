"""A generator of your own: each answer is the likeliest of four draws.

python examples/own_generator.py [MODEL]
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import spintune
from spintune.generation.batch import BatchGenerator
from spintune.generation.protocol import OnToken, Prompt
from spintune.generation.sampling import Sampling
from spintune.records import Completion


class BestOfFour(BatchGenerator):
    """Draws with the built-in generator, and keeps the draw with the highest log-probability a token."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        seeds = [4 * sampling.seed + draw for draw in range(4)]
        draws = [super(BestOfFour, self).generate(prompts, replace(sampling, seed=seed)) for seed in seeds]
        return [max(answers, key=lambda one: one.logprob / len(one.ids)) for answers in zip(*draws, strict=True)]


spintune.register_generator("best-of-four", BestOfFour)

name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
for generator in ("batch", "best-of-four"):
    model = spintune.load(name, generator=generator)
    (completion,) = model.generate("Name three colors.", max_new_tokens=16, temperature=1.0)
    print(f"{generator}: {completion.logprob / len(completion.ids):.2f} nats a token: {completion.text!r}")
