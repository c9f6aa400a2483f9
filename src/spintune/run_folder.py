"""The run folder: which stages are finished, for which inputs, and what they wrote.

A stage is finished when its manifest exists, names the same inputs, and the files that it lists are intact. The
manifest is written last, so a killed stage has none, and the next command continues it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, TypeVar, cast, overload

from pydantic import BaseModel

from spintune.errors import RunError
from spintune.recipe import Recipe
from spintune.recipe.section import AUTO_RATE
from spintune.recipe.training import PER_ITERATION
from spintune.run_lock import RunLock
from spintune.storage import (
    digest_file,
    digest_json,
    is_temporary,
    read_json,
    remove_partials,
    storage_errors,
    write_json,
    write_json_if_changed,
)
from spintune.typed_json import JsonObject, OmitEmpty, from_json, to_json
from spintune.version import __version__

log = logging.getLogger(__name__)

T = TypeVar("T")
Inputs = Mapping[str, object]
"""What decides the output of a stage, as plain values: digests of earlier stages, settings of the recipe."""

MANIFEST = "manifest.json"

BASE, SFT, BASELINE = "base", "sft", "sft-more"
"""Names of models in a run: the recipe's own, after SFT, and after further SFT instead of self-play."""

_UNREAD = {"run.lock", "recipe.json", "report.html", "data"}
"""What a run may leave that has not read its data: a folder with other things in it, and no recipe, is somebody's."""

_UNTRAINED = {*_UNREAD, "metrics.jsonl", "results.json", "synth", "tensorboard", "tracking.json", "wandb"}
"""A run folder with nothing else in it may be given to another recipe, which may use a teacher's replies again."""


