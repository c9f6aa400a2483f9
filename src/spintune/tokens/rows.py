"""Token rows: what a renderer makes of an example, and which rows fit into a length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol

from spintune.errors import DataError
from spintune.progress import Progress, Silent
from spintune.record_files import RecordFile, Spool
from spintune.records import ROLES, Example, Message

Turns = Literal["all", "last"]
"""Whether all assistant turns are trained or the last one only."""

PROMPT_TOO_LONG = "prompt_too_long"
NOTHING_TO_TRAIN = "nothing_to_train"

_BATCH = 1024


@dataclass(frozen=True)
class TokenRow:
    """One example as tokens.

    Attributes:
        example_id: the example's content id.
        prompt_ids: everything up to the first trained token.
        response_ids: from the first trained token to the last.
        mask: for each response token, whether it is in the loss; None where all are, as for a single trained turn.
        complete: False when the response was cut: it then lacks its last end-of-turn token.
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
    """

    stop_ids: frozenset[int]
    end_ids: tuple[int, ...]

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids to generate an answer from."""

    def row(self, example: Example) -> TokenRow:
        """The whole example as tokens, of any length."""

    def rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """:meth:`row` of each example; faster than one at a time."""

    def fingerprint(self) -> str:
        """Digest of everything that determines the tokens."""


@dataclass(frozen=True)
class RenderedRows:
    """The rows of examples that fit.

    Attributes:
        rows: the kept rows, in the order of the examples. They stay on disk.
        dropped: number of dropped examples by reason; together with ``rows`` they add up to ``read``.
        truncated: number of kept rows whose response was cut.
        read: number of examples.
    """

    rows: RecordFile[TokenRow]
    dropped: Counter[str]
    truncated: int
    read: int


def fit(
    row: TokenRow, max_length: int, max_response: int | None = None, max_prompt: int | None = None
) -> TokenRow | str:
    """The row within ``max_length`` tokens, its response within ``max_response``, or the reason to drop it.

    A prompt is never cut: a row is ``prompt_too_long`` when its prompt leaves no space for a response or has more than
    ``max_prompt`` tokens. A response is cut at its end, through its last trained token, and is then not complete. The
    reason is ``nothing_to_train`` when no trained token is left.
    """
    max_len = max_length - len(row.prompt_ids)
    if max_len <= 0 or (max_prompt is not None and len(row.prompt_ids) > max_prompt):
        return PROMPT_TOO_LONG
    limit = max_len if max_response is None else min(max_len, max_response)
    if len(row.response_ids) <= limit:
        return row if any(row.trained) else NOTHING_TO_TRAIN
    trained = row.trained[:limit]
    kept = max((place + 1 for place, in_loss in enumerate(trained) if in_loss), default=0)
    if kept == 0:
        return NOTHING_TO_TRAIN
    return replace(row, response_ids=row.response_ids[:kept], mask=trained[:kept], complete=False)


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
    truncated = 0
    dropped: Counter[str] = Counter()
    shortest_prompt: int | None = None
    with (progress or Silent()).task("tokenize", len(examples), "examples") as task:
        for batch in map(renderer.rows, _batches(examples)):
            for row in batch:
                fitted = fit(row, max_length, max_response, max_prompt)
                if isinstance(fitted, TokenRow):
                    spool.add(fitted)
                    truncated += not fitted.complete
                else:
                    dropped[fitted] += 1
            shortest = min(len(row.prompt_ids) for row in batch)
            shortest_prompt = shortest if shortest_prompt is None else min(shortest, shortest_prompt)
            task.advance(len(batch))
    rows = spool.records()
    if not rows:
        raise DataError(_nothing_left(len(examples), dropped, max_length, shortest_prompt, max_prompt))
    return RenderedRows(rows, dropped, truncated, len(examples))


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
