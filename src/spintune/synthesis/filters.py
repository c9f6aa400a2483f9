"""The rules that drop a candidate. Each rule has a name; the first rule that a candidate breaks is counted.

Rules, word lists and order are those of Self-Instruct (arXiv 2212.10560, ``bootstrap_instructions.py``) and Stanford
Alpaca (``generate_instruction.py``).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from pydantic import PlainSerializer

from spintune.synthesis.examples import SeedTask
from spintune.text.words import WordRule, split_words

_VISUAL = ("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot")
KEYWORDS: dict[str, tuple[str, ...]] = {
    "self_instruct": (*_VISUAL, "go to"),
    "alpaca": (*_VISUAL, "go to", "video", "audio", "music", "flowchart", "diagram"),
}
"""Whole words that ask for what a text model cannot do, by method."""

STARTS = ("Write a program",)

_REFUSAL = re.compile(
    r"\bas an? (ai|artificial intelligence|(large )?language model)\b"
    r"|^\W*(i('|’)?m|i am) (sorry|afraid|unable|not able)\b"
    r"|^\W*(sorry|unfortunately), (but )?i\b"
    r"|^\W*i (cannot|can('|’)?t|can not|am unable to|won('|’)?t) (assist|help|answer|comply|provide|fulfil+|create)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FilterRules:
    """Which instructions and instances are kept.

    Attributes:
        min_words, max_words: of an instruction; the paper's code drops those of 3 words or fewer and of more than 150.
        word_rule: how words are counted and compared: "reference" counts what white space separates, as the paper's
            code does; "unicode" reads every script.
        keywords: whole words that an instruction must not contain, in any case.
        starts: texts that an instruction must not begin with.
        ascii_start: whether an instruction must begin with an ASCII character; for English data.
        refusals: whether to drop refusals.
        novelty: the highest ROUGE-L that an instruction may have with a seed or an accepted instruction.
    """

    min_words: int = 4
    max_words: int = 150
    word_rule: WordRule = "reference"
    keywords: tuple[str, ...] = KEYWORDS["self_instruct"]
    starts: tuple[str, ...] = STARTS
    ascii_start: bool = True
    refusals: bool = True
    novelty: float = 0.7

    def instruction_drop_reason(self, text: str) -> str | None:
        """The name of the first rule that an instruction breaks; None if it breaks none."""
        if not text:
            return "empty_instruction"
        words = len(text.split() if self.word_rule == "reference" else split_words(text, self.word_rule))
        if not self.min_words <= words <= self.max_words:
            return "too_short" if words < self.min_words else "too_long"
        if self._keyword and self._keyword.search(text):
            return "keyword"
        if text.startswith(self.starts):
            return "start"
        if text[0] in string.punctuation:
            return "punctuation_start"
        if self.ascii_start and not text[0].isascii():
            return "not_ascii_start"
        return "refusal" if self.refusals and _REFUSAL.search(text) else None

    def instance_drop_reason(self, task: SeedTask) -> str | None:
        """The name of the first rule that a task's input and output break; None if they break none."""
        output = task.output or ""
        if not output.strip():
            return "empty_output"
        if task.input.strip() == output.strip():
            return "input_is_output"
        if output.rstrip().endswith(":") or task.input.rstrip().endswith(":"):
            return "ends_with_colon"
        return "refusal" if self.refusals and _REFUSAL.search(output) else None

    @cached_property
    def _keyword(self) -> re.Pattern[str] | None:
        # scripts without spaces have no word boundaries to look for
        words = [rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word) for word in self.keywords]
        return re.compile("|".join(words), re.IGNORECASE) if words else None


def conflicting(tasks: Sequence[SeedTask]) -> bool:
    """Whether two instances of one instruction have the same non-empty input but different outputs."""
    seen: dict[str, str | None] = {}
    return any(task.input and seen.setdefault(task.input, task.output) != task.output for task in tasks)


def _by_name(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


@dataclass
class FilterCounts:
    """How many ``unit``s a step read, kept, and dropped for each reason: ``read = kept + dropped`` at all times."""

    step: str
    unit: str
    read: int = 0
    kept: int = 0
    dropped: Annotated[Counter[str], PlainSerializer(_by_name)] = field(default_factory=Counter)

    def keep(self, count: int = 1) -> None:
        """Counts units that were read and kept."""
        self.read += count
        self.kept += count

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts units that were read and dropped."""
        if count:
            self.read += count
            self.dropped[reason] += count

    def drop_all(self, reasons: Mapping[str, int]) -> None:
        """Counts dropped units, given as a number for each reason."""
        for reason, count in reasons.items():
            self.drop(reason, count)

    def count(self, drop_reason: str | None) -> None:
        """Counts one unit: dropped for this reason, or kept if the reason is None."""
        if drop_reason is None:
            self.keep()
        else:
            self.drop(drop_reason)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in _by_name(self.dropped).items()) or "none"
        return f"{self.step}: {self.read:,} {self.unit} read, {self.kept:,} kept; dropped: {reasons}"
