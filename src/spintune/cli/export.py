"""The export command: a model of a run as a folder, a GGUF file, a folder for Ollama, or a hub repository."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from spintune.cli.options import Json, RunModel, print_outcome

if TYPE_CHECKING:
    from spintune.export.card import CardFields
    from spintune.export.gguf.checking import GgufCheck
    from spintune.export.model import FolderType
    from spintune.progress import Progress

Target = Literal["folder", "gguf", "ollama", "hub"]
_FOLDER_TYPES = ("float32", "bfloat16", "float16")


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Argument(
            help="What to write; it must not exist yet. Default: named after run and model, in this folder."
        ),
    ] = None,
    to: Annotated[
        Target,
        typer.Option(
            help="folder: Hugging Face's, with a model card. gguf: one file for llama.cpp. ollama: a folder with a "
            "GGUF file and a Modelfile. hub: the folder, uploaded."
        ),
    ] = "folder",
    model: RunModel = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the weights. Folders: float32 (default: as trained), bfloat16 or float16. GGUF: f16 "
            "(default), bf16, f32 or q8_0; through llama.cpp also q4_k_m and other K-quants."
        ),
    ] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Of a LoRA run: the adapter alone, not merged.")] = False,
    license: Annotated[str | None, typer.Option(help="License on the card, as the hub calls it: apache-2.0.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="A language on the card: en. May be repeated.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A further tag on the card. May be repeated.")] = None,
    repo: Annotated[str | None, typer.Option(help="With --to hub: OWNER/NAME of the repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --to hub: make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --to hub: list what would be uploaded, with sizes; no network.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="GGUF: compare the file with the model in llama.cpp.")
    ] = True,
    json: Json = False,
) -> None:
    """Write a model of a run for use elsewhere: a Hugging Face folder, GGUF, Ollama, or the hub."""
    from spintune.errors import RecipeError
    from spintune.export.card import CardFields
    from spintune.progress_display import open_progress

    _refuse_useless(to, repo, private, dry_run, adapter)
    if not check and to in ("folder", "hub"):
        raise RecipeError(f"--no-check is for GGUF files; --to {to} compares nothing, so leave it out")
    with open_progress(json) as progress:
        fields = CardFields(license, tuple(language or ()), tuple(tag or ()))
        wanted = _Export(run, out, model, dtype, fields, progress)
        if to in ("gguf", "ollama"):
            outcome, text = wanted.packed(to == "ollama", check)
        elif to == "hub":
            outcome, text = wanted.hub(repo, private, dry_run, adapter)
        else:
            outcome, text = wanted.folder(adapter)
    print_outcome(outcome, text, json)


def _refuse_useless(to: Target, repo: str | None, private: bool, dry_run: bool, adapter: bool) -> None:
    """Raises RecipeError for options that would do nothing."""
    from spintune.errors import RecipeError

    given = {"--repo": repo is not None, "--private": private, "--dry-run": dry_run}
    if to != "hub" and (useless := [name for name, is_given in given.items() if is_given]):
        raise RecipeError(f"{useless[0]} goes with --to hub only; leave it out, or add --to hub")
    if adapter and to in ("gguf", "ollama"):
        raise RecipeError(f"--adapter is for folders and the hub; --to {to} takes the merged model")


@dataclass(frozen=True)
class _Export:
    """What every target is told. Each method writes one, and gives the outcome for machines and in words."""

    run: Path
    out: Path | None
    model: str | None
    dtype: str | None
    fields: CardFields
    progress: Progress

    def folder(self, adapter: bool) -> tuple[dict[str, object], str]:
        """A Hugging Face folder."""
        place = self._place("")
        name = self._write_folder(place, self._folder_type(), adapter)
        told = f"{'the adapter of ' * adapter}{name} of {self.run} is in {place}, with its card in README.md"
        return {"model": name, "folder": str(place)}, told

    def hub(self, repo: str | None, private: bool, dry_run: bool, adapter: bool) -> tuple[dict[str, object], str]:
        """A repository. The folder is written first: where ``out`` says, or for the time of the upload."""
        from spintune.export.push import check_repo, listed
        from spintune.record_files import temporary_folder

        repo, kind = check_repo(repo), self._folder_type()
        with temporary_folder() as scratch:
            place = self.out or Path(scratch) / "model"
            name = self._write_folder(place, kind, adapter)
            files = listed(place)
            url = None
            if not dry_run:
                with self.progress.task(f"upload to {repo}", sum(files.values()) / 1e6, "MB") as task:
                    url = self._upload(place, repo, private, name, task.advance)
        outcome = {"model": name, "repo": repo, "private": private, "files": files, "url": url}
        lines = [f"{size:>15,}  {path}" for path, size in files.items()] if dry_run else []
        total = f"{len(files)} files, {sum(files.values()):,} bytes"
        done = f"{total}: this would go to {repo}" if url is None else f"{name} of {self.run} is at {url} ({total})"
        return outcome, "\n".join([*lines, done])

    def _upload(self, place: Path, repo: str, private: bool, name: str, count: Callable[[float], None]) -> str:
        from spintune.errors import StorageError
        from spintune.export.push import push_folder

        try:
            return push_folder(place, repo, private, f"{name} of {self.run.resolve().name}", count)
        except StorageError as error:
            told = f"{error}; {place} is written" if self.out else str(error)
            if self.out and not private:  # a public repository would publish what is meant to be private
                told += f", and goes there by: hf upload {repo} {quote(str(place))}"
            raise StorageError(told) from error

    def packed(self, ollama: bool, check: bool) -> tuple[dict[str, object], str]:
        """A GGUF file, or a folder with one for Ollama."""
        from spintune.cli.execution import quiet_libraries
        from spintune.export.ollama import export_ollama, ollama_name
        from spintune.export.packed import export_gguf, gguf_type

        quiet_libraries()
        kind = gguf_type(self.dtype or "f16")
        place = self._place("-ollama" if ollama else f"-{kind}.gguf")
        write = export_ollama if ollama else export_gguf
        made = write(self.run, place, self.model, self.progress, kind, self.fields, check)
        outcome = {"model": made.model, "place": str(made.place), "type": kind, "check": _facts(made.check)}
        text = f"{made.model} of {self.run} is in {made.place} ({kind}); {_told(made.check, check)}"
        if ollama:
            text += f"\nollama create {ollama_name(made.place)} -f {quote(str(made.place / 'Modelfile'))}"
        return outcome, text

    def _place(self, end: str) -> Path:
        """Where to write: as named, or after the run and its model."""
        from spintune.run_models import model_name

        return self.out or Path(f"{self.run.resolve().name}-{model_name(self.run, self.model)}{end}")

    def _folder_type(self) -> FolderType:
        from spintune.errors import RecipeError

        if self.dtype is not None and self.dtype not in _FOLDER_TYPES:
            raise RecipeError(
                f"--dtype {self.dtype!r:.40} is no type of a folder; take {', '.join(_FOLDER_TYPES)}, or --to gguf"
            )
        return cast("FolderType", self.dtype or "float32")

    def _write_folder(self, place: Path, kind: FolderType, adapter: bool) -> str:
        from spintune.export.model import export_model

        return export_model(self.run, place, self.model, self.progress, kind, self.fields, adapter)


def _facts(check: GgufCheck | None) -> object:
    from spintune.typed_json import to_json

    return None if check is None else to_json(check)


def _told(check: GgufCheck | None, wanted: bool) -> str:
    if check is not None:
        return str(check)
    if not wanted:
        return "not compared with the model (--no-check)"
    return "not compared with the model, which needs llama.cpp: pip install 'spintune[gguf]'"
