"""The compiled product of matrices as a function of tensors. How: ``products.cpp``."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spintune.kernels.native.build import kernels, require


def can_multiply(*tensors: Tensor) -> bool:
    """Is there a compiled product for these tensors?"""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors) and kernels() is not None


@cache
def can_round() -> bool:
    """Does the processor multiply bfloat16 in vectors, faster? What matrix units it has are left to torch."""
    return kernels() is not None and bool(require().rounds())


def product(left_MK: Tensor, right_KN: Tensor, rounded: bool = False) -> Tensor:
    """``left @ right``, of matrices or of their transposed views as they are; float32 on a CPU.

    A row of the result depends on nothing but its own row of the left side: neither on the others nor on how many
    threads there are does a single bit.

    Args:
        rounded: both sides are rounded to bfloat16, their products added up in float32. Needs :func:`can_round`.
    """
    left, right = _aligned(left_MK), _aligned(right_KN)
    (rows, inner), columns = left.shape, right.shape[1]
    if not inner:
        return torch.zeros(rows, columns)
    result = torch.empty(rows, columns)
    sides = [number for side in (left, right) for number in (side.data_ptr(), *side.stride())]
    _function()(rows, columns, inner, *sides, result.data_ptr(), rounded, torch.get_num_threads())
    return result


def _aligned(side: Tensor) -> Tensor:
    """One of its dimensions lies side by side in memory."""
    return side if 1 in side.stride() else side.contiguous()


@cache
def _function() -> Any:
    function = require().product
    pointer, number = ctypes.c_void_p, ctypes.c_long
    function.argtypes = [
        *3 * [number], pointer, number, number, pointer, number, number, pointer, ctypes.c_bool, ctypes.c_int,
    ]  # fmt: skip
    function.restype = None
    return function
