"""Named streams: the same name gives the same numbers in every version, for a run to resume exactly."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from spintune import streams


def test_the_numbers_of_a_name_never_change() -> None:
    """Recorded once; a change of any would let a resumed run go on differently."""
    assert streams.integer("writer/0/3/abc") == 14_093_563_641_047_544_504
    assert streams.integer("abc", "big") == 0xBA7816BF8F01CFEA  # FIPS 180-4's example of SHA-256
    assert streams.numpy_stream(streams.stream_key("order/1/0")).permutation(8).tolist() == [4, 1, 7, 0, 6, 5, 3, 2]
    assert streams.python_stream(b'[1,"show",0]').sample(range(100), 4) == [2, 74, 92, 34]
    assert streams.draw(7, "stream") == 3_292_938_905_371_496_535
    assert list(streams.permutation(6, 7, "rows", "task")) == [0, 1, 3, 2, 5, 4]


def test_torch_draws_by_name_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with streams.torch_stream("adapter"):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with streams.torch_stream("adapter"):
        assert torch.equal(torch.rand(2), first)


@given(st.integers(1, 200), st.integers(0, 5))
def test_permutation_is_a_permutation_that_its_name_decides(count: int, epoch: int) -> None:
    order = streams.permutation(count, 7, "epoch", "task", epoch)
    assert sorted(order) == list(range(count))
    assert order == streams.permutation(count, 7, "epoch", "task", epoch)


def test_names_are_told_apart_where_their_parts_differ() -> None:
    assert streams.draw("a/b", "c") != streams.draw("a", "b/c")
    assert streams.permutation(50, 1) != streams.permutation(50, 2)


def test_below_is_uniform() -> None:
    counts = Counter(streams.draw_below(6, "die", number) for number in range(60_000))
    # chi-square with 5 degrees of freedom: 20.5 is its 99.9 % quantile
    assert sum((counts[side] - 10_000) ** 2 / 10_000 for side in range(6)) < 20.5


def test_uniform_stays_below_one() -> None:
    numbers = [streams.draw_uniform("u", number) for number in range(10_000)]
    assert 0 <= min(numbers) < 0.001
    assert 0.999 < max(numbers) < 1
