"""What every contestant computes: token ids of rows and pairs, and how many operations they need. No torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("sft", "spin")
BETA = 0.1
"""DPO's β, which is SPIN's λ."""
LEARNING_RATE = {"sft": 2.0e-5, "spin": 5.0e-7}
"""Constant, the same for all. The defaults of TRL's SFT, and of the SPIN authors: a first step with Adam moves every
weight by the whole rate, and a larger one makes the loss after it hang on rounding."""
IGNORED = -100
"""Label of a token that is not trained, by the convention of torch and TRL."""


@dataclass(frozen=True)
class TrainingRow:
    """One supervised example: prompt, response, and which response tokens are in the loss."""

    prompt: list[int]
    response: list[int]
    trained: list[bool]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.response

    @property
    def labels(self) -> list[int]:
        response = [token if counts else IGNORED for token, counts in zip(self.response, self.trained, strict=True)]
        return [IGNORED] * len(self.prompt) + response


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with its real ("chosen") and its generated ("rejected") response."""

    prompt: list[int]
    real: list[int]
    generated: list[int]

    @property
    def longer(self) -> int:
        """Tokens of the prompt with the longer response."""
        return len(self.prompt) + max(len(self.real), len(self.generated))


@dataclass(frozen=True)
class ModelShape:
    """What the count of operations needs to know of a decoder."""

    layers: int
    attention_width: int
    """Query heads times the width of one."""
    body_parameters: int
    """Weights of all matrix products below the head; the embedding is a look-up and does not count."""
    hidden: int
    inner: int
    """Width between the two matrices of a feed-forward block."""
    vocabulary: int


@dataclass(frozen=True)
class Workload:
    """The same token ids for every contestant."""

    model: str
    """A folder."""
    shape: ModelShape
    rows: list[TrainingRow]
    pairs: list[PreferencePair]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Workload:
        content: dict[str, Any] = json.loads(path.read_text())
        return cls(
            content["model"],
            ModelShape(**content["shape"]),
            [TrainingRow(**row) for row in content["rows"]],
            [PreferencePair(**pair) for pair in content["pairs"]],
        )

    def tokens(self, task: str) -> int:
        """Real tokens of a step: no padding, and a prompt once for both of its responses."""
        if task == "sft":
            return sum(len(row.ids) for row in self.rows)
        return sum(len(pair.prompt) + len(pair.real) + len(pair.generated) for pair in self.pairs)

    def scored(self, task: str) -> int:
        """Tokens whose log-probability is needed."""
        if task == "sft":
            return sum(sum(row.trained) for row in self.rows)
        return sum(len(pair.real) + len(pair.generated) for pair in self.pairs)

    def visible(self, task: str) -> int:
        """Pairs of tokens of which one attends to the other: n(n+1)/2 in a causal row of n.

        A response of r tokens sees its prompt of p (rp pairs) and itself; the prompt's own p(p+1)/2 count once.
        """
        if task == "sft":
            return sum(_triangle(len(row.ids)) for row in self.rows)
        return sum(
            _triangle(len(pair.prompt)) + sum(len(r) * len(pair.prompt) + _triangle(len(r)) for r in responses)
            for pair in self.pairs
            for responses in [(pair.real, pair.generated)]
        )


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def forward_operations(workload: Workload, task: str) -> int:
    """Floating-point operations (a multiplication and an addition are two) that one forward pass cannot do without.

    * body: 2 for each weight of a matrix product and each real token;
    * head: 2 V D for each scored token (vocabulary V, width D);
    * attention: 4 for each layer, each unit of the query heads' width and each visible pair of tokens: 2 for the
      score, 2 for the weighted sum.

    Look-ups, norms, softmax and the optimizer are not counted. All contestants are held to this count, whatever they
    compute besides: padding, the prompt again for the second response, the head where nothing is scored.
    """
    shape = workload.shape
    return (
        2 * shape.body_parameters * workload.tokens(task)
        + 2 * shape.vocabulary * shape.hidden * workload.scored(task)
        + 4 * shape.layers * shape.attention_width * workload.visible(task)
    )


def step_operations(workload: Workload, task: str) -> int:
    """Operations of a training step: the forward pass, and a backward pass of twice as many (6 a weight and token)."""
    return 3 * forward_operations(workload, task)
