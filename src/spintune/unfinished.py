"""What an interrupted stage goes on from, each with its digest: checkpoints of training, and shards of records.

::

    step-00000012/              a checkpoint; checkpoint.json is written last
        weights.safetensors, optimizer.safetensors
        checkpoint.json         its step, the digest of each file, and the digest of both
    TAG-WHAT-00000256.jsonl     a shard: a line with number and digest of the records, then the records
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from spintune.errors import RunError
from spintune.records import Record, parse_record
from spintune.storage import atomic_file, digest_file, digest_json, json_line, read_json, write_json
from spintune.typed_json import from_json

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_CHECKPOINT = "checkpoint.json"


@dataclass(frozen=True)
class CheckpointFacts:
    """``checkpoint.json``; ``digest`` is of the other two, and None where an earlier version wrote it."""

    step: int
    sha256: dict[str, str]
    digest: str | None = None


@dataclass(frozen=True)
class ShardHead:
    """The first line of a shard; ``sha256`` is of all bytes after it."""

    records: int
    sha256: str


def checkpoint_name(step: int) -> str:
    """The name of the folder of a checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def seal_checkpoint(folder: Path, step: int) -> None:
    """Writes the digests of a checkpoint, after its files."""
    sha256 = {name: digest_file(folder / name) for name in (WEIGHTS, OPTIMIZER)}
    write_json(folder / _CHECKPOINT, {"step": step, "sha256": sha256, "digest": digest_json([step, sha256])})


def checkpoint_step(folder: Path) -> int:
    """The number of steps of a checkpoint, whose files are read and compared. Raises RunError when it is damaged."""
    path = folder / _CHECKPOINT
    facts = from_json(CheckpointFacts, read_json(path), path)
    own = digest_json([facts.step, facts.sha256])
    if folder.name != checkpoint_name(facts.step) or facts.digest not in (None, own):
        raise RunError(f"{path}: damaged (it is not of step {facts.step})")
    for name in (WEIGHTS, OPTIMIZER):
        file = folder / name
        if not file.is_file() or digest_file(file) != facts.sha256.get(name):
            raise RunError(f"{file}: damaged (it is not as it was written)")
    return facts.step


def write_shard(path: Path, records: Sequence[object]) -> None:
    """Writes records with their digest. The file is complete or absent."""
    body = b"".join(map(json_line, records))
    with atomic_file(path) as file:
        file.write(json_line(ShardHead(len(records), hashlib.sha256(body).hexdigest())))
        file.write(body)


def read_shard(path: Path, kind: type[Record], count: int | None = None) -> list[Record]:
    """The records of a shard, which must be ``count``. Raises RunError when it is damaged or of an earlier version."""
    body = check_shard(path, count)
    return [parse_record(line, kind, path, number) for number, line in enumerate(body.splitlines(keepends=True), 2)]


def check_shard(path: Path, count: int | None = None) -> bytes:
    """The lines of records in a shard, after comparing them with their digest. Raises as :func:`read_shard`."""
    first, _, body = path.read_bytes().partition(b"\n")
    try:
        head = from_json(ShardHead, orjson.loads(first), path)
    except (orjson.JSONDecodeError, RunError) as error:
        raise RunError(f"{path}: damaged, or of an earlier version (it does not begin with a digest)") from error
    if head.sha256 != hashlib.sha256(body).hexdigest() or count not in (None, head.records):
        raise RunError(f"{path}: damaged (its records are not as they were written)")
    return body