@dataclass(frozen=True)
class FileFacts:
    """A file as a stage wrote it."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class RecipeFile:
    """``recipe.json``: the resolved recipe, and the version that wrote it."""

    spintune: str
    recipe: JsonObject


@dataclass(frozen=True)
class Manifest(OmitEmpty):
    """The manifest of a finished stage.

    Attributes:
        inputs: digest of the stage's inputs.
        files: by name, relative to the stage's folder.
        facts: what the stage found out.
        spintune: version that wrote it.
        deleted: folders of ``files`` that the run deleted on purpose.
        measured: stages that had measured the model when it was deleted, each with the digest of its inputs.
        sha256: digest of all the rest; None in manifests that were written before there was one.
    """

    stage: str
    inputs: str
    files: dict[str, FileFacts]
    facts: JsonObject
    spintune: str
    deleted: tuple[str, ...] = ()
    measured: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None

    @property
    def present(self) -> dict[str, FileFacts]:
        """The files that must be there."""
        return {name: file for name, file in self.files.items() if name.partition("/")[0] not in self.deleted}


def check_is_run(folder: Path) -> None:
    """Raises RunError when a folder that a user names is not the folder of a run."""
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist or is no folder; give the folder of a run (its recipe's out)")
    if not (folder / "recipe.json").is_file():
        raise RunError(f"{folder} is no run folder, for it has no recipe.json; give the folder of a run")


def read_recipe(folder: Path) -> RecipeFile:
    """The recipe that a run folder is bound to. Raises RunError when there is none, or it is damaged."""
    check_is_run(folder)
    path = folder / "recipe.json"
    return from_json(RecipeFile, read_json(path), path)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a stage's folder. Raises RunError when it is damaged."""
    content = read_json(folder / MANIFEST)
    manifest = from_json(Manifest, content, folder / MANIFEST)
    unknown = content.keys() - {known.name for known in fields(Manifest)}
    if unknown or manifest.sha256 not in (None, _seal(content)):
        raise RunError(f"{folder / MANIFEST}: damaged (it was changed after it was written); delete it and run again")
    for name in manifest.files:
        if ".." in (path := PurePosixPath(name)).parts or path.is_absolute():
            raise RunError(
                f"{folder / MANIFEST}: damaged ({name!r:.80} is outside of its folder); delete it and run again"
            )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a finished stage into its folder."""
    content = to_json(manifest)
    write_json(folder / MANIFEST, {**content, "sha256": _seal(content)})


def _seal(content: JsonObject) -> str:
    """Digest of a manifest without its own."""
    return digest_json({key: value for key, value in content.items() if key != "sha256"})


def iterations_of(recipe: JsonObject) -> int:
    """How many iterations of self-play a resolved recipe asks for. Others may lie in the folder from before."""
    spin = recipe.get("spin")
    count = spin.get("iterations") if isinstance(spin, dict) else 0
    return count if isinstance(count, int) else 0


class OtherRuns(Protocol):
    """Runs from which another may take what they have finished."""

    def copy(self, stage: str, inputs: str) -> bool:
        """Copies a stage with inputs of this digest into the run; False if no other has finished it."""

    def file(self, stage: str, name: str, fact: str, value: str) -> Path | None:
        """An intact file of a stage that another run has finished with this value among its facts."""


class RunFolder:
    """One run folder, held by one process at a time. Use it as a context manager.

    Raises RunError when another process holds the folder or it belongs to another recipe, StorageError when it cannot
    be written.

    Args:
        meaning: what a ``precision`` means on this machine; two that mean the same make no other recipe.

    Attributes:
        recipe: the recipe; inside the context with the names that the folder's own recipe has for the same files, so
            that what a stage reads and writes does not depend on how a file is named.
        siblings: other runs, whose finished stages may be used; None for a run by itself.
    """

    def __init__(self, recipe: Recipe, meaning: Callable[[str], str] = str) -> None:
        self.folder = Path(recipe.out)
        self.recipe = recipe
        self._meaning = meaning
        self._lock = RunLock(self.folder)
        self.siblings: OtherRuns | None = None

    def __enter__(self) -> RunFolder:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            _check_is_not_foreign(self.folder)
        self._lock.take()
        try:
            remove_partials(self.folder)
            self._bind_to_recipe()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def check(self) -> JsonObject | None:
        """The recipe that this folder is bound to, if any. Raises RunError when that is another one; writes nothing."""
        if self.folder.is_dir():
            _check_is_not_foreign(self.folder)
        if not (self.folder / "recipe.json").exists():
            return None
        earlier = read_recipe(self.folder).recipe
        # a key that the version before did not have is None there and here
        if changes := self._changes(earlier, self.recipe.identity()):
            if not {entry.name for entry in self.folder.iterdir()} <= _UNTRAINED:
                told = f"a run of another recipe ({'; '.join(changes)})"
                raise RunError(f"{self.folder} holds {told}; choose another out= or delete it")
            return None
        return earlier

    def _bind_to_recipe(self) -> None:
        """Writes the recipe into an unused folder, or checks that the folder belongs to this recipe."""
        earlier = self.check() or {}
        self.recipe = with_names_of(earlier, self.recipe)
        identity = self.recipe.identity()
        _tell_rounding(self.folder, earlier, identity)
        write_json_if_changed(self.folder / "recipe.json", {"spintune": __version__, "recipe": identity})

    def as_bound(self) -> Recipe:
        """The recipe as another process that holds this folder has it, see :attr:`recipe`."""
        return with_names_of(self.check() or {}, self.recipe)

    def _changes(self, earlier: JsonObject, now: JsonObject) -> list[str]:
        """What differs between the recipe of this folder and the one here, and may not."""
        both = min(iterations_of(earlier), iterations_of(now))
        found = _differences(_fixed_settings(earlier, both), _fixed_settings(now, both))
        if self._meaning(str(earlier.get("precision"))) != self._meaning(str(now["precision"])):
            found.append(_told("precision", earlier.get("precision"), now["precision"]))
        before, here = (recipe["data"].get("eval_limit") if _has_data(recipe) else None for recipe in (earlier, now))
        if before != here and not self._limits_nothing(before, here):
            found.append(_told("data.eval_limit", before, here))
        return found

    def _limits_nothing(self, *limits: object) -> bool:
        """Whether fewer examples are held out than any of these limits allows, so that the split stays as it is."""
        if not (self.folder / "data" / MANIFEST).is_file():
            return False
        heldout = read_manifest(self.folder / "data").facts.get("heldout")
        return isinstance(heldout, int) and all(isinstance(limit, int) and heldout < limit for limit in limits)

    @overload
    def finished(self, stage: str, inputs: Inputs) -> JsonObject | None: ...

    @overload
    def finished(self, stage: str, inputs: Inputs, kind: type[T]) -> T | None: ...

    def finished(self, stage: str, inputs: Inputs, kind: type[T] | None = None) -> T | JsonObject | None:
        """The facts of a stage that is finished for these inputs, as a record of type ``kind``; None if it is not.

        Logs why a stage has to run again. With the same inputs it writes the same bits, so later stages stay finished.
        """
        digest = digest_json(inputs)
        manifest = self._own(stage, digest)
        if manifest is None and self.siblings and self.siblings.copy(stage, digest):
            manifest = self._own(stage, digest)
        if manifest is None:
            return None
        return manifest.facts if kind is None else from_json(kind, manifest.facts, self.folder / stage / MANIFEST)

    def _own(self, stage: str, inputs: str) -> Manifest | None:
        """The manifest of a stage that this run has finished for inputs of this digest."""
        folder = self.folder / stage
        if not (folder / MANIFEST).is_file():
            return None
        manifest = read_manifest(folder)
        if manifest.inputs != inputs:
            log.warning(
                "%s was written for other data or another model, or by another version; the stage runs again", folder
            )
            return None
        if changed := _changed(folder, manifest):
            log.warning("%s was changed after the run wrote it; stage %s runs again", changed, stage)
            return None
        return manifest

    def lost_file(self, stage: str) -> Path | None:
        """The file that keeps a stage from being finished: its manifest, or an output that is not as written."""
        folder = self.folder / stage
        return _changed(folder, read_manifest(folder)) if (folder / MANIFEST).is_file() else folder / MANIFEST

    def finish(self, stage: str, inputs: Inputs, files: Sequence[Path], facts: object) -> str:
        """Writes a stage's manifest.

        Args:
            files: files, or folders of files, inside the stage's folder.
            facts: what the stage found out, a dataclass or a dict.

        Returns the digest of what was written, for the inputs of later stages.
        """
        folder = self.folder / stage
        every = [file for path in files for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        listing = {str(file.relative_to(folder)): _file_facts(file) for file in every if file.is_file()}
        write_manifest(folder, Manifest(stage, digest_json(inputs), listing, to_json(facts), __version__))
        return self.digest(stage)

    def discard(self, stage: str, name: str) -> None:
        """Deletes a folder that a finished stage wrote. Its manifest says so, and the stage stays finished.

        The manifest also names the stages that measured the model, which cannot do so again.
        """
        folder = self.folder / stage
        manifest = read_manifest(folder)
        if name not in manifest.deleted:
            places = (path.parent for path in sorted(self.folder.rglob(f"{folder.name}/{MANIFEST}")))
            found = [read_manifest(place) for place in places if place != folder]
            measured = {one.stage: one.inputs for one in found}
            write_manifest(folder, replace(manifest, deleted=(*manifest.deleted, name), measured=measured))
        shutil.rmtree(folder / name, ignore_errors=True)

    def digest(self, stage: str) -> str:
        """Digest of the contents of a finished stage's outputs."""
        return outputs_digest(self.folder / stage)

    def file_digest(self, stage: str, name: str) -> str:
        """Digest of one of a finished stage's outputs."""
        return read_manifest(self.folder / stage).files[name].sha256


