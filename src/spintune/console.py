"""What the terminal shows: bars with rate and time left, tables, coloured tokens."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from spintune.progress import Progress, Task

SECONDS_BETWEEN_LINES = 10.0


def open_progress(as_json: bool) -> contextlib.AbstractContextManager[Progress]:
    """Bars on a terminal, a line now and then elsewhere, JSON events for machines. All of it on standard error."""
    if as_json:
        return contextlib.nullcontext(JsonProgress(sys.stderr))
    console = Console(stderr=True)
    return _bars(console) if console.is_terminal else contextlib.nullcontext(LineProgress(sys.stderr))


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[facts]}"),
    )
    with Bars(*columns, console=console) as bars:
        yield BarProgress(bars)


class BarProgress:
    """Live bars."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Task]:
        handle = self._bars.add_task(name, total=total, unit=unit, rate="", facts="")
        yield _Bar(self._bars, handle, unit)
        self._bars.update(handle, completed=total)

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False)


class _Bar:
    def __init__(self, bars: Bars, handle: TaskID, unit: str) -> None:
        self._bars, self._handle, self._unit = bars, handle, unit
        self._started, self._done = time.monotonic(), 0.0

    def advance(self, amount: float = 1, **facts: Any) -> None:
        self._done += amount
        rate = self._done / max(1e-6, time.monotonic() - self._started)
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s each"
        self._bars.update(self._handle, advance=amount, rate=shown, facts=_facts(facts))


class LineProgress:
    """Plain lines for logs: when a task begins, every ten seconds, and when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Task]:
        line = _Line(self, name, total, unit)
        yield line
        line.report()

    def note(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class _Line:
    def __init__(self, progress: LineProgress, name: str, total: float, unit: str) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._started = self._shown = time.monotonic()
        self._done, self._facts = 0.0, ""

    def advance(self, amount: float = 1, **facts: Any) -> None:
        self._done += amount
        self._facts = _facts(facts)
        if time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self.report()

    def report(self) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._started
        rate = self._done / max(1e-6, seconds)
        left = f", {_duration((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        self._progress.note(
            f"{self._name}: {self._done:g}/{self._total:g} {self._unit} in {_duration(seconds)}{left}"
            + (f"  {self._facts}" if self._facts else "")
        )


class JsonProgress:
    """One JSON object an event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Task]:
        yield _JsonTask(self, name, total, unit)

    def note(self, text: str) -> None:
        self.emit({"note": text})

    def emit(self, event: dict[str, Any]) -> None:
        self._stream.write(orjson.dumps(event).decode() + "\n")
        self._stream.flush()


class _JsonTask:
    def __init__(self, progress: JsonProgress, name: str, total: float, unit: str) -> None:
        self._progress, self._event, self._done = progress, {"task": name, "total": total, "unit": unit}, 0.0

    def advance(self, amount: float = 1, **facts: Any) -> None:
        self._done += amount
        self._progress.emit({**self._event, "done": self._done, **facts})


def _facts(facts: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items())


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


# Results -----------------------------------------------------------------------------------------------------------


def print_results(results: dict[str, Any], folder: str) -> None:
    """The tables at the end of a run, on standard output."""
    console = Console(highlight=False)
    data = results["data"]
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(data["dropped"].items())) or "none"
    console.print(f"\nData: {data['read']} read, {data['train']} to train on, {data['heldout']} held out; dropped: {dropped}")
    if results.get("spin"):
        console.print(_spin_table(results["spin"]))
    if results.get("heldout"):
        console.print(_heldout_table(results["heldout"]))
        console.print(_differences(results["differences"]))
    last = list(results["models"])[-1]
    console.print(f"\nEverything is in {folder}: metrics.jsonl, results.json, and each model as a Hugging Face folder.")
    console.print(f"Talk to {last}:  spintune chat {folder}", soft_wrap=True)


def _spin_table(iterations: list[dict[str, Any]]) -> Table:
    table = Table(title="Self-play, on held-out prompts (log-probabilities in nats an answer)", title_justify="left")
    for heading in ("iteration", "pairs", "loss", "margin", "accuracy", "r real", "r' generated", "tokens real", "generated"):
        table.add_column(heading, justify="right")
    for entry in iterations:
        heldout = entry["heldout"]
        numbers = ["-"] * 7
        if heldout:
            numbers = [
                f"{entry['start_loss']:.3f} → {heldout['loss']:.3f}",
                f"{heldout['margin']:+.2f}",
                f"{heldout['accuracy']:.0%}",
                f"{heldout['real_ratio']:+.2f}",
                f"{heldout['generated_ratio']:+.2f}",
                f"{heldout['real_tokens']:.0f}",
                f"{heldout['generated_tokens']:.0f} ({heldout['generated_cut']:.0%} cut)",
            ]
        table.add_row(str(entry["iteration"]), str(entry["pairs"]["train"]["kept"]), *numbers)
    return table


_HEADINGS = {
    "nll_per_token": ("loss, nats/token", "{:.3f}"),
    "rouge_l": ("ROUGE-L", "{:.3f}"),
    "exact_match": ("exact match", "{:.3f}"),
    "answer_tokens": ("answer tokens", "{:.0f}"),
    "finished": ("finished", "{:.0%}"),
}


def _heldout_table(heldout: dict[str, Any]) -> Table:
    table = Table(title="Held-out examples, greedy answers [95 % interval]", title_justify="left")
    table.add_column("model")
    for heading, _ in _HEADINGS.values():
        table.add_column(heading, justify="right")
    for name, measures in heldout.items():
        cells = []
        for measure, (_, form) in _HEADINGS.items():
            value = measures[measure]
            cells.append(f"{form} [{form}, {form}]".format(value["mean"], value["low"], value["high"]))
        table.add_row(name, *map(Text, cells))
    return table


def _differences(differences: dict[str, Any]) -> str:
    """In words: what can be told apart from where self-play started, on the same items."""
    lines = []
    for name, measures in differences.items():
        told = [
            f"{_HEADINGS[measure][0]} {value['mean']:+.3g}"
            for measure, value in measures.items()
            if value["low"] > 0 or value["high"] < 0
        ]
        lines.append(f"{name}: " + ("; ".join(told) if told else "no measure can be told apart with so few items"))
    return "Paired differences whose 95 % interval leaves out 0:\n  " + "\n  ".join(lines)


def print_tokens(prompt: list[str], response: list[tuple[str, bool]], head: str) -> None:
    """One row's tokens: prompt dim, trained tokens green, the rest of the response plain; line breaks shown."""
    console = Console(highlight=False)
    text = Text()
    for piece in prompt:
        text.append(_visible(piece), style="dim")
    for piece, trained in response:
        text.append(_visible(piece), style="bold green" if trained else "")
    console.rule(head, align="left")
    console.print(text)
    if not console.color_system:
        # without colours the trained part is told in words
        console.print("trained: " + repr("".join(piece for piece, trained in response if trained)), markup=False)


def _visible(piece: str) -> str:
    return piece.replace("\n", "↵\n")
