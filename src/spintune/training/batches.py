"""The rows of each optimizer step: a pure function of the seed, so that a resumed run needs no saved position."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from spintune.number_files import NumberFile
from spintune.record_files import LazySequence
from spintune.streams import numpy_stream, stream_key

R = TypeVar("R")

_BLOCK = 1 << 16  # lengths that are Python's numbers at the same time


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


class EpochSteps(LazySequence[list[int]]):
    """The row indices of each optimizer step, of rows in a new order every epoch.

    The order of an epoch stays on disk: memory holds where each step begins. A step is a stretch of all epochs' orders,
    one after another.

    Args:
        rows: their number.
        begins: the place of each step's first row, in ascending order; behind the last step its end.
        first_epoch: the number of the first epoch, which decides its order.
    """

    def __init__(self, rows: int, begins: array[int], seed: int, first_epoch: int = 0) -> None:
        self._rows, self._begins, self._seed, self._first_epoch = rows, begins, seed, first_epoch
        self._order: tuple[int, NumberFile] | None = None  # of the epoch that was asked for last

    def __len__(self) -> int:
        return len(self._begins) - 1

    def sizes(self) -> array[int]:
        """The number of rows of each step."""
        return array("q", map(operator.sub, self._begins[1:], self._begins))

    def _item(self, position: int) -> list[int]:
        begin, end = self._begins[position], self._begins[position + 1]
        found: list[int] = []
        while begin < end:
            epoch, place = divmod(begin, self._rows)
            count = min(end - begin, self._rows - place)
            found += self._order_of(epoch).read(place, place + count).tolist()
            begin += count
        return found

    def _order_of(self, epoch: int) -> NumberFile:
        if self._order is None or self._order[0] != epoch:
            self._order = None  # its room on disk is free before the next one is written
            self._order = epoch, NumberFile([_permutation(self._rows, self._first_epoch + epoch, self._seed)])
        return self._order[1]


def sizes_of(steps: Sequence[Sequence[int]]) -> Sequence[int]:
    """The number of rows of each step."""
    return steps.sizes() if isinstance(steps, EpochSteps) else [len(step) for step in steps]


def steps_by_rows(rows: int, per_step: int, epochs: float, seed: int) -> EpochSteps:
    """Steps of ``per_step`` row indices; the last step of each epoch may have fewer."""
    starts = [array("q", range(0, rows, per_step)) for _ in range(_whole(epochs))]
    return EpochSteps(rows, _cut(epochs, starts, rows), seed)


def steps_by_tokens(tokens: Sequence[int] | NumberFile, per_step: int, epochs: float, seed: int) -> EpochSteps:
    """Steps of up to ``per_step`` tokens; a longer row gets a step of its own."""
    per_epoch = []
    for epoch in range(_whole(epochs)):
        starts = array("q")
        room = 0
        for place, length in enumerate(_in_order(tokens, epoch, seed)):
            if not starts or length > room:
                starts.append(place)
                room = per_step
            room -= length
        per_epoch.append(starts)
    return EpochSteps(len(tokens), _cut(epochs, per_epoch, len(tokens)), seed)


def steps_of_equal_tokens(
    tokens: Sequence[int] | NumberFile, steps: int, total: int, seed: int, first_epoch: int = 0
) -> EpochSteps:
    """``steps`` steps of about ``total`` / ``steps`` tokens: a row belongs to the step in which its middle falls.

    Steps without a row, which occur when rows are longer than a step, are left out. ``first_epoch`` is the number of
    epochs that the model has already seen, so that their order is not repeated.
    """
    begins = array("q")
    filled, epoch, latest, place = 0, first_epoch, -1, 0
    while filled < total:
        for length in _in_order(tokens, epoch, seed):
            step = int((filled + length / 2) * steps / total)
            filled += length
            if step >= steps:
                break  # so are those of all rows behind it
            if step > latest:
                begins.append(place)
                latest = step
            place += 1
        epoch += 1
    begins.append(place)
    return EpochSteps(len(tokens), begins, seed, first_epoch)


def _in_order(tokens: Sequence[int] | NumberFile, epoch: int, seed: int) -> Iterator[int]:
    """The lengths of rows in the order of an epoch."""
    lengths = _lengths(tokens) if isinstance(tokens, NumberFile) else np.array(tokens, np.int32)
    order = _permutation(len(tokens), epoch, seed)
    for begin in range(0, len(order), _BLOCK):
        yield from lengths[order[begin : begin + _BLOCK]].tolist()


def _lengths(tokens: NumberFile) -> NDArray[np.uint16] | NDArray[np.int32]:
    """All numbers, each in two bytes where that is enough."""
    short = np.empty(len(tokens), np.uint16)
    for begin in range(0, len(tokens), _BLOCK):
        block = tokens.read(begin, min(len(tokens), begin + _BLOCK))
        if block.max() >= 1 << 16:
            return tokens.read(0, len(tokens))
        short[begin : begin + _BLOCK] = block
    return short


def _permutation(rows: int, epoch: int, seed: int) -> NDArray[np.int32]:
    """The order of an epoch: what ``permutation(rows)`` draws, in half of its memory."""
    order = np.arange(rows, dtype=np.int32)
    numpy_stream(stream_key(f"order/{seed}/{epoch}")).shuffle(order)
    return order


def _whole(epochs: float) -> int:
    return max(1, int(np.ceil(epochs)))


def _cut(epochs: float, starts: Sequence[array[int]], rows: int) -> array[int]:
    """Where steps begin in all of the whole epochs, then in the fraction of the last epoch; and the end."""
    last = len(starts) - 1
    kept = max(1, round((epochs - last) * len(starts[last])))
    begins = array("q")
    for epoch, own in enumerate(starts):
        begins.extend(epoch * rows + place for place in (own if epoch < last else own[:kept]))
    begins.append(last * rows + (starts[last][kept] if kept < len(starts[last]) else rows))
    return begins
