"""The paired randomization test: are two models' scores on the same items equal but for chance?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spintune.streams import numpy_stream

SOME_DRAWS = 10_000
MAX_DRAWS = 1_000_000
"""Of 100 models with 1,000 items, most of a minute; a p-value is at least 1/(1 + draws)."""
_DRAWS_AT_ONCE, _PAIRS_AT_ONCE = 256, 4096


def random_signs(
    value_MN: NDArray[np.float64], place_P2: NDArray[np.int64], draws: int = SOME_DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Two-sided p-values ``[P]`` of paired randomization tests (Fisher 1935, section 21) of sums of differences.

    The share of random signs with which a sum is as far from 0, the observed one among them: (1 + count)/(1 + draws).
    For many draws and differences 1, 1, 1 that is 2/8, and 1 for differences of 0.

    Args:
        value_MN: scores of M models on N items.
        place_P2: the two models of each pair. All pairs share the signs.
    """
    total_M = np.abs(value_MN).sum(1)
    observed_P = np.empty(len(place_P2))
    for at, (first, second) in enumerate(place_P2):
        difference_N = value_MN[first] - value_MN[second]
        # equal sums in another order differ by rounding
        rounding = 1e-9 * np.abs(difference_N).sum() + 1e-14 * (total_M[first] + total_M[second])
        observed_P[at] = abs(difference_N.sum()) - rounding
    random = numpy_stream(seed)
    count_P = np.zeros(len(place_P2))
    for start in range(0, draws, _DRAWS_AT_ONCE):
        rows = min(_DRAWS_AT_ONCE, draws - start)
        sum_MR = value_MN @ (random.integers(2, size=(rows, value_MN.shape[1])) * 2.0 - 1.0).T
        for at in range(0, len(place_P2), _PAIRS_AT_ONCE):
            some = slice(at, at + _PAIRS_AT_ONCE)
            gap_PR = sum_MR[place_P2[some, 0]] - sum_MR[place_P2[some, 1]]
            count_P[some] += np.count_nonzero(np.abs(gap_PR) >= observed_P[some, None], axis=1)
    return (1 + count_P) / (1 + draws)
