"""Evaluation items that stand in the training data, found by exact n-gram overlap.

::

    evaluation items --words--> ids --+--> index of their n-grams (held in memory)
                                      |
    training texts ----words--> ids --+--> n-grams that the index knows --> items touched

Complete and exact: every n-gram of every text is looked up, and there is neither a cap on hits nor a hash that could
collide. An n-gram gets its number from the numbers of its parts (Karp, Miller and Rosenberg 1972)::

    n = 13    w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12
              [       8 words       ]                       each numbered by its halves of 4 words, those by 2, by 1
                             [        8 words         ]
              [               13 words                ]     numbered by the pair of both

so two n-grams have the same number exactly when they are the same words. Memory is linear in the evaluation's words;
training texts stream through.

Words are those of :func:`~spintune.text.words.split_words`, of any script.

**Short items.** An item of fewer than n words has no n-gram. It is looked up whole: a text touches it when all its
words stand there in a row. Below ``shortest`` words even that says nothing ("Yes."), so such items are never matched;
both kinds are counted in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spintune.records import Example
from spintune.text.words import split_words

Ints = NDArray[np.int64]

SIZES = (8, 13)
"""Words of an n-gram: 8 as in Tülu 3 and PaLM, 13 as in GPT-3."""

SHORTEST = 4
"""Words of the shortest item that is looked up."""

_ABSENT = -1
_NONE = np.empty(0, np.int64)
_WORDS_A_BATCH = 1 << 18


def text_of(example: Example) -> str:
    """All messages of an example as one text, so that an n-gram may reach from a prompt into its answer."""
    return "\n\n".join(message.content for message in example.messages)


# The index -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedNgram:
    """An n-gram that a text shares with an item.

    item:   position of the item in the index
    start:  where the n-gram first begins in the text, in words
    ngram:  its words; the whole item where that is shorter than n
    """

    item: int
    start: int
    ngram: tuple[str, ...]


class NgramIndex:
    """Where the n-grams of evaluation items occur.

    Attributes:
        n: words of an n-gram.
        lengths: words of each item.
        short: positions of the items of fewer than n words, which are looked up whole.
        unmatched: positions of the items of fewer than ``shortest`` words, which are never matched.
    """

    def __init__(self, items: Sequence[str], n: int, shortest: int = SHORTEST) -> None:
        """Raises ValueError unless n and ``shortest`` are at least 1."""
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

    def overlaps(self, text: str) -> list[SharedNgram]:
        """Every (item, n-gram) that the text shares, each once, in the order of the text and then of the items."""
        found = {}
        for _, shared in self.shared([split_words(text)]):
            for item, start, place in zip(shared.item.tolist(), shared.start.tolist(), shared.place, strict=True):
                found[item, self.ngram(item, start)] = int(place)
        overlaps = [SharedNgram(item, place, ngram) for (item, ngram), place in found.items()]
        return sorted(overlaps, key=lambda overlap: (overlap.start, overlap.item))

    def ngram(self, item: int, start: int) -> tuple[str, ...]:
        """The words of the n-gram that begins at word ``start`` of an item; of a short item all."""
        first = self._first_I[item] + start
        return tuple(self._words[number] for number in self._text_W[first : first + self._size_I[item]].tolist())

    def shared(self, texts: Sequence[Sequence[str]]) -> list[tuple[int, Shared]]:
        """What each text, given as its words, shares with the items; texts that share nothing are left out."""
        number = self._vocabulary.get
        text_W, first_T = _joined([[number(word, _ABSENT) for word in text] for text in texts])
        gram_F, place_F = [_NONE], [_NONE]
        for size, base in self._base.items():
            gram_W = self._number(text_W, size)
            place = np.flatnonzero(gram_W != _ABSENT)
            # the size of a short item is learnt from all items, but only the short ones have postings
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

    def _postings(self, gram_F: Ints, place_F: Ints) -> Shared:
        """Where the items have the n-grams of one text; ``place_F`` ascends."""
        gram, first = np.unique(gram_F, return_index=True)
        count = self._posting_G[gram + 1] - self._posting_G[gram]
        posting = np.arange(count.sum()) + np.repeat(self._posting_G[gram] - (count.cumsum() - count), count)
        item = self._item_P[posting]
        return Shared(item, self._start_P[posting], np.repeat(place_F[first], count), self._size_I[item])

    def _number(self, text_W: Ints, size: int, learn: bool = False) -> Ints:
        """The number of the n-gram of ``size`` words that begins at each word, -1 where that is none of the items'.

        A word that no item has is -1 in ``text_W``, and so is every n-gram that reaches over one.
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
class Shared:
    """The n-grams that one text shares with items: four columns, one row for each place in an item.

    item, start:  the item, and the word in it where the n-gram begins
    place:        the word of the text where it first begins
    size:         its words
    """

    item: Ints
    start: Ints
    place: Ints
    size: Ints

    def by_item(self) -> Iterator[tuple[int, int, int]]:
        """For each item touched: the item, the start of an n-gram of it, how many of its words lie in shared ones."""
        order = np.lexsort((self.start, self.item))
        item, start, size = self.item[order], self.start[order], self.size[order]
        # an n-gram adds its words up to the beginning of the item's next one
        same = item[1:] == item[:-1]
        added = np.append(np.where(same, np.minimum(np.diff(start), size[:-1]), size[:-1]), size[-1])
        items, first = np.unique(item, return_index=True)
        return zip(items.tolist(), start[first].tolist(), np.add.reduceat(added, first).tolist(), strict=True)

    def first(self) -> tuple[int, int]:
        """Item and start of the n-gram that comes first in the text; the first item of several."""
        first = np.lexsort((self.start, self.item, self.place))[0]
        return int(self.item[first]), int(self.start[first])


