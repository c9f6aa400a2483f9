"""What a run read, dropped, cost and wrote, as rows of tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from spintune.report.facts import Facts, RunFacts

# Data ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FunnelRow:
    """What came in at a step, what was kept, and why the rest was not."""

    step: str
    unit: str
    read: int
    kept: int
    dropped: Mapping[str, int]
    note: str = ""

    @property
    def share(self) -> float:
        """Kept of read, at most 1: repeated rows are kept more than once."""
        return min(1.0, self.kept / self.read) if self.read else 0.0


def funnels(run: RunFacts) -> list[FunnelRow]:
    """Every step at which examples, rows or pairs are counted, in order."""
    return [*_synth(run), *_data(run), *_trained(run), *_pairs(run), *_judged(run)]


def _synth(run: RunFacts) -> Iterator[FunnelRow]:
    facts = run.facts_of("synth")
    for step in facts["funnel"] if facts else []:
        name = str(step["step"]).replace("_", " ")
        yield FunnelRow(f"writing: {name}", step["unit"], step["read"], step["kept"], step["dropped"])


def _data(run: RunFacts) -> Iterator[FunnelRow]:
    facts = run.facts_of("data")
    if facts is None:
        return
    mixed = facts.get("mixture")
    split = f"{facts['train']:,} to train on, {facts['heldout']:,} held out"
    if facts["read"]:
        kept = facts["read"] - sum(facts["dropped"].values()) + facts["repeated"]
        notes = [f"{facts['repeated']:,} repeated by their weight"] if facts["repeated"] else []
        notes += [] if mixed else [split]
        yield FunnelRow("reading", "rows", facts["read"], kept, facts["dropped"], "; ".join(notes))
    if mixed:
        tasks = mixed["tasks"].values()
        dropped = sum((Counter(task["dropped"]) for task in tasks), Counter[str]())
        read = sum(task["read"] for task in tasks)
        note = f"{mixed['examples']:,} examples mixed from them, {mixed['distinct']:,} of them distinct"
        yield FunnelRow("tasks", "rows", read, read - dropped.total(), dropped, f"{note}; {split}")


def _trained(run: RunFacts) -> Iterator[FunnelRow]:
    for stage, name in (("sft", "SFT"), ("spin/baseline-sft", "further SFT")):
        if facts := run.facts_of(stage):
            dropped = facts["dropped"]
            note = f"{facts['truncated']:,} truncated" if facts["truncated"] else ""
            yield FunnelRow(name, "examples", facts["rows"] + sum(dropped.values()), facts["rows"], dropped, note)


def _pairs(run: RunFacts) -> Iterator[FunnelRow]:
    for number in range(1, run.iterations + 1):
        if facts := run.facts_of(f"spin/iterate-{number}/pairs"):
            train = facts["train"]
            notes = [f"{train['answers']:,} generated answers, {train['generated_cut']:,} cut"]
            if train["real_cut"]:
                notes.append(f"{train['real_cut']:,} real ones cut")
            if train["played"] != train["prompts"]:
                notes.append(f"{train['played']:,} prompts answered")
            if train["replayed"]:
                notes.append(f"{train['replayed']:,} replayed pairs besides")
            yield FunnelRow(
                f"iteration {number}", "prompts", train["prompts"], train["kept"], train["dropped"], "; ".join(notes)
            )


def _judged(run: RunFacts) -> Iterator[FunnelRow]:
    """The same for every model, so the first one that was judged tells it."""
    for model in run.models:
        if facts := run.facts_of(f"likelihood/{model.name}"):
            left = {"too_long": facts["left_out"]} if facts["left_out"] else {}
            yield FunnelRow("judging", "held-out examples", facts["items"] + facts["left_out"], facts["items"], left)
            return


def mixture(run: RunFacts) -> list[tuple[str, tuple[str, ...]]]:
    """The tasks of a mixture, the largest first: name, and wanted share, realised share, examples, rows, passes and
    held-out rows as text. Empty without a mixture.
    """
    facts = (run.facts_of("data") or {}).get("mixture")
    tasks = sorted(facts["tasks"].items(), key=lambda entry: -entry[1]["wanted"]) if facts else []
    return [
        (
            name,
            (
                f"{100 * task['wanted']:.2f}",
                f"{100 * task['realised']:.2f}",
                f"{task['examples']:,}",
                f"{task['rows']:,}",
                f"{task['passes']:.2f}",
                f"{task['heldout']:,}",
            ),
        )
        for name, task in tasks
    ]


def counted(counts: Mapping[str, int]) -> str:
    """Reasons and how often each: ``over limit 55, duplicate 2``."""
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in sorted(counts.items())) or "none"


# Cost ---------------------------------------------------------------------------------------------------------------

WORK = ("write", "generate", "score", "train")
"""Kinds of work that stages time."""


@dataclass(frozen=True)
class StageCost:
    """What a stage took.

    Attributes:
        tokens: it trained on, or wrote.
        rate: tokens a second of the steps alone, None where no step was timed.
        seconds: by kind of work.
        share_of_peak: how near its products came to the machine's best one; None where that is not known.
        joules: of the processors; None where the system does not say.
    """

    stage: str
    did: str
    tokens: int
    rate: float | None
    seconds: Mapping[str, float]
    share_of_peak: float | None = None
    joules: float | None = None


def costs(run: RunFacts) -> list[StageCost]:
    """Cost of each finished stage."""
    found = []
    if facts := run.facts_of("synth"):
        spent = facts["cost"]
        found.append(StageCost("writing data", _asked(spent), spent["completion_tokens"], None, facts["seconds"]))
    if "sft" in run.stages:
        found.append(_training(run, "sft", "SFT"))
    for number in range(1, run.iterations + 1):
        stage = f"spin/iterate-{number}"
        if facts := run.facts_of(f"{stage}/pairs"):
            answers, tokens = _written(run.folder / stage / "pairs" / "answers.jsonl")
            found.append(
                StageCost(f"iteration {number}: pairs", f"{answers:,} answers", tokens, None, facts["seconds"])
            )
        if stage in run.stages:
            found.append(_training(run, stage, f"iteration {number}: training"))
    if "spin/baseline-sft" in run.stages:
        found.append(_training(run, "spin/baseline-sft", "further SFT"))
    if run.judging:
        spent = run.judging.cost
        found.append(StageCost("judge", _asked(spent), spent["completion_tokens"], None, {}))
    return found


def _asked(spent: Facts) -> str:
    return f"{spent['requests']:,} requests" + (f", ${spent['dollars']:,.2f}" if spent["dollars"] else "")


def _training(run: RunFacts, stage: str, name: str) -> StageCost:
    rows = run.metrics.get(stage, [])
    tokens, seconds = sum(row["tokens"] for row in rows), sum(row["seconds"] for row in rows)
    facts = run.stages[stage].facts
    return StageCost(
        name,
        f"{len(rows):,} steps",
        tokens,
        tokens / seconds if seconds else None,
        facts["seconds"],
        facts["hardware"]["share_of_peak"],
        facts["hardware"]["joules"],
    )


def _written(path: Path) -> tuple[int, int]:
    """Generated answers of a file of pairs, and their tokens."""
    answers = tokens = 0
    with path.open("rb") as file:
        for line in file:
            for answer in orjson.loads(line)["generated"]:
                answers, tokens = answers + 1, tokens + len(answer["ids"])
    return answers, tokens


def duration(seconds: float) -> str:
    """Seconds for readers: 42 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


