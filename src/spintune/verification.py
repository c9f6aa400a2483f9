"""Compares every file of a run folder with what the run wrote down about it.

A start of a run looks at sizes and times only, since reading all weights would take long. This reads everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import orjson

from spintune.errors import RunError
from spintune.evaluation.decision import BEST, OLD_BEST, decision_file
from spintune.progress import Progress, ProgressTask
from spintune.results import RunResults
from spintune.run_folder import MANIFEST, Manifest, check_is_run, read_manifest, read_recipe
from spintune.run_models import LOADED, read_best
from spintune.storage import digest_file, is_note, is_temporary, read_json
from spintune.typed_json import from_json
from spintune.unfinished import CheckpointFacts, check_inputs, check_shard, read_checkpoint

_T = TypeVar("_T")

_WITHOUT_DIGEST = (
    "run.lock", "recipe.json", "results.json", "metrics.jsonl", "tracking.json", "report.html", "comparison.html",
)  # fmt: skip
_LOGS = ("metrics.jsonl", "samples.jsonl")
_STAGES = ("synth", "data", "sft", "spin", "likelihood", "eval", "judge", "contamination")
_OPEN_ENDED = ("tensorboard", "wandb", "judge/canary", "judge/replies.sqlite", "synth/replies.sqlite")
"""What grows while a run works, and whose writers look after it."""
_MODELS = ("model", "adapter")


@dataclass(frozen=True)
class Problem:
    """A file that is not as the run wrote it; ``path`` is relative to the run folder."""

    path: str
    state: Literal["changed", "missing", "damaged", "added"]
    text: str


@dataclass
class Verification:
    """What :func:`verify_run` found.

    Attributes:
        stages: by finished stage: how many of its files are whole.
        unfinished: whole checkpoints and shards, from which a stopped stage goes on.
        foreign: files that the run did not write and does not read.
    """

    run: str
    files: int = 0
    bytes: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    unfinished: int = 0
    problems: list[Problem] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The findings, a line each."""
        for stage, count in ((stage, count) for stage, count in self.stages.items() if count):
            yield f"whole    {stage} ({count} file{'s' * (count != 1)})"
        if self.unfinished:
            yield f"whole    {self.unfinished} checkpoints and shards of unfinished stages"
        for path in self.foreign:
            yield f"foreign  {path}: the run did not write it and does not read it"
        for one in self.problems:
            yield f"{one.state.upper():8} {one.path}: {one.text}"


def verify_run(folder: Path, progress: Progress) -> Verification:
    """Reads every file of a run and compares it with its digest; writes nothing.

    Raises RunError when the folder is no run.
    """
    check_is_run(folder)
    return _Check(folder, Verification(str(folder))).run(progress)


