"""Commands over finished runs: compare, report, pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from spintune.cli.options import Json, print_json, print_outcome

T = TypeVar("T", str, Path)


def compare(
    names: Annotated[
        list[str],
        typer.Argument(help="Run folders (all their models), RUN:MODEL, or files of answers.", metavar="NAME..."),
    ],
    against: Annotated[str | None, typer.Option(help="Compare each only with this one, as it is named here.")] = None,
    references: Annotated[
        Path | None, typer.Option(help="Reference answers, for files of answers that have none.")
    ] = None,
    level: Annotated[float, typer.Option(help="Of significance, over all comparisons.", min=0.0001, max=0.5)] = 0.05,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every comparison, with p-values and what would have been found.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare models on the same items: one sentence, the differences that were found, and with --all every test."""
    from dataclasses import replace

    from spintune.errors import RecipeError
    from spintune.evaluation.comparison import compare as compare_tables
    from spintune.evaluation.contenders import selection_notes, tables
    from spintune.typed_json import to_json

    found = tables(_without_sweep_files(names), references)
    if len(found) < 2:
        raise RecipeError(f"one model ({', '.join(found)}) has nothing to be compared with; name another run or model")
    if against is not None and against not in found:
        raise RecipeError(f"--against {against} is none of {', '.join(found)}")
    comparison = compare_tables(found, level, against)
    notes = (*comparison.notes, *selection_notes(names), *_sweep_notes(names))
    comparison = replace(comparison, notes=notes)
    if json:
        print_json(to_json(comparison))
    else:
        from spintune.console import print_comparison

        print_comparison(comparison, everything)


def _without_sweep_files(names: list[T]) -> list[T]:
    """``SWEEP/*`` names the runs of a sweep, and two files beside them."""

    def is_own(path: Path) -> bool:
        return path.name in ("sweep.json", "report.html", ".sweep.lock") and path.with_name("sweep.json").is_file()

    return [name for name in names if not is_own(Path(name))]


def _sweep_notes(names: list[str]) -> Iterator[str]:
    """Where runs of a sweep are compared with each other over seeds."""
    from spintune.evaluation.contenders import named_contender

    parents = [named_contender(name).path.parent for name in names]
    for sweep in dict.fromkeys(one for one in parents if parents.count(one) > 1 and (one / "sweep.json").is_file()):
        yield f"{sweep.name} is a sweep: its report.html and sweep.json compare its settings over seeds"


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: report.html in the run folder.")] = None,
    pdf: Annotated[
        Path | None, typer.Option(help="Also print the part for colleagues as PDF, by an installed Chromium.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw it as a PNG image.")] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side."""
    from spintune.report.chromium import write_pdf, write_png
    from spintune.report.page import write_report

    path = write_report(_without_sweep_files(runs), out)
    files = {"file": path}
    for kind, file, write in (("pdf", pdf, write_pdf), ("png", png, write_png)):
        if file:
            write(path, file)
            files[kind] = file
    told = {name: str(file) for name, file in files.items()}
    print_outcome(told, "\n".join(told.values()), json)


def pairs(
    run: Annotated[Path, typer.Argument(help="A run folder with self-play in it.")],
    out: Annotated[
        Path,
        typer.Argument(help="The file to write, JSON lines of prompt, chosen and rejected; it must not exist yet."),
    ],
    iteration: Annotated[int | None, typer.Option(help="Only this iteration; all by default.", min=1)] = None,
    json: Json = False,
) -> None:
    """Write a run's pairs of real and generated answers as preference data, for TRL, LLaMA-Factory and others."""
    from spintune.export.pairs import export_pairs

    found = export_pairs(run, out, iteration)
    text = f"{found.written} pairs in {out}"
    if found.cut:
        text += f"; {found.cut} skipped, whose generated answer was cut"
    if found.unreadable:
        text += f"; {found.unreadable} skipped, whose reasoning or calls of tools cannot be told from the content"
    if found.identical:
        text += f"; {found.identical} skipped, whose generated answer equals the real one"
    skipped = found.cut + found.unreadable + found.identical
    left_out = {"left_out": skipped, "unreadable": found.unreadable, "identical": found.identical}
    print_outcome({"pairs": found.written, **left_out, "file": str(out)}, text, json)
