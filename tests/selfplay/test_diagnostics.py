"""Diagnostics of self-play by hand, by their definitions written out, and on pairs whose answer is known."""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from statistics import quantiles

import orjson
import pytest

from spintune.records import Answer, Pair
from spintune.selfplay.artifacts import artifact_warnings
from spintune.selfplay.diagnostics import describe, distinct, divergence, identical_share, repetition
from spintune.selfplay.separability import Separability, auc, separability

END = 2


def answer(ids: Sequence[int], complete: bool = True) -> Answer:
    return Answer(tuple(ids), "text", complete, 0.0)


def long(tokens: int, last: int = END, complete: bool = True) -> Answer:
    """An answer of so many tokens."""
    return answer([7] * (tokens - 1) + [last], complete)


def pair(example: object, real: Answer, *generated: Answer) -> Pair:
    return Pair(f"example{example}", (3,), real, generated)


# Text ----------------------------------------------------------------------------------------------------------------


def test_distinct_by_hand() -> None:
    answers = [[1, 2, 1, 2], [1, 3]]
    assert distinct(answers, 1) == 3 / 6
    assert distinct(answers, 2) == 3 / 4  # 12 21 12 13
    assert distinct(answers, 3) == 2 / 2  # 121 212


def test_no_ngram_reaches_from_one_answer_into_the_next() -> None:
    assert distinct([[1, 2], [1, 2]], 2) == 1 / 2  # with 21 between them it would be 2/3
    assert distinct([[1], [2]], 2) == distinct([[]], 1) == distinct([], 1) == 0


def test_repetition_by_hand() -> None:
    assert repetition([[1, 2, 1, 2, 1]], 2) == 1 - 2 / 4  # 12 21 12 21
    assert repetition([[5] * 8]) == pytest.approx(1 - 1 / 5)  # five equal 4-grams
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0  # repeats of another answer do not count


def test_repetition_is_a_mean_over_the_answers_that_have_an_ngram() -> None:
    assert repetition([[1, 2, 1, 2, 1], [1, 2, 3], [7]], 2) == 1 / 4
    assert repetition([[7], []], 2) == repetition([]) == 0


def test_identical_share_by_hand() -> None:
    assert identical_share([(1, 2), (3,), (4,)], [[1, 2], [3, 5], [6]]) == pytest.approx(1 / 3)
    assert identical_share([(1,), (2,)], [(2,), (1,)]) == 0  # another prompt's answer is not the same answer


