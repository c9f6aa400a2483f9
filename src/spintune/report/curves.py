"""Which curves a run has: SFT by step, self-play by step and by iterate, further SFT."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spintune.report.facts import RunFacts
from spintune.report.figures import Figure, Series, draw
from spintune.report.measures import NLL, contenders, estimate, measured
from spintune.results import SftFacts
from spintune.run_folder import BASELINE
from spintune.selfplay.diagnostics import KlEstimate
from spintune.typed_json import JsonObject

Points = list[tuple[float, float]]

NATS = "nats an answer"


@dataclass(frozen=True)
class FigureGroup:
    """Figures that belong together."""

    title: str
    text: str
    figures: tuple[Figure, ...]


def curves(run: RunFacts, by_iterate: bool = True) -> list[FigureGroup]:
    """The groups of a run that have anything to show, in the order of its stages.

    Args:
        by_iterate: also what is measured once for each model, with intervals that take a moment.
    """
    on_pairs = "On training pairs. A dot at the end of an iteration is the same measured on held-out pairs."
    groups = (
        ("Supervised fine-tuning", "", _sft(run, "sft")),
        ("Self-play, step by step", on_pairs, _steps(run)),
        ("Self-play, iterate by iterate", "On held-out prompts.", _iterates(run) if by_iterate else []),
        (f"Further SFT instead of self-play ({BASELINE})", "", _sft(run, "spin/baseline-sft")),
    )
    found = [FigureGroup(title, text, tuple(filter(None, figures))) for title, text, figures in groups]
    return [group for group in found if group.figures]


def _column(rows: Iterable[JsonObject], name: str, offset: float = 0) -> Points:
    """A quantity by step. JSON has null for what is no number; a curve leaves it out."""
    return [(row["step"] + offset, math.nan if row[name] is None else row[name]) for row in rows if name in row]


def _sft(run: RunFacts, stage: str) -> list[Figure | None]:
    rows, heldout = run.metrics.get(stage, []), run.metrics.get(f"{stage}/heldout", [])
    losses = [Series("training", _column(rows, "loss")), Series("held out", _column(heldout, "loss"), 1, "dots")]
    facts = run.facts(stage, SftFacts)
    chosen, note = Points(), ""
    if facts and facts.chosen_by:
        chosen = [point for point in _column(heldout, "loss") if point[0] == facts.kept_step]
        told = f"it has the least loss on the {facts.chosen_by:,} held-out examples that choose"
        note = f"Step {facts.kept_step:,} was kept: {told}."
    return [
        draw("Loss", "nats a token", [*losses, Series("kept", chosen, 2, "dots")], note=note),
        draw("Gradient norm", "before clipping", [Series("gradient norm", _column(rows, "grad_norm"))]),
        draw("Learning rate", "", [Series("learning rate", _column(rows, "learning_rate"))]),
        *_routers(lambda name: _column(rows, name)),
    ]


def _routers(steps: Callable[[str], Points], parts: Sequence[tuple[float, str]] = ()) -> list[Figure | None]:
    """How a mixture of experts spreads its tokens; models without experts have no such columns."""
    load, idle = Series("busiest", steps("expert_load")), Series("idle", steps("experts_idle"))
    even = "Dashed: an even spread."
    return [
        draw("Load of the busiest expert", "relative to an even spread", [load], parts=parts, level=1.0, note=even),
        draw("Experts without a token", "share", [idle], parts=parts),
    ]


# Self-play by step --------------------------------------------------------------------------------------------------


def _steps(run: RunFacts) -> list[Figure | None]:
    """Iterations one after the other on one axis of steps."""
    stages = [f"spin/iterate-{one.number}" for one in run.iterations]
    trained = [run.metrics.get(stage, []) for stage in stages]
    heldout = [run.metrics.get(f"{stage}/heldout", [])[-1:] for stage in stages]
    ends = list(itertools.accumulate(float(rows[-1]["step"]) if rows else 0.0 for rows in trained))
    begins = [0.0, *ends][: len(stages)]
    parts = [(begin, str(number) if number > 1 else "iteration 1") for number, begin in enumerate(begins, 1)]

    def steps(name: str) -> Points:
        return [point for rows, begin in zip(trained, begins, strict=True) for point in _column(rows, name, begin)]

    def at_end(name: str) -> Points:
        return [(end, y) for rows, end in zip(heldout, ends, strict=True) for _, y in _column(rows, name)]

    def both(
        title: str, unit: str, columns: dict[str, str], level: float | None = None, note: str = ""
    ) -> Figure | None:
        """``columns``: names of quantities, and their labels in the legend."""
        lines, dots = [], []
        for slot, (name, label) in enumerate(columns.items()):
            several = len(columns) > 1
            lines.append(Series(label if several else "training", steps(name), slot))
            dots.append(
                Series(f"{label}, held out" if several else "held out", at_end(name), slot if several else 1, "dots")
            )
        return draw(title, unit, [*lines, *dots], parts=parts, level=level, note=note)

    spin = run.recipe["spin"] or {}
    loss = spin.get("loss")
    every = loss if isinstance(loss, list) else [loss]
    equal = set(every) == {"logistic"} and not spin.get("gamma") and not spin.get("reference_mixture")
    ln_2 = "Dashed: ln 2, the loss of a player that equals its opponent." if equal else ""
    pairs = "share of pairs with a margin above 0"
    return [
        both("Loss", "a pair", {"loss": "loss"}, math.log(2) if equal else None, ln_2),
        both("Margin r − r′", NATS, {"margin": "margin"}),
        both("Accuracy", pairs, {"accuracy": "accuracy"}, 0.5, "Dashed: what chance gets."),
        both("Log-ratios to the opponent", NATS, {"real_ratio": "r, real", "generated_ratio": "r′, generated"}),
        both("Log-probabilities", NATS, {"real_logprob": "real", "generated_logprob": "generated"}),
        draw("Gradient norm", "before clipping", [Series("gradient norm", steps("grad_norm"))], parts=parts),
        *_routers(steps, parts),
    ]


# Self-play by iterate -----------------------------------------------------------------------------------------------


def _iterates(run: RunFacts) -> list[Figure | None]:
    if not run.recipe["spin"]:
        return []
    models = [one for one in contenders([run]) if measured(one, NLL)]
    intervals = [estimate(one, NLL, measured(one, NLL)) for one in models]
    losses = Series(
        "held-out loss",
        [(place, found.mean) for place, found in enumerate(intervals)],
        kind="dots",
        errors=[(found.low, found.high) for found in intervals],
    )
    diagnosed = [(one.number, one.diagnosis) for one in run.iterations if one.diagnosis]
    names = [f"iterate-{number}" for number, _ in diagnosed]
    facts = [found for _, found in diagnosed]
    moved = [
        _divergence("to the opponent", [one.kl_opponent for one in facts], 0, -0.06),
        _divergence("to iterate 0", [one.kl_base for one in facts], 1, 0.06),
    ]
    lengths = [
        Series("generated", [(place, one.answers.tokens) for place, one in enumerate(facts)], 0, "dots"),
        Series("real", [(place, one.real.tokens) for place, one in enumerate(facts)], 1, "dots"),
    ]
    return [
        draw("Held-out loss", "nats a token, 95 % intervals", [losses], names=[one.label for one in models]),
        draw("KL divergence", f"{NATS}, ± standard error", moved, names=names, level=0.0),
        draw("Length of its answers", "tokens, mean", lengths, names=names),
    ]


def _divergence(label: str, estimates: Sequence[KlEstimate | None], slot: int, aside: float) -> Series:
    """``aside`` keeps the bars of two series apart."""
    found = [(place + aside, one.mean, one.standard_error or 0.0) for place, one in enumerate(estimates) if one]
    points = [(place, mean) for place, mean, _ in found]
    return Series(label, points, slot, "dots", [(mean - error, mean + error) for _, mean, error in found])
