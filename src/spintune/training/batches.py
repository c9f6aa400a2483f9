"""Which rows each step trains on: a pure function of seed and epoch, so a resumed run needs no saved position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from spintune.streams import numpy_stream, stream_key

R = TypeVar("R")


class Batches(Generic[R]):
    """The rows of every optimizer step, known in advance.

    Attributes:
        opponent_resets: steps whose loss theory may know beforehand: the first one.
    """

    def __init__(self, rows: Sequence[R], steps: Sequence[Sequence[int]]) -> None:
        self.rows, self.steps = rows, steps
        self.opponent_resets = frozenset({0})

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> list[R]:
        return [self.rows[index] for index in self.steps[step]]


def steps_by_rows(rows: int, per_step: int, epochs: float, seed: int) -> list[list[int]]:
    """Steps of ``per_step`` row indices; the last step of an epoch may be short."""
    return _cut(epochs, [_chunks(_permutation(rows, epoch, seed), per_step) for epoch in range(_whole(epochs))])


def steps_by_tokens(tokens: Sequence[int], per_step: int, epochs: float, seed: int) -> list[list[int]]:
    """Steps that hold about ``per_step`` tokens each (never more, but for a row that is larger by itself)."""
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
    """``steps`` steps that share ``total`` tokens evenly: a row goes where its middle falls, epoch after epoch.

    A step that no row's middle falls into, for rows longer than a step, is left out. ``first_epoch`` counts the epochs
    that the model has seen before, so that it does not meet the rows in the same order again.
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
    """All steps of the whole epochs, and the share of the last one that a fractional number of epochs asks for."""
    last = per_epoch[-1]
    share = epochs - (len(per_epoch) - 1)
    kept = last[: max(1, round(share * len(last)))]
    return [step for steps in [*per_epoch[:-1], kept] for step in steps]
