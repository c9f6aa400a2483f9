"""The rows of each optimizer step: a pure function of the seed, so that a resumed run needs no saved position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from spintune.streams import numpy_stream, stream_key

R = TypeVar("R")


class Batches(Generic[R]):
    """The rows of every optimizer step, known in advance.

    Attributes:
        opponent_resets: steps before which the player becomes its own opponent: the first.
    """

    def __init__(self, rows: Sequence[R], steps: Sequence[Sequence[int]]) -> None:
        self.rows, self.steps = rows, steps
        self.opponent_resets = frozenset({0})

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> list[R]:
        return [self.rows[index] for index in self.steps[step]]


def steps_by_rows(rows: int, per_step: int, epochs: float, seed: int) -> list[list[int]]:
    """Steps of ``per_step`` row indices; the last step of each epoch may have fewer."""
    return _cut(epochs, [_chunks(_permutation(rows, epoch, seed), per_step) for epoch in range(_whole(epochs))])


def steps_by_tokens(tokens: Sequence[int], per_step: int, epochs: float, seed: int) -> list[list[int]]:
    """Steps of up to ``per_step`` tokens; a longer row gets a step of its own."""
    per_epoch = []
    for epoch in range(_whole(epochs)):
        steps: list[list[int]] = []
        room = 0
        for index in _permutation(len(tokens), epoch, seed):
            if not steps or tokens[index] > room:
                steps.append([])
                room = per_step
            steps[-1].append(index)
            room -= tokens[index]
        per_epoch.append(steps)
    return _cut(epochs, per_epoch)


def steps_of_equal_tokens(
    tokens: Sequence[int], steps: int, total: int, seed: int, first_epoch: int = 0
) -> list[list[int]]:
    """``steps`` steps of about ``total`` / ``steps`` tokens: a row belongs to the step in which its middle falls.

    Steps without a row, which occur when rows are longer than a step, are left out. ``first_epoch`` is the number of
    epochs that the model has already seen, so that their order is not repeated.
    """
    made: list[list[int]] = [[] for _ in range(steps)]
    filled, epoch = 0, first_epoch
    while filled < total:
        for index in _permutation(len(tokens), epoch, seed):
            if (step := int((filled + tokens[index] / 2) * steps / total)) < steps:
                made[step].append(index)
            filled += tokens[index]
        epoch += 1
    return [step for step in made if step]


def _permutation(rows: int, epoch: int, seed: int) -> list[int]:
    return numpy_stream(stream_key(f"order/{seed}/{epoch}")).permutation(rows).tolist()


def _chunks(order: list[int], size: int) -> list[list[int]]:
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def _whole(epochs: float) -> int:
    return max(1, int(np.ceil(epochs)))


def _cut(epochs: float, per_epoch: list[list[list[int]]]) -> list[list[int]]:
    """All steps of the whole epochs, then the fraction of the last epoch."""
    last = per_epoch[-1]
    share = epochs - (len(per_epoch) - 1)
    kept = last[: max(1, round(share * len(last)))]
    return [step for steps in [*per_epoch[:-1], kept] for step in steps]
