"""What a power cut leaves of a run: the folder, rebuilt from the log of operations without what was not synced.

The model is POSIX: the content of a file is safe after an fsync of it, a name after an fsync of its folder. Anything
else may be there or not. Where time stamps could give damage away they are made right.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from crash.shim import Operation

VARIANTS = ("strict", "names kept", "zeros", "random")
"""strict: only what is synced. names kept: all names, files cut to what is synced. zeros: the rest of them is zeros.
random: of each file and folder, some of what was not synced."""


@dataclass
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class Folder:
    """Names now, names that are safe, and the states in between."""

    now: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)
    between: list[dict[str, Node]] = field(default_factory=list)

    def changed(self) -> None:
        self.between.append(dict(self.now))


Node = File | Folder


class Disk:
    """A folder in memory, on which logged operations are repeated. What is there at the start is safe."""

    def __init__(self, root: Path) -> None:
        self.root = PurePosixPath(root)
        self.top = _read(root)

    def _find(self, path: str) -> Node | None:
        node: Node | None = self.top
        for part in PurePosixPath(path).relative_to(self.root).parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def _parent(self, path: str) -> Folder:
        parent = self._find(str(PurePosixPath(path).parent))
        assert isinstance(parent, Folder), path
        return parent

    def apply(self, operation: Operation) -> None:
        """Repeats one operation."""
        name, path, other = operation.name, operation.path, operation.other
        base = PurePosixPath(path).name
        if name in ("mkdir", "open", "unlink", "rmdir"):
            parent = self._parent(path)
            if name == "open":
                self._open(parent, base, operation.number)
                return
            if name == "mkdir":
                parent.now[base] = Folder()
            else:
                parent.now.pop(base, None)
            parent.changed()
        elif name in ("rename", "link", "moved"):
            source, target = self._parent(path), self._parent(other)
            target.now[PurePosixPath(other).name] = source.now[base]
            if name != "link":
                del source.now[base]
            for folder in {id(one): one for one in (source, target)}.values():
                folder.changed()
        else:
            self._change(self._find(path), operation)

    def _open(self, parent: Folder, name: str, flags: int) -> None:
        node = parent.now.get(name)
        if node is None and flags & os.O_CREAT:
            parent.now[name] = File()
            parent.changed()
        elif isinstance(node, File) and flags & os.O_TRUNC:
            node.data.clear()

    def _change(self, node: Node | None, operation: Operation) -> None:
        if isinstance(node, Folder):
            node.synced = dict(node.now)
            node.between.clear()
        elif isinstance(node, File) and operation.name == "sync":
            node.synced = bytes(node.data)
        elif isinstance(node, File):
            size = operation.number + len(operation.data)
            if operation.name == "truncate" and size < len(node.data):
                del node.data[size:]
            node.data.extend(bytes(max(0, size - len(node.data))))
            if operation.name == "write":
                node.data[operation.number : size] = operation.data

    def write(self, target: Path) -> None:
        """The whole folder as it is without a power cut."""
        _write(self.top, target, "whole", random.Random(0))

    def write_after_cut(self, target: Path, variant: str, draw: random.Random) -> None:
        """The folder as a power cut leaves it."""
        _write(self.top, target, variant, draw)
        _right_times(target)


def _read(path: Path) -> Folder:
    folder = Folder()
    for child in path.iterdir():
        folder.now[child.name] = (
            _read(child) if child.is_dir() else File(bytearray(child.read_bytes()), child.read_bytes())
        )
    folder.synced = dict(folder.now)
    return folder


def _write(folder: Folder, target: Path, variant: str, draw: random.Random) -> None:
    target.mkdir(exist_ok=True)
    names = folder.now
    if variant == "strict":
        names = folder.synced
    elif variant == "random":
        names = draw.choice([folder.synced, *folder.between])
    for name, node in names.items():
        if isinstance(node, Folder):
            _write(node, target / name, variant, draw)
        else:
            (target / name).write_bytes(_kept(node, variant, draw))


def _kept(file: File, variant: str, draw: random.Random) -> bytes:
    data, synced = bytes(file.data), file.synced
    if variant == "whole":
        return data
    extends = data.startswith(synced)
    if variant == "zeros" and extends:
        return synced + bytes(len(data) - len(synced))
    if variant == "random":
        if not extends:
            return draw.choice([data, synced])
        cut = draw.randint(len(synced), len(data))
        return data[:cut] + bytes(draw.choice([0, len(data) - cut]))
    return synced


def _right_times(target: Path) -> None:
    """Gives files of the right size the times that manifests remember, as if a file system kept times before data."""
    for manifest in target.rglob("manifest.json"):
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            for name, facts in json.loads(manifest.read_bytes())["files"].items():
                file = manifest.parent / name
                if file.is_file() and file.stat().st_size == facts["bytes"]:
                    os.utime(file, ns=(facts["mtime_ns"], facts["mtime_ns"]))


def replay(root: Path, operations: Sequence[Operation], count: int) -> Disk:
    """The folder after the first ``count`` operations, from its state at the start."""
    disk, left = Disk(root), count
    for operation in operations:
        if operation.counted and left == 0:
            break
        left -= operation.counted
        if operation.name != "refused" and not operation.path.endswith(" (deleted)"):
            disk.apply(operation)
    return disk
