"""The compiled matrix product as a function of tensors. ``products.cpp`` has the algorithm."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from spintune.kernels.native.build import kernels, rehearsing, require


def can_multiply(*tensors: Tensor) -> bool:
    """Whether the compiled product takes these tensors."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors) and kernels() is not None


def can_round() -> bool:
    """Whether the processor multiplies bfloat16, by vectors or by matrix units."""
    return kernels() is not None and _rounds()


@cache
def _rounds() -> bool:
    return bool(require().rounds())


def product(left_MK: Tensor, right_KN: Tensor, rounded: bool = False) -> Tensor:
    """``left @ right`` of float32 matrices or transposed views on a CPU, read in place.

    No bit of a row of the result depends on the other rows of the left side or on the number of threads.

    Args:
        rounded: rounds both sides to bfloat16 and sums their products in float32. Needs :func:`can_round`.
    """
    left, right = _aligned(left_MK), _aligned(right_KN)
    (rows, inner), columns = left.shape, right.shape[1]
    if not inner:
        return torch.zeros(rows, columns)
    result = torch.empty(rows, columns)
    if rehearsing():
        return result
    sides = [number for side in (left, right) for number in (side.data_ptr(), *side.stride())]
    _function()(rows, columns, inner, *sides, result.data_ptr(), rounded, torch.get_num_threads())
    return result


def _aligned(side: Tensor) -> Tensor:
    """The matrix with one dimension contiguous in memory."""
    return side if 1 in side.stride() else side.contiguous()


@cache
def _function() -> Callable[..., None]:
    function = require().product
    pointer, number = ctypes.c_void_p, ctypes.c_long
    function.argtypes = [
        *3 * [number], pointer, number, number, pointer, number, number, pointer, ctypes.c_bool, ctypes.c_int,
    ]  # fmt: skip
    function.restype = None
    return function
