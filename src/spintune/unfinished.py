"""What an interrupted stage goes on from, each with its digest: checkpoints of training, and shards of records.

::

    step-00000012/              a checkpoint; checkpoint.json is written last
        weights.safetensors, optimizer.safetensors; of sharded training .metadata and *.distcp
        checkpoint.json         its step, the stage's inputs, the held-out losses so far, the digest of each file, and
                                of all this
    best-00000008/              the weights with the least held-out loss so far, and their checkpoint.json
    TAG-WHAT-00000256.jsonl     a shard: a line with number and digest of the records, then the records
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from spintune.errors import RunError
from spintune.records import Record, parse_record
from spintune.storage import atomic_file, digest_file, digest_json, json_line, read_json, write_json
from spintune.typed_json import OmitEmpty, from_json, to_json

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_CHECKPOINT = "checkpoint.json"


@dataclass(frozen=True)
class HeldoutLosses:
    """The held-out losses of a training so far; None where there is none yet, or it is not finite.

    Attributes:
        start: before the first step. [nats per token]
        last: the newest. [nats per token]
        best: the least after a step. [nats per token]
        step: where it was measured; 0 before there is one.
        later: evaluations after that step.
    """

    start: float | None = None
    last: float | None = None
    best: float | None = None
    step: int = 0
    later: int = 0

    def after(self, step: int, loss: float) -> HeldoutLosses:
        """These losses and one more, measured after ``step`` steps. Of equal ones the first is the best."""
        known = loss if math.isfinite(loss) else None
        if step == 0:
            return replace(self, start=known, last=known)
        if known is not None and (self.best is None or known < self.best):
            return HeldoutLosses(self.start, known, known, step)
        return replace(self, last=known, later=self.later + 1)


@dataclass(frozen=True)
class CheckpointFacts(OmitEmpty):
    """``checkpoint.json``.

    Attributes:
        sha256: of each file.
        digest: of all the rest; None where an earlier version wrote it.
        best: step of the best weights, which lie beside this checkpoint; 0 for none.
        heldout: the held-out losses so far.
        inputs: what the stage is trained from, shortened: the name of the folder of its checkpoints. None where nobody
            said so, as in an earlier version.
    """

    step: int
    sha256: dict[str, str]
    digest: str | None = None
    best: int | None = None
    heldout: HeldoutLosses | None = None
    inputs: str | None = None


@dataclass(frozen=True)
class ShardHead:
    """The first line of a shard; ``sha256`` is of all bytes after it."""

    records: int
    sha256: str


def checkpoint_name(step: int) -> str:
    """The name of the folder of a checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def best_name(step: int) -> str:
    """The name of the folder of the best weights so far, those after ``step`` steps."""
    return f"best-{step:08d}"


def seal_checkpoint(
    folder: Path,
    step: int,
    best: int | None = None,
    heldout: HeldoutLosses | None = None,
    inputs: str | None = None,
) -> None:
    """Writes the digests of a checkpoint or of the best weights, after their files."""
    sha256 = {file.name: digest_file(file) for file in sorted(folder.iterdir())}
    facts = CheckpointFacts(step, sha256, None, best, heldout, inputs)
    write_json(folder / _CHECKPOINT, to_json(replace(facts, digest=_digest(facts))))


def read_checkpoint(folder: Path) -> CheckpointFacts:
    """The facts of a checkpoint or of the best weights, whose files are read and compared.

    Raises RunError when anything is damaged.
    """
    path = folder / _CHECKPOINT
    facts = from_json(CheckpointFacts, read_json(path), path)
    names = {checkpoint_name(facts.step): (WEIGHTS, OPTIMIZER), best_name(facts.step): (WEIGHTS,)}
    if folder.name not in names or facts.digest not in (None, _digest(facts)):
        raise RunError(f"{path}: damaged (it is not of step {facts.step})")
    sharded = ".metadata" in facts.sha256  # the files of torch, one or more of each rank
    for name in facts.sha256 if sharded else names[folder.name]:
        file = folder / name
        if not file.is_file() or digest_file(file) != facts.sha256.get(name):
            raise RunError(f"{file}: damaged (it is not as it was written)")
    return facts


def _digest(facts: CheckpointFacts) -> str:
    more = [facts.best, to_json(facts.heldout)] if facts.best or facts.heldout else []
    inputs = [{"inputs": facts.inputs}] if facts.inputs else []
    return digest_json([facts.step, facts.sha256, *more, *inputs])


def check_inputs(folder: Path, facts: CheckpointFacts, inputs: str | None) -> None:
    """Raises RunError for a checkpoint, or best weights, of a stage with other inputs."""
    if None not in (inputs, facts.inputs) and facts.inputs != inputs:
        raise foreign_checkpoint(folder)


def foreign_checkpoint(folder: Path) -> RunError:
    """The refusal of a checkpoint of other training."""
    return RunError(
        f"{folder}: is of other training (another run's data, settings or model); delete {folder.parent} to train "
        "from the start, or put this run's own checkpoint back"
    )


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
