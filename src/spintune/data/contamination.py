"""Evaluation items that also occur in training data, found by exact n-gram overlap.

Training texts stream through an index of the evaluation items' n-grams (:mod:`spintune.text.ngrams`).

An item of fewer than n words has no n-gram. It is looked up whole: a text touches it if all its words occur there in a
row. Below ``shortest`` words even that means nothing ("Yes."), so such items never match. The report counts both kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spintune.records import Example, Message
from spintune.text.ngrams import NgramIndex
from spintune.text.words import split_words

SIZES = (8, 13)
"""Words of an n-gram: 8 as in Tülu 3 and PaLM, 13 as in GPT-3."""

SHORTEST = 4
"""Words of the shortest item that is looked up."""

_WORDS_PER_BATCH = 1 << 18


def text_of(example: Example) -> str:
    """All that is said in an example as one text, so that an n-gram may span a prompt and its answer."""
    return "\n\n".join(text for message in example.messages for text in _texts(message))


def _texts(message: Message) -> list[str]:
    said = [message.reasoning, message.content] if message.reasoning else [message.content]
    return [*said, *(call.arguments for call in message.tool_calls)]


@dataclass(frozen=True)
class TouchedItem:
    """An evaluation item that shares at least one n-gram with the training data.

    Attributes:
        item: its position in its evaluation set.
        rows: all training rows that share an n-gram with it, ascending, from 0.
        coverage: the largest share of its words that are in n-grams shared with one training row, in (0, 1].
        ngram: the item's first n-gram that the first such row has, words joined by spaces.
    """

    item: int
    rows: list[int]
    coverage: float
    ngram: str


@dataclass(frozen=True)
class TouchingRow:
    """A training row, and how many evaluation items it touches."""

    row: int
    items: int


@dataclass(frozen=True)
class SetContamination:
    """One evaluation set against all training rows, for one n: ``len(touched) + len(clean) == items``.

    Attributes:
        items: items of the set.
        short: items that were looked up whole.
        unmatched: items too short to look up, which count as clean.
        touched: items that share an n-gram with a training row.
        clean: positions of the items that no training row touches.
        share: touched items of all items; 0 without items.
        rows: the training rows that touch an item, ascending.
    """

    evaluation: str
    n: int
    items: int
    short: int
    unmatched: int
    touched: list[TouchedItem]
    clean: list[int]
    share: float
    rows: list[TouchingRow]


@dataclass(frozen=True)
class Contamination:
    """All evaluation sets against ``training_rows`` rows, for each n."""

    training_rows: int
    sets: list[SetContamination]


def contamination(
    training: Iterable[str],
    evaluation: Mapping[str, Sequence[str]],
    sizes: Sequence[int] = SIZES,
    shortest: int = SHORTEST,
) -> Contamination:
    """Finds the evaluation items that share an n-gram with a training text, for each n of ``sizes``.

    Training texts are read once, and held in memory a batch at a time. The result lists every pair of an item and a
    row that touches it.
    """
    items = [item for texts in evaluation.values() for item in texts]
    overlaps = [_Overlaps(NgramIndex(items, n, shortest)) for n in sizes]
    total = 0
    for batch in _batches(training):
        for overlap in overlaps:
            overlap.add(batch, total)
        total += len(batch)
    return Contamination(total, [found for overlap in overlaps for found in overlap.sets(evaluation)])


class _Overlaps:
    """What the rows so far share with the items of one index."""

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
            touched = [self._touched(item, item - first) for item in range(first, end) if item in self.rows]
            counts = Counter(row for item in touched for row in item.rows)
            yield SetContamination(
                evaluation=name,
                n=self.index.n,
                items=len(texts),
                short=sum(first <= item < end for item in self.index.short),
                unmatched=sum(first <= item < end for item in self.index.unmatched),
                touched=touched,
                clean=[item - first for item in range(first, end) if item not in self.rows],
                share=len(touched) / len(texts) if texts else 0.0,
                rows=[TouchingRow(row, count) for row, count in sorted(counts.items())],
            )

    def _touched(self, item: int, position: int) -> TouchedItem:
        coverage = self.covered[item] / int(self.index.lengths[item])
        return TouchedItem(position, self.rows[item], coverage, self.ngram[item])


@dataclass(frozen=True)
class Removed:
    """A training row that was left out, and the first n-gram in it that an evaluation item also has."""

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
    """The words of the texts, in batches of about so many words."""
    batch: list[tuple[str, ...]] = []
    size = 0
    for text in texts:
        batch.append(split_words(text))
        size += len(batch[-1]) + 1
        if size >= _WORDS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
