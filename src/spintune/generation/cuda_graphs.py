"""The step that generation repeats, recorded once as a CUDA graph and replayed, so that the GPU never waits for Python.

A step of a small model is a thousand kernels of microseconds each, which take longer to launch than to run. A recording
has fixed shapes: it computes every slot, running or not, and attends up to a multiple of ``_BUCKET`` tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_BUCKET = 256


class GraphReplay:
    """One more token for all slots, with the same shapes in every call.

    Args:
        compute: returns logits ``[S, V]`` from token ids ``[S]``, positions ``[S]``, numbers of tokens in the slots
            ``[S]``, and an upper bound of those numbers.
        max_len: tokens that a slot can hold.
    """

    def __init__(
        self, compute: Callable[[Tensor, Tensor, Tensor, int], Tensor], slots: int, max_len: int, device: torch.device
    ) -> None:
        self._compute, self._max_len, self._device = compute, max_len, device
        self._inputs_3S = torch.zeros(3, slots, dtype=torch.long, device=device)
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._records = device.type == "cuda"

    def __call__(self, ids: Sequence[int], positions: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Logits ``[len(ids), V]`` of the slots that run; the next call overwrites them."""
        rest = [0] * (self._inputs_3S.shape[1] - len(ids))
        self._inputs_3S.copy_(torch.tensor([[*row, *rest] for row in (ids, positions, lengths)]))
        used = min(self._max_len, -(-(max(lengths) + 1) // _BUCKET) * _BUCKET)
        return self._logits(used)[: len(ids)]

    def _logits(self, used: int) -> Tensor:
        if self._records and used not in self._recorded:
            try:
                self._recorded[used] = self._record(used)
            except RuntimeError as error:  # for example an operation that reads a number from the GPU
                self._records = False
                log.warning("steps of this model cannot be recorded and are launched one by one: %s", error)
        if used not in self._recorded:
            return self._step(used)
        graph, logits = self._recorded[used]
        graph.replay()
        return logits

    def _record(self, used: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # one step on another stream first: libraries choose kernels and allocate memory outside of the recording
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            self._step(used)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step(used)
        return graph, logits

    def _step(self, used: int) -> Tensor:
        ids_S, positions_S, lengths_S = self._inputs_3S
        return self._compute(ids_S, positions_S, lengths_S, used)
