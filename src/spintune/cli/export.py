"""The export command: a model of a run as a folder, a GGUF file, a folder for Ollama, or a hub repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from spintune.cli.options import Json, RunModel, print_outcome

if TYPE_CHECKING:
    from spintune.export.card import CardFields
    from spintune.export.gguf.checking import GgufCheck
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
    from spintune.export.card import CardFields
    from spintune.progress_display import open_progress

    fields = CardFields(license, tuple(language or ()), tuple(tag or ()))
    _refuse_useless(to, repo, private, dry_run, adapter)
    with open_progress(json) as progress:
        if to in ("gguf", "ollama"):
            outcome, text = _packed(to == "ollama", run, out, model, dtype, fields, check, progress)
        elif to == "hub":
            outcome, text = _hub(_Upload(repo, private, dry_run), run, out, model, dtype, fields, adapter, progress)
        else:
            outcome, text = _folder(run, out, model, dtype, fields, adapter, progress)
    print_outcome(outcome, text, json)


def _refuse_useless(to: Target, repo: str | None, private: bool, dry_run: bool, adapter: bool) -> None:
    """Raises RecipeError for options that would do nothing."""
    from spintune.errors import RecipeError

    given = {"--repo": repo is not None, "--private": private, "--dry-run": dry_run}
    if to != "hub" and (useless := [name for name, is_given in given.items() if is_given]):
        raise RecipeError(f"{useless[0]} goes with --to hub only; leave it out, or add --to hub")
    if adapter and to in ("gguf", "ollama"):
        raise RecipeError(f"--adapter is for folders and the hub; --to {to} takes the merged model")


def _place(run: Path, model: str | None, out: Path | None, end: str) -> Path:
    """Where to write: as named, or after the run and its model."""
    from spintune.run_models import model_name

    return out or Path(f"{run.resolve().name}-{model_name(run, model)}{end}")


def _folder(
    run: Path,
    out: Path | None,
    model: str | None,
    dtype: str | None,
    fields: CardFields,
    adapter: bool,
    progress: Progress,
) -> tuple[dict[str, object], str]:
    from spintune.export.model import FolderType, export_model

    place = _place(run, model, out, "")
    name = export_model(run, place, model, progress, cast(FolderType, _folder_type(dtype)), fields, adapter)
    what = "the adapter of " if adapter else ""
    return {"model": name, "folder": str(place)}, f"{what}{name} of {run} is in {place}, with its card in README.md"


def _folder_type(dtype: str | None) -> str:
    from spintune.errors import RecipeError

    if dtype is not None and dtype not in _FOLDER_TYPES:
        raise RecipeError(
            f"--dtype {dtype!r:.40} is no type of a folder; take {', '.join(_FOLDER_TYPES)}, or --to gguf"
        )
    return dtype or "float32"


@dataclass(frozen=True)
class _Upload:
    """Where an upload goes, and whether it is only listed."""

    repo: str | None
    private: bool
    dry_run: bool


def _hub(
    upload: _Upload,
    run: Path,
    out: Path | None,
    model: str | None,
    dtype: str | None,
    fields: CardFields,
    adapter: bool,
    progress: Progress,
) -> tuple[dict[str, object], str]:
    """The folder is written first: where ``out`` says, or for the time of the upload."""
    from spintune.export.model import FolderType, export_model
    from spintune.export.push import check_repo, listed, push_folder
    from spintune.record_files import temporary_folder

    repo = check_repo(upload.repo)
    kind = cast(FolderType, _folder_type(dtype))
    with temporary_folder() as scratch:
        place = out or Path(scratch) / "model"
        name = export_model(run, place, model, progress, kind, fields, adapter)
        files = listed(place)
        url = None
        if not upload.dry_run:
            with progress.task(f"upload to {repo}", sum(files.values()) / 1e6, "MB") as task:
                url = push_folder(place, repo, upload.private, f"{name} of {run.resolve().name}")
                task.advance(sum(files.values()) / 1e6)
    outcome = {"model": name, "repo": repo, "private": upload.private, "files": files, "url": url}
    lines = [f"{size:>15,}  {path}" for path, size in files.items()] if upload.dry_run else []
    total = f"{len(files)} files, {sum(files.values()):,} bytes"
    done = f"{total}: this would go to {repo}" if url is None else f"{name} of {run} is at {url} ({total})"
    return outcome, "\n".join([*lines, done])


def _packed(
    ollama: bool,
    run: Path,
    out: Path | None,
    model: str | None,
    dtype: str | None,
    fields: CardFields,
    check: bool,
    progress: Progress,
) -> tuple[dict[str, object], str]:
    from spintune.cli.execution import quiet_libraries
    from spintune.export.ollama import export_ollama
    from spintune.export.packed import export_gguf, gguf_type

    quiet_libraries()
    kind = gguf_type(dtype or "f16")
    place = _place(run, model, out, "-ollama" if ollama else f"-{kind}.gguf")
    write = export_ollama if ollama else export_gguf
    made = write(run, place, model, progress, kind, fields, check)
    outcome = {"model": made.model, "place": str(made.place), "type": kind, "check": _facts(made.check)}
    text = f"{made.model} of {run} is in {made.place} ({kind}); {_told(made.check, check)}"
    if ollama:
        text += f"\nollama create {made.place.name.lower()} -f {made.place / 'Modelfile'}"
    return outcome, text


def _facts(check: GgufCheck | None) -> object:
    from spintune.typed_json import to_json

    return None if check is None else to_json(check)


def _told(check: GgufCheck | None, wanted: bool) -> str:
    if check is not None:
        return str(check)
    if not wanted:
        return "not compared with the model (--no-check)"
    return "not compared with the model, which needs llama.cpp: pip install 'spintune[gguf]'"
