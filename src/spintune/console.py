"""What the terminal shows: bars with rate and time left, tables, coloured tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spintune.evaluation.comparison import HEADER, Comparison, table_rows
from spintune.progress_display import WIDTH_OF_FILES, duration_text

# Results -----------------------------------------------------------------------------------------------------------


def print_results(results: dict[str, Any], folder: str) -> None:
    """The tables at the end of a run, on standard output."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=WIDTH_OF_FILES)
    if synth := results.get("synth"):
        console.print(_funnel_table(synth["funnel"]))
        cost = synth["cost"]
        console.print(
            f"{synth['teacher']} wrote {synth['examples']:,} examples of {synth['instructions']:,} instructions: "
            f"{cost['requests']:,} requests, {cost['prompt_tokens']:,} tokens read, "
            f"{cost['completion_tokens']:,} written" + (f", ${cost['dollars']:,.2f}" if cost["dollars"] else ""),
            soft_wrap=True,
        )
        if synth["stopped"]:
            console.print(f"It stopped early: {synth['stopped']}", soft_wrap=True)
        console.print(f"They are in {folder}/synth; read card.md there before you train on them.", soft_wrap=True)
    data = results.get("data")
    if data and (data["train"] or data["heldout"]):
        console.print(
            f"\nData: {data['read']} read, {data['train']} to train on, {data['heldout']} held out; "
            f"dropped: {_counts(data['dropped'])}"
        )
    if results.get("spin"):
        console.print(_spin_table(results["spin"]))
        if any(entry["diagnosis"] for entry in results["spin"]):
            console.print(_diagnosis_table(results["spin"]))
        if results["stopped"]:
            console.print(f"Self-play stopped early: {results['stopped']}", soft_wrap=True)
    if results.get("heldout"):
        console.print(_heldout_table(results["heldout"]))
        console.print(_differences(results["differences"]))
    if results.get("tasks"):
        console.print(_accuracy_table(results["tasks"]))
    for table in _benchmark_tables(results.get("benchmarks", {})):
        console.print(table)
    if failed := results.get("failed"):
        console.print(f"Could not be run: {', '.join(failed)}; why is told above.", soft_wrap=True)
    for line in results.get("conclusions", []):
        console.print(line, soft_wrap=True)
    if judge := results.get("judge"):
        console.print(f"\nThe judge, {judge['judge']}:")
        for line in (*judge["words"], *(f"not done: {problem}" for problem in judge["problems"])):
            console.print(f"  {line}", soft_wrap=True)
    if contamination := results.get("contamination"):
        console.print(_contamination(contamination), soft_wrap=True)
    if seconds := _seconds(results):
        shares = ", ".join(f"{work} {duration_text(taken)}" for work, taken in seconds.items())
        console.print(f"\nTime: {shares}", soft_wrap=True)
    if "models" not in results:
        return
    if len(results["models"]) == 1:
        console.print(f"\nEverything is in {folder}; spintune report {folder} makes a page of it.", soft_wrap=True)
        return
    console.print(
        f"\nEverything is in {folder}: metrics.jsonl, results.json, each model as a Hugging Face folder.",
        soft_wrap=True,
    )
    if best := results.get("best"):
        console.print(f"Best is {best['name']}: {best['why']}.", soft_wrap=True)
    talker = results["best"]["name"] if results.get("best") else list(results["models"])[-1]
    console.print(f"Talk to {talker}:  spintune chat {folder}", soft_wrap=True)


def _seconds(results: dict[str, Any]) -> Counter[str]:
    """Time of each kind of work, over all stages."""
    stages = [results.get("synth"), results.get("sft"), results.get("baseline")]
    for entry in results.get("spin") or []:
        stages += [entry["pairs"], entry]
    total: Counter[str] = Counter()
    for facts in filter(None, stages):
        total.update(facts["seconds"])
    return total


def _funnel_table(funnel: list[dict[str, Any]]) -> Table:
    """What came in at each step of writing data, what was kept, and why the rest was not."""
    table = _table("What the teacher wrote", ("step", "read", "kept", "dropped"))
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for step in funnel:
        table.add_row(step["step"], f"{step['read']:,} {step['unit']}", f"{step['kept']:,}", _counts(step["dropped"]))
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "none"


