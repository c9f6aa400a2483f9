"""What trackers get of a complete run: evaluations as numbers, the decision in words."""

from __future__ import annotations

from collections.abc import Mapping

from spintune.results import Intervals, RunResults


def evaluation_numbers(results: RunResults) -> dict[str, dict[str, dict[str, float]]]:
    """Estimates by evaluation, then by model in the order of the run, then by measure."""
    estimates: dict[str, Mapping[str, Intervals]] = {"heldout": results.heldout}
    estimates |= {name: benchmark.scores for name, benchmark in results.benchmarks.items()}
    return {
        name: {
            model: {measure: interval.mean for measure, interval in measures.items()}
            for model, measures in models.items()
        }
        for name, models in estimates.items()
        if models
    }


def outcome_facts(results: RunResults) -> dict[str, str]:
    """The model to use, why, what evaluations say, and which step of them is which model."""
    facts: dict[str, str] = {}
    if results.best:
        facts = {"model": results.best.name, "why": results.best.why}
    if results.conclusions:
        facts["conclusions"] = " ".join(results.conclusions)
    for name, models in evaluation_numbers(results).items():
        facts[f"models of eval/{name}"] = ", ".join(f"{step} {model}" for step, model in enumerate(models, 1))
    return facts
