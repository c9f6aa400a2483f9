"""Training and held-out examples: which is which depends on the prompt and the seed, not on the order."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import orjson

from spintune.errors import DataError
from spintune.record_files import Selection
from spintune.records import Example, Message
from spintune.streams import digest

Prompt = tuple[Message, ...]


def split_examples(
    examples: Sequence[Example], fraction: float, seed: int, most: int | None = None
) -> tuple[Selection[Example], Selection[Example]]:
    """Splits into (train, held-out), each in input order.

    Examples with the same prompt form a group and stay together, so that no held-out prompt is trained on. Of n groups
    the ``round(fraction * n)`` with the smallest hash of (seed, prompt) are held out, at least one of two or more, and
    no more than ``most``.

    The trade-off: a threshold on the hash would never move a group, but leave the size to chance (none of 20, or 6, for
    a fraction of 0.15). Here the size is exact, and groups come and go in one fixed order: when data is added, the old
    groups that are held out are a part of those before, or those before and the next ones in that order.

        >>> rows = [Example((Message("user", q), Message("assistant", "yes"))) for q in "abcdefghij"]
        >>> [len(side) for side in split_examples(rows, 0.2, seed=7)]
        [8, 2]

    Raises DataError when ``fraction`` is not in [0, 1), or so large that nothing would be left to train on.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"a held-out fraction of {fraction} cannot be used; give 0 or more, and less than 1")
    # equal for equal prompts; the prompts themselves need not stay in memory
    draws = [_draw(example.prompt, seed) for example in examples]
    prompts = sorted(set(draws))
    size = round(fraction * len(prompts))
    if fraction > 0 and len(prompts) > 1:
        size = max(1, size)
    size = min(size, len(prompts) if most is None else most)
    if prompts and size == len(prompts):
        raise DataError(
            f"a held-out fraction of {fraction} leaves none of {len(prompts)} distinct prompts to train on; "
            "lower it or add examples"
        )
    heldout = set(prompts[:size])
    sides = (array("q"), array("q"))
    for place, draw in enumerate(draws):
        sides[draw in heldout].append(place)
    return Selection(examples, sides[0]), Selection(examples, sides[1])


def _draw(prompt: Prompt, seed: int) -> bytes:
    text = orjson.dumps([[message.role, message.content] for message in prompt])
    return digest(f"split:{seed}:".encode() + text)
