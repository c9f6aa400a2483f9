"""Warnings about likely artifacts: features unrelated to content by which the player could win."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from spintune.record_files import Spool
from spintune.records import Answer, Pair
from spintune.selfplay.separability import Separability, separability

MOSTLY_CUT = 0.5
"""Share of cut generated answers above which being cut is named as the cause of other differences. Our choice."""

MIN_AUC = 0.8
"""AUC above which a feature is reported. Our choice: a yes-or-no feature gets there when its shares differ by 60
points, which few true differences do."""


def artifact_warnings(pairs: Sequence[Pair], found: Separability | None) -> list[str]:
    """One sentence per likely artifact: what tells the sides apart, by how much, and what to do.

    "Likely", because an AUC does not show whether generated answers are longer by accident or because the task asks
    for it. Being cut also shows in the length and the last token of an answer; if it tells the sides apart, those two
    are tested among complete answers only.

    Args:
        found: the separability of the pairs; None, for too few pairs, gives no warnings.
    """
    if found is None:
        return []
    if found.cut_auc > MIN_AUC:
        return [_cut_warning(pairs, found.cut_auc), *_warnings_among_complete(pairs)]
    cut = fmean(not answer.complete for answer in _sides(pairs)["generated"])
    if cut > MOSTLY_CUT and max(found.length_auc, found.last_token_auc) > MIN_AUC:
        return [_broken_off_warning(pairs, found, cut), *_warnings_among_complete(pairs)]
    return _length_and_last_token_warnings(pairs, found)


def _warnings_among_complete(pairs: Sequence[Pair]) -> list[str]:
    spool = Spool(Pair)
    for pair in pairs:
        if pair.real.complete and any(answer.complete for answer in pair.generated):
            spool.add(replace(pair, generated=tuple(answer for answer in pair.generated if answer.complete)))
    complete = spool.records()
    found = separability(complete)
    return _length_and_last_token_warnings(complete, found, " among those that are complete") if found else []


def _length_and_last_token_warnings(pairs: Sequence[Pair], found: Separability, among: str = "") -> list[str]:
    sentences = []
    if found.length_auc > MIN_AUC:
        sentences.append(_length_warning(pairs, found.length_auc, among))
    if found.last_token_auc > MIN_AUC:
        sentences.append(_last_token_warning(pairs, found.last_token_auc, among))
    return sentences


_REMEDY = "raise spin.max_new_tokens, or train SFT, or train it for longer, if the model has not learned when to stop"


def _cut_warning(pairs: Sequence[Pair], auc: float) -> str:
    shares = [(fmean(not answer.complete for answer in side), name) for name, side in _sides(pairs).items()]
    (less_cut, less), (more_cut, more) = sorted(shares)
    return (
        f"{more} answers are cut in {_percent(more_cut)} of cases against {_percent(less_cut)} of the {less} ones (AUC "
        f"{auc:.2f}): a likely artifact, because the player can win by where an answer breaks off; {_REMEDY}"
    )


def _broken_off_warning(pairs: Sequence[Pair], found: Separability, cut: float) -> str:
    """Where both sides are cut, being cut tells nothing, but the places where they break off do."""
    feature, auc = max((found.last_token_auc, "last token"), (found.length_auc, "length"))[::-1]
    real = fmean(not pair.real.complete for pair in pairs)
    return (
        f"{_percent(cut)} of the generated answers are cut, and {_percent(real)} of the real ones, so their {feature} "
        f"alone tells them apart (AUC {auc:.2f}): the player can win by where an answer breaks off; {_REMEDY}"
    )


def _length_warning(pairs: Sequence[Pair], auc: float, among: str) -> str:
    real, generated = (fmean(len(answer.ids) for answer in side) for side in _sides(pairs).values())
    return (
        f"length alone tells real from generated answers{among} (AUC {auc:.2f}; {real:.0f} against {generated:.0f} "
        "tokens on average): the player can win by answer length, a likely artifact unless the content calls for it; "
        "read some pairs, and train SFT for longer if the model has not learned when to stop"
    )


def _last_token_warning(pairs: Sequence[Pair], auc: float, among: str) -> str:
    sides = _sides(pairs).values()
    ends = [Counter(answer.ids[-1] if answer.ids else None for answer in side) for side in sides]
    shares = {
        token: [count[token] / count.total() for count in ends]
        for token in sorted(token for token in {*ends[0], *ends[1]} if token is not None)
    }
    token = max(shares, key=lambda token: abs(shares[token][0] - shares[token][1]))
    of_real, of_generated = map(_percent, shares[token])
    return (
        f"the last token alone tells real from generated answers{among} (AUC {auc:.2f}; token {token} ends {of_real} "
        f"of the real and {of_generated} of the generated ones): a likely artifact, such as real answers without the "
        "end token; check that data.template ends answers as the model does"
    )


def _sides(pairs: Sequence[Pair]) -> dict[str, Iterator[Answer]]:
    return {
        "real": (pair.real for pair in pairs),
        "generated": (answer for pair in pairs for answer in pair.generated),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