@pytest.mark.parametrize(("answers", "earlier"), [([[1]], []), ([[1]], [[1], [2]]), ([], [])])
def test_answers_to_other_prompts_cannot_be_compared(answers: list[list[int]], earlier: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        identical_share(answers, earlier)


def test_a_profile_by_hand() -> None:
    profile = describe([answer([5] * 8, complete=False), answer([5, 6, 7, END]), answer([]), answer([6, 7])])
    assert asdict(profile) == pytest.approx(
        {
            "answers": 4,
            "tokens": 14 / 4,
            "cut": 1 / 4,
            "distinct_1": 4 / 14,
            "distinct_2": 4 / 11,  # 55 seven times, 56 67 72, 67
            "repetition": 0.8 / 2,
        }
    )
    with pytest.raises(ValueError, match="no answers"):
        describe([])


# Divergence ----------------------------------------------------------------------------------------------------------


def test_a_divergence_by_hand() -> None:
    estimate = divergence([-1, -2, -3], [-2, -2, -5])
    assert estimate.mean == 1
    assert estimate.standard_error == pytest.approx(1 / math.sqrt(3))  # of 1, 0, 2


def test_answers_to_one_prompt_count_once_for_the_error() -> None:
    """Two prompts of two answers each, whose differences are 1, 3 and 5, 5: means 2 and 5, so 3.5 with error 1.5."""
    estimate = divergence([1, 3, 5, 5], [0, 0, 0, 0], per_prompt=2)
    assert (estimate.mean, estimate.standard_error) == (pytest.approx(3.5), pytest.approx(1.5))


def test_a_divergence_is_that_of_the_distributions() -> None:
    """Answers in the shares in which p draws them: KL = 1/2 ln 2 + 1/4 ln 1 - 1/4 ln 2 = ln 2 / 4."""
    p, q = {"a": 1 / 2, "b": 1 / 4, "c": 1 / 4}, {"a": 1 / 4, "b": 1 / 4, "c": 1 / 2}
    draws = "aabc"
    estimate = divergence([math.log(p[draw]) for draw in draws], [math.log(q[draw]) for draw in draws])
    assert estimate.mean == pytest.approx(math.log(2) / 4)


def test_the_standard_error_is_the_spread_of_repeated_estimates() -> None:
    """p = (0.8, 0.2) against q = (0.5, 0.5): means of 400 draws spread as the errors say, within a tenth."""
    draw = random.Random(0)
    p = (0.8, 0.2)
    estimates = []
    for _ in range(500):
        drawn = draw.choices(p, weights=p, k=400)
        estimates.append(divergence([math.log(share) for share in drawn], [math.log(0.5)] * 400))
    truth = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    spread = math.sqrt(sum((estimate.mean - truth) ** 2 for estimate in estimates) / 500)
    assert spread == pytest.approx(sum(estimate.standard_error or 0 for estimate in estimates) / 500, rel=0.1)


def test_a_single_answer_has_no_standard_error_in_json_either() -> None:
    assert orjson.dumps(divergence([-1.0], [-1.5])) == b'{"mean":0.5,"standard_error":null}'


@pytest.mark.parametrize(("player", "other"), [([], []), ([-1.0], []), ([-1.0], [-1.0, -2.0])])
def test_a_divergence_needs_both_log_probabilities(player: list[float], other: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        divergence(player, other)


# Separability --------------------------------------------------------------------------------------------------------


def compared(real: Sequence[float | Fraction], generated: Sequence[float | Fraction]) -> Fraction:
    """Comparisons that the real answers win, a tie being half a win."""
    return sum(
        (Fraction(high > low) + Fraction(high == low) / 2 for high in real for low in generated), start=Fraction(0)
    )


Feature = Callable[[Answer], object]


def by_definition(pairs: Sequence[Pair], fit: Callable[[Sequence[Answer]], Feature]) -> float:
    """The probe in exact fractions: smoothed likelihood ratios, every held-out comparison one by one.

    ``fit`` says from the answers of the other folds how to sort an answer into a category.
    """

    def fold(pair: Pair) -> int:
        return int.from_bytes(hashlib.sha256(pair.example_id.encode()).digest()[:8], "big") % 5

    won, comparisons = Fraction(0), 0
    for held in range(5):
        train = [pair for pair in pairs if fold(pair) != held]
        test = [pair for pair in pairs if fold(pair) == held]
        feature = fit([answer for pair in train for answer in pair.answers])
        real = Counter(feature(pair.real) for pair in train)
        generated = Counter(feature(answer) for pair in train for answer in pair.generated)
        kinds = len({*real, *generated}) + 1

        ratios = {
            kind: Fraction(real[kind] + 1, real.total() + kinds)
            / ((Fraction(generated[kind] * real.total(), generated.total()) + 1) / (real.total() + kinds))
            for kind in {feature(answer) for pair in pairs for answer in pair.answers}
        }
        real_scores = [ratios[feature(pair.real)] for pair in test]
        generated_scores = [ratios[feature(answer)] for pair in test for answer in pair.generated]
        won += compared(real_scores, generated_scores)
        comparisons += len(real_scores) * len(generated_scores)
    return float(won / comparisons)


def test_auc_by_hand() -> None:
    assert auc([1, 2], [0, 1]) == 0.875  # 3 won and 1 tied of 4
    assert auc([1], [0]) == 1
    assert auc([0], [1]) == 0
    assert auc([3, 3], [3, 3, 3]) == 0.5


def test_auc_is_the_share_of_comparisons_won() -> None:
    draw = random.Random(0)
    for _ in range(50):
        real = [draw.randrange(8) / 4 for _ in range(draw.randint(1, 30))]
        generated = [draw.randrange(8) / 4 for _ in range(draw.randint(1, 30))]
        assert auc(real, generated) == pytest.approx(float(compared(real, generated) / len(real) / len(generated)))


def length_bin(answers: Sequence[Answer]) -> Feature:
    """Deciles of the answers' lengths, from the standard library."""
    deciles = quantiles([len(answer.ids) for answer in answers], n=10, method="inclusive")
    return lambda answer: bisect_right(deciles, len(answer.ids))


@pytest.mark.parametrize("seed", range(9))
def test_the_probes_are_their_definition(seed: int) -> None:
    """Generated answers longer, of other last tokens, and cut more often, by a little; some examples twice."""
    draw = random.Random(seed)
    generated = 1 + seed % 3

    def drawn(longest: int, common: int, cut: float) -> Answer:
        return long(draw.randint(1, longest), min(draw.randrange(20), common), draw.random() > cut)

    pairs = [pair(row % 70, drawn(50, 6, 0.1), *(drawn(60, 9, 0.3) for _ in range(generated))) for row in range(90)]
    probed = separability(pairs)
    assert probed is not None
    assert probed.pairs == 90
    assert probed.length_auc == pytest.approx(by_definition(pairs, length_bin), abs=1e-12)
    assert probed.last_token_auc == pytest.approx(
        by_definition(pairs, lambda _: lambda answer: answer.ids[-1]), abs=1e-12
    )
    assert probed.cut_auc == pytest.approx(by_definition(pairs, lambda _: lambda answer: answer.complete), abs=1e-12)
    assert separability(draw.sample(pairs, len(pairs))) == probed  # whatever the order


def test_what_never_overlaps_is_told_without_fail() -> None:
    pairs = [pair(row, long(15), long(120, last=9, complete=False)) for row in range(40)]
    assert separability(pairs) == Separability(1, 1, 1, 40)
    swapped = [Pair(pair.example_id, (3,), pair.generated[0], (pair.real,)) for pair in pairs]
    assert separability(swapped) == Separability(1, 1, 1, 40)


def test_a_length_never_seen_before_is_judged_by_its_bin() -> None:
    """No length occurs twice: 100 to 219 tokens are real, 500 to 619 generated."""
    pairs = [pair(row, long(100 + row), long(500 + row)) for row in range(120)]
    probed = separability(pairs)
    assert probed is not None
    assert probed.length_auc == 1
    assert probed.last_token_auc == probed.cut_auc == 0.5


def test_pairs_of_like_answers_tell_nothing() -> None:
    """Whatever fold a pair is in, both sides have there the same lengths, last tokens and cuts."""
    pairs = [pair(row, *[long(10 + row % 30, last=row % 7, complete=row % 3 > 0)] * 2) for row in range(100)]
    assert separability(pairs) == Separability(0.5, 0.5, 0.5, 100)


def test_features_that_do_not_depend_on_the_side_stay_near_a_half() -> None:
    """300 pairs in five folds: a held-out AUC's standard error is at most √(121 / (12·60²)) / √5 = 0.024; bound 4."""
    draw = random.Random(5)

    def drawn() -> Answer:
        return long(draw.randint(1, 100), draw.randrange(6), draw.random() < 0.7)

    probed = separability([pair(row, drawn(), drawn()) for row in range(300)])
    assert probed is not None
    assert max(abs(value - 0.5) for value in (probed.length_auc, probed.last_token_auc, probed.cut_auc)) < 4 * 0.024


def test_cuts_of_three_in_five_answers_give_an_auc_of_four_fifths() -> None:
    """1/2 + 3/5 · 1/2, as the others are ties; the share in a fold varies: standard error √(0.24 / 300) / 2 = 0.014."""
    probed = separability([pair(row, long(9), long(9, complete=row % 5 >= 3)) for row in range(300)])
    assert probed is not None
    assert probed.cut_auc == pytest.approx(0.8, abs=4 * 0.014)


def test_a_token_that_ends_one_answer_only_teaches_nothing() -> None:
    """A probe that had seen the answers it scores would know each by its last token and reach 1."""
    pairs = [pair(row, long(9, last=10 + 2 * row), long(9, last=11 + 2 * row)) for row in range(100)]
    probed = separability(pairs)
    assert probed is not None
    assert probed.last_token_auc == 0.5


def test_another_pair_of_the_example_does_not_teach_either() -> None:
    """Replayed pairs repeat the real answer; a fold of its own for each copy would tell it to the probe."""
    pairs = [pair(row, long(9, last=10 + 2 * row), long(9, last=11 + 2 * row)) for row in range(50) for _ in range(3)]
    probed = separability(pairs)
    assert probed is not None
    assert probed.last_token_auc == 0.5


def test_several_generated_answers_do_not_turn_the_probe_around() -> None:
    """Half the real and 3 in 10 generated answers end alike, the others each differently: 1/2 + (0.5 - 0.3) / 2."""
    pairs = [
        pair(
            row,
            long(9, last=END if row % 2 else 1000 + row),
            *(long(9, last=END if (4 * row + k) % 10 < 3 else 10_000 + 4 * row + k) for k in range(4)),
        )
        for row in range(300)
    ]
    probed = separability(pairs)
    assert probed is not None
    assert probed.last_token_auc == pytest.approx(0.6, abs=0.06)


def test_an_empty_answer_has_a_last_token_of_its_own() -> None:
    pairs = [pair(row, long(3), answer([])) for row in range(30)]
    probed = separability(pairs)
    assert probed is not None
    assert probed.last_token_auc == 1
    assert any("token 2 ends 100 % of the real and 0 %" in sentence for sentence in artifact_warnings(pairs, probed))


def test_fewer_than_20_examples_are_too_few() -> None:
    pairs = [pair(row, long(15), long(120)) for row in range(20)]
    assert separability(pairs) is not None
    assert separability(pairs[:19]) is None
    assert separability(pairs[:19] * 2) is None
    assert separability([]) is None


# Warnings ------------------------------------------------------------------------------------------------------------


def warned(pairs: Sequence[Pair]) -> list[str]:
    return artifact_warnings(pairs, separability(pairs))


def test_like_answers_and_too_few_pairs_give_no_warning() -> None:
    assert warned([pair(row, *[long(10 + row % 9)] * 2) for row in range(60)]) == []
    assert warned([pair(row, long(15), long(120)) for row in range(10)]) == []


def test_lengths_that_tell_are_named_with_their_means() -> None:
    (sentence,) = warned([pair(row, long(14 + row % 3), long(99 + row % 3)) for row in range(60)])
    assert sentence.startswith(
        "length alone tells real from generated answers (AUC 1.00; 15 against 100 tokens on average): "
    )
    assert "likely artifact" in sentence


def test_cuts_that_tell_are_named_once_and_not_by_length_and_last_token_again() -> None:
    """85 of 100 generated answers run into the room of 120 tokens, and end with whatever token was there."""
    pairs = [
        pair(row, long(15, complete=row % 50 > 0), long(120, last=row, complete=False) if row % 20 < 17 else long(15))
        for row in range(100)
    ]
    probed = separability(pairs)
    assert probed is not None
    assert min(probed.length_auc, probed.last_token_auc, probed.cut_auc) > 0.8
    (sentence,) = artifact_warnings(pairs, probed)
    assert sentence.startswith("generated answers are cut in 85 % of cases against 2 % of the real ones (AUC 0.9")
    assert "likely artifact" in sentence
    assert "raise spin.max_new_tokens" in sentence


def test_where_both_sides_are_cut_that_is_the_cause_and_no_token_is_named() -> None:
    """All generated and half of the real answers are cut: being cut has an AUC of 3/4, the token where it is more."""
    pairs = [
        pair(
            row,
            long(48, last=3 if row % 2 else END, complete=row % 2 == 0),
            long(48, last=100 + row % 2, complete=False),
        )
        for row in range(60)
    ]
    (sentence,) = warned(pairs)
    assert sentence.startswith(
        "100 % of the generated answers are cut, and 50 % of the real ones, so their last token alone tells them apart"
    )
    assert "raise spin.max_new_tokens" in sentence


def test_real_answers_that_are_cut_are_named_as_such() -> None:
    (sentence,) = warned([pair(row, long(120, last=row, complete=False), long(120)) for row in range(40)])
    assert sentence.startswith("real answers are cut in 100 % of cases against 0 % of the generated ones (AUC 1.00)")


def test_a_missing_end_token_is_named_by_the_token() -> None:
    (sentence,) = warned([pair(row, long(20, last=100 + row), long(20)) for row in range(40)])
    assert sentence.startswith(
        "the last token alone tells real from generated answers (AUC 1.00; token 2 ends 0 % of the real and 100 % of "
        "the generated ones): a likely artifact"
    )


def test_a_second_artifact_shows_among_the_whole_answers() -> None:
    """Three in four generated answers are cut, and those that are whole end with another token than the real ones."""
    pairs = [
        pair(row, long(20, last=5), long(20, last=row % 4, complete=False) if row % 4 else long(20))
        for row in range(120)
    ]
    cut, last_token = warned(pairs)
    assert cut.startswith("generated answers are cut in 75 % of cases against 0 % of the real ones")
    assert last_token.startswith(
        "the last token alone tells real from generated answers among those that are complete (AUC 1.00; token 2 "
    )


def test_every_warning_is_one_line() -> None:
    pairs = [pair(row, long(15, last=5), long(100)) for row in range(40)]
    sentences = warned(pairs)
    assert len(sentences) == 2
    assert all("\n" not in sentence and "  " not in sentence for sentence in sentences)
