"""Splits examples into training and held-out ones, by a hash of prompt and seed and not by their order.

Where held-out examples are given, those with the same prompts are left out of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import orjson

from spintune.errors import DataError
from spintune.number_files import KeyFile, complement
from spintune.progress import Progress, Silent, unless_quick
from spintune.record_files import LazySequence, Masked
from spintune.records import Example, Message
from spintune.streams import DIGEST_BYTES, digest

Prompt = tuple[Message, ...]

TENTH = 0.1
"""The share of prompts that is usually held out."""

USEFUL_HELDOUT = 100
"""Of fewer prompts than ten times this, more than a tenth are held out. 100 tell models apart by a fifth of a standard
deviation of their paired differences (95 % interval)."""

ENOUGH_HELDOUT = 50
"""With this many held-out prompts, 19 of 20 splits leave enough of them to choose models by
(:data:`spintune.evaluation.selection.MIN_SELECTION`)."""

MAX_USUAL_FRACTION, MAX_FRACTION_TO_CHOOSE = 0.3, 0.4
"""No more is held out unless a fraction is given, since the rest has to teach; the second where that gives
:data:`ENOUGH_HELDOUT`."""


_SILENT = Silent()
_STRIDE = 1000  # examples between two reports of progress

Sides = tuple[Masked[Example], Masked[Example]]


def split_examples(
    examples: Sequence[Example],
    fraction: float | None,
    seed: int,
    limit: int | None = None,
    progress: Progress = _SILENT,
) -> Sides:
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
    # equal for equal prompts
    hashes = _hashes(examples, lambda example: _hash(example.prompt, seed), progress)
    prompts = hashes.distinct()
    if fraction is None:
        fraction = usual_fraction(prompts)
    size = round(fraction * prompts)
    if fraction > 0 and prompts > 1:
        size = max(1, size)
    size = min(size, prompts if limit is None else limit)
    if prompts and size == prompts:
        raise DataError(
            f"a held-out fraction of {fraction} leaves none of {prompts} distinct prompts to train on; "
            "lower it or add examples"
        )
    return _sides(examples, hashes, size)


def split_unseen(
    examples: Sequence[Example],
    share: float,
    seed: int,
    question: Callable[[Example], str | None],
    progress: Progress = _SILENT,
) -> Sides:
    """Splits training examples into (seen, unseen) by SFT, each in input order.

    Of n distinct prompts, the ``round(share * n)`` with the smallest hash are unseen. The hash is another one than that
    of the held-out split, and does not depend on other prompts.

    Args:
        question: what an example asks, where several prompts ask the same; None where its prompt alone tells.

    Raises DataError when one side would be empty.
    """

    def unseen_hash(example: Example) -> bytes:
        asked = question(example)
        text = _prompt_text(example.prompt) if asked is None else asked.encode()
        return digest(f"unseen:{seed}:".encode() + text)

    hashes = _hashes(examples, unseen_hash, progress)
    prompts = hashes.distinct()
    size = round(share * prompts)
    if not 0 < size < prompts:
        whom, how = ("SFT", "lower") if size else ("self-play", "raise")
        raise DataError(
            f"spin.unseen_share {share:g} of {prompts} distinct training prompts leaves none for {whom}; "
            f"{how} it or add examples"
        )
    return _sides(examples, hashes, size)


def without_prompts_of(
    examples: Sequence[Example], heldout: Sequence[Example], progress: Progress = _SILENT
) -> Sequence[Example]:
    """The examples whose prompts no held-out example has, in input order.

    >>> rows = [Example((Message("user", q), Message("assistant", "yes"))) for q in "abc"]
    >>> [example.prompt[0].content for example in without_prompts_of(rows, rows[1:2])]
    ['a', 'c']
    """
    known = {_hash(example.prompt, 0) for example in _told(heldout, progress)}
    others = (_hash(example.prompt, 0) not in known for example in _told(examples, progress))
    return Masked(examples, np.packbits(np.fromiter(others, bool, len(examples))))


class WithoutHeldoutTurns(LazySequence[Example]):
    """Examples without loss on earlier turns that answer a held-out prompt.

    >>> talk = [Message(role, text) for role, text in zip(["user", "assistant"] * 2, "abcd")]
    >>> [kept] = WithoutHeldoutTurns([Example((*talk,))], [Example((*talk[:2],))])
    >>> [message.trained for message in kept.messages]
    [True, False, True, True]
    """

    def __init__(self, examples: Sequence[Example], heldout: Sequence[Example]) -> None:
        self._examples = examples
        self._prompts = {_hash(example.prompt, 0) for example in heldout}

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[Example]:
        return (_without_loss(example, self._prompts) for example in self._examples)

    def _item(self, position: int) -> Example:
        return _without_loss(self._examples[position], self._prompts)


def without_trained_turns(
    heldout: Sequence[Example], train: Sequence[Example], progress: Progress = _SILENT
) -> Sequence[Example]:
    """The held-out examples, without loss on earlier turns whose prompts are trained on.

    >>> talk = [Message(role, text) for role, text in zip(["user", "assistant"] * 2, "abcd")]
    >>> [held] = without_trained_turns([Example((*talk,))], [Example((*talk[:2],))])
    >>> [message.trained for message in held.messages]
    [True, False, True, True]
    """
    earlier = {_hash(example.messages[:place], 0) for example in heldout for place in example.answer_places[:-1]}
    if not earlier:
        return heldout
    trained = {key for example in _told(train, progress) for key in _trained_prompts(example) if key in earlier}
    return [_without_loss(example, trained) for example in heldout] if trained else heldout


def _without_loss(example: Example, prompts: set[bytes]) -> Example:
    """The example, not trained on earlier turns with one of these prompts."""
    places = {place for place in example.answer_places[:-1] if _hash(example.messages[:place], 0) in prompts}
    if not places:
        return example
    messages = [replace(one, trained=one.trained and place not in places) for place, one in enumerate(example.messages)]
    return replace(example, messages=tuple(messages))


def _trained_prompts(example: Example) -> list[bytes]:
    """Hashes of the prompts that training on all turns of an example answers."""
    return [*(_hash(example.messages[:place], 0) for place in example.answer_places[:-1]), _hash(example.prompt, 0)]


def _hashes(examples: Sequence[Example], hash_of: Callable[[Example], bytes], progress: Progress) -> KeyFile:
    hashes = KeyFile(DIGEST_BYTES)
    for example in _told(examples, progress):
        hashes.add(hash_of(example))
    return hashes


def _told(examples: Sequence[Example], progress: Progress) -> Iterator[Example]:
    """The examples, while progress is told how many there were."""
    with unless_quick(progress, len(examples)).task("splitting", len(examples), "examples") as task:
        for number, example in enumerate(examples, 1):
            yield example
            if number % _STRIDE == 0:
                task.advance(_STRIDE)
        task.advance(len(examples) % _STRIDE)


def _sides(examples: Sequence[Example], hashes: KeyFile, size: int) -> Sides:
    """The examples of all prompts but the ``size`` with the smallest hash, and those of these."""
    second = hashes.up_to(hashes.smallest(size) if size else bytes(DIGEST_BYTES))
    return Masked(examples, complement(second, len(examples))), Masked(examples, second)


def usual_fraction(prompts: int) -> float:
    """The share of ``prompts`` distinct prompts to hold out.

    A tenth, or more to have 100, but at most 0.3; up to 0.4 where that leaves enough to choose a model by.
    """
    if not prompts:
        return TENTH
    share = max(TENTH, min(USEFUL_HELDOUT / prompts, MAX_USUAL_FRACTION))
    chooses = share * prompts < ENOUGH_HELDOUT <= MAX_FRACTION_TO_CHOOSE * prompts
    return ENOUGH_HELDOUT / prompts if chooses else share


def _hash(prompt: Prompt, seed: int) -> bytes:
    return digest(f"split:{seed}:".encode() + _prompt_text(prompt))


def _prompt_text(prompt: Prompt) -> bytes:
    return orjson.dumps([[message.role, message.content] for message in prompt])
