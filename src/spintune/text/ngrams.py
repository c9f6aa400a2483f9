"""Exact n-gram overlap of texts with a set of items that is held in memory.

Every n-gram of every text is looked up: there is no cap on hits, and no hash that could collide. The number of an
n-gram comes from the numbers of its parts (Karp, Miller and Rosenberg 1972)::

    n = 13    w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12
              [       8 words       ]                       each numbered by its halves of 4 words, those by 2, by 1
                             [        8 words         ]
              [               13 words                ]     numbered by the pair of both

Two n-grams therefore have the same number exactly when they are the same words. Memory is linear in the items' words;
texts stream through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spintune.text.words import split_words

Ints = NDArray[np.int64]

_ABSENT = -1
_NONE = np.empty(0, np.int64)


class NgramIndex:
    """Finds the n-grams that texts share with the items it was made of.

    Attributes:
        n: words of an n-gram.
        lengths: words of each item.
        short: positions of the items of fewer than n words, which are looked up whole.
        unmatched: positions of the items of fewer than ``shortest`` words, which never match.

    Raises ValueError unless n and ``shortest`` are at least 1.
    """

    def __init__(self, items: Sequence[str], n: int, shortest: int) -> None:
        if n < 1 or shortest < 1:
            raise ValueError(f"n-grams of {n} words in items of at least {shortest}: both must be 1 or more")
        self.n = n
        self._vocabulary: dict[str, int] = {}
        number = self._vocabulary.setdefault
        numbered = [[number(word, len(self._vocabulary)) for word in split_words(item)] for item in items]
        self.lengths = np.array(list(map(len, numbered)), dtype=np.int64)
        self.short = frozenset(np.flatnonzero((self.lengths < n) & (self.lengths >= shortest)).tolist())
        self.unmatched = frozenset(np.flatnonzero(self.lengths < shortest).tolist())
        self._size_I = np.where(self.lengths < shortest, 0, np.minimum(self.lengths, n))
        self._words = list(self._vocabulary)
        self._text_W, self._first_I = _joined(numbered)
        item_W = np.repeat(np.arange(len(numbered)), self.lengths + 1)

        # Postings: the places of every n-gram in the items, those of n-gram g from _posting_G[g] to _posting_G[g + 1].
        self._pairs: dict[int, _Pairs] = {}
        self._base: dict[int, int] = {}  # number of the first n-gram of each size
        count, gram_P, place_P = 0, [_NONE], [_NONE]
        for size in np.unique(self._size_I[self._size_I > 0]).tolist():
            gram_W = self._number(self._text_W, size, learn=True)
            place = np.flatnonzero((gram_W != _ABSENT) & (self._size_I[item_W] == size))
            gram_P.append(gram_W[place] + count)
            place_P.append(place)
            self._base[size] = count
            count += len(self._pairs[size].keys) if size > 1 else len(self._words)
        order = np.argsort(np.concatenate(gram_P), kind="stable")
        place = np.concatenate(place_P)[order]
        self._posting_G = np.searchsorted(np.concatenate(gram_P)[order], np.arange(count + 1))
        self._item_P = item_W[place]
        self._start_P = place - self._first_I[self._item_P]

    def ngram(self, item: int, start: int) -> tuple[str, ...]:
        """The words of the n-gram that begins at word ``start`` of an item; all words of a short item."""
        first = self._first_I[item] + start
        return tuple(self._words[number] for number in self._text_W[first : first + self._size_I[item]].tolist())

    def shared(self, texts: Sequence[Sequence[str]]) -> list[tuple[int, SharedNgrams]]:
        """The n-grams that each text, given as its words, shares with the items; texts without any are left out."""
        number = self._vocabulary.get
        text_W, first_T = _joined([[number(word, _ABSENT) for word in text] for text in texts])
        gram_F, place_F = [_NONE], [_NONE]
        for size, base in self._base.items():
            gram_W = self._number(text_W, size)
            place = np.flatnonzero(gram_W != _ABSENT)
            # numbers of a short item's size exist for all items, but only short items have postings
            place = place[self._posting_G[gram_W[place] + base] < self._posting_G[gram_W[place] + base + 1]]
            gram_F.append(gram_W[place] + base)
            place_F.append(place)
        place = np.concatenate(place_F)
        order = np.argsort(place, kind="stable")
        gram, place = np.concatenate(gram_F)[order], place[order]
        text_F = np.searchsorted(first_T, place, side="right") - 1
        hit, cuts = np.unique(text_F, return_index=True)
        bounds = zip(hit.tolist(), cuts.tolist(), [*cuts[1:].tolist(), len(place)], strict=False)
        return [(text, self._postings(gram[a:b], place[a:b] - first_T[text])) for text, a, b in bounds]

    def _postings(self, gram_F: Ints, place_F: Ints) -> SharedNgrams:
        """The places in the items of one text's n-grams; ``place_F`` ascends."""
        gram, first = np.unique(gram_F, return_index=True)
        count = self._posting_G[gram + 1] - self._posting_G[gram]
        posting = np.arange(count.sum()) + np.repeat(self._posting_G[gram] - (count.cumsum() - count), count)
        item = self._item_P[posting]
        return SharedNgrams(item, self._start_P[posting], np.repeat(place_F[first], count), self._size_I[item])

    def _number(self, text_W: Ints, size: int, learn: bool = False) -> Ints:
        """The number of the n-gram of ``size`` words that begins at each word; -1 if no item has it.

        A word that no item has is -1 in ``text_W``, and so is every n-gram that spans one.
        """
        number_W, half = text_W, 1
        while half < size:
            shift = min(half, size - half)
            right_W = np.full_like(number_W, _ABSENT)
            right_W[:-shift] = number_W[shift:]
            if learn and half + shift not in self._pairs:
                self._pairs[half + shift] = _Pairs.of(number_W, right_W)
            number_W = self._pairs[half + shift].number(number_W, right_W)
            half += shift
        return number_W


