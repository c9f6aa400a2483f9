"""Prints data as a model sees it: examples of a task, the shares of a mixture, tokens with colors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from spintune.mixtures.rendering import RenderedPrompt
from spintune.mixtures.report import MixtureReport
from spintune.plain_tables import PlainConsole, PlainTable
from spintune.terminal import SafeConsole
from spintune.text.counts import counts_text


def print_examples(rows: Sequence[RenderedPrompt]) -> None:
    """Prints examples of a task as a model reads them: the prompt plain, the target green."""
    console = SafeConsole(highlight=False)
    for row in rows:
        shots = f"few-shot ({row.shots})" if row.shots else "zero-shot"
        kind = "chain of thought" if row.quadrant.endswith("cot") else "direct"
        inverted = ", turned around" if row.inverted else ""
        console.rule(f"{row.source.split('/')[0]}: {shots}, {kind}, phrasing {row.phrasing}{inverted}", align="left")
        console.print(Text(row.prompt))
        console.print(Text("-> " + row.target, style="bold green"))


def print_mixture(mixture: MixtureReport) -> None:
    """Prints the target and actual shares of a mixture's tasks and quadrants, and what it leaves out."""
    console = PlainConsole()
    headings = ("task", "target", "actual", "examples", "rows", "passes", "held out", "dropped")
    tasks = PlainTable("Tasks", headings, wraps=True)
    for name, task in sorted(mixture.tasks.items(), key=lambda entry: -entry[1].wanted):
        tasks.add_row(
            name,
            f"{task.wanted:.2%}",
            f"{task.realised:.2%}",
            f"{task.examples:,}",
            f"{task.rows:,}",
            f"{task.passes:.2f}",
            f"{task.heldout:,}",
            counts_text(task.dropped),
        )
    console.print(tasks)
    quadrants = PlainTable("Quadrants", ("quadrant", "target", "planned", "actual"))
    for name, shares in mixture.quadrants.items():
        quadrants.add_row(name, f"{shares.wanted:.1%}", f"{shares.planned:.1%}", f"{shares.realised:.1%}")
    console.print(quadrants)
    for line in _mixture_lines(mixture):
        console.sentence(line)


def _mixture_lines(mixture: MixtureReport) -> Iterator[str]:
    exemplars = mixture.exemplars
    yield (
        f"{mixture.examples:,} examples, {mixture.distinct:,} of them distinct. Exemplars: "
        f"{exemplars.asked_for:,} requested, {exemplars.used:,} used, {exemplars.over_budget:,} over "
        f"the token budget, {exemplars.none_other:,} not available; {exemplars.prompts_left_without:,} few-shot "
        "prompts have none."
    )
    for title, names in (("Held-out tasks", mixture.held_out_tasks), ("Absent groups", mixture.absent_groups)):
        if names:
            yield f"{title}: {', '.join(names)}"
    for name, reason in mixture.files_without_rows.items():
        yield f"Left out: {name} ({reason})"


def print_tokens(prompt: list[str], response: list[tuple[str, bool]], head: str) -> None:
    """Prints one row's tokens: prompt dim, trained tokens green, other response tokens plain; line breaks shown."""
    console = SafeConsole(highlight=False)
    text = Text()
    for piece in prompt:
        text.append(_visible(piece), style="dim")
    for piece, trained in response:
        text.append(_visible(piece), style="bold green" if trained else "")
    console.rule(head, align="left")
    console.print(text)
    if not console.color_system:
        # without colors the trained part follows as text
        console.print("trained: " + repr("".join(piece for piece, trained in response if trained)), markup=False)


def _visible(piece: str) -> str:
    return piece.replace("\n", "↵\n")
