"""The parts of a live page, as HTML. Figures, tables and answers are drawn by the templates of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spintune.progress_display import about_text
from spintune.report.curves import curves
from spintune.report.examples import embedded, examples
from spintune.report.facts import RunFacts
from spintune.report.findings import finding
from spintune.report.page import asset, fill, fragment
from spintune.watch.resources import Resources
from spintune.watch.samples import Samples
from spintune.watch.stages import StageList

PARTS = ("head", "nav", "stages", "samples", "curves", "rest")


@dataclass(frozen=True)
class ListedRun:
    """A run of a sweep's index."""

    name: str
    link: str
    text: str


def head(name: str, state: str, text: str, run: RunFacts | None = None) -> str:
    """The name of a run, how it stands, and, when there is anything, what it found."""
    answer = finding(run) if run else None
    told = run is not None and (run.best is not None or bool(answer and answer.ranking) or not run.missing)
    return fragment("head", name, state, text, run, answer, told)


def stages(found: StageList, resources: Resources | None) -> str:
    """The stages, and what the run takes of the machine."""
    return fragment("stages", found, resources, about_text)


def samples(found: Samples | None) -> str:
    """The newest answers."""
    return fragment("samples", found)


def live_curves(run: RunFacts) -> str:
    """The curves by step."""
    return fragment("curve_part", curves(run, by_iterate=False))


def all_curves(run: RunFacts) -> str:
    """The curves as the report has them."""
    return fragment("whole_curves", run)


def rest(run: RunFacts) -> str:
    """All other sections of the report."""
    sets = examples([run])
    data = Markup(embedded([one.to_json() for one in sets]))  # noqa: S704 -- escaped for where it stands
    return fragment("rest", run, sets, data)


def links(shown: Mapping[str, str]) -> str:
    """Links to the sections that there are."""
    return fragment("links", "".join(shown.get(name, "") for name in PARTS if name != "nav"))


def sweep_head(name: str, text: str, conclusion: str | None) -> str:
    """What a sweep found so far."""
    return fragment("sweep_head", name, text, conclusion)


def sweep_runs(runs: Sequence[ListedRun]) -> str:
    """The index of a sweep's runs."""
    return fragment("sweep_runs", runs)


def whole_page(title: str, shown: Mapping[str, str]) -> str:
    """The page that holds the parts and follows the server."""
    safe = {name: Markup(shown.get(name, "")) for name in PARTS}  # noqa: S704 -- made by the templates
    script = asset("script.js") + asset("watch.js")
    return fill("watch.html", title, script, shown=safe, live=True)


def left_text(seconds: float, at_least: bool) -> str:
    """The time that a run still takes, in words."""
    return f"{'at least' if at_least else 'about'} {about_text(seconds)} left"