# Iterations ---------------------------------------------------------------------------------------------------------


def iterations(run: RunFacts) -> list[tuple[str, str, tuple[str, ...]]]:
    """What was measured of each iteration: (quantity, unit, a text for every iteration); empty before the first."""
    stages = [f"spin/iterate-{number}" for number in range(1, run.iterations + 1)]
    trained = [run.facts_of(stage) or {} for stage in stages]
    pairs = [run.facts_of(f"{stage}/pairs") or {} for stage in stages]
    diagnosed = [run.facts_of(f"{stage}/diagnosis") or {} for stage in stages]

    def row(
        name: str, unit: str, facts: Sequence[Facts], path: str, form: str = "{:,.3f}"
    ) -> tuple[str, str, tuple[str, ...]]:
        return name, unit, tuple(_formatted(_inside(one, path), form) for one in facts)

    rows = [
        row("learning rate", "peak", trained, "learning_rate", "{:.3g}"),
        row("steps", "", trained, "steps", "{:,}"),
        row("pairs seen", "in training", trained, "pairs_seen", "{:,}"),
        row("loss at the start", "held-out pairs", trained, "heldout/start_loss"),
        row("loss", "held-out pairs", trained, "heldout/loss"),
        row("standard error", "of the fall in loss", trained, "heldout/loss_error"),
        row("margin r − r′", "nats an answer", trained, "heldout/margin"),
        row("accuracy", "share of held-out pairs", trained, "heldout/accuracy"),
        row("r", "real, nats an answer", trained, "heldout/real_ratio"),
        row("r′", "generated, nats an answer", trained, "heldout/generated_ratio"),
        row("log p real", "nats an answer", trained, "heldout/real_logprob", "{:,.2f}"),
        row("log p generated", "nats an answer", trained, "heldout/generated_logprob", "{:,.2f}"),
        row("held-out loss", "nats a token", diagnosed, "nll_per_token"),
        row("KL to the opponent", "nats an answer", diagnosed, "kl_opponent"),
        row("KL to iterate 0", "nats an answer", diagnosed, "kl_base"),
        row("length of its answers", "tokens", diagnosed, "answers/tokens", "{:.1f}"),
        row("length of real answers", "tokens", diagnosed, "real/tokens", "{:.1f}"),
        row("answers cut", "share", diagnosed, "answers/cut"),
        row("distinct-1", "share", diagnosed, "answers/distinct_1"),
        row("distinct-2", "share", diagnosed, "answers/distinct_2"),
        row("repeated 4-grams", "share", diagnosed, "answers/repetition"),
        row("same answer as the opponent", "share", diagnosed, "identical_to_opponent"),
        row("real told by length alone", "AUC", pairs, "separability/length_auc", "{:.2f}"),
        row("real told by last token", "AUC", pairs, "separability/last_token_auc", "{:.2f}"),
        row("real told by being cut", "AUC", pairs, "separability/cut_auc", "{:.2f}"),
    ]
    return [one for one in rows if any(text != "–" for text in one[2])]


