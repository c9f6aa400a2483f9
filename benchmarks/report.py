"""The benchmark's tables, in plain text that is Markdown as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DISTURBED = 0.2
"""Cores that other work may take before a measurement is not worth printing without a warning."""
TITLES = {"sft": "SFT", "spin": "SPIN, which TRL computes as DPO"}


def print_report(results: dict[str, Any]) -> None:
    """Machine, a table for each task, the settings behind the names, and the comparisons."""
    machine, peaks = results["machine"], results["peak_gflops"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"\n{results['model']} on {results['data']}; {machine['processor']['name']}, {machine['threads']} threads")
    print(f"{versions}, Python {machine['python']}")
    foreign = results["foreign_cores"]
    print(f"other work on the machine: {sum(foreign) / len(foreign):.2f} cores on average, {max(foreign):.2f} at most")
    if max(foreign) > DISTURBED:
        print("these times are DISTURBED by other work; measure again on a quiet machine")
    print("best matrix product: " + ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in peaks.items()))
    for task, facts in results["tasks"].items():
        _task(task, facts)
    print("\nSame computation?\n")
    _table(
        ["task", "contestant", "compared with spintune float32", "value", "expected", "difference", "allowed", ""],
        [
            [
                check["task"],
                check["contestant"],
                check["what"],
                f"{check['value']:.5f}",
                f"{check['expected']:.5f}",
                f"{check['difference']:.1e}",
                f"{check['tolerance']:.0e}",
                "ok" if check["passed"] else "DIFFERS",
            ]
            for check in results["checks"]
        ],
    )
    failed = sum(not check["passed"] for check in results["checks"])
    print(f"\n{failed} comparisons FAILED: the times above compare different things" if failed else "\nAll agree.")
    print(f"{results['minutes']:.0f} minutes")


def _task(task: str, facts: dict[str, Any]) -> None:
    unit, amount = ("tokens/s", facts["tokens"]) if task == "sft" else ("pairs/s", facts["rows"])
    what = "examples" if task == "sft" else "pairs"
    print(
        f"\n{TITLES[task]}: {facts['rows']} {what}, {facts['tokens']} tokens, {facts['scored_tokens']} scored, "
        f"{facts['operations']['step'] / 1e12:.2f} TFLOP a step\n"
    )
    others = [c for c in facts["contestants"] if c["name"].startswith("TRL")]
    scored = task == "spin"
    rows = []
    for contestant in facts["contestants"]:
        seconds = contestant["together_seconds"]
        scoring = contestant["score_seconds"]
        rows.append(
            [
                contestant["name"],
                *([_seconds(scoring) if scoring is not None else "in the step"] if scored else []),
                _seconds(contestant["step_seconds"]),
                *([_seconds(seconds)] if scored else []),
                f"{amount / seconds:.4g}",
                f"{contestant['peak_gb']:.2f}",
                f"{100 * contestant['share_of_peak']:.0f} %",
                *(_ratio(seconds, contestant["peak_gb"], other) for other in others),
            ]
        )
    _table(
        [
            "",
            *(["once, s"] if scored else []),
            "step, s",
            *(["together, s"] if scored else []),
            unit,
            "peak GB",
            "of peak",
            *(f"vs {other['name']}" for other in others),
        ],
        rows,
    )
    print("\nvs: speed-up, and share of its memory. Settings:")
    for contestant in facts["contestants"]:
        print(f"* {contestant['name']}: {contestant['remark']}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}"


def _ratio(seconds: float, peak_gb: float, other: dict[str, Any]) -> str:
    return f"{other['together_seconds'] / seconds:.2f} x, {100 * peak_gb / other['peak_gb']:.0f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
