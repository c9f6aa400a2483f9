"""Writes the page: one HTML file that needs nothing else, from one run or several."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from spintune.report import colleagues, curves, figures, findings, model_tables, movement, rates, stages, table
from spintune.report.examples import embedded, examples
from spintune.report.facts import RunFacts
from spintune.report.reading import read_run
from spintune.storage import atomic_file, remove_abandoned
from spintune.version import __version__


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run folder or several. Returns the file.

    Args:
        out: the file; by default ``report.html`` in the run folder, or ``comparison.html`` in the first of several.

    Raises RunError for a folder that is no run or is damaged, StorageError when the file cannot be written.
    """
    path = out or folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    page = render([read_run(folder) for folder in folders], path.parent)
    remove_abandoned(path)
    with atomic_file(path) as file:
        file.write(page.encode())
    return path


def render(runs: Sequence[RunFacts], beside: Path | None) -> str:
    """The page of runs, whose links start at ``beside`` (None: no links). The same files give the same page."""
    runs = unique_names(runs)
    browsed = examples(runs)
    return fill(
        "page.html",
        " · ".join(run.name for run in runs),
        asset("script.js"),
        runs=runs,
        beside=beside,
        examples=browsed,
        data=Markup(embedded([one.to_json() for one in browsed])),  # noqa: S704 -- escaped for where it stands
    )


def fill(template: str, title: str, script: str = "", **content: object) -> str:
    """A page of a template that extends ``layout.html``."""
    style = asset("style.css")
    return (
        _environment()
        .get_template(template)
        .render(
            content,
            title=title,
            style=Markup(style),  # noqa: S704 -- our own files
            script=Markup(script),  # noqa: S704
            style_hash=_hash(style),
            script_hash=_hash(script),
            version=__version__,
        )
    )


def fragment(name: str, *content: object) -> str:
    """A piece of a live page: a macro of ``live.html``."""
    return str(getattr(_environment().get_template("live.html").module, name)(*content))


def unique_names(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Runs whose folders have the same name are called by their paths."""
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


# Templates ----------------------------------------------------------------------------------------------------------

_CALLED_BY_TEMPLATES = (
    colleagues.plain_view,
    curves.curves,
    figures.interval_bars,
    findings.belief,
    findings.comparison_notes,
    findings.finding,
    findings.finding_across,
    movement.movement_of_run,
    model_tables.accuracies,
    model_tables.differences,
    model_tables.different_items,
    model_tables.forest,
    model_tables.means,
    model_tables.ratings,
    model_tables.scoreboard,
    model_tables.scores_without_overlaps,
    model_tables.win_rate,
    rates.rates_tried,
    rates.searches_of,
    stages.costs,
    stages.differing,
    stages.files,
    stages.funnel,
    stages.iteration_rows,
    stages.mixture,
    stages.recipe_text,
    stages.seconds_of_work,
    stages.versions,
    table.byte_size,
    table.counted,
    table.duration,
    table.numbered,
)

_NEVER_SHOWN = re.compile("[\0\ud800-\udfff]")
"""No HTML can hold these; the page has U+FFFD in their place."""


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spintune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_whole,
    )
    environment.globals |= {function.__name__: function for function in _CALLED_BY_TEMPLATES}
    environment.filters["prose"] = _prose
    return environment


def _whole(value: object) -> object:
    if isinstance(value, str) and _NEVER_SHOWN.search(value):
        clean = _NEVER_SHOWN.sub("\ufffd", value)
        return Markup(clean) if isinstance(value, Markup) else clean  # noqa: S704 -- as safe as it was
    return value


_HYPHENATED = re.compile(r"\b\w++(?:-\w++)++")


def _prose(text: str) -> Markup:
    """A sentence in which "95 %" and "iterate-2" stay on one line."""
    whole = _HYPHENATED.sub(r'<span class="whole">\g<0></span>', str(escape(text)).replace(" %", "\u00a0%"))
    return Markup(whole)  # noqa: S704 -- escaped above, and no entity holds a hyphen


def asset(name: str) -> str:
    """The text of a file beside this module."""
    return resources.files("spintune.report").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