def outputs_digest(folder: Path) -> str:
    """Digest of the contents of what a finished stage wrote into ``folder``."""
    return digest_json({name: file.sha256 for name, file in read_manifest(folder).files.items()})


def _check_is_not_foreign(folder: Path) -> None:
    """Raises RunError for a folder with files in it that is no run: what is in it belongs to somebody."""
    names = {path.name for path in folder.iterdir() if not is_temporary(path)}
    # a damaged recipe.json may be deleted: the manifests say what is finished
    if (
        "recipe.json" not in names
        and not (folder / "data" / MANIFEST).is_file()
        and (foreign := sorted(names - _UNREAD))
    ):
        raise RunError(f"{folder} is not empty and no run of spintune (it has {foreign[0]}); choose another out=")


_FREE = {
    # what judges iterates, and what changes no result; synth keeps its replies, so later stages can follow it
    "": ("synth", "eval", "evaluation", "judge", "tokens_per_forward", "recompute", "offload", "precision"),
    "data": ("eval_limit",),
    "sft": ("samples",),
    "spin": ("iterations", "stop", "metric", "baseline", "baseline_learning_rate", "keep"),
}
"""Settings by section that a run folder is not bound to. ``RunFolder._changes`` looks at some of them otherwise."""

_PLACES = ("model", "path", "generated", "folder")
"""Keys that may name a file or folder, which has many names."""


