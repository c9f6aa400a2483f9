"""Splits examples into training and held-out ones, by a hash of prompt and seed and not by their order."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence, Set

import orjson

from spintune.errors import DataError
from spintune.record_files import Selection
from spintune.records import Example, Message
from spintune.streams import digest

Prompt = tuple[Message, ...]

TENTH = 0.1
"""The share of prompts that is usually held out."""

USEFUL_HELDOUT = 100
"""Of fewer prompts than ten times this, more than a tenth are held out. 100 tell models apart by a fifth of a standard
deviation of their paired differences (95 % interval)."""

MAX_USUAL_FRACTION = 0.3
"""No more is held out unless a fraction is given: the rest has to teach."""


def split_examples(
    examples: Sequence[Example], fraction: float | None, seed: int, limit: int | None = None
) -> tuple[Selection[Example], Selection[Example]]:
    """Splits into (train, held-out), each in input order.

    Examples with the same prompt stay together, so that no held-out prompt is trained on. Of n distinct prompts, the
    ``round(fraction * n)`` with the smallest hash of (seed, prompt) are held out: at least one if n > 1, and at most
    ``limit``. Without a ``fraction``, :func:`usual_fraction` decides.

    A threshold on the hash would never move a prompt, but would leave the number of held-out prompts to chance (0 or 6
    of 20 for a fraction of 0.15). Here the number is exact and the order of prompts is fixed: when data is added, the
    held-out prompts among the old ones are a prefix of that order, shorter or longer than before.

        >>> rows = [Example((Message("user", q), Message("assistant", "yes"))) for q in "abcdefghij"]
        >>> [len(side) for side in split_examples(rows, 0.2, seed=7)]
        [8, 2]

    Raises DataError if ``fraction`` is outside [0, 1), or so large that nothing is left to train on.
    """
    if fraction is not None and not 0 <= fraction < 1:
        raise DataError(f"a held-out fraction of {fraction} cannot be used; give 0 or more, and less than 1")
    # equal for equal prompts; the prompts themselves need not stay in memory
    hashes = [_hash(example.prompt, seed) for example in examples]
    prompts = sorted(set(hashes))
    if fraction is None:
        fraction = usual_fraction(len(prompts))
    size = round(fraction * len(prompts))
    if fraction > 0 and len(prompts) > 1:
        size = max(1, size)
    size = min(size, len(prompts) if limit is None else limit)
    if prompts and size == len(prompts):
        raise DataError(
            f"a held-out fraction of {fraction} leaves none of {len(prompts)} distinct prompts to train on; "
            "lower it or add examples"
        )
    return _sides(examples, hashes, set(prompts[:size]))


def split_unseen(
    examples: Sequence[Example], share: float, seed: int, question: Callable[[Example], str | None]
) -> tuple[Selection[Example], Selection[Example]]:
    """Splits training examples into (seen, unseen) by SFT, each in input order.

    Of n distinct prompts, the ``round(share * n)`` with the smallest hash are unseen. The hash is another one than that
    of the held-out split, and does not depend on other prompts.

    Args:
        question: what an example asks, where several prompts ask the same; None where its prompt alone tells.

    Raises DataError when one side would be empty.
    """
    hashes = []
    for example in examples:
        asked = question(example)
        text = _prompt_text(example.prompt) if asked is None else asked.encode()
        hashes.append(digest(f"unseen:{seed}:".encode() + text))
    prompts = sorted(set(hashes))
    size = round(share * len(prompts))
    if not 0 < size < len(prompts):
        whom, how = ("SFT", "lower") if size else ("self-play", "raise")
        raise DataError(
            f"spin.unseen_share {share:g} of {len(prompts)} distinct training prompts leaves none for {whom}; "
            f"{how} it or add examples"
        )
    return _sides(examples, hashes, set(prompts[:size]))


def _sides(
    examples: Sequence[Example], hashes: Sequence[bytes], second: Set[bytes]
) -> tuple[Selection[Example], Selection[Example]]:
    sides = (array("q"), array("q"))
    for place, prompt in enumerate(hashes):
        sides[prompt in second].append(place)
    return Selection(examples, sides[0]), Selection(examples, sides[1])


def usual_fraction(prompts: int) -> float:
    """The share of ``prompts`` distinct prompts to hold out: a tenth, or more to have 100, but at most 0.3."""
    return max(TENTH, min(USEFUL_HELDOUT / prompts, MAX_USUAL_FRACTION)) if prompts else TENTH


def _hash(prompt: Prompt, seed: int) -> bytes:
    return digest(f"split:{seed}:".encode() + _prompt_text(prompt))


def _prompt_text(prompt: Prompt) -> bytes:
    return orjson.dumps([[message.role, message.content] for message in prompt])
