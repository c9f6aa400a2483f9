"""Optimizers that update weights in float32, one piece at a time, where weights or moments are kept elsewhere.

A bfloat16 number has 8 significant bits: it moves by an update only if that is more than 1/512 of it, and at the rates
of fine-tuning most updates are less. Rounded to the nearest number, they are lost. Rounded up or down at random, with
the probabilities that make the mean right, they add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spintune.engine.sharing import local
from spintune.streams import integer

PIECE = 2**24
"""Weights that are updated at once; what an update needs beside the moments is 16 bytes for each of them."""

ParameterGroup = dict[str, Any]
"""A parameter group as torch has it: "params", and the settings of the optimizer."""


def round_stochastically(wide: Tensor, name: str) -> Tensor:
    """Rounds float32 numbers to one of the two bfloat16 numbers around each, with their values as expectation.

    A bfloat16 number is the upper half of a float32 one. Adding a uniform 16-bit number and dropping the lower half
    rounds away from zero with the share of the way to the next number as probability. Numbers that bfloat16 has stay as
    they are, with zeros, infinities and NaN among them.

    Args:
        name: of the random stream; the same name gives the same bits.
    """
    generator = torch.Generator(wide.device).manual_seed(integer(name) >> 1)
    noise = torch.randint(0, 2**16, wide.shape, generator=generator, dtype=torch.int32, device=wide.device)
    bits = noise.add_(wide.view(torch.int32)).bitwise_and_(-(2**16))
    return bits.view(torch.float32).bfloat16()


@dataclass(frozen=True)
class _Piece:
    """Some or all numbers of a parameter, and the float32 parameter that the inner optimizer sees in their place."""

    parameter: nn.Parameter
    place: slice
    wide: nn.Parameter

    def open(self) -> None:
        """Reads the numbers and their gradient, on the device of the optimizer."""
        gradient = self.parameter.grad
        assert gradient is not None  # noqa: S101 -- the caller looked
        device = self.wide.device
        self.wide.data = self._numbers().to(device, torch.float32)
        self.wide.grad = self._part_of(gradient).to(device, torch.float32)

    def close(self, name: str) -> None:
        """Writes the numbers back, rounded by the random stream ``name`` if they are kept in bfloat16."""
        wide, self.wide.grad = self.wide.data, None
        if self.parameter.dtype == torch.bfloat16:
            wide = round_stochastically(wide, name)
        self._numbers().copy_(wide)
        self.wide.data = wide.new_empty(0, dtype=torch.float32)

    def _numbers(self) -> Tensor:
        return self._part_of(self.parameter.detach())

    def _part_of(self, tensor: Tensor) -> Tensor:
        whole = self.place == slice(None)
        return tensor if whole else tensor.reshape(-1)[self.place]


class PiecewiseOptimizer(torch.optim.Optimizer):
    """Runs another optimizer in float32 on a piece of the weights at a time, with all of its arithmetic as it is.

    Weights in bfloat16 are rounded stochastically after each update. Moments are in the precision of the inner
    optimizer. Nothing else is kept between two steps.

    Args:
        groups: parameter groups. One with ``hidden: True`` holds matrices that its optimizer looks at as a whole.
        make: makes the inner optimizer of parameter groups.
        seed: of the rounding.
        whole: the inner optimizer looks at all matrices as a whole, so that pieces are whole parameters.
        device: where moments are kept and updates computed; None: with the weights.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        make: Callable[[list[ParameterGroup]], torch.optim.Optimizer],
        seed: int,
        whole: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(groups, {})
        self._pieces = [
            [p for own in group["params"] for p in _pieces(own, whole or group.get("hidden", False), device)]
            for group in groups
        ]
        parts = [{**group, "params": [p.wide for p in own]} for group, own in zip(groups, self._pieces, strict=True)]
        self.inner = make(parts)
        for group, part in zip(self.param_groups, self.inner.param_groups, strict=True):
            group["lr"] = part["lr"]
        self._stream, self._steps = f"rounding/{seed}", 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        self._steps += 1
        groups, number = self.inner.param_groups, 0
        try:
            for outer, group, pieces in zip(self.param_groups, groups, self._pieces, strict=True):
                for piece in pieces:
                    number += 1
                    if piece.parameter.grad is None:
                        continue
                    piece.open()
                    self.inner.param_groups = [{**group, "lr": outer["lr"], "params": [piece.wide]}]
                    self.inner.step()
                    piece.close(f"{self._stream}/{self._steps}/{number}")
        finally:
            self.inner.param_groups = groups

    def state_dict(self) -> dict[str, Any]:
        """The state by whole parameters, as the inner optimizer would have it without pieces."""
        content = self.inner.state_dict()
        parts = self._numbered()
        joined = {
            outer: _joined([content["state"][number] for number in numbers], parameter)
            for outer, (parameter, numbers) in parts.items()
            if all(number in content["state"] for number in numbers)
        }
        return {**content, "state": joined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the steps that the state has, with the random streams of the steps to come."""
        pieces = [piece for own in self._pieces for piece in own]
        state = {
            number: {name: _part(value, parameter, pieces[number].place) for name, value in whole.items()}
            for outer, (parameter, numbers) in self._numbered().items()
            if (whole := state_dict["state"].get(outer))
            for number in numbers
        }
        self.inner.load_state_dict({**self.inner.state_dict(), "state": state})
        self._steps = max((int(state.get("step", 0)) for state in self.inner.state.values()), default=0)

    def _numbered(self) -> dict[int, tuple[nn.Parameter, list[int]]]:
        """Each parameter by its number in a state, with the numbers of its pieces in the inner optimizer's."""
        found: dict[int, tuple[nn.Parameter, list[int]]] = {}
        pieces = [piece for own in self._pieces for piece in own]
        for number, piece in enumerate(pieces):
            if number == 0 or piece.parameter is not pieces[number - 1].parameter:
                found[len(found)] = piece.parameter, []
            found[len(found) - 1][1].append(number)
        return found


def _joined(states: list[dict[str, Any]], parameter: nn.Parameter) -> dict[str, Any]:
    """The state of a parameter of the states of its pieces: moments put together, and what all share once."""
    if len(states) == 1:
        return states[0]
    return {
        name: value if value.ndim == 0 else torch.cat([one[name] for one in states]).reshape(parameter.shape)
        for name, value in states[0].items()
    }


def _part(value: Any, parameter: nn.Parameter, place: slice) -> Any:
    """The reverse of :func:`_joined`, for one piece."""
    if not isinstance(value, Tensor) or place == slice(None):
        return value
    return value.reshape(-1)[place] if value.ndim else value.clone()  # a piece counts its own steps, in place


def _pieces(parameter: nn.Parameter, whole: bool, device: torch.device | None) -> Iterator[_Piece]:
    count = parameter.numel()
    split = count > PIECE and not whole and parameter.is_contiguous() and local(parameter) is parameter
    places = [slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE)] if split else [slice(None)]
    for place in places:
        empty = torch.empty([0] * parameter.ndim, device=device or parameter.device)  # Muon asks for two dimensions
        yield _Piece(parameter, place, nn.Parameter(empty))
