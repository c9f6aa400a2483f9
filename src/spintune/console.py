"""Prints on the terminal what commands found out: tables of results, comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote

from rich.text import Text

from spintune.before_after import print_gain
from spintune.evaluation.comparison import HEADER, Comparison, Difference, listed, table_rows
from spintune.evaluation.decision import better_models, title_of
from spintune.evaluation.headline import headline
from spintune.evaluation.statistics import Interval
from spintune.plain_tables import PlainConsole, PlainTable, print_tables
from spintune.progress_display import WIDTH_OF_FILES, duration_text
from spintune.report.movement import movement
from spintune.report.rates import rates_tried, searches_in
from spintune.results import (
    BenchmarkResults,
    ContaminationFacts,
    GroupAccuracy,
    Intervals,
    IterationResults,
    JudgeResults,
    RunResults,
    SynthFacts,
    TaskAccuracies,
)
from spintune.run_folder import BASE
from spintune.selfplay.diagnostics import KlEstimate
from spintune.synthesis.filters import FilterCounts
from spintune.teachers.budget import replies_in_words
from spintune.text.counts import counts_text
from spintune.training.rate_facts import RateFacts

_WIDE = WIDTH_OF_FILES + 30
_NARROW = 80
"""Columns that the most important tables keep to."""


# Results -------------------------------------------------------------------------------------------------------------


def print_results(results: RunResults, folder: str, details: bool = False) -> None:
    """Prints the end of a run: what was gained, the model to use, and what to do next.

    Tables of what was measured on the way are printed with ``details``, and where there are no answers to show instead.
    """
    from spintune.evaluation.gain import gain_of  # loads torch

    console = PlainConsole()
    for line in movement(results):
        console.sentence(line)
    if results.synth:
        _print_synth(console, results.synth, folder)
    if results.data and (results.data.train or results.data.heldout):
        data, dropped = results.data, counts_text(results.data.dropped)
        console.print(f"\nData: {data.read} read, {data.training}, {data.heldout} held out; dropped: {dropped}")
    gain = gain_of(Path(folder)) if results.best else None
    in_full = details or gain is None
    if in_full:
        searches = searches_in(Path(folder), len(results.spin))
        print_tables(rates_tried(searches))
        if results.spin:
            console.print(_pair_table(results.spin))
        if any(iteration.diagnosis for iteration in results.spin):
            console.print(_diagnosis_table(results.spin))
    if results.stopped:
        console.sentence(f"Self-play stopped early: {results.stopped}")
    _print_evaluation(console, results, in_full)
    if in_full and (seconds := _seconds(results, searches)):
        times = ", ".join(f"{work} {duration_text(taken)}" for work, taken in seconds.items())
        console.sentence(f"\nTime: {times}")
    if gain:
        print_gain(console, gain)
    _print_files(console, results, folder, tables=not in_full)


def print_outcome_of(results: RunResults, folder: str) -> None:
    """Prints only what came out of a run, and where it is; first what is wrong with it."""
    console = PlainConsole()
    for line in movement(results):
        console.sentence(line)
    _print_files(console, results, folder, advice=False)


def _print_synth(console: PlainConsole, synth: SynthFacts, folder: str) -> None:
    console.print(_funnel_table(synth.funnel))
    cost = synth.cost
    console.sentence(
        f"{synth.teacher} wrote {synth.examples:,} examples of {synth.instructions:,} instructions: "
        f"{cost.requests:,} requests, {cost.prompt_tokens:,} tokens read, {cost.completion_tokens:,} written"
        + (f", ${cost.dollars:,.2f}" if cost.dollars else "")
    )
    for sentence in replies_in_words(synth.thoughts, synth.left_out):
        console.sentence(sentence)
    if synth.stopped:
        console.sentence(f"It stopped early: {synth.stopped}")
    console.sentence(f"They are in {folder}/synth; read card.md there before you train on them.")


def _funnel_table(funnel: Sequence[FilterCounts]) -> PlainTable:
    """What each step of writing data read and kept, and why it dropped the rest."""
    table = PlainTable("What the teacher wrote", ("step", "read", "kept", "dropped"), wraps=True)
    for step in funnel:
        table.add_row(step.step, f"{step.read:,} {step.unit}", f"{step.kept:,}", counts_text(step.dropped))
    return table


def _seconds(results: RunResults, searches: Mapping[str, RateFacts]) -> Counter[str]:
    """Time of each kind of work, over all stages."""
    stages = [stage.seconds for stage in (results.synth, results.sft, results.baseline, *searches.values()) if stage]
    stages += [seconds for one in results.spin for seconds in (one.pairs.seconds, one.seconds)]
    total: Counter[str] = Counter()
    for seconds in stages:
        total.update(seconds)
    return total


def _print_files(
    console: PlainConsole, results: RunResults, folder: str, advice: bool = True, tables: bool = False
) -> None:
    """The last screen: what came out, how sure that is, where it is, and what to do next.

    ``tables`` says that they were left out, and how to see them.
    """
    if not results.models:
        return
    if advice:
        console.print()
    if results.best is None:
        console.sentence(f"Everything is in {folder}; spintune report {folder} makes a page of it.")
        return
    best = results.best
    console.sentence(f"The model to use is {best.name}: {best.why}.")
    if ahead := better_models(best, results.differences):
        examples = "the examples that did not choose it" if best.selection else "the held-out examples"
        title = title_of(str(best.metric))
        console.sentence(f"A caveat: on {examples}, its {title} is worse than that of {listed(ahead)}.")
    place = best.model if best.name == BASE else f"{folder}/{best.model}"
    console.sentence(f"It is {place}; everything else is in {folder}.")
    if not advice:
        return
    if best.metric is None and not (results.heldout or results.benchmarks or results.judge):
        console.sentence("How good it is was not measured: hold out more examples, or name evaluations in eval.")
    if results.spin and results.baseline is None:
        console.sentence("Whether as much SFT would have done as well is not known: spin.baseline: sft measures it.")
    console.sentence("Next:")
    shown = quote(folder)
    commands = {f"chat {shown}": "talk to it", f"report {shown}": "read all about the run on one page"}
    if best.name != BASE:
        commands[f"export {shown} FOLDER"] = "take it to transformers, vLLM or the hub"
        commands[f"export {shown} --to ollama"] = "take it to Ollama; --to gguf: one file for llama.cpp"
    for command, purpose in commands.items():
        console.print(f"  spintune {command}\n      {purpose}", soft_wrap=True)  # a broken command cannot be copied
    if tables:
        console.sentence("The same command with --details prints the tables of all models; it repeats nothing.")


# Self-play -----------------------------------------------------------------------------------------------------------


def _pair_table(iterations: Sequence[IterationResults]) -> PlainTable:
    """Each iterate beside its opponent, on held-out pairs if there are any."""
    headings = ("iterate", "pairs", "loss", "margin", "accuracy", "r", "r'", "real", "generated")
    table = PlainTable("Self-play on held-out prompts (margin r - r' in nats; lengths in tokens)", headings)
    for iteration in iterations:
        heldout = iteration.heldout
        cells = ["-"] * 7
        if heldout:
            cells = [
                f"{heldout.start_loss:.3f}→{heldout.loss:.3f}",
                f"{heldout.margin:+.2f}",
                f"{heldout.accuracy:.0%}",
                f"{heldout.real_ratio:+.2f}",
                f"{heldout.generated_ratio:+.2f}",
                f"{heldout.real_tokens:.0f}",
                f"{heldout.generated_tokens:.0f}",
            ]
        table.add_row(str(iteration.iteration), str(iteration.pairs.train.kept + iteration.later.kept), *cells)
    return table


def _diagnosis_table(iterations: Sequence[IterationResults]) -> PlainTable:
    """What each iterate answers to the held-out prompts, and how far it has moved."""
    headings = (
        "iterate",
        "loss",
        "KL opponent",
        "KL iterate 0",
        "log p real",
        "tokens",
        "cut",
        "distinct-2",
        "repeats",
        "as before",
    )
    title = "Its own answers there (KL in nats per answer ± standard error; loss in nats per token)"
    table = PlainTable(title, headings)
    for iteration in iterations:
        diagnosis, heldout = iteration.diagnosis, iteration.heldout
        if not diagnosis:
            continue
        answers = diagnosis.answers
        table.add_row(
            str(iteration.iteration),
            f"{diagnosis.nll_per_token:.3f}",
            _with_error(diagnosis.kl_opponent),
            _with_error(diagnosis.kl_base),
            f"{heldout.real_logprob:.1f}" if heldout else "-",
            f"{answers.tokens:.0f}",
            f"{answers.cut:.0%}",
            f"{answers.distinct_2:.2f}",
            f"{answers.repetition:.2f}",
            f"{diagnosis.identical_to_opponent:.0%}",
        )
    return table


def _with_error(estimate: KlEstimate | None) -> str:
    if estimate is None:  # only plain samples of the model estimate a divergence
        return "-"
    error = estimate.standard_error
    return f"{estimate.mean:.2f}" + (f" ± {error:.2f}" if error is not None else "")


# Evaluation ----------------------------------------------------------------------------------------------------------


def _print_evaluation(console: PlainConsole, results: RunResults, in_full: bool) -> None:
    if results.heldout and in_full:
        console.print(_heldout_table(results.heldout, _reporting(results)))
        console.print(_differences(results.differences))
    if results.tasks:
        console.print(_accuracy_table(results.tasks))
    for name, benchmark in results.benchmarks.items():
        console.print(_benchmark_table(name, benchmark))
    if results.failed:
        console.sentence(f"Could not be run: {', '.join(results.failed)}; the reason is printed above.")
    for line in results.conclusions:
        console.sentence(line)
    if results.judge:
        _print_judge(console, results.judge)
    if results.contamination and (in_full or results.benchmarks):
        console.sentence(_contamination(results.contamination))


_HEADINGS = {
    "nll_per_token": ("loss", "{:.3f}", True),
    "rouge_l": ("ROUGE-L", "{:.3f}", True),
    "exact_match": ("exact match", "{:.2f}", True),
    "answer_tokens": ("tokens", "{:.0f}", False),
    "finished": ("finished", "{:.0%}", False),
}
"""By measure: heading, format, and whether the interval is shown."""


def _reporting(results: RunResults) -> str:
    """Which held-out examples the table is of, where others chose the model."""
    chose = results.best.selection if results.best else 0
    if not chose or not results.data:
        return ""
    return f" ({results.data.heldout - chose} that report; {chose} others chose the model)"


def _heldout_table(heldout: Mapping[str, Intervals], reporting: str) -> PlainTable:
    added = {name: (name, "{:.3g}", True) for measures in heldout.values() for name in measures if _is_added(name)}
    columns = _HEADINGS | added
    headings = ("model", *(heading for heading, _, _ in columns.values()))
    table = PlainTable(
        f"Held-out examples{reporting}: loss in nats per token, greedy answers; 95 % intervals", headings
    )
    for model, measures in heldout.items():
        cells = [_estimate(measures.get(measure), form, ends) for measure, (_, form, ends) in columns.items()]
        table.add_row(model, *cells)
    return table


def _is_added(measure: str) -> bool:
    """Whether a measure is a metric that a user registered."""
    return measure not in _HEADINGS and not measure.startswith(("nll_per_", "perplexity_per_"))


def _estimate(value: Interval | GroupAccuracy | None, form: str, interval: bool = True) -> Text:
    if value is None:
        return Text("-")
    text = Text(form.format(value.mean))
    return text.append(f" {value.low:.2f}–{value.high:.2f}", style="dim") if interval else text


def _differences(differences: Mapping[str, Intervals]) -> str:
    """The significant differences from where self-play started, on the same items, as sentences."""
    lines = [
        "Paired differences whose 95 % interval excludes 0, each by itself (spintune compare weighs them together):"
    ]
    for names, measures in differences.items():
        significant = [
            f"{_HEADINGS[measure][0] if measure in _HEADINGS else measure} {difference.mean:+.3g}"
            for measure, difference in measures.items()
            if measure in _HEADINGS or _is_added(measure)  # loss per byte repeats loss per token
            if difference.low > 0 or difference.high < 0
        ]
        found = "; ".join(significant) or "none; so few items cannot tell them apart"
        lines.append(f"  {names}: {found}")
    return "\n".join(lines)


def _accuracy_table(tasks: TaskAccuracies) -> PlainTable:
    """Accuracy on the tasks of a mixture, by group of tasks."""
    models = list(tasks.accuracy)
    table = PlainTable("Right answers to the mixture's tasks; 95 % intervals", ("questions", "items", *models))
    for group in sorted({group for groups in tasks.accuracy.values() for group in groups}, reverse=True):
        if not group.startswith("task "):
            accuracies = [tasks.accuracy[model].get(group) for model in models]
            items = max(accuracy.items for accuracy in accuracies if accuracy)
            table.add_row(group, str(items), *(_estimate(accuracy, "{:.2f}") for accuracy in accuracies))
    return table


def _benchmark_table(name: str, found: BenchmarkResults) -> PlainTable:
    """The measures of every model, and in further rows the same without contaminated items."""
    counts = set(found.items.values())
    items = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{counts.pop()}"
    table = PlainTable(f"{name}, {items} items; 95 % intervals", ("model", *found.measures))
    for suffix, scores in (("", found.scores), (" (clean items)", found.clean)):
        for model, values in scores.items():
            table.add_row(model + suffix, *(_estimate(values.get(measure), "{:.3g}") for measure in found.measures))
    return table


def _print_judge(console: PlainConsole, judge: JudgeResults) -> None:
    console.print(f"\nThe judge, {judge.judge}:")
    for line in (*judge.words, *(f"not done: {problem}" for problem in judge.problems)):
        console.sentence(f"  {line}")


def _contamination(found: ContaminationFacts) -> str:
    """How many items of each evaluation are in the training data."""
    shared = "; ".join(
        f"{name} {one.shared_13} of {one.items} items ({one.shared_8} by 8 words)" for name, one in found.sets.items()
    )
    return f"\nAlso in the {found.training_rows:,} training rows, by 13 words in a row: {shared}"


def print_comparison(comparison: Comparison, everything: bool = False) -> None:
    """Prints what was found in one sentence, then the differences that were found, or every one with its p-values."""
    console = PlainConsole(width=_WIDE if everything else _NARROW)
    console.sentence(headline(comparison) + ".")
    shown = [one for one in comparison.differences if everything or one.finding]
    if everything and console.width >= _WIDE - 20:
        table = PlainTable("Paired on the same items; p after Holm counts", HEADER)
        for row in table_rows(comparison):
            table.add_row(*row)
        console.print(table)
    elif shown:
        for line, style in _pairs_of_models(shown, everything and console.width >= _NARROW):
            console.print(line, style=style or None, soft_wrap=True)
    if everything:
        for line in (*comparison.conclusions, *comparison.notes):
            console.sentence(line)
        return
    for line in comparison.notes:
        console.sentence(line)
    others = len(comparison.differences) - len(shown)
    console.sentence(
        f"{others} of {len(comparison.differences)} comparisons found no difference; --all shows all of them, with "
        "p-values and how small a difference would have been found."
    )


def _pairs_of_models(shown: Sequence[Difference], with_p: bool) -> Iterator[tuple[str, str]]:
    """Lines with their styles: differences below each pair of models, 60 columns wide, 80 with p-values."""
    headings = ("measure", "difference", "95 % interval", *(("items", "p (Holm)") if with_p else ()), "finding")
    rows = []
    for one in shown:
        gap = one.difference
        extra = (str(one.items), f"{one.adjusted:.2g}") if with_p else ()
        cells = (f"{gap.mean:+.3g}", f"{gap.low:+.3g} to {gap.high:+.3g}", *extra)
        rows.append((f"  {one.measure}", *cells, one.finding or "-"))
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *numbers])

    yield "", ""
    yield line(headings), "dim"
    pair = None
    for one, cells in zip(shown, rows, strict=True):
        if (one.first, one.second) != pair:
            pair = (one.first, one.second)
            yield f"{one.first} - {one.second}", "bold"
        yield line(cells), ""
    yield "", ""
