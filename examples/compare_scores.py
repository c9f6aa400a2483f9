"""Is one model better than another? Paired tests on scores of the same items.

python examples/compare_scores.py
"""

from spintune import statistics

# one score per item, in the same order for both models
first = [0.61, 0.48, 0.77, 0.52, 0.69, 0.58, 0.71, 0.66, 0.49, 0.73]
second = [0.55, 0.47, 0.70, 0.54, 0.61, 0.50, 0.69, 0.60, 0.45, 0.70]
test = statistics.paired(first, second)
gain = test.difference
print(f"difference {gain.mean:.3f} (95 % {gain.low:.3f} to {gain.high:.3f}), p = {test.p:.4f}")

right, others = [True] * 14 + [False] * 6, [True] * 9 + [False] * 11
print(f"right or wrong: p = {statistics.mcnemar(right, others).p:.3f}")
print(f"14 of 20: {statistics.wilson(14, 20)}")
print(f"with three comparisons: {statistics.holm({'a': 0.01, 'b': 0.03, 'c': 0.2})}")