def _spin_table(iterations: list[dict[str, Any]]) -> Table:
    """Where each iterate stands against its opponent. Held-out pairs; none are there without a held-out split."""
    headings = ("iterate", "pairs", "loss", "margin", "accuracy", "r", "r'", "real", "generated")
    table = _table("Self-play on held-out prompts (margin r - r' in nats; lengths in tokens)", headings)
    for entry in iterations:
        heldout = entry["heldout"]
        numbers = ["-"] * 7
        if heldout:
            numbers = [
                f"{heldout['start_loss']:.3f}→{heldout['loss']:.3f}",
                f"{heldout['margin']:+.2f}",
                f"{heldout['accuracy']:.0%}",
                f"{heldout['real_ratio']:+.2f}",
                f"{heldout['generated_ratio']:+.2f}",
                f"{heldout['real_tokens']:.0f}",
                f"{heldout['generated_tokens']:.0f}",
            ]
        table.add_row(str(entry["iteration"]), str(entry["pairs"]["train"]["kept"] + entry["later"]["kept"]), *numbers)
    return table


def _diagnosis_table(iterations: list[dict[str, Any]]) -> Table:
    """How each iterate writes to the held-out prompts, and how far it has gone."""
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
    table = _table("Its own answers there (KL in nats an answer ± standard error; loss in nats a token)", headings)
    for entry in iterations:
        facts, heldout = entry["diagnosis"], entry["heldout"]
        if not facts:
            continue
        answers = facts["answers"]
        table.add_row(
            str(entry["iteration"]),
            f"{facts['nll_per_token']:.3f}",
            _with_error(facts["kl_opponent"]),
            _with_error(facts["kl_base"]),
            f"{heldout['real_logprob']:.1f}" if heldout else "-",
            f"{answers['tokens']:.0f}",
            f"{answers['cut']:.0%}",
            f"{answers['distinct_2']:.2f}",
            f"{answers['repetition']:.2f}",
            f"{facts['identical_to_opponent']:.0%}",
        )
    return table


def _with_error(estimate: dict[str, float | None] | None) -> str:
    if estimate is None:  # only draws from the model itself estimate a divergence
        return "-"
    error = estimate["standard_error"]
    return f"{estimate['mean']:.2f}" + (f" ± {error:.2f}" if error is not None else "")


_HEADINGS = {
    "nll_per_token": ("loss", "{:.3f}", True),
    "rouge_l": ("ROUGE-L", "{:.3f}", True),
    "exact_match": ("exact match", "{:.2f}", True),
    "answer_tokens": ("tokens", "{:.0f}", False),
    "finished": ("finished", "{:.0%}", False),
}


def _heldout_table(heldout: dict[str, Any]) -> Table:
    headings = ("model", *(heading for heading, _, _ in _HEADINGS.values()))
    table = _table("Held-out examples: loss in nats a token, greedy answers; 95 % intervals", headings)
    for name, measures in heldout.items():
        table.add_row(
            name, *(_estimate(measures[measure], form, ends) for measure, (_, form, ends) in _HEADINGS.items())
        )
    return table


def _estimate(value: dict[str, float], form: str, interval: bool) -> Text:
    text = Text(form.format(value["mean"]))
    return text.append(f" {value['low']:.2f}–{value['high']:.2f}", style="dim") if interval else text


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _benchmark_tables(benchmarks: dict[str, Any]) -> Iterator[Table]:
    """A table an evaluation: its measures for every model; without contaminated items in further rows."""
    for evaluation, found in benchmarks.items():
        measures = list(found["measures"])
        counts = set(found["items"].values())
        items = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{counts.pop()}"
        table = _table(f"{evaluation}, {items} items; 95 % intervals", ("model", *measures))
        for suffix, scores in (("", found["scores"]), (" (clean items)", found.get("clean", {}))):
            for model, values in scores.items():
                cells = [values.get(measure) for measure in measures]
                table.add_row(model + suffix, *(_estimate(cell, "{:.3g}", True) if cell else "-" for cell in cells))
        yield table


def _contamination(found: dict[str, Any]) -> str:
    """How much of each evaluation stands in the training data."""
    shared = "; ".join(
        f"{name} {one['13']} of {one['items']} items ({one['8']} by 8 words)" for name, one in found["sets"].items()
    )
    return f"\nAlso in the {found['training_rows']:,} training rows, by 13 words in a row: {shared}"


