"""Token rows: what a renderer makes of an example, and which rows fit into a length."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import orjson

from spintune.errors import DataError
from spintune.number_files import NumberFile
from spintune.progress import Progress, Silent, unless_quick
from spintune.record_files import RecordFile, Spool
from spintune.records import ROLES, Example, Message

Turns = Literal["all", "last"]
"""Whether all assistant turns are trained or the last one only."""

MAX_UNKNOWN = 0.05
"""Share of an answer's tokens above which unknown ones are refused: one answer token in twenty."""

PROMPT_TOO_LONG = "prompt_too_long"
NOTHING_TO_TRAIN = "nothing_to_train"

_BATCH = 1024
_SHOWN_CHARACTERS = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRow:
    """One example as tokens.

    Attributes:
        example_id: the example's content id.
        prompt_ids: everything up to the first trained token.
        response_ids: from the first trained token to the last.
        mask: for each response token, whether it is in the loss; None where all are, as for a single trained turn.
        complete: False when trained tokens were left out because of a limit. A single answer then lacks its
            end-of-turn token; a conversation may end with an earlier answer, which is whole.
    """

    example_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    mask: tuple[bool, ...] | None
    complete: bool

    def __post_init__(self) -> None:
        if self.mask is not None and all(self.mask):  # nearly always: smaller in memory and on disk
            object.__setattr__(self, "mask", None)

    @property
    def tokens(self) -> int:
        """Length of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def trained(self) -> tuple[bool, ...]:
        """For each response token, whether it is in the loss."""
        return (True,) * len(self.response_ids) if self.mask is None else self.mask


class RowRenderer(Protocol):
    """Writes conversations as token rows: :class:`ChatRenderer`, or :class:`Seq2SeqRenderer` for encoder-decoders.

    Attributes:
        stop_ids: ids at which generation must stop.
        end_ids: ids that end an ordinary answer; they are trained.
        unknown_id: the id of characters that the vocabulary lacks; None where it can spell everything.
    """

    stop_ids: frozenset[int]
    end_ids: tuple[int, ...]
    unknown_id: int | None

    def prompt(self, messages: Sequence[Message], tools: tuple[str, ...] = ()) -> tuple[int, ...]:
        """The ids to generate an answer from."""

    def row(self, example: Example) -> TokenRow:
        """The whole example as tokens, of any length."""

    def rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """:meth:`row` of each example; faster than one at a time."""

    def units(self, example: Example) -> list[Example]:
        """The examples to make rows of: itself, or one for each trained answer where one row cannot hold them all."""

    def fingerprint(self) -> str:
        """Digest of everything that determines the tokens."""

    def unknown_characters(self, text: str) -> str:
        """The characters of ``text`` that become :attr:`unknown_id`, each once."""

    def highest_token(self) -> tuple[int, str]:
        """The highest id that may stand in a row, and its text."""


@dataclass(frozen=True)
class RenderedRows:
    """The rows of examples that fit.

    Attributes:
        rows: the kept rows, in the order of the examples. They stay on disk.
        dropped: number of dropped examples by reason; together with ``rows`` they add up to ``read``.
        truncated: number of kept rows whose response was cut.
        read: number of examples, or of answers where each is a row of its own.
        answer_tokens: number of trained tokens.
        unknown: how many of them stand for characters that the vocabulary lacks.
        unknown_characters: some of those characters.
    """

    rows: RecordFile[TokenRow]
    dropped: Counter[str]
    truncated: int
    read: int
    answer_tokens: int = 0
    unknown: int = 0
    unknown_characters: str = ""

    def check_unknown(self) -> None:
        """Warns of unknown tokens in the answers. Raises DataError when there are more than :data:`MAX_UNKNOWN`."""
        if not self.unknown:
            return
        found = (
            f"{self.unknown:,} of {self.answer_tokens:,} answer tokens ({self.unknown / self.answer_tokens:.1%}) are "
            f"unknown: the tokenizer has none for {' '.join(self.unknown_characters)}"
        )
        if self.unknown > MAX_UNKNOWN * self.answer_tokens:
            raise DataError(f"{found}; choose a model whose tokenizer knows them, or replace them in the data")
        log.warning("%s; the model learns to write nothing readable there", found)


def fit(
    row: TokenRow, max_length: int, max_response: int | None = None, max_prompt: int | None = None
) -> TokenRow | str:
    """The row within ``max_length`` tokens, each of its answers within ``max_response``, or the reason to drop it.

    A prompt is never cut: a row is ``prompt_too_long`` when its prompt leaves no space for a response or has more than
    ``max_prompt`` tokens. A response is cut at its end, through its last trained token, and is then not complete. Of an
    earlier answer that is too long the rest stays as context, and a later answer behind more than ``max_prompt`` tokens
    is not trained. The reason is ``nothing_to_train`` when no trained token is left.
    """
    max_len = max_length - len(row.prompt_ids)
    if max_len <= 0 or (max_prompt is not None and len(row.prompt_ids) > max_prompt):
        return PROMPT_TOO_LONG
    if not any(row.trained):
        return NOTHING_TO_TRAIN
    limit = max_len if max_response is None else min(max_len, max_response)
    one_prompt = row.mask is None or max_prompt is None or row.tokens <= max_prompt
    if one_prompt and len(row.response_ids) <= limit:  # most rows
        return row
    trained = _within(row.trained[:max_len], len(row.prompt_ids), max_response, max_prompt)
    kept = max((place + 1 for place, in_loss in enumerate(trained) if in_loss), default=0)
    if kept == 0:
        return NOTHING_TO_TRAIN
    if sum(trained) == sum(row.trained):
        return row
    return replace(row, response_ids=row.response_ids[:kept], mask=tuple(trained[:kept]), complete=False)


def _within(trained: tuple[bool, ...], prompt: int, max_response: int | None, max_prompt: int | None) -> list[bool]:
    """Which tokens are trained where each stretch of trained ones is an answer to the tokens before it."""
    kept, begin = list(trained), 0
    for place, in_loss in enumerate(trained):
        if not in_loss:
            begin = place + 1
            continue
        fits = max_response is None or place - begin < max_response
        kept[place] = fits and (max_prompt is None or prompt + begin <= max_prompt)
    return kept


def render(
    examples: Sequence[Example],
    renderer: RowRenderer,
    max_length: int,
    max_response: int | None = None,
    progress: Progress | None = None,
    max_prompt: int | None = None,
) -> RenderedRows:
    """The rows of all examples that :func:`fit`; kept + dropped = read.

    Raises DataError when no row is left, and whatever :meth:`RowRenderer.rows` raises.
    """
    spool = Spool(TokenRow)
    truncated = read = 0
    unknown = _Unknown(renderer)
    dropped: Counter[str] = Counter()
    shortest_prompt: int | None = None
    with (progress or Silent()).task("tokenize", len(examples), "examples") as task:
        for batch in _batches(examples):
            units = [unit for example in batch for unit in renderer.units(example)]
            rows = renderer.rows(units)
            for example, row in zip(units, rows, strict=True):
                fitted = fit(row, max_length, max_response, max_prompt)
                if isinstance(fitted, TokenRow):
                    spool.add(fitted)
                    truncated += not fitted.complete
                    unknown.add(example, fitted)
                else:
                    dropped[fitted] += 1
            read += len(units)
            shortest = min(len(row.prompt_ids) for row in rows)
            shortest_prompt = shortest if shortest_prompt is None else min(shortest, shortest_prompt)
            task.advance(len(batch))
    kept = spool.records()
    if not kept:
        raise DataError(_nothing_left(read, dropped, max_length, shortest_prompt, max_prompt))
    return RenderedRows(kept, dropped, truncated, read, unknown.tokens, unknown.unknown, unknown.characters)


def row_lengths(rows: Sequence[TokenRow], progress: Progress) -> NumberFile:
    """The tokens of each row. Those of a file are counted in its JSON, in a third of the time."""
    lengths = NumberFile()
    with unless_quick(progress, len(rows)).task("ordering", len(rows), "rows") as task:
        counts = map(_json_length, rows.lines()) if isinstance(rows, RecordFile) else (row.tokens for row in rows)
        while block := [*islice(counts, _BATCH)]:
            lengths.extend(np.array(block, np.int32))
            task.advance(len(block))
    return lengths


def _json_length(line: bytes) -> int:
    try:
        row = orjson.loads(line)
        return len(row["prompt_ids"]) + len(row["response_ids"])
    except (ValueError, LookupError, TypeError):
        return 0  # the row's own error comes when it is read


class _Unknown:
    """Counts the trained tokens of rows, and the unknown ones among them."""

    def __init__(self, renderer: RowRenderer) -> None:
        self._renderer = renderer
        self.tokens, self.unknown, self.characters = 0, 0, ""

    def add(self, example: Example, row: TokenRow) -> None:
        self.tokens += len(row.response_ids) if row.mask is None else sum(row.mask)
        if self._renderer.unknown_id not in row.response_ids:
            return
        pairs = zip(row.response_ids, row.trained, strict=True)
        self.unknown += sum(trained and id == self._renderer.unknown_id for id, trained in pairs)
        if len(self.characters) < _SHOWN_CHARACTERS:
            found = self.characters + self._renderer.unknown_characters(example.answer)
            self.characters = "".join(dict.fromkeys(found))[:_SHOWN_CHARACTERS]


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    rest = iter(examples)
    while batch := [*islice(rest, _BATCH)]:
        yield batch


def _nothing_left(
    read: int, dropped: Counter[str], max_length: int, shortest_prompt: int | None, max_prompt: int | None
) -> str:
    if not read:
        return "there are no examples to tokenize; check data.train"
    if dropped[PROMPT_TOO_LONG] == read and max_prompt is not None:
        return f"every prompt is longer than {max_prompt} tokens (shortest: {shortest_prompt}); allow longer ones"
    if dropped[PROMPT_TOO_LONG] == read:
        # a prompt of exactly max_length is too long as well
        return (
            f"max_length ({max_length} tokens) leaves no room after any prompt (shortest: {shortest_prompt}); "
            "raise data.max_length"
        )
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
    return f"none of {read} examples is left to train on ({reasons}); raise data.max_length"


def check_roles(messages: Sequence[Message], source: str) -> None:
    """Raises DataError for a message whose role is unknown; ``source`` is where it comes from."""
    for message in messages:
        if message.role not in ROLES:
            raise DataError(f"{where(source)}role {str(message.role)[:40]!r} is none of {', '.join(ROLES)}")


def where(source: str) -> str:
    """The beginning of an error message about data from ``source``."""
    return f"{source}: " if source else ""
