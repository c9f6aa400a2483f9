"""A model of a run as a GGUF file, checked against the model before the file appears."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from spintune.errors import ModelError, RecipeError
from spintune.export.card import CardFields, base_model_id
from spintune.export.gguf.checking import MAX_PROMPTS, PROMPTS, GgufCheck, can_check, check_gguf
from spintune.export.gguf.quantizing import QUANTIZED, need_quantizer, quantize_file
from spintune.export.gguf.tensors import KINDS, GgufType
from spintune.export.gguf.writing import GgufMetadata, check_folder, write_gguf
from spintune.export.source import ExportSource, export_source, refuse_existing
from spintune.progress import Progress, Silent
from spintune.records import Message
from spintune.report.facts import RunFacts
from spintune.storage import atomic_folder
from spintune.version import __version__

_OTHER_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_BEFORE_QUANTIZING: GgufType = "f32"  # so that nothing is rounded twice


@dataclass(frozen=True)
class GgufExport:
    """A GGUF file of a run.

    Attributes:
        place: of the file, or of the folder around it.
        check: None where it was not asked for, or llama-cpp-python is not installed.
    """

    model: str
    place: Path
    kind: str
    check: GgufCheck | None


def gguf_type(name: str) -> str:
    """A type of GGUF by its name, or by that of torch. Raises RecipeError for others."""
    kind = _OTHER_NAMES.get(name, name.lower())
    if kind not in (*KINDS, *QUANTIZED):
        raise RecipeError(f"--dtype {name!r:.40} is no type of GGUF; take {', '.join((*KINDS, *QUANTIZED))}")
    return kind


def export_gguf(
    folder: Path,
    out: Path,
    name: str | None = None,
    progress: Progress = Silent(),  # noqa: B008
    dtype: str = "f16",
    fields: CardFields = CardFields(),  # noqa: B008
    check: bool = True,
) -> GgufExport:
    """Writes a model of a run as one GGUF file, for llama.cpp and what is built on it.

    The file appears when it is complete and was found to compute as the model does. ``check`` False, or an environment
    without llama-cpp-python, leaves the comparison out.

    Raises ModelError for a model that cannot be written or a file that computes otherwise, MissingExtraError for types
    that llama.cpp alone writes where it is not installed, RunError and StorageError as
    :func:`~spintune.export.model.export_model`.
    """
    kind = gguf_type(dtype)
    source = export_source(folder, name)
    refuse_existing(out)
    prepare(source, kind, progress)
    with atomic_folder(out, _place_file) as partial:
        found = write_checked(source, partial / out.name, kind, progress, fields, check)
    return GgufExport(source.name, out, kind, found)


def _place_file(temporary: Path, path: Path) -> None:
    refuse_existing(path)
    (temporary / path.name).rename(path)
    temporary.rmdir()


def prepare(source: ExportSource, kind: str, progress: Progress) -> None:
    """Finds out all that can be wrong before anything is written."""
    if kind in QUANTIZED:
        need_quantizer(kind)
    try:
        check_folder(source.folder)
    except ModelError as error:
        raise ModelError(f"{source.run.folder}: {error}") from error
    source.check(progress)


def write_checked(
    source: ExportSource, file: Path, kind: str, progress: Progress, fields: CardFields, check: bool
) -> GgufCheck | None:
    """Writes the file of a model, and compares it with the model where that is asked for and possible."""
    metadata = _metadata(source, fields)
    if kind in QUANTIZED:
        whole = file.with_name(f"{file.name}.{_BEFORE_QUANTIZING}")
        write_gguf(source.folder, whole, _BEFORE_QUANTIZING, metadata, progress)
        quantize_file(whole, file, kind, progress)
        whole.unlink()
    else:
        write_gguf(source.folder, file, cast(GgufType, kind), metadata, progress)
    if not (check and can_check()):
        return None
    return check_gguf(file, source.folder, kind, conversations_of(source.run), progress)


def _metadata(source: ExportSource, fields: CardFields) -> GgufMetadata:
    run = source.run
    base = str(run.recipe["model"])
    return GgufMetadata(
        f"{run.name} {source.name}",
        f"{base}, trained by spintune {__version__}: {source.name} of the run {run.name}",
        fields.license,
        base_model_id(base),
        fields.languages,
        ("spintune", *fields.tags),
    )


def conversations_of(run: RunFacts) -> Sequence[Sequence[Message]]:
    """Held-out prompts, those that did not choose the model first; built-in ones where the run has none."""
    plain = [one for one in run.heldout if not one.tools and all(_is_plain(turn) for turn in one.prompt)]
    ordered = sorted(plain, key=lambda one: one.id in run.selection)
    return [one.prompt for one in ordered[:MAX_PROMPTS]] or list(PROMPTS)


def _is_plain(turn: Message) -> bool:
    """Whether the text of a turn is all of it, and holds nothing that looks like a control token."""
    marks = re.search(r"<[|/\w]|\[/?INST\]", turn.content)
    return turn.role in ("system", "user", "assistant") and not (turn.reasoning or turn.tool_calls or marks)
