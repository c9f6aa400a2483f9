"""Which curves a run has: SFT by step, self-play by step and by iterate, further SFT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spintune.report.facts import Facts, RunFacts
from spintune.report.figures import Figure, Series, draw
from spintune.report.findings import NLL, contenders, estimate, measured
from spintune.run_folder import BASELINE

Points = list[tuple[float, float]]

NATS = "nats an answer"


@dataclass(frozen=True)
class FigureGroup:
    """Figures that belong together."""

    title: str
    text: str
    figures: tuple[Figure, ...]


def curves(run: RunFacts) -> list[FigureGroup]:
    """The groups of a run that have anything to show, in the order of its stages."""
    groups = [
        FigureGroup("Supervised fine-tuning", "", _sft(run, "sft")),
        FigureGroup(
            "Self-play, step by step",
            "On training pairs. A dot at the end of an iteration is the same measured on held-out pairs.",
            _steps(run),
        ),
        FigureGroup("Self-play, iterate by iterate", "On held-out prompts.", _iterates(run)),
        FigureGroup(f"Further SFT instead of self-play ({BASELINE})", "", _sft(run, "spin/baseline-sft")),
    ]
    return [group for group in groups if group.figures]


def _there(*figures: Figure | None) -> tuple[Figure, ...]:
    return tuple(figure for figure in figures if figure)


def _column(rows: Sequence[Facts], name: str, offset: float = 0) -> Points:
    return [(row["step"] + offset, _number(row[name])) for row in rows if name in row]


def _number(value: float | None) -> float:
    """JSON has null for what is no number; a curve leaves it out."""
    return math.nan if value is None else value


# SFT ----------------------------------------------------------------------------------------------------------------


def _sft(run: RunFacts, stage: str) -> tuple[Figure, ...]:
    rows, heldout = run.metrics.get(stage, []), run.metrics.get(f"{stage}/heldout", [])
    losses = [Series("training", _column(rows, "loss")), Series("held out", _column(heldout, "loss"), 1, "dots")]
    return _there(
        draw("Loss", "nats a token", losses),
        draw("Gradient norm", "before clipping", [Series("gradient norm", _column(rows, "grad_norm"))]),
        draw("Learning rate", "", [Series("learning rate", _column(rows, "learning_rate"))]) if rows else None,
    )


# Self-play by step --------------------------------------------------------------------------------------------------


def _steps(run: RunFacts) -> tuple[Figure, ...]:
    """Iterations one behind the other on one axis of steps."""
    stages = [f"spin/iterate-{number}" for number in range(1, run.iterations + 1)]
    begins, ends, offset = [], [], 0.0
    for stage in stages:
        rows = run.metrics.get(stage, [])
        begins.append(offset)
        offset += rows[-1]["step"] if rows else 0
        ends.append(offset)
    parts = [(begin, str(number)) for number, begin in enumerate(begins, 1) if stages]
    if parts:
        parts[0] = (parts[0][0], "iteration 1")

    def trained(name: str) -> Points:
        columns = [
            _column(run.metrics.get(stage, []), name, begin) for stage, begin in zip(stages, begins, strict=True)
        ]
        return [point for column in columns for point in column]

    def heldout(name: str) -> Points:
        rows = [(end, run.metrics.get(f"{stage}/heldout", [])) for stage, end in zip(stages, ends, strict=True)]
        return [(end, _number(found[-1][name])) for end, found in rows if found and name in found[-1]]

    def both(
        title: str, unit: str, *columns: tuple[str, str], level: float | None = None, note: str = ""
    ) -> Figure | None:
        several = len(columns) > 1
        series = []
        for slot, (name, label) in enumerate(columns):
            series.append(Series(label if several else "training", trained(name), slot))
        for slot, (name, label) in enumerate(columns):
            told = f"{label}, held out" if several else "held out"
            series.append(Series(told, heldout(name), slot if several else 1, "dots"))
        return draw(title, unit, series, parts=parts, level=level, note=note)

    losses = run.recipe["spin"]["loss"] if run.recipe["spin"] else ""
    start: Any = {}
    if losses == "logistic" and not run.recipe["spin"]["gamma"]:
        start = {"level": math.log(2), "note": "Dashed: ln 2, the loss of a player that equals its opponent."}
    return _there(
        both("Loss", "a pair", ("loss", "loss"), **start),
        both("Margin r − r′", NATS, ("margin", "margin")),
        both(
            "Accuracy",
            "share of pairs with a margin above 0",
            ("accuracy", "accuracy"),
            level=0.5,
            note="Dashed: what chance gets.",
        ),
        both("Log-ratios to the opponent", NATS, ("real_ratio", "r, real"), ("generated_ratio", "r′, generated")),
        both("Log-probabilities", NATS, ("real_logprob", "real"), ("generated_logprob", "generated")),
        draw("Gradient norm", "before clipping", [Series("gradient norm", trained("grad_norm"))], parts=parts),
    )


# By iterate ---------------------------------------------------------------------------------------------------------


def _iterates(run: RunFacts) -> tuple[Figure, ...]:
    if not run.recipe["spin"]:
        return ()
    measured_on = [one for one in contenders([run]) if measured(one, NLL)]
    estimates = [estimate(one, NLL, measured(one, NLL)) for one in measured_on]
    losses = Series(
        "held-out loss",
        [(place, found.mean) for place, found in enumerate(estimates)],
        0,
        "dots",
        [(found.low, found.high) for found in estimates],
    )
    numbers = [n for n in range(1, run.iterations + 1) if run.facts_of(f"spin/iterate-{n}/diagnosis")]
    diagnoses = [run.stages[f"spin/iterate-{number}/diagnosis"].facts for number in numbers]
    names = [f"iterate-{number}" for number in numbers]
    moved = [
        _divergence(diagnoses, "kl_opponent", "to the opponent", 0, -0.06),
        _divergence(diagnoses, "kl_base", "to iterate 0", 1, 0.06),
    ]
    lengths = [
        Series("generated", [(n, facts["answers"]["tokens"]) for n, facts in enumerate(diagnoses)], 0, "dots"),
        Series("real", [(n, facts["real"]["tokens"]) for n, facts in enumerate(diagnoses)], 1, "dots"),
    ]
    return _there(
        draw("Held-out loss", "nats a token, 95 % intervals", [losses], names=[one.label for one in measured_on]),
        draw("KL divergence", f"{NATS}, ± standard error", moved, names=names, level=0.0),
        draw("Length of its answers", "tokens, mean", lengths, names=names),
    )


def _divergence(diagnoses: Sequence[Facts], name: str, label: str, slot: int, aside: float) -> Series:
    """``aside`` keeps the bars of two series apart."""
    found = [(place, facts[name]) for place, facts in enumerate(diagnoses) if facts[name]]
    return Series(
        label,
        [(place + aside, value["mean"]) for place, value in found],
        slot,
        "dots",
        [
            (value["mean"] - (value["standard_error"] or 0.0), value["mean"] + (value["standard_error"] or 0.0))
            for _, value in found
        ],
    )