def _differences(differences: dict[str, Any]) -> str:
    """In words: what can be told apart from where self-play started, on the same items."""
    lines = []
    for name, measures in differences.items():
        told = [
            f"{_HEADINGS[measure][0]} {value['mean']:+.3g}"
            for measure, value in measures.items()
            if measure in _HEADINGS  # the likelihood a byte says the same as that a token
            if value["low"] > 0 or value["high"] < 0
        ]
        lines.append(f"{name}: " + ("; ".join(told) if told else "none; with so few items they cannot be told apart"))
    head = (
        "Paired differences whose 95 % interval leaves out 0, each by itself (spintune compare weighs them together):"
    )
    return "\n  ".join([head, *lines])


def print_comparison(comparison: Comparison) -> None:
    """Every difference with its interval and p-values, then what follows from them in words."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=WIDTH_OF_FILES + 30)
    table = _table("Paired on the same items; p after Holm counts", HEADER)
    for row in table_rows(comparison):
        table.add_row(*row)
    console.print(table)
    for line in (*comparison.conclusions, *comparison.notes):
        console.print(line, soft_wrap=True)


def print_examples(rows: Sequence[dict[str, Any]]) -> None:
    """Examples of a task as a model would read them: the prompt plain, the target green."""
    console = Console(highlight=False)
    for row in rows:
        shots = f"few-shot ({row['shots']})" if row["shots"] else "zero-shot"
        kind = "chain of thought" if row["quadrant"].endswith("cot") else "direct"
        inverted = ", turned around" if row["inverted"] else ""
        console.rule(
            f"{row['source'].split('/')[0]}: {shots}, {kind}, phrasing {row['phrasing']}{inverted}", align="left"
        )
        console.print(Text(row["prompt"]))
        console.print(Text("-> " + row["target"], style="bold green"))


def print_mixture(mixture: dict[str, Any]) -> None:
    """What a mixture is made of: wanted and realised shares of its tasks and quadrants, and what was left out."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=WIDTH_OF_FILES)
    tasks = _table("Tasks", ("task", "wanted", "realised", "examples", "rows", "passes", "held out", "dropped"))
    for name, task in sorted(mixture["tasks"].items(), key=lambda entry: -entry[1]["wanted"]):
        tasks.add_row(
            name,
            f"{task['wanted']:.2%}",
            f"{task['realised']:.2%}",
            f"{task['examples']:,}",
            f"{task['rows']:,}",
            f"{task['passes']:.2f}",
            f"{task['heldout']:,}",
            _counts(task["dropped"]),
        )
    console.print(tasks)
    quadrants = _table("Quadrants", ("quadrant", "wanted", "planned", "realised"))
    for name, shares in mixture["quadrants"].items():
        quadrants.add_row(name, *(f"{shares[key]:.1%}" for key in ("wanted", "planned", "realised")))
    console.print(quadrants)
    exemplars = mixture["exemplars"]
    console.print(
        f"{mixture['examples']:,} examples, {mixture['distinct']:,} of them distinct. Exemplars: "
        f"{exemplars['asked_for']:,} asked for, {exemplars['used']:,} used, {exemplars['over_budget']:,} over "
        f"the budget, {exemplars['none_other']:,} not there; {exemplars['prompts_left_without']:,} prompts were left "
        "without.",
        soft_wrap=True,
    )
    for title, names in (("Held-out tasks", mixture["held_out_tasks"]), ("Absent groups", mixture["absent_groups"])):
        if names:
            console.print(f"{title}: {', '.join(names)}", soft_wrap=True)
    for name, reason in mixture["files_without_rows"].items():
        console.print(f"Left out: {name} ({reason})", soft_wrap=True)


def _accuracy_table(tasks: dict[str, Any]) -> Table:
    """Right answers to the tasks of a mixture, in its larger groups."""
    models = list(tasks["accuracy"])
    table = _table("Right answers to the mixture's tasks; 95 % intervals", ("questions", "items", *models))
    for group in sorted({group for means in tasks["accuracy"].values() for group in means}, reverse=True):
        if not group.startswith("task "):
            cells = [tasks["accuracy"][model].get(group) for model in models]
            items = max(cell["items"] for cell in cells if cell)
            table.add_row(group, str(items), *(_estimate(cell, "{:.2f}", True) if cell else "-" for cell in cells))
    return table


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
