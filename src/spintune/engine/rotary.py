"""Rotary embeddings whose frequencies depend on the longest position of a call: dynamic NTK and LongRoPE.

In transformers one long sequence of a call changes the frequencies of all others. Here each row has those that it would
have in a call of its own:

- LongRoPE (arXiv 2402.13753) has one set of frequencies up to a length and another beyond it.
- Dynamic NTK has its own set for every length beyond the one of pretraining, and transformers' module remembers the
  longest so far.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from spintune.engine.query import Query

CosSin = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Frequencies:
    """Frequencies of a rotary module; ``prefix`` tells those of several kinds of layers apart."""

    module: nn.Module
    prefix: str
    dynamic: bool
    threshold: int


class LengthDependentRotary:
    """The rotary modules of a model whose frequencies depend on a call's longest position; false without any."""

    def __init__(self, model: nn.Module) -> None:
        self._frequencies = [found for module in model.modules() for found in _of(module)]
        self._modules = list(dict.fromkeys(found.module for found in self._frequencies))

    def __bool__(self) -> bool:
        return bool(self._frequencies)

    def thresholds(self) -> list[int]:
        """The lengths up to which frequencies are those of pretraining."""
        return sorted({found.threshold for found in self._frequencies})

    def grows(self) -> bool:
        """Whether every length beyond a threshold has frequencies of its own."""
        return any(found.dynamic for found in self._frequencies)

    def side(self, length: int) -> tuple[int, ...]:
        """Equal for two lengths that have the same frequencies."""
        return tuple(
            0 if length <= found.threshold else (length if found.dynamic else 1) for found in self._frequencies
        )

    def inside(self, layers: Sequence[nn.Module]) -> bool:
        """Whether such a module is part of a layer, which backward may compute again alone."""
        parts = {part for layer in layers for part in layer.modules()}
        return any(module in parts for module in self._modules)

    def forget(self) -> None:
        """Undoes what longer calls left behind, so that the next call has the frequencies of its own length."""
        for found in self._frequencies:
            cached = f"{found.prefix}max_seq_len_cached"
            if found.dynamic and getattr(found.module, cached, found.threshold) != found.threshold:
                original = getattr(found.module, f"{found.prefix}original_inv_freq")
                current = getattr(found.module, f"{found.prefix}inv_freq")
                found.module.register_buffer(f"{found.prefix}inv_freq", original.to(current.device), persistent=False)
                setattr(found.module, cached, found.threshold)

    @contextlib.contextmanager
    def apart(self, lengths: Sequence[int]) -> Iterator[None]:
        """Inside, a packed row's parts of ``lengths`` tokens each have the frequencies of a call of their own."""
        for module in self._modules:
            vars(module)["forward"] = self._parted(module.forward, list(lengths))
        try:
            yield
        finally:
            for module in self._modules:
                del vars(module)["forward"]

    def _parted(self, own: Callable[..., CosSin], lengths: list[int]) -> Callable[..., CosSin]:
        def forward(x: Tensor, position_ids: Tensor, *arguments: object, **options: object) -> CosSin:
            found: list[CosSin] = []
            for part in position_ids.split(lengths, -1):
                self.forget()
                found.append(own(x, part, *arguments, **options))
            return torch.cat([cos for cos, _ in found], -2), torch.cat([sin for _, sin in found], -2)

        return forward

    def split(self, queries: Sequence[Query]) -> tuple[list[Query], list[int]]:
        """The queries with a prompt for each side that its responses stand on, and where each scored token went.

        Token i of the queries is number ``places[i]`` of what was split. The last token of a response predicts nothing
        and does not count as length.
        """
        found: list[Query] = []
        begins: dict[tuple[int, int], int] = {}
        begin = 0
        for number, query in enumerate(queries):
            sides: dict[tuple[int, ...], list[int]] = {}
            for j, response in enumerate(query.responses):
                side = self.side(len(query.prompt) + max(len(response), 1) - 1)
                sides.setdefault(side, []).append(j)
            for members in sides.values():
                responses, counted = (tuple(all_[j] for j in members) for all_ in (query.responses, query.counted))
                found.append(Query(query.prompt, responses, counted, whole=False))  # type: ignore[arg-type]
                for j in members:
                    begins[number, j] = begin
                    begin += sum(query.counted[j])
        places = [
            begins[number, j] + i
            for number, query in enumerate(queries)
            for j, scored in enumerate(query.counted)
            for i in range(sum(scored))
        ]
        return found, places


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The outermost layers of a model, as transformers marks them."""
    marked = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inner = {part for layer in marked for part in layer.modules() if part is not layer}
    return [layer for layer in marked if layer not in inner]


def _of(module: nn.Module) -> Iterator[_Frequencies]:
    kinds = getattr(module, "rope_type", None)
    parameters = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    named = kinds if isinstance(kinds, dict) else {None: kinds}
    for layer_type, kind in named.items():
        prefix = "" if layer_type is None else f"{layer_type}_"
        own = parameters if layer_type is None else parameters.get(layer_type) or {}
        if kind == "longrope":
            yield _Frequencies(module, prefix, False, int(own["original_max_position_embeddings"]))
        elif kind is not None and "dynamic" in kind:
            yield _Frequencies(module, prefix, True, int(module.original_max_seq_len))  # type: ignore[arg-type]