@dataclass(frozen=True)
class _Pairs:
    """Numbers pairs of numbers: the number of (l, r) is the position of ``l * radix + r`` in the ascending ``keys``."""

    radix: int
    keys: Ints

    @classmethod
    def of(cls, left_W: Ints, right_W: Ints) -> _Pairs:
        """All pairs that occur, where neither side is absent."""
        radix = int(left_W.max(initial=0)) + 1
        whole = (left_W != _ABSENT) & (right_W != _ABSENT)
        return cls(radix, np.unique(left_W[whole] * radix + right_W[whole]))

    def number(self, left_W: Ints, right_W: Ints) -> Ints:
        number_W = np.full_like(left_W, _ABSENT)
        if len(self.keys):
            whole = np.flatnonzero((left_W != _ABSENT) & (right_W != _ABSENT))
            pair = left_W[whole] * self.radix + right_W[whole]
            place = np.minimum(np.searchsorted(self.keys, pair), len(self.keys) - 1)
            known = self.keys[place] == pair
            number_W[whole[known]] = place[known]
        return number_W


def _joined(rows: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """All rows one behind the other with an absent word after each, and where each begins."""
    lengths = np.array([len(row) + 1 for row in rows], dtype=np.int64)
    flat = (number for row in rows for number in (*row, _ABSENT))
    return np.fromiter(flat, np.int64, int(lengths.sum())), lengths.cumsum() - lengths


# Reports -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TouchedItem:
    """An evaluation item that shares at least one n-gram with the training data.

    item:      its position in its evaluation set
    rows:      all training rows that share an n-gram with it, ascending, counted from 0
    coverage:  the largest share of its words that lie in n-grams shared with one training row, in (0, 1]
    ngram:     the item's first n-gram that the first such row has, words joined by spaces
    """

    item: int
    rows: list[int]
    coverage: float
    ngram: str


@dataclass(frozen=True)
class SetContamination:
    """One evaluation set against all training rows, for one n.

    ``len(touched) + len(clean) == items``; clean are the positions of the items that no training row touches, the
    ``unmatched`` ones (too short to look up) among them.
    """

    evaluation: str
    n: int
    items: int
    short: int
    unmatched: int
    touched: list[TouchedItem]
    clean: list[int]

    @property
    def share(self) -> float:
        """Touched items of all items; 0 without items."""
        return len(self.touched) / self.items if self.items else 0.0

    def rows(self) -> dict[int, int]:
        """How many items each training row touches, for the rows that touch any, ascending."""
        return dict(sorted(Counter(row for item in self.touched for row in item.rows).items()))


@dataclass(frozen=True)
class Contamination:
    """All evaluation sets against ``training_rows`` rows, for each n."""

    training_rows: int
    sets: list[SetContamination]

    def to_json(self) -> dict[str, Any]:
        sets = []
        for found in self.sets:
            rows = [{"row": row, "items": count} for row, count in found.rows().items()]
            sets.append({**asdict(found), "share": found.share, "rows": rows})
        return {"training_rows": self.training_rows, "sets": sets}


def contamination(
    training: Iterable[str],
    evaluation: Mapping[str, Sequence[str]],
    sizes: Sequence[int] = SIZES,
    shortest: int = SHORTEST,
) -> Contamination:
    """Which evaluation items share an n-gram with which training texts, for each n of ``sizes``.

    Training texts are read once, and held a batch at a time. The result lists every touching pair of item and row.
    """
    items = [item for texts in evaluation.values() for item in texts]
    tallies = [_Tally(NgramIndex(items, n, shortest)) for n in sizes]
    total = 0
    for batch in _batches(training):
        for tally in tallies:
            tally.add(batch, total)
        total += len(batch)
    return Contamination(total, [found for tally in tallies for found in tally.sets(evaluation)])


class _Tally:
    """What all rows so far share with the items of one index."""

    def __init__(self, index: NgramIndex) -> None:
        self.index = index
        self.rows: dict[int, list[int]] = {}
        self.covered: Counter[int] = Counter()
        self.ngram: dict[int, str] = {}

    def add(self, batch: Sequence[Sequence[str]], first_row: int) -> None:
        for position, shared in self.index.shared(batch):
            for item, start, covered in shared.by_item():
                if item not in self.rows:
                    self.rows[item] = []
                    self.ngram[item] = " ".join(self.index.ngram(item, start))
                self.rows[item].append(first_row + position)
                self.covered[item] = max(self.covered[item], covered)

    def sets(self, evaluation: Mapping[str, Sequence[str]]) -> Iterator[SetContamination]:
        end = 0
        for name, texts in evaluation.items():
            first, end = end, end + len(texts)
            yield SetContamination(
                evaluation=name,
                n=self.index.n,
                items=len(texts),
                short=sum(first <= item < end for item in self.index.short),
                unmatched=sum(first <= item < end for item in self.index.unmatched),
                touched=[self._touched(item, item - first) for item in range(first, end) if item in self.rows],
                clean=[item - first for item in range(first, end) if item not in self.rows],
            )

    def _touched(self, item: int, position: int) -> TouchedItem:
        coverage = self.covered[item] / int(self.index.lengths[item])
        return TouchedItem(position, self.rows[item], coverage, self.ngram[item])


@dataclass(frozen=True)
class Removed:
    """A training row that was left out, and the first n-gram in it that an evaluation item has too."""

    row: int
    evaluation: str
    item: int
    ngram: str


def decontaminate(
    rows: Sequence[Example], evaluation: Mapping[str, Sequence[str]], n: int = SIZES[0], shortest: int = SHORTEST
) -> tuple[list[Example], list[Removed]]:
    """Leaves out every row that touches an evaluation item: ``len(kept) + len(removed) == len(rows)``."""
    owners = [(name, position) for name, texts in evaluation.items() for position in range(len(texts))]
    index = NgramIndex([item for texts in evaluation.values() for item in texts], n, shortest)
    removed: list[Removed] = []
    done = 0
    for batch in _batches(map(text_of, rows)):
        for position, shared in index.shared(batch):
            item, start = shared.first()
            removed.append(Removed(done + position, *owners[item], " ".join(index.ngram(item, start))))
        done += len(batch)
    gone = {one.row for one in removed}
    return [row for position, row in enumerate(rows) if position not in gone], removed


def _batches(texts: Iterable[str]) -> Iterator[list[tuple[str, ...]]]:
    """The words of the texts, in batches of at least so many words (the last may be smaller)."""
    batch: list[tuple[str, ...]] = []
    size = 0
    for text in texts:
        batch.append(split_words(text))
        size += len(batch[-1]) + 1
        if size >= _WORDS_A_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
