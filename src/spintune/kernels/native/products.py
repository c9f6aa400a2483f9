"""The compiled matrix product as a function of tensors. ``products.cpp`` has the algorithm."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from spintune.kernels.native.build import kernels, rehearsing, require

_FLOAT32, _ROUNDED, _VECTORS = range(3)


def can_multiply(*tensors: Tensor) -> bool:
    """Whether the compiled product takes these tensors."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors) and kernels() is not None


def can_round() -> bool:
    """Whether the processor multiplies bfloat16, by vectors or by matrix units."""
    return kernels() is not None and _rounds()


@cache
def _rounds() -> bool:
    return bool(require().rounds())


def product(left_MK: Tensor, right_KN: Tensor, rounded: bool = False, vectors: bool = False) -> Tensor:
    """``left @ right`` of float32 matrices or transposed views on a CPU, read in place.

    No bit of a row of the result depends on the other rows of the left side or on the number of threads.

    Args:
        rounded: rounds both sides to bfloat16 and sums their products in float32. Needs :func:`can_round`.
        vectors: not in the matrix units of a processor, which multiply float32 as three parts of bfloat16 each.
    """
    left, right = _aligned(left_MK), _aligned(right_KN)
    (rows, inner), columns = left.shape, right.shape[1]
    if not inner:
        return left.new_zeros(rows, columns)
    result = left.new_empty(rows, columns)
    if rehearsing():
        return result
    way = _ROUNDED if rounded else _VECTORS if vectors else _FLOAT32
    sides = [number for side in (left, right) for number in (side.data_ptr(), *side.stride())]
    _functions().product(rows, columns, inner, *sides, result.data_ptr(), way, torch.get_num_threads())
    return result


@dataclass(frozen=True)
class PackedRight:
    """A right side of products that stays the same, in the order in which they read it.

    Attributes:
        panels: all numbers once more, with zeros up to whole vectors.
    """

    panels: Tensor
    inner: int
    columns: int


def pack_right(right_KN: Tensor) -> PackedRight:
    """Packs a float32 matrix on a CPU for :func:`product_of_packed`."""
    right = _aligned(right_KN)
    inner, columns = right.shape
    packed = PackedRight(right.new_empty(_functions().packed_floats(columns, inner)), inner, columns)
    if inner and not rehearsing():
        sizes = columns, inner, right.data_ptr(), *right.stride()
        _functions().pack_right(*sizes, packed.panels.data_ptr(), torch.get_num_threads())
    return packed


def product_of_packed(left_MK: Tensor, right: PackedRight) -> Tensor:
    """Like :func:`product` by vectors, with the same bits, for a right side that is packed already.

    With few rows the right side comes from memory, and it is fetched while the sums are made.
    """
    left = left_MK if left_MK.stride(1) == 1 else left_MK.contiguous()
    rows = len(left)
    if not right.inner or not right.columns:
        return left.new_zeros(rows, right.columns)
    result = left.new_empty(rows, right.columns)
    if not rehearsing():
        sides = left.data_ptr(), left.stride(0), right.panels.data_ptr()
        sizes = rows, right.columns, right.inner
        _functions().product_of_packed(*sizes, *sides, result.data_ptr(), torch.get_num_threads())
    return result


def _aligned(side: Tensor) -> Tensor:
    """The matrix with one dimension contiguous in memory."""
    return side if 1 in side.stride() else side.contiguous()


@cache
def _functions() -> ctypes.CDLL:
    library = require()
    pointer, number, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.product.argtypes = [
        *3 * [number], pointer, number, number, pointer, number, number, pointer, threads, threads,
    ]  # fmt: skip
    library.pack_right.argtypes = [number, number, pointer, number, number, pointer, threads]
    library.product_of_packed.argtypes = [*3 * [number], pointer, number, pointer, pointer, threads]
    for function in (library.product, library.pack_right, library.product_of_packed):
        function.restype = None
    library.packed_floats.argtypes, library.packed_floats.restype = [number, number], number
    return library