@dataclass(frozen=True)
class SharedNgrams:
    """The n-grams that one text shares with items, as four columns with a row for each place in an item.

    Attributes:
        item, start: the item, and the word in it where the n-gram begins.
        place: the word of the text where it first begins.
        size: its words.
    """

    item: Ints
    start: Ints
    place: Ints
    size: Ints

    def by_item(self) -> Iterator[tuple[int, int, int]]:
        """Per item: its position, the start of its first shared n-gram, how many of its words are in shared ones."""
        order = np.lexsort((self.start, self.item))
        item, start, size = self.item[order], self.start[order], self.size[order]
        # an n-gram adds its words up to the start of the item's next one
        same = item[1:] == item[:-1]
        added = np.append(np.where(same, np.minimum(np.diff(start), size[:-1]), size[:-1]), size[-1])
        items, first = np.unique(item, return_index=True)
        return zip(items.tolist(), start[first].tolist(), np.add.reduceat(added, first).tolist(), strict=True)

    def first(self) -> tuple[int, int]:
        """Item and start of the n-gram that comes first in the text; of several items the first."""
        first = np.lexsort((self.start, self.item, self.place))[0]
        return int(self.item[first]), int(self.start[first])


@dataclass(frozen=True)
class _Pairs:
    """Numbers pairs of numbers: the number of (l, r) is the position of ``l * radix + r`` in the ascending ``keys``."""

    radix: int
    keys: Ints

    @classmethod
    def of(cls, left_W: Ints, right_W: Ints) -> _Pairs:
        """All pairs that occur and have no absent side."""
        radix = int(left_W.max(initial=0)) + 1
        whole = (left_W != _ABSENT) & (right_W != _ABSENT)
        return cls(radix, np.unique(left_W[whole] * radix + right_W[whole]))

    def number(self, left_W: Ints, right_W: Ints) -> Ints:
        """The number of each pair; -1 for an unknown one."""
        number_W = np.full_like(left_W, _ABSENT)
        if len(self.keys):
            whole = np.flatnonzero((left_W != _ABSENT) & (right_W != _ABSENT))
            pair = left_W[whole] * self.radix + right_W[whole]
            place = np.minimum(np.searchsorted(self.keys, pair), len(self.keys) - 1)
            known = self.keys[place] == pair
            number_W[whole[known]] = place[known]
        return number_W


def _joined(rows: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """All rows in one array, with an absent word after each, and the start of each."""
    lengths = np.array([len(row) + 1 for row in rows], dtype=np.int64)
    flat = (number for row in rows for number in (*row, _ABSENT))
    return np.fromiter(flat, np.int64, int(lengths.sum())), lengths.cumsum() - lengths