def _inside(facts: Facts, path: str) -> Any:
    """The value at ``a/b``, or None where any part of the way is missing."""
    value: Any = facts
    for key in path.split("/"):
        value = value.get(key) if value else None
    return value


def _formatted(value: Any, form: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):  # an estimate with its error
        error = value["standard_error"]
        text = form.format(value["mean"]) + ("" if error is None else f" ± {form.format(error)}")
    else:
        text = form.format(value)
    return re.sub(r"e([+-])0*", r"e\1", text).replace("-", "−")


# Recipe and files ---------------------------------------------------------------------------------------------------


def recipe_text(recipe: Facts) -> str:
    """The resolved recipe as YAML, without sections that it does not have."""
    return yaml.safe_dump(
        {key: value for key, value in recipe.items() if value is not None}, sort_keys=False, allow_unicode=True
    )


def versions(run: RunFacts) -> list[tuple[str, str]]:
    """What wrote the run: (name, version)."""
    others = sorted({stage.version for stage in run.stages.values()} - {run.version})
    found = [("spintune", run.version + (f" (some stages: {', '.join(others)})" if others else ""))]
    for model in run.models[1:]:
        config = run.folder / model.place / "config.json"
        if config.is_file() and (version := orjson.loads(config.read_bytes()).get("transformers_version")):
            return [*found, ("transformers", str(version))]
    return found


@dataclass(frozen=True)
class RunFile:
    path: str
    what: str
    bytes: int | None


def files(run: RunFacts) -> list[RunFile]:
    """What is worth opening in the run folder."""
    wanted = [("results.json", "the numbers of this page"), ("metrics.jsonl", "every optimizer step")]
    wanted += [("recipe.json", "the resolved recipe")]
    if "synth" in run.stages:
        wanted += [("synth/card.md", "what the teacher wrote"), ("synth/examples.jsonl", "the written examples")]
    wanted += [("data/train.jsonl", "training examples"), ("data/heldout.jsonl", "held-out examples")]
    wanted += [(model.place, f"{model.name}, a Hugging Face folder") for model in run.models[1:]]
    wanted += [(f"eval/heldout/{model.name}/answers.jsonl", f"answers of {model.name}") for model in run.models]
    for one in run.evaluations:
        places = dict.fromkeys([f"eval/{one.name}", *filter(None, [one.place])])
        wanted += [(place, f"{one.name}: items of every model") for place in places]
    wanted += [
        ("judge", "replies and verdicts of the judge"),
        ("contamination/contamination.json", "overlaps, by item"),
    ]
    numbers = range(1, run.iterations + 1)
    wanted += [(f"spin/iterate-{n}/pairs/train.jsonl", f"pairs of iteration {n}") for n in numbers]
    there = [(path, what) for path, what in wanted if (run.folder / path).exists()]
    return [RunFile(path, what, _size(run.folder / path)) for path, what in there]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def differing(recipes: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    """Settings in which recipes differ: dotted key, and the value of each as text."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [(key, [_value(one, key) for one in flat]) for key in keys if len({_value(one, key) for one in flat}) > 1]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        value = {str(number): one for number, one in enumerate(value, 1)}
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _flat(inside, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _value(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "–"
    value = flat[key]
    return value if isinstance(value, str) else orjson.dumps(value).decode()
