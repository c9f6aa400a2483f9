"""Ratios of speed between spintune and its peers, with their noise, and whether one has fallen since it was accepted.

A ratio is the median time of a peer by the median time of spintune, so that more is better. Its noise is half of what
it could differ by, had other runs than these been the typical ones: the square root of the peer's longest run by its
shortest, times spintune's longest by its shortest, less 1. It is never below :data:`LEAST`, and :data:`ONE_RUN` where
there was one run. A ratio is slower or faster if it differs from the accepted one by more than both noises together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

LEAST = 0.03
"""Noise: between two sittings of an unchanged program on a quiet machine."""
ONE_RUN = 0.15
"""Noise of a ratio of single runs, see docs/lab/benchmarks.md."""
Times = list[float]


@dataclass(frozen=True)
class Ratio:
    """How much faster than a peer, and by how much that may be wrong, as a share of it."""

    ratio: float
    noise: float


@dataclass(frozen=True)
class Comparison:
    """A ratio to be found in a benchmark's results. ``times`` gives the peer's runs and spintune's, in seconds."""

    name: str
    script: str
    times: Callable[[Any], tuple[Times, Times]]


def _training(task: str, seconds: Callable[[Any], float]) -> Callable[[Any], tuple[Times, Times]]:
    def times(results: Any) -> tuple[Times, Times]:
        runs = {one["name"]: one["runs"] for one in results["tasks"][task]["contestants"]}
        return [seconds(run) for run in runs["TRL tuned"]], [seconds(run) for run in runs["spintune"]]

    return times


def _step(run: Any) -> float:
    return median(run["seconds"])


def _scoring(run: Any) -> float:
    return float(run["score_seconds"])


def _contest(peer: str, key: str) -> Callable[[Any], tuple[Times, Times]]:
    return lambda results: tuple(results["contestants"][name][key] for name in (peer, "spintune"))


def _likelihood(case: str) -> Callable[[Any], tuple[Times, Times]]:
    return lambda results: tuple(results["cases"][case]["all_seconds"][name] for name in ("hflm", "spintune"))


def _first_step(time_of: str) -> Callable[[Any], tuple[Times, Times]]:
    return lambda results: (results["import_seconds"], [run["SFT"] for run in results[time_of]])


def _help(results: Any) -> tuple[Times, Times]:
    return results["import_seconds"], results["help_seconds"]


COMPARISONS = (
    Comparison("SFT step beside TRL", "training", _training("sft", _step)),
    Comparison("SPIN step beside TRL", "training", _training("spin", _step)),
    Comparison("scoring beside TRL", "training", _training("spin", _scoring)),
    Comparison("scoring and step beside TRL", "training", _training("spin", lambda run: _scoring(run) + _step(run))),
    Comparison("generation beside transformers", "generation", _contest("generate", "all_seconds")),
    Comparison("generation beside CTranslate2", "generation", _contest("ctranslate2", "all_seconds")),
    Comparison("generation beside llama.cpp", "generation", _contest("llama_cpp", "all_seconds")),
    Comparison("an iteration beside TRL and generate", "pipeline", _contest("trl", "all_whole")),
    Comparison("an iteration beside the authors' algorithm", "pipeline", _contest("authors", "all_whole")),
    Comparison("options beside lm-eval", "likelihood", _likelihood("text")),
    Comparison("options behind exemplars beside lm-eval", "likelihood", _likelihood("shots")),
    Comparison("letters behind exemplars beside lm-eval", "likelihood", _likelihood("letters")),
    Comparison("first step beside importing torch", "startup", _first_step("first")),
    Comparison("first step, data seen before, beside importing torch", "startup", _first_step("again")),
    Comparison("--help beside importing torch", "startup", _help),
)
"""The ratios that README.md and docs/lab name, and start-up beside the least that training with torch waits for."""


def ratio_of(peer: Times, ours: Times) -> Ratio:
    """The ratio of two contestants' runs."""
    fewest = min(len(peer), len(ours))
    spread = (max(peer) / min(peer) * max(ours) / min(ours)) ** 0.5 - 1
    return Ratio(median(peer) / median(ours), max(LEAST, spread) if fewest > 1 else ONE_RUN)


def measured(results: Mapping[str, Any]) -> dict[str, Ratio]:
    """The ratios in the results of benchmarks, by name; a peer that did not run is left out."""
    found = {}
    for comparison in COMPARISONS:
        try:
            found[comparison.name] = ratio_of(*comparison.times(results[comparison.script]))
        except KeyError:
            continue
    return found


def verdict(now: Ratio, accepted: Ratio | None) -> str:
    """ "same", "faster" or "SLOWER" than what was accepted; "new here" if nothing was."""
    if accepted is None:
        return "new here"
    allowed = 1 + now.noise + accepted.noise
    if now.ratio * allowed < accepted.ratio:
        return "SLOWER"
    return "faster" if now.ratio > accepted.ratio * allowed else "same"


def read_accepted(file: Path, kind: str) -> dict[str, Ratio]:
    """What was accepted on this kind of machine."""
    kinds = json.loads(file.read_text()) if file.is_file() else {}
    return {name: Ratio(**facts) for name, facts in kinds.get(kind, {}).items()}


def write_accepted(file: Path, kind: str, ratios: Mapping[str, Ratio]) -> None:
    """Accepts these ratios for this kind of machine. What was accepted of others stays."""
    kinds = json.loads(file.read_text()) if file.is_file() else {}
    rounded = {name: Ratio(round(one.ratio, 3), round(one.noise, 3)) for name, one in ratios.items()}
    kinds[kind] = kinds.get(kind, {}) | {name: asdict(one) for name, one in rounded.items()}
    file.write_text(json.dumps(kinds, indent=1, sort_keys=True) + "\n")


def table(now: Mapping[str, Ratio], accepted: Mapping[str, Ratio]) -> list[str]:
    """Lines of Markdown: each ratio beside the accepted one, with its verdict. What was not measured comes last."""
    lines = ["| spintune is x times as fast | now | accepted | |", "| --- | --- | --- | --- |"]
    for name, one in now.items():
        lines.append(f"| {name} | {_text(one)} | {_text(accepted.get(name))} | {verdict(one, accepted.get(name))} |")
    absent = [name for name in accepted if name not in now]
    return lines + [f"| {name} | | {_text(accepted[name])} | not measured |" for name in absent]


def _text(ratio: Ratio | None) -> str:
    return f"{ratio.ratio:.2f} ± {100 * ratio.noise:.0f} %" if ratio else ""