def _fixed_settings(recipe: JsonObject, iterations: int) -> JsonObject:
    """The settings that a run folder is bound to, in so many iterations of self-play."""
    fixed = {key: value for key, value in recipe.items() if key not in _FREE[""]}
    for section, free in _FREE.items():
        if isinstance(values := fixed.get(section), dict):
            fixed[section] = {key: value for key, value in values.items() if key not in free}
    if isinstance(spin := fixed.get("spin"), dict):
        fixed["spin"] = spin | {key: _until(iterations, spin.get(key)) for key in PER_ITERATION}
    return fixed


def _until(iterations: int, value: object) -> object:
    """A value for each iteration, or one for all; of ``auto`` for all, a rate is looked for in the first alone."""
    if not isinstance(value, list):
        return value
    first, *others = value[:iterations] or [None]
    return [first, *others] if others and (first == AUTO_RATE or any(one != first for one in others)) else first


def _has_data(recipe: JsonObject) -> bool:
    return isinstance(recipe.get("data"), dict)


def _tell_rounding(folder: Path, earlier: JsonObject, now: JsonObject) -> None:
    key = "tokens_per_forward"
    if key in earlier and earlier[key] != now[key]:
        log.warning(
            "%s: %s; what is finished stays, what follows may differ in its last bits from a run without the change",
            folder,
            _told(key, earlier[key], now[key]),
        )


def _file_facts(file: Path) -> FileFacts:
    status = file.stat()
    return FileFacts(status.st_size, status.st_mtime_ns, digest_file(file))


def _changed(folder: Path, manifest: Manifest) -> Path | None:
    """The first file of a stage that is not as it was written; None when all are."""
    return next((folder / name for name, file in manifest.present.items() if not _intact(folder / name, file)), None)


def _intact(path: Path, written: FileFacts) -> bool:
    """Whether a file is as it was written. Its content is read only if its time of change differs."""
    if not path.is_file():
        return False
    status = path.stat()
    if status.st_size != written.bytes:
        return False
    return status.st_mtime_ns == written.mtime_ns or digest_file(path) == written.sha256


def _differences(earlier: object, now: object, prefix: str = "") -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted(earlier.keys() | now.keys())
        return [line for key in keys for line in _differences(earlier.get(key), now.get(key), f"{prefix}.{key}")]
    if isinstance(earlier, list) and isinstance(now, list) and len(earlier) == len(now):
        pairs = enumerate(zip(earlier, now, strict=True))
        return [line for place, pair in pairs for line in _differences(*pair, f"{prefix}.{place}")]
    same = earlier == now or (prefix.rpartition(".")[2] in _PLACES and same_place(earlier, now))
    return [] if same else [_told(prefix.lstrip("."), earlier, now)]


def with_names_of(earlier: object, now: T, key: str = "") -> T:
    """``now`` with the names that ``earlier``, plain values of such a recipe, has for the same files and folders."""
    changed: object = now
    if isinstance(now, BaseModel) and isinstance(earlier, dict):
        inner = {name: (value, with_names_of(earlier.get(name), value, name)) for name, value in now}
        update = {name: new for name, (old, new) in inner.items() if new is not old}
        changed = now.model_copy(update=update) if update else now
    elif isinstance(now, list) and isinstance(earlier, list) and len(now) == len(earlier):
        changed = [with_names_of(*pair) for pair in zip(earlier, now, strict=True)]
    elif key in _PLACES and earlier != now and same_place(earlier, now):
        changed = earlier
    return cast(T, changed)


def same_place(one: object, other: object) -> bool:
    """Whether two names lead to one file or folder."""
    try:
        return Path(str(one)).expanduser().samefile(Path(str(other)).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def _told(key: str, earlier: object, now: object) -> str:
    return f"{key} {earlier!r:.60} there, {now!r:.60} here"
