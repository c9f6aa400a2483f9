"""Why a candidate is dropped: each rule has a name, and the first that speaks is counted.

The lists are those of Self-Instruct (arXiv 2212.10560, ``bootstrap_instructions.py``) and Stanford Alpaca
(``generate_instruction.py``); what they decide about instructions is decided here in their order.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from spintune.data.rouge import Tokeniser, tokenise
from spintune.synthesis.examples import SeedTask

_PICTURES = (
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "maps",
    "draw",
    "plot",
)
KEYWORDS: dict[str, tuple[str, ...]] = {
    "self_instruct": (*_PICTURES, "go to"),
    "alpaca": (*_PICTURES, "go to", "video", "audio", "music", "flowchart", "diagram"),
}
"""What a model that reads and writes text cannot do, by whole words."""

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
    """Which instructions and instances are of use.

    Attributes:
        fewest, most: words of an instruction; more than 3 and at most 150 in the paper's code.
        tokeniser: how words are counted: "reference" by white space as there, "unicode" for every script.
        keywords: whole words, in any case, that an instruction must not have.
        starts: beginnings that an instruction must not have.
        ascii_start: an instruction must begin with a character of ASCII; for English data.
        refusals: an answer must not be a refusal.
    """

    fewest: int = 4
    most: int = 150
    tokeniser: Tokeniser = "reference"
    keywords: tuple[str, ...] = KEYWORDS["self_instruct"]
    starts: tuple[str, ...] = STARTS
    ascii_start: bool = True
    refusals: bool = True

    def flaw_of_instruction(self, text: str) -> str | None:
        """The name of the first rule that an instruction breaks, or None."""
        if not text:
            return "empty_instruction"
        words = len(text.split() if self.tokeniser == "reference" else tokenise(text, self.tokeniser))
        if not self.fewest <= words <= self.most:
            return "too_short" if words < self.fewest else "too_long"
        if self._keyword and self._keyword.search(text):
            return "keyword"
        if text.startswith(self.starts):
            return "start"
        if text[0] in string.punctuation:
            return "punctuation_start"
        if self.ascii_start and not text[0].isascii():
            return "not_ascii_start"
        return "refusal" if self.refusals and _REFUSAL.search(text) else None

    def flaw_of_instance(self, task: SeedTask) -> str | None:
        """The name of the first rule that input and output break, or None."""
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
        # a word of a script without spaces has no boundary to look for
        words = [rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word) for word in self.keywords]
        return re.compile("|".join(words), re.IGNORECASE) if words else None


def conflicting(tasks: Sequence[SeedTask]) -> bool:
    """Whether two instances of one instruction have the same input, not an empty one, and different outputs."""
    seen: dict[str, str | None] = {}
    return any(task.input and seen.setdefault(task.input, task.output) != task.output for task in tasks)


@dataclass
class FilterCounts:
    """What came in at a step, what was dropped by reason, and what was kept: ``read = kept + dropped`` at all times."""

    step: str
    unit: str
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def keep(self, count: int = 1) -> None:
        self.read += count
        self.kept += count

    def drop(self, reason: str, count: int = 1) -> None:
        if count:
            self.read += count
            self.dropped[reason] += count

    def drop_all(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            self.drop(reason)

    def to_json(self) -> dict[str, object]:
        return {**vars(self), "dropped": dict(sorted(self.dropped.items()))}