class _Check:
    def __init__(self, folder: Path, found: Verification) -> None:
        self.folder, self.found = folder, found
        self.manifests: dict[Path, Manifest | None] = {}  # by folder of the stage; None for a damaged one

    def run(self, progress: Progress) -> Verification:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_symlink() or path.is_file())
        paths = [path for path in paths if not any(map(is_temporary, [path, *path.relative_to(self.folder).parents]))]
        for path in paths:
            if path.name == MANIFEST and not set(path.relative_to(self.folder).parts) & {*_MODELS, "checkpoints"}:
                self.manifests[path.parent] = self._readable(path, partial(self._manifest, path.parent))
        megabytes = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
        with progress.task("verify", megabytes, "MB") as task:
            self._documents()
            for stage, manifest in self.manifests.items():
                self._stage(stage, manifest, task)
            for path in paths:
                self._other(path, task)
        return self.found

    def _readable(self, path: Path, read: Callable[[], _T]) -> _T | None:
        """What ``read`` gives; None, and a problem of ``path``, when it is damaged."""
        try:
            return read()
        except (RunError, OSError) as error:
            text = str(error).removeprefix(f"{path}: ")
            self._problem(path, "damaged", text)
            return None

    def _problem(self, path: Path, state: Literal["changed", "missing", "damaged", "added"], text: str) -> None:
        self.found.problems.append(Problem(str(path.relative_to(self.folder)), state, text))

    def _manifest(self, stage: Path) -> Manifest:
        manifest = read_manifest(stage)
        if manifest.stage != (name := str(stage.relative_to(self.folder))):
            raise RunError(
                f"{stage / MANIFEST}: is of stage {manifest.stage!r:.60}, not {name}; delete it and run again"
            )
        return manifest

    # Files with a form -----------------------------------------------------------------------------------------------

    def _documents(self) -> None:
        """Files that have no digest: they are read as a report reads them."""
        folder = self.folder
        self._readable(folder / "recipe.json", lambda: read_recipe(folder))
        self._readable(decision_file(folder), lambda: read_best(folder))
        results = folder / "results.json"
        if results.is_file():
            self._readable(results, lambda: from_json(RunResults, read_json(results), results))
        steps = self._log(folder / "metrics.jsonl")
        for (stage, step), count in steps.items():
            if count > 1:
                self._problem(folder / "metrics.jsonl", "damaged", f"has step {step} of {stage} {count} times")
        lines = Counter(stage for stage, _ in steps)
        for place, manifest in self.manifests.items():
            if manifest is not None and "learning_rate" in manifest.facts:  # a stage that trained
                name, expected = str(place.relative_to(folder)), manifest.facts.get("steps")
                if lines[name] != expected and not (folder / "metrics.jsonl").is_file():
                    text = "is gone, with the steps of finished stages; the weights do not depend on them"
                    self._problem(folder / "metrics.jsonl", "missing", text)
                    break
                if lines[name] != expected:
                    text = f"has {lines[name]} of {expected} steps of {name}; the weights do not depend on them"
                    self._problem(folder / "metrics.jsonl", "damaged", text)
        for place in self.manifests:
            self._log(place / "samples.jsonl")

    def _log(self, path: Path) -> Counter[tuple[str, int]]:
        """How many lines each step of each stage has."""
        steps: Counter[tuple[str, int]] = Counter()
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else [], 1):
            try:
                row = orjson.loads(line)
                steps[str(row["stage"]), int(row["step"])] += 1
            except (ValueError, KeyError, TypeError):
                self._problem(path, "damaged", f"line {number} is no step; the next start drops it")
        return steps

    # Files with a digest ---------------------------------------------------------------------------------------------

    def _stage(self, stage: Path, manifest: Manifest | None, task: ProgressTask) -> None:
        if manifest is None:
            return
        whole = 0
        for name, written in manifest.present.items():
            path = stage / name
            if path.is_symlink():
                self._problem(path, "changed", "is a link, and the run wrote none")
            elif not path.is_file():
                self._problem(path, "missing", "is gone; the next start makes it again")
            elif path.stat().st_size != written.bytes or digest_file(path, task) != written.sha256:
                self._problem(path, "changed", "is not what the run wrote; delete it, and the next start makes it anew")
            else:
                whole += 1
                self.found.bytes += written.bytes
        for measured in manifest.measured:
            if not (path := self.folder / measured / MANIFEST).is_file():
                text = f"is gone, and the model it is made from was deleted; restore it, or delete {stage / MANIFEST}"
                self._problem(path, "missing", text)
        self.found.stages[str(stage.relative_to(self.folder))] = whole
        self.found.files += whole

    def _other(self, path: Path, task: ProgressTask) -> None:
        """A file that no manifest names: of unfinished work, or of somebody else."""
        name = str(path.relative_to(self.folder))
        stage = next((place for place in path.parents if place in self.manifests), None)
        manifest = self.manifests[stage] if stage else None
        if path.name == MANIFEST and path.parent in self.manifests:
            return
        if stage and manifest and str(path.relative_to(stage)) in manifest.files:
            return
        if name in _WITHOUT_DIGEST or name.startswith(_OPEN_ENDED) or path.name in _LOGS or name in (BEST, OLD_BEST):
            return
        if self._unfinished(path):
            task.advance(path.stat().st_size / 1e6)
        elif path.is_symlink() or (stage and manifest and self._is_loaded(path, stage)):
            self._problem(path, "added", "the run did not write it, and would read it; move it away")
        elif (stage and manifest) or name.split("/")[0] not in _STAGES:
            self.found.foreign.append(name)

    def _unfinished(self, path: Path) -> bool:
        """Whether a file is a checkpoint's or a shard, which are checked as a whole."""
        if path.parent.parent.parent.name == "checkpoints":
            if path.name == "checkpoint.json" or not (path.parent / "checkpoint.json").is_file():
                self.found.unfinished += self._readable(path, lambda: self._checkpoint(path.parent)) is not None
            return True
        if path.parent.name in ("shards", "rounds") and path.suffix == ".jsonl":
            self.found.unfinished += self._readable(path, lambda: check_shard(path)) is not None
            return True
        return False

    @staticmethod
    def _checkpoint(folder: Path) -> CheckpointFacts:
        facts = read_checkpoint(folder)
        check_inputs(folder, facts, folder.parent.name)
        return facts

    @staticmethod
    def _is_loaded(path: Path, stage: Path) -> bool:
        """Whether a model would be loaded with this file."""
        inside = path.relative_to(stage).parts[0] in _MODELS
        return inside and path.suffix.lower() in LOADED and not is_note(path.name)
