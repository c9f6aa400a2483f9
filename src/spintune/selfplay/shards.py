"""Finished parts of a long computation on disk, so that a killed run continues from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spintune.errors import RunError
from spintune.generation.answer_counter import Counted
from spintune.progress import Progress
from spintune.ranks.team import processes
from spintune.record_files import Spool
from spintune.records import Pair, Record
from spintune.unfinished import read_shard, write_shard

log = logging.getLogger(__name__)

SHARD_SIZE = 256
"""Items per shard: what a killed run loses at most. It is fixed, so that a resumed run ends with the same bits."""

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """The shards of one computation.

    Attributes:
        folder: where they are kept until the computation is complete.
        tag: names the inputs; shards with another tag are not used.
        progress: shows how many items are done.
        frozen: whether what is missing cannot be computed any more, because the player has learned since.
    """

    folder: Path
    tag: str
    progress: Progress
    frozen: bool = False

    def map(
        self,
        what: str,
        items: Sequence[T],
        kind: type[Record],
        compute: Callable[[list[slice], Counted], list[list[Record]]],
        title: str,
    ) -> Sequence[Record]:
        """One record per item, computed shard by shard; finished shards are read from disk, and records stay there.

        Args:
            what: name of the records in the names of files.
            kind: type of the records.
            compute: gives the records of slices of the items, as many at once as there are ranks. It may count items
                before their slice is done, if they are answers.
            title: of the progress bar.

        Raises RunError when a part is missing from frozen shards.
        """
        records = Spool(kind)
        begins = range(0, len(items), SHARD_SIZE)
        with self.progress.task(title, len(items), "pairs" if kind is Pair else what) as task:
            for first in range(0, len(begins), processes()):
                parts = [slice(begin, begin + SHARD_SIZE) for begin in begins[first : first + processes()]]
                paths = [self.folder / f"{self.tag}-{what}-{part.start:08d}.jsonl" for part in parts]
                shards = [_read(path, kind, len(items[part])) for path, part in zip(paths, parts, strict=True)]
                missing = [place for place, shard in enumerate(shards) if shard is None]
                if missing and self.frozen:
                    raise RunError(
                        f"{paths[missing[0]]}: damaged or gone, and the player has learned since it was written; "
                        f"delete {self.folder.parent / 'checkpoints'} and run again"
                    )
                done_of_parts = 0

                def counted(ended: int, tokens: int) -> None:
                    nonlocal done_of_parts
                    done_of_parts += ended
                    # not a safe point: what is done of a shard would be lost
                    task.advance(ended, safe=False, under_way=tokens)

                if missing:
                    found = compute([parts[place] for place in missing], counted)
                    for place, shard in zip(missing, found, strict=True):
                        write_shard(paths[place], shard)
                        shards[place] = shard
                for done in shards:
                    for record in done or ():
                        records.add(record)
                rest = sum(map(len, (items[part] for part in parts))) - done_of_parts
                task.advance(rest, restored=not missing, under_way=0)
        return records.records()


def _read(path: Path, kind: type[Record], count: int) -> list[Record] | None:
    """A finished shard; None where it is not there or damaged, which a line tells."""
    if not path.exists():
        return None
    try:
        return read_shard(path, kind, count)
    except (RunError, OSError) as error:
        log.warning("%s; this part is computed again", error)
        return None
