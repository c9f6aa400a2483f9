"""A run's stages: what they read and dropped, what they cost, what they measured and which files they wrote."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import orjson
import yaml

from spintune.errors import RunError
from spintune.mixtures.report import TaskReport
from spintune.report.facts import RunFacts
from spintune.report.rates import searches_of, stage_title
from spintune.results import DataFacts, IterationFacts, LikelihoodCounts, SftFacts, SynthFacts
from spintune.selfplay.diagnostics import KlEstimate
from spintune.storage import read_json
from spintune.synthesis.filters import FilterCounts
from spintune.teachers.budget import Cost, replies_in_words
from spintune.typed_json import JsonObject

# Data ---------------------------------------------------------------------------------------------------------------


@dataclass
class NotedStep(FilterCounts):
    """A step at which items are counted, with a note."""

    note: str = ""

    @property
    def share(self) -> float:
        """Kept of read, at most 1: repeated rows are kept more than once."""
        return min(1.0, self.kept / self.read) if self.read else 0.0


def funnel(run: RunFacts) -> list[NotedStep]:
    """Every step at which examples, rows or pairs are counted, in order."""
    return [*_written(run), *_read(run), *_trained(run), *_paired(run), *_judged(run)]


def _written(run: RunFacts) -> Iterator[NotedStep]:
    facts = run.facts("synth", SynthFacts)
    if facts is None:
        return
    note = " ".join(replies_in_words(facts.thoughts, facts.left_out))
    for step in facts.funnel:
        name = f"writing: {step.step.replace('_', ' ')}"
        yield NotedStep(name, step.unit, step.read, step.kept, step.dropped, note if step is facts.funnel[0] else "")


def _read(run: RunFacts) -> Iterator[NotedStep]:
    facts = run.facts("data", DataFacts)
    if facts is None:
        return
    split = f"{facts.training}, {facts.heldout:,} held out"
    if facts.read:
        kept = facts.read - sum(facts.dropped.values()) + facts.repeated
        notes = [f"{facts.repeated:,} repeated by their weight"] if facts.repeated else []
        notes += [] if facts.mixture else [split]
        yield NotedStep("reading", "rows", facts.read, kept, Counter(facts.dropped), "; ".join(notes))
    if mixed := facts.mixture:
        tasks = mixed.tasks.values()
        dropped = sum((Counter(task.dropped) for task in tasks), Counter[str]())
        read = sum(task.read for task in tasks)
        note = f"{mixed.examples:,} examples mixed from them, {mixed.distinct:,} of them distinct; {split}"
        yield NotedStep("tasks", "rows", read, read - dropped.total(), dropped, note)


def _trained(run: RunFacts) -> Iterator[NotedStep]:
    for stage, name in (("sft", "SFT"), ("spin/baseline-sft", "more SFT")):
        if facts := run.facts(stage, SftFacts):
            read = facts.rows + sum(facts.dropped.values())
            notes = [f"{facts.truncated:,} truncated"] if facts.truncated else []
            notes += [f"{facts.unknown:,} unknown tokens in answers"] if facts.unknown else []
            notes += [f"step {facts.kept_step:,} of {facts.steps:,} kept"] if facts.kept_earlier else []
            notes += [f"ended early, {facts.planned_steps:,} steps were planned"] if facts.ended_early else []
            yield NotedStep(name, "examples", read, facts.rows, Counter(facts.dropped), "; ".join(notes))


def _paired(run: RunFacts) -> Iterator[NotedStep]:
    for iteration in run.iterations:
        if iteration.pairs is None:
            continue
        train = iteration.pairs.train
        notes = [f"{train.answers:,} generated answers, {train.generated_cut:,} cut"]
        notes += [f"{train.real_cut:,} real ones cut"] if train.real_cut else []
        notes += [f"{train.played:,} of {train.prompts:,} prompts answered"] if train.played != train.prompts else []
        notes += [f"{train.replayed:,} replayed pairs besides"] if train.replayed else []
        name = f"iteration {iteration.number}"
        dropped = Counter(train.dropped)
        # the player answers the prompts of later phases; earlier versions counted answers, which may be more
        read = min(train.prompts, train.kept + dropped.total())
        yield NotedStep(name, "prompts", read, train.kept, dropped, "; ".join(notes))


def _judged(run: RunFacts) -> Iterator[NotedStep]:
    """Equal for all models, so the counts of the first judged model stand for all."""
    counts = [run.facts(f"likelihood/{model.name}", LikelihoodCounts) for model in run.models]
    for facts in [one for one in counts if one][:1]:
        dropped = Counter({"too_long": facts.left_out} if facts.left_out else {})
        yield NotedStep("judging", "held-out examples", facts.items + facts.left_out, facts.items, dropped)


def mixture(run: RunFacts) -> list[tuple[str, TaskReport]]:
    """The tasks of a mixture with their shares, the largest first; empty without a mixture."""
    facts = run.facts("data", DataFacts)
    tasks = facts.mixture.tasks if facts and facts.mixture else {}
    return sorted(tasks.items(), key=lambda entry: -entry[1].wanted)


# Cost ---------------------------------------------------------------------------------------------------------------

WORK = ("write", "rates", "generate", "score", "train")
"""Kinds of work that stages time."""


@dataclass(frozen=True)
class StageCost:
    """What a stage took.

    Attributes:
        did: how much it did, in words.
        tokens: that it trained on, or wrote.
        rate: tokens per second in optimizer steps; None where no step was timed.
        seconds: by kind of work.
        share_of_peak: achieved arithmetic over the machine's best; None where it is not known.
        joules: energy of the processors; None where the system does not tell.
    """

    stage: str
    did: str
    tokens: int
    seconds: Mapping[str, float]
    rate: float | None = None
    share_of_peak: float | None = None
    joules: float | None = None


def costs(run: RunFacts) -> list[StageCost]:
    """Cost of each finished stage, and of the short runs that found its learning rate."""
    found = []
    searches = searches_of(run)

    def search(stage: str) -> list[StageCost]:
        facts = searches.get(stage)
        if facts is None or not facts.rungs:
            return []
        name = f"{stage_title(stage)}: learning rate"
        return [StageCost(name, f"{len(facts.rungs)} short runs", facts.tokens, facts.seconds)]

    if synth := run.facts("synth", SynthFacts):
        found.append(_asked("writing data", synth.cost, synth.seconds))
    if sft := run.facts("sft", SftFacts):
        found += [*search("sft"), _training(run, "sft", "SFT", sft)]
    for one in run.iterations:
        stage = f"spin/iterate-{one.number}"
        if one.pairs:
            answers, tokens = _generated(run.folder / stage / "pairs" / "answers.jsonl")
            name = f"iteration {one.number}: pairs"
            found.append(StageCost(name, f"{answers:,} answers", tokens, one.pairs.seconds))
        if one.training:
            found += [*search(stage), _training(run, stage, f"iteration {one.number}: training", one.training)]
    if further := run.facts("spin/baseline-sft", SftFacts):
        found += [*search("spin/baseline-sft"), _training(run, "spin/baseline-sft", "more SFT", further)]
    if run.results.judge:
        found.append(_asked("judge", run.results.judge.cost, {}))
    return found


def seconds_of_work(costs: Sequence[StageCost]) -> dict[str, float]:
    """The time of all stages, by kind of work."""
    kinds = [kind for kind in WORK if any(kind in cost.seconds for cost in costs)]
    return {kind: sum(cost.seconds.get(kind, 0.0) for cost in costs) for kind in kinds}


def _asked(stage: str, cost: Cost, seconds: Mapping[str, float]) -> StageCost:
    did = f"{cost.requests:,} requests" + (f", ${cost.dollars:,.2f}" if cost.dollars else "")
    return StageCost(stage, did, cost.completion_tokens, seconds)


def _training(run: RunFacts, stage: str, name: str, facts: SftFacts | IterationFacts) -> StageCost:
    steps = run.metrics.get(stage, [])
    tokens, seconds = (sum(row[key] or 0 for row in steps) for key in ("tokens", "seconds"))
    rate = tokens / seconds if seconds else None
    hardware = facts.hardware
    did = f"{len(steps):,} steps"
    return StageCost(name, did, tokens, facts.seconds, rate, hardware.share_of_peak, hardware.joules)


def _generated(path: Path) -> tuple[int, int]:
    """Generated answers of a file of pairs, and their tokens. Raises RunError for a damaged line, or without a file."""
    answers = tokens = number = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                number += 1
                lengths = [len(answer["ids"]) for answer in orjson.loads(line)["generated"]]
                answers, tokens = answers + len(lengths), tokens + sum(lengths)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run the recipe again") from error
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{path}:{number}: damaged ({error}); delete the file and run again") from error
    return answers, tokens


# Iterations ---------------------------------------------------------------------------------------------------------

_QUANTITIES = (  # name, unit, place in IterationStages, form
    ("learning rate", "peak", "training.learning_rate", "{:.3g}"),
    ("steps", "", "training.steps", "{:,}"),
    ("pairs seen", "in training", "training.pairs_seen", "{:,}"),
    ("loss at the start", "held-out pairs", "training.heldout.start_loss", "{:,.3f}"),
    ("loss", "held-out pairs", "training.heldout.loss", "{:,.3f}"),
    ("standard error", "of the fall in loss", "training.heldout.loss_error", "{:,.3f}"),
    ("margin r − r′", "nats an answer", "training.heldout.margin", "{:,.3f}"),
    ("accuracy", "share of held-out pairs", "training.heldout.accuracy", "{:,.3f}"),
    ("r", "real, nats an answer", "training.heldout.real_ratio", "{:,.3f}"),
    ("r′", "generated, nats an answer", "training.heldout.generated_ratio", "{:,.3f}"),
    ("log p real", "nats an answer", "training.heldout.real_logprob", "{:,.2f}"),
    ("log p generated", "nats an answer", "training.heldout.generated_logprob", "{:,.2f}"),
    ("held-out loss", "nats a token", "diagnosis.nll_per_token", "{:,.3f}"),
    ("KL to the opponent", "nats an answer", "diagnosis.kl_opponent", "{:,.3f}"),
    ("KL to iterate 0", "nats an answer", "diagnosis.kl_base", "{:,.3f}"),
    ("length of its answers", "tokens", "diagnosis.answers.tokens", "{:.1f}"),
    ("length of real answers", "tokens", "diagnosis.real.tokens", "{:.1f}"),
    ("answers cut", "share", "diagnosis.answers.cut", "{:,.3f}"),
    ("distinct-1", "share", "diagnosis.answers.distinct_1", "{:,.3f}"),
    ("distinct-2", "share", "diagnosis.answers.distinct_2", "{:,.3f}"),
    ("repeated 4-grams", "share", "diagnosis.answers.repetition", "{:,.3f}"),
    ("same answer as the opponent", "share", "diagnosis.identical_to_opponent", "{:,.3f}"),
    ("real told by length alone", "AUC", "pairs.separability.length_auc", "{:.2f}"),
    ("real told by last token", "AUC", "pairs.separability.last_token_auc", "{:.2f}"),
    ("real told by being cut", "AUC", "pairs.separability.cut_auc", "{:.2f}"),
    ("answers written by", "", "pairs.engine", "{}"),
    ("sampler against scorer", "nats a token", "pairs.gap.per_token", "{:.2g}"),
    ("sampler against scorer", "nats an answer, at most", "pairs.gap.largest", "{:.2g}"),
    ("KL of sampler to scorer", "nats an answer", "pairs.gap.signed", "{:.2g}"),
)


def iteration_rows(run: RunFacts) -> list[tuple[str, str, list[str | None]]]:
    """What was measured of each iteration, as (quantity, unit, a text for each iteration); empty before the first."""
    rows = [
        (name, unit, [_formatted(_inside(one, place), form) for one in run.iterations])
        for name, unit, place, form in _QUANTITIES
    ]
    return [row for row in rows if any(row[2])]


def _inside(facts: object, place: str) -> object:
    """The value at ``a.b``, or None where any part of the way is missing."""
    for name in place.split("."):
        facts = getattr(facts, name, None)
    return facts


def _formatted(value: object, form: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, KlEstimate):
        error = value.standard_error
        text = form.format(value.mean) + ("" if error is None else f" ± {form.format(error)}")
    else:
        text = form.format(value)
    return re.sub(r"e([+-])0*", r"e\1", text).replace("-", "−")


# Recipe and files ---------------------------------------------------------------------------------------------------


def recipe_text(recipe: JsonObject) -> str:
    """The resolved recipe as YAML, without sections that it does not have."""
    return yaml.safe_dump(
        {key: value for key, value in recipe.items() if value is not None}, sort_keys=False, allow_unicode=True
    )


def versions(run: RunFacts) -> list[tuple[str, str]]:
    """What wrote the run: (name, version)."""
    others = sorted(run.stage_versions - {run.version})
    found = [("spintune", run.version + (f" (some stages: {', '.join(others)})" if others else ""))]
    for model in run.models[1:]:
        config = run.folder / model.place / "config.json"
        if config.is_file() and (version := read_json(config).get("transformers_version")):
            return [*found, ("transformers", str(version))]
    return found


def files(run: RunFacts, beside: Path | None) -> list[tuple[str, str, str, int]]:
    """What is worth opening in the run folder: (path, link from the folder ``beside``, what it is, size in bytes)."""
    listed = [
        ("results.json", "the numbers of this page"),
        ("metrics.jsonl", "every optimizer step"),
        ("recipe.json", "the resolved recipe"),
        ("synth/card.md", "what the teacher wrote"),
        ("synth/examples.jsonl", "the written examples"),
        ("data/train.jsonl", "training examples"),
        ("data/seen.jsonl", "those that SFT sees"),
        ("data/unseen.jsonl", "those that SFT does not see"),
        ("data/heldout.jsonl", "held-out examples"),
        *((model.place, f"{model.name}, a Hugging Face folder") for model in run.models[1:]),
        *((f"eval/heldout/{model.name}/answers.jsonl", f"answers of {model.name}") for model in run.models),
    ]
    for one in run.evaluations:
        places = dict.fromkeys([f"eval/{one.name}", one.place or f"eval/{one.name}"])
        listed += [(place, f"{one.name}: items of every model") for place in places]
    listed += [
        ("judge", "replies and verdicts of the judge"),
        ("contamination/contamination.json", "overlaps, by item"),
    ]
    for iteration in run.iterations:
        pairs = f"spin/iterate-{iteration.number}/pairs/train.jsonl"
        listed.append((pairs, f"pairs of iteration {iteration.number}"))
    there = [(path, what, run.folder / path) for path, what in listed if (run.folder / path).exists()]
    links = ["" if beside is None else quote(os.path.relpath(place, beside)) for _, _, place in there]
    return [(path, link, what, _size(place)) for (path, what, place), link in zip(there, links, strict=True)]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def differing(recipes: Sequence[JsonObject]) -> list[tuple[str, list[str]]]:
    """Settings in which recipes differ: dotted key, and the value of each as text."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        value = {str(number): one for number, one in enumerate(value, 1)}
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _flat(inside, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else orjson.dumps(value).decode()
