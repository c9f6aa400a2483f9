"""The compiled product of matrices against float64."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from spintune.kernels.native.compiler import processor_features
from spintune.kernels.native.products import can_round, pack_right, product, product_of_packed

pytestmark = pytest.mark.usefixtures("compiled")

lengths = st.integers(1, 20) | st.sampled_from([31, 48, 49, 97, 130, 300])
ways = st.sampled_from(["rows", "columns", "part of more rows", "part of more columns", "every second"])


def drawn(rows: int, columns: int, way: str, seed: int = 0) -> Tensor:
    """A matrix that lies in memory in one way or another."""
    draw = torch.Generator().manual_seed(seed)
    match way:
        case "rows":
            return torch.randn(rows, columns, generator=draw)
        case "columns":
            return torch.randn(columns, rows, generator=draw).t()
        case "part of more rows":
            return torch.randn(rows, columns + 5, generator=draw)[:, 2 : 2 + columns]
        case "part of more columns":
            return torch.randn(columns, rows + 5, generator=draw).t()[2 : 2 + rows]
    return torch.randn(2 * rows, 2 * columns, generator=draw)[::2, ::2]


def agrees(found: Tensor, left: Tensor, right: Tensor) -> None:
    """Each number within the rounding of its own terms (N. Higham, Accuracy and stability, equation 3.5)."""
    exact, terms = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    assert ((found.double() - exact).abs() <= (left.shape[1] + 2) * 2.0**-24 * terms).all()


@given(rows=lengths, columns=lengths, inner=lengths, left=ways, right=ways)
@example(rows=9, columns=50, inner=2500, left="rows", right="columns")  # sums in three parts
@example(rows=130, columns=50, inner=1100, left="columns", right="rows")
@example(rows=3, columns=4000, inner=300, left="rows", right="rows")  # more columns than a cache holds
@example(rows=140, columns=2000, inner=900, left="columns", right="columns")
def test_any_two_matrices(rows: int, columns: int, inner: int, left: str, right: str) -> None:
    a, b = drawn(rows, inner, left), drawn(inner, columns, right, 1)
    agrees(product(a, b), a, b)


@pytest.mark.parametrize("vectors", [False, True])
def test_long_sums_are_as_exact_as_torchs(vectors: bool) -> None:
    a, b = drawn(64, 30_000, "rows"), drawn(30_000, 64, "columns", 1)
    exact = a.double() @ b.double()

    def distance(found: Tensor) -> float:
        return float((found - exact).square().mean().sqrt())

    assert distance(product(a, b, vectors=vectors)) < 2 * distance(a @ b)


def test_matrix_units_multiply_float32_where_the_system_lends_them() -> None:
    lent = "amx_bf16" in processor_features() and not ctypes.CDLL(None).syscall(158, 0x1023, 18)  # arch_prctl
    if not lent or not can_round():
        pytest.skip("no matrix units here, or none in this library")
    a, b = drawn(40, 300, "rows"), drawn(300, 40, "columns", 1)
    assert not torch.equal(product(a, b), product(a, b, vectors=True))  # sums in another order
    a, b = a[:, :20], b[:20]  # too small to be worth it
    assert torch.equal(product(a, b), product(a, b, vectors=True))


@given(rows=lengths, columns=lengths, inner=lengths, left=ways, right=ways)
@example(rows=9, columns=50, inner=5001, left="rows", right="columns")
@example(rows=130, columns=50, inner=2201, left="columns", right="rows")
@example(rows=140, columns=2000, inner=901, left="columns", right="columns")
def test_rounded_to_bfloat16_first(rows: int, columns: int, inner: int, left: str, right: str) -> None:
    if not can_round():
        pytest.skip("this processor gains nothing by rounding")
    a, b = drawn(rows, inner, left), drawn(inner, columns, right, 1)
    agrees(product(a, b, rounded=True), a.bfloat16(), b.bfloat16())


@given(rows=lengths, columns=lengths, inner=lengths, left=ways, right=ways)
@example(rows=9, columns=50, inner=2500, left="rows", right="columns")  # sums in three parts
@example(rows=200, columns=500, inner=300, left="part of more rows", right="rows")  # more rows than are taken at once
def test_a_packed_side_makes_the_same_bits(rows: int, columns: int, inner: int, left: str, right: str) -> None:
    a, b = drawn(rows, inner, left), drawn(inner, columns, right, 1)
    packed = pack_right(b)
    assert torch.equal(product_of_packed(a, packed), product(a, b, vectors=True))
    assert packed.panels.isfinite().all()  # what fills up a vector is read as well


def test_threads_share_out_panels_and_rows_of_a_packed_product() -> None:
    a, b = drawn(9, 100, "rows"), drawn(100, 250, "columns", 1)
    before, packed, results = torch.get_num_threads(), pack_right(b), []
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            results.append(product_of_packed(a, packed))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, product(a, b, vectors=True)) for result in results)


def test_results_are_float32_whatever_torchs_default_is() -> None:
    a, b = drawn(9, 20, "rows"), drawn(20, 30, "rows", 1)
    expected = product(a, b, vectors=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = product(a, b, vectors=True), product_of_packed(a, pack_right(b))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, expected) for one in found)


def test_no_terms_are_a_sum_of_zero() -> None:
    assert torch.equal(product_of_packed(torch.ones(3, 0), pack_right(torch.ones(0, 20))), torch.zeros(3, 20))
    assert product_of_packed(torch.ones(0, 5), pack_right(torch.ones(5, 20))).shape == (0, 20)
    assert torch.equal(product(torch.ones(3, 0), torch.ones(0, 20)), torch.zeros(3, 20))
    assert product(torch.ones(0, 5), torch.ones(5, 20)).shape == (0, 20)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("way", ["rows", "columns"])
def test_neither_threads_nor_other_rows_change_a_bit(way: str, rounded: bool) -> None:
    if rounded and not can_round():
        pytest.skip("this processor gains nothing by rounding")
    a, b = drawn(77, 1500, way), drawn(1500, 150, "columns", 1)
    alone = product(a[13:14], b, rounded=rounded)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 6, 64):
            torch.set_num_threads(threads)
            results.append(product(a, b, rounded=rounded))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(results[0][13:14], alone)


@pytest.mark.parametrize("rounded", [False, True])
def test_what_is_no_number_stays_in_its_row_and_column(rounded: bool) -> None:
    if rounded and not can_round():
        pytest.skip("this processor gains nothing by rounding")
    a, b = drawn(20, 30, "rows"), drawn(30, 37, "rows", 1)
    a, b = (x.bfloat16().float() if rounded else x for x in (a, b))
    expected = a @ b
    a[3, 5], b[7, 11] = torch.nan, torch.inf
    expected[3] = torch.nan
    found = product(a, b, rounded=rounded)
    assert found[3].isnan().all()
    assert not found[:3].isfinite()[:, 11].any()
    elsewhere = torch.ones(20, 37, dtype=torch.bool)
    elsewhere[3], elsewhere[:, 11] = False, False
    torch.testing.assert_close(found[elsewhere], expected[elsewhere])
