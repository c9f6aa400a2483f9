"""Do more tasks and more phrasings generalise better? FLAN's claim (arXiv 2109.01652, 2210.11416) as a measured curve.

    python benchmarks/flan_generalisation.py [--seeds 4] [--first-seed 1] [--steps 1500] [--quick]
        [--report FILE.json] [--figure FILE.svg]

A tiny T5 (two and two layers of FLAN-T5's kind) learns from a fresh config, by an ordinary recipe: task files, mixture,
SFT. A row is a record of four words, one of each field, in any order; a task asks for one field in one form::

    record                   task                  answer
    lisbon amber pasta owl   the food, once        pasta
                             the colour, twice     amber amber
                             the pet, politely     owl please
                             the city, firmly      lisbon indeed

Four fields in four forms are 16 tasks. Four of them, one of each field and of each form, are never trained, in no
wording. So to an arm with the other 12, a new task is an interpolation: its field and its form are known, but have not
met. That is what can be asked of so small a model; a task that has nothing in common with the others is not.

A task is asked in 12 wordings, three sentences with four sets of synonyms each; four wordings, one of each set, are
never trained. Besides, it is shown by exemplars alone, in 12 wordings that do not say what to do, of which four are
never trained either. Few-shot prompts have two exemplars.

Arms, with the same weights at the start, the same steps, tokens a step and questions:

    phrasings   1, 2, 4 or 8 wordings of 12 tasks, each arm's among those of the next
    tasks       2, 4, 8 or 12 tasks in 8 wordings, likewise
    zero-shot   12 tasks in 8 wordings, without exemplars

The seed draws which tasks and wordings are new, in which order arms get the others, the rows, and the weights. An
answer is right if the library's own rule says so; a guess of field and form is right in one of 16. Intervals are
t-intervals over seeds, differences are paired by seed.

What it cannot say: the model knows no language but what its arm taught it, so a wording with synonyms that it never met
is noise to it and no paraphrase. A pretrained model knows synonyms and has less to lose by a single phrasing.

Sizes, rate and steps were chosen on seed 100, which is not reported. There the form "twice" did not carry over to its
new field even with all tasks and phrasings (0 of 40 right, the other three 38 to 39): a word comes second only if it
did so in training. So three quarters are about the most that new tasks can reach here. What did not work at all: a head
tied to the embeddings (several times slower; with it, words were not found by their place in a list within 400 steps,
and ordered pairs of fields were learned but not carried over to new pairs), a width of 96, rates above 2e-3 (slower).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import describe
from seeds import Interval
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.utils import logging as transformers_logging

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.mixtures.answers import correct
from spintune.mixtures.mixture import Mixture, Prompting
from spintune.mixtures.rendering import FRAMES, RenderedPrompt
from spintune.mixtures.tasks import MixtureTask, load_tasks
from spintune.models.loading import load_model
from spintune.pipeline import run_recipe
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.records import Message
from spintune.report.figures import HEIGHT, WIDTH, Series, draw
from spintune.typed_json import to_json

# The world ---------------------------------------------------------------------------------------------------------

FIELDS = {
    "city": ("lisbon", "oslo", "cairo", "quito", "delhi", "perth"),
    "food": ("pasta", "rice", "soup", "bread", "salad", "curry"),
    "pet": ("cat", "owl", "hen", "pony", "newt", "goat"),
    "colour": ("amber", "teal", "navy", "pink", "olive", "grey"),
}
FORMS = {"once": "{0}", "twice": "{0} {0}", "politely": "{0} please", "firmly": "{0} indeed"}

FIELD_SYNONYMS = {
    "city": ("city", "town", "place", "home"),
    "food": ("food", "dish", "meal", "lunch"),
    "pet": ("pet", "animal", "beast", "companion"),
    "colour": ("colour", "shade", "tint", "paint"),
}
FORM_SYNONYMS = {
    "once": ("once", "alone", "simply", "only"),
    "twice": ("twice", "doubled", "repeated", "again"),
    "politely": ("politely", "kindly", "nicely", "courteously"),
    "firmly": ("firmly", "surely", "strongly", "certainly"),
}
SENTENCES = (
    "Give the {field} {form}: {{record}}",
    "{{record}}. Which {field}? Write {form}",
    "From {{record}} give {form} the {field}",
)
WORDINGS = tuple(itertools.product(range(len(SENTENCES)), range(4)))
"""Sentence and set of synonyms."""

SILENT_WORDINGS = (
    ("{record}", " gives "),
    ("{record}", " = "),
    ("line: {record}", " result: "),
    ("input: {record}", " output: "),
    ("{record}", " becomes "),
    ("given {record}", " comes "),
    ("case: {record}", " reply: "),
    ("line: {record}", " output: "),
    ("given {record}", " = "),
    ("input: {record}", " gives "),
    ("case: {record}", " result: "),
    ("{record}", " reply: "),
)
"""Input and cue; they do not say what to do."""

NEW_WORDINGS = 4
KNOWN_WORDINGS = len(WORDINGS) - NEW_WORDINGS
KNOWN_TASKS = len(FIELDS) * len(FORMS) - len(FORMS)

TRAIN_ROWS, TEST_ROWS = 2000, 400
SHOTS = 2
TOLD, SHOWN = "told", "shown"

# The model and its training ----------------------------------------------------------------------------------------

T5: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
STEPS = 1500
SFT: dict[str, Any] = {
    "learning_rate": 1.5e-3,
    "schedule": "cosine",
    "warmup": 0.05,
    "tokens_per_step": 512,
    "epochs": 10.0,
    "samples": 0,
}
EXAMPLES = 20
"""Examples of the mixture for each step, which takes as many as fit: about so many, without exemplars twice that."""
LONGEST = 160
ANSWER_TOKENS = 8


QUESTIONS = 160
"""Of each group."""
GROUPS = {
    "known": "known tasks, known wording",
    "wording": "known tasks, new wordings",
    "task": "new tasks, known wording",
    "both": "new tasks, new wordings",
    "exemplars": "new tasks, new wordings, exemplars",
    "silent": "new tasks, exemplars alone",
    "silent-new": "new tasks, exemplars alone, new wordings",
}
NEW_TASKS = ("task", "both", "exemplars", "silent", "silent-new")


@dataclass(frozen=True)
class Arm:
    phrasings: int
    tasks: int
    exemplars: bool = True

    @property
    def name(self) -> str:
        plural, without = "s" * (self.phrasings > 1), "" if self.exemplars else ", zero-shot"
        return f"{self.tasks} tasks, {self.phrasings} phrasing{plural}{without}"


ALL = Arm(KNOWN_WORDINGS, KNOWN_TASKS)
PHRASINGS = (*(Arm(count, KNOWN_TASKS) for count in (1, 2, 4)), ALL)
TASKS = (*(Arm(KNOWN_WORDINGS, count) for count in (2, 4, 8)), ALL)
ZERO_SHOT = Arm(KNOWN_WORDINGS, KNOWN_TASKS, exemplars=False)
ARMS = (*PHRASINGS, *TASKS[:-1], ZERO_SHOT)


@dataclass(frozen=True)
class Job:
    """A task: a field and the form it is asked in."""

    field: str
    form: str

    @property
    def name(self) -> str:
        return f"{self.field}-{self.form}"

    def answer(self, record: Mapping[str, str]) -> str:
        return FORMS[self.form].format(record[self.field])

    def phrasing(self, wording: tuple[int, int]) -> dict[str, str]:
        sentence, synonyms = wording
        field, form = FIELD_SYNONYMS[self.field][synonyms], FORM_SYNONYMS[self.form][synonyms]
        return {"input": SENTENCES[sentence].format(field=field, form=form), "target": "{answer}"}


JOBS = tuple(Job(field, form) for field in FIELDS for form in FORMS)


class Lot:
    """What a seed draws: new and known tasks and wordings, in the order in which arms get them."""

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        self.new_tasks = [Job(*pair) for pair in zip(dice.sample(list(FIELDS), len(FORMS)), FORMS, strict=True)]
        self.tasks = [job for job in JOBS if job not in self.new_tasks]
        dice.shuffle(self.tasks)
        sentences = [*range(len(SENTENCES)), dice.randrange(len(SENTENCES))]
        dice.shuffle(sentences)
        self.new_wordings = list(zip(sentences, range(4), strict=True))
        self.wordings = [wording for wording in WORDINGS if wording not in self.new_wordings]
        dice.shuffle(self.wordings)
        silent = dice.sample(SILENT_WORDINGS, len(SILENT_WORDINGS))
        self.silent, self.new_silent = silent[NEW_WORDINGS:], silent[:NEW_WORDINGS]
        records = self._records(dice, TRAIN_ROWS + TEST_ROWS)
        self.train, self.test = records[:TRAIN_ROWS], records[TRAIN_ROWS:]

    @staticmethod
    def _records(dice: random.Random, count: int) -> list[dict[str, str]]:
        """Distinct ones; the key "record" has their words in an order of their own."""
        found: dict[str, dict[str, str]] = {}
        while len(found) < count:
            record = {field: dice.choice(words) for field, words in FIELDS.items()}
            text = " ".join(dice.sample(list(record.values()), len(record)))
            found.setdefault(text, {**record, "record": text})
        return list(found.values())


# Files -------------------------------------------------------------------------------------------------------------


def write_tasks(
    folder: Path, group: str, tasks: Sequence[Job], phrasings: Mapping[str, Sequence[dict[str, str]]], rows: Path
) -> list[str]:
    """A task file each; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for task in tasks:
        declared = {
            "name": f"{group}.{task.name}",
            "cluster": group,
            "family": group,
            "file": str(rows),
            "fields": {"record": "record", "answer": task.name},
            "direct": list(phrasings[task.name]),
        }
        path = folder / f"{group}.{task.name}.yaml"
        path.write_text(yaml.safe_dump(declared, sort_keys=False))
        paths.append(str(path))
    return paths


def write_rows(path: Path, records: Sequence[Mapping[str, str]]) -> None:
    """A record and the answer to each task in a line."""
    lines = [
        json.dumps({"record": record["record"]} | {job.name: job.answer(record) for job in JOBS}) for record in records
    ]
    path.write_text("\n".join(lines) + "\n")


def told(tasks: Sequence[Job], wordings: Sequence[tuple[int, int]]) -> dict[str, list[dict[str, str]]]:
    """Phrasings of each task that say what to do."""
    return {task.name: [task.phrasing(wording) for wording in wordings] for task in tasks}


def shown(tasks: Sequence[Job], wordings: Sequence[tuple[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Phrasings of each task that leave that to exemplars."""
    return {task.name: [{"input": i, "cue": c, "target": "{answer}"} for i, c in wordings] for task in tasks}


def write_model(folder: Path, seed: int) -> None:
    """A Unigram tokenizer of the world's words, and random weights."""
    texts = [job.phrasing(wording)["input"] for job in JOBS for wording in WORDINGS]
    texts += [f"{input_} {cue}" for input_, cue in SILENT_WORDINGS] + list(FORMS.values())
    texts += [frame.prefix + frame.cue + frame.separator for frame in FRAMES]
    words = {word for text in texts for word in re.findall(r"\w+", text.replace("{record}", ""))}
    words |= {word for field in FIELDS.values() for word in field}
    # a piece has to stand in several words of the corpus before the trainer considers it
    corpus = [word + mark for word in sorted(words) for mark in ("", ",", ".", ":", "?")]
    corpus += texts
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    controls = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=500, special_tokens=controls, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(corpus, trainer)
    # the order of equally likely pieces, and the last digits of scores, differ from one run of the trainer to the next
    pieces = [(piece, round(score, 3)) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
    tokenizer = T5Tokenizer(vocab=[*pieces[: len(controls)], *sorted(pieces[len(controls) :])], extra_ids=0)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **T5))
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * T5["d_model"] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Questions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    group: str
    task: MixtureTask
    rendered: RenderedPrompt


def ask(lot: Lot, folder: Path, seed: int) -> list[Question]:
    """The questions that every arm of a seed answers, about rows that none has read."""
    rows = folder / "test.jsonl"
    write_rows(rows, lot.test)
    first, new = lot.tasks[: TASKS[0].tasks], lot.new_tasks
    plans: dict[str, tuple[Sequence[Job], Mapping[str, Sequence[dict[str, str]]], str]] = {
        "known": (first, told(first, lot.wordings[:1]), "zero_direct"),
        "wording": (lot.tasks, told(lot.tasks, lot.new_wordings), "zero_direct"),
        "task": (new, told(new, lot.wordings[:1]), "zero_direct"),
        "both": (new, told(new, lot.new_wordings), "zero_direct"),
        "exemplars": (new, told(new, lot.new_wordings), "few_direct"),
        "silent": (new, shown(new, lot.silent[:1]), "few_direct"),
        "silent-new": (new, shown(new, lot.new_silent), "few_direct"),
    }
    questions = []
    for group, (tasks, phrasings, quadrant) in plans.items():
        loaded = load_tasks(write_tasks(folder / "questions", group, tasks, phrasings, rows)).tasks
        # half of the rows are asked, the others are there to be exemplars
        mixture = Mixture(loaded, seed, prompting=Prompting(shots=(SHOTS, SHOTS)), eval_fraction=0.5)
        by_name = {task.name: task for task in loaded}
        asked = [found for found in mixture.heldout(QUESTIONS // len(tasks)) if found.quadrant == quadrant]
        questions += [Question(group, by_name[found.task], found) for found in asked]
    return questions


def answer(model: str, questions: Sequence[Question], cache: Path) -> dict[str, Any]:
    """Share of right answers in each group, and in each group by form."""
    loaded = load_model(model, cache=cache, precision="float32")
    renderer = loaded.renderer("tokenizer")
    engine = LogProbEngine(loaded.model, loaded.autocast)
    generator = build_generator(engine, loaded.tokenizer, renderer.stop_ids)
    prompts = [renderer.prompt([Message("user", question.rendered.prompt)]) for question in questions]
    written = generator.generate(prompts, Sampling(ANSWER_TOKENS, temperature=0))
    right: dict[str, dict[str, list[bool]]] = {group: {form: [] for form in FORMS} for group in GROUPS}
    for question, completion in zip(questions, written, strict=True):
        form = question.task.name.rpartition("-")[2]
        right[question.group][form].append(correct(question.task, question.rendered.target, completion.text))
    return {
        "accuracy": {group: statistics.fmean(itertools.chain(*forms.values())) for group, forms in right.items()},
        "forms": {
            group: {form: statistics.fmean(values) for form, values in forms.items() if values}
            for group, forms in right.items()
        },
    }


# Training ----------------------------------------------------------------------------------------------------------


def train(lot: Lot, arm: Arm, folder: Path, seed: int, steps: int) -> str:
    """Runs the arm's recipe; the model's folder."""
    tasks = lot.tasks[: arm.tasks]
    rows = folder / "train.jsonl"
    files = write_tasks(folder / "tasks", TOLD, tasks, told(tasks, lot.wordings[: arm.phrasings]), rows)
    groups = {TOLD: {"tasks": [f"cluster:{TOLD}"], "share": 0.5, "quadrants": {"zero_direct": 1.0}}}
    if arm.exemplars:
        groups[TOLD]["quadrants"] = {"zero_direct": 0.5, "few_direct": 0.5}
        groups[SHOWN] = {"tasks": [f"cluster:{SHOWN}"], "share": 0.5, "quadrants": {"few_direct": 1.0}}
        files += write_tasks(folder / "tasks", SHOWN, tasks, shown(tasks, lot.silent[: arm.phrasings]), rows)
    mixture = {"tasks": files, "examples": EXAMPLES * steps, "shots": [SHOTS, SHOTS], "groups": groups}
    values = {
        "out": str(folder / "run"),
        "model": str(folder / "model"),
        "seed": seed,
        "precision": "float32",
        "tokens_per_forward": 4096,
        "data": {"mixture": mixture, "eval_fraction": 0.0, "max_length": LONGEST},
        "sft": {**SFT, "max_steps": steps},
        "eval": [],
    }
    results = to_json(run_recipe(parse_recipe(values, arm.name), folder, Silent()))
    if results["sft"]["steps"] != steps:
        raise SystemExit(f"{arm.name}: {results['sft']['steps']} steps in place of {steps}; raise EXAMPLES")
    return str(results["models"]["sft"])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def measure(lot: Lot, arm: Arm, questions: Sequence[Question], folder: Path, seed: int, steps: int) -> dict[str, Any]:
    began = time.monotonic()
    model = train(lot, arm, folder, seed, steps)
    right = answer(model, questions, folder)
    loss = statistics.fmean(losses(folder / "run")[-20:])
    shutil.rmtree(folder / "run")
    shutil.rmtree(folder / "tasks")
    return {**right, "loss": loss, "seconds": time.monotonic() - began}


# Report ------------------------------------------------------------------------------------------------------------


Results = Mapping[str, Mapping[str, Any]]
"""By "SEED/ARM"."""


def accuracies(results: Results, arm: Arm, group: str, seeds: Sequence[int]) -> list[float]:
    return [results[f"{seed}/{arm.name}"]["accuracy"][group] for seed in seeds]


def table(title: str, arms: Sequence[Arm], groups: Sequence[str], results: Results, seeds: Sequence[int]) -> None:
    print(f"\n{title}\n")
    print(f"| arm | {' | '.join(GROUPS[group] for group in groups)} |")
    print("|---" * (1 + len(groups)) + "|")
    for arm in arms:
        cells = [Interval.of(accuracies(results, arm, group, seeds)).told() for group in groups]
        print(f"| {arm.name} | {' | '.join(cells)} |")


def differences(
    title: str, more: Arm, less: Arm, groups: Sequence[str], results: Results, seeds: Sequence[int]
) -> None:
    print(f"\n{title}: {more.name}, minus {less.name}; paired by seed\n")
    print("| questions | difference | larger in |")
    print("|---|---|---|")
    for group in groups:
        pairs = zip(*(accuracies(results, arm, group, seeds) for arm in (more, less)), strict=True)
        gains = [high - low for high, low in pairs]
        larger = sum(gain > 0 for gain in gains)
        print(f"| {GROUPS[group]} | {Interval.of(gains).told('+')} | {larger} of {len(gains)} seeds |")


def forms(arm: Arm, results: Results, seeds: Sequence[int]) -> None:
    print(f"\nNew tasks by form: {arm.name}; means over seeds\n")
    print(f"| questions | {' | '.join(FORMS)} |")
    print("|---" * (1 + len(FORMS)) + "|")
    for group in NEW_TASKS:
        found = [results[f"{seed}/{arm.name}"]["forms"][group] for seed in seeds]
        cells = [f"{statistics.fmean(seed[form] for seed in found):.2f}" for form in FORMS]
        print(f"| {GROUPS[group]} | {' | '.join(cells)} |")


def show(results: Results, arms: Sequence[Arm], seeds: Sequence[int], steps: int) -> None:
    tokens = SFT["tokens_per_step"]
    print(f"{len(seeds)} seeds, {steps} steps of {tokens} tokens; share of right answers, 95 % t-intervals over seeds")
    for title, curve, groups in (
        ("More phrasings, 12 tasks", PHRASINGS, list(GROUPS)),
        ("More tasks, 8 phrasings", TASKS, ["known", *NEW_TASKS]),
        ("Exemplars in training", (ZERO_SHOT, ALL), list(GROUPS)),
    ):
        there = [arm for arm in curve if arm in arms]
        if len(there) > 1:
            table(title, there, groups, results, seeds)
            differences(title, there[-1], there[0], groups, results, seeds)
    forms(ALL, results, seeds)
    used = [results[f"{seed}/{arm.name}"] for seed in seeds for arm in arms]
    last = [found["loss"] for found in used]
    print(f"\nlast training losses {min(last):.3f} to {max(last):.3f} nats a token")
    print(f"{sum(found['seconds'] for found in used):.0f} s in {len(used)} trainings")


# Figure ------------------------------------------------------------------------------------------------------------

COLOURS = ("#1f5fa8", "#c2571a", "#2b8a57", "#8a3fa0", "#8a6d00")
DASHES = ("none", "7 3", "2 3", "8 3 2 3", "12 4")
STYLE = """text { font: 11px sans-serif; fill: #555 } .title { font: bold 13px sans-serif; fill: #222 }
.grid { stroke: #ddd } .line { fill: none; stroke-width: 2 } .error { stroke-width: 1.5 } .told { fill: transparent }
"""


def figure(results: Results, seeds: Sequence[int]) -> str:
    """Two panels of accuracy, over phrasings and over tasks, with intervals."""
    top, gap, margin = 34, 30, 12
    panels = (
        (
            "phrasings (12 tasks)",
            PHRASINGS,
            [arm.phrasings for arm in PHRASINGS],
            ("wording", "both", "exemplars", "silent-new"),
        ),
        ("tasks (8 phrasings)", TASKS, [arm.tasks for arm in TASKS], ("task", "both", "exemplars", "silent-new")),
    )
    shown_groups = list(dict.fromkeys(group for *_, groups in panels for group in groups))
    slots = {group: slot for slot, group in enumerate(shown_groups)}
    parts = []
    for number, (title, arms, counts, groups) in enumerate(panels):
        series = []
        for place, group in enumerate(groups):
            intervals = [Interval.of(accuracies(results, arm, group, seeds)) for arm in arms]
            shift = 0.07 * (place - 1.5)  # so that error bars stand side by side
            points = [(at + shift, interval.mean) for at, interval in enumerate(intervals)]
            errors = [(max(0.0, i.low), min(1.0, i.high)) for i in intervals]
            series += [
                Series(GROUPS[group], points, slots[group]),
                Series(GROUPS[group], points, slots[group], "dots", errors),
            ]
        drawn = draw(title, "share of right answers", series, names=[str(count) for count in counts])
        if drawn is None:
            raise SystemExit("nothing to draw")
        left = margin + number * (WIDTH + gap)
        parts.append(f'<text class="title" x="{left}" y="20">Right answers by {title}</text>')
        placed = f'<svg x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(str(drawn.svg).replace("<svg ", placed, 1))
    rules = STYLE
    for slot, (colour, dash) in enumerate(zip(COLOURS, DASHES, strict=True)):
        rules += f".s{slot} {{ stroke: {colour} }} .line.s{slot} {{ stroke-dasharray: {dash} }} "
        rules += f".dot.s{slot} {{ fill: {colour} }}\n"
    for group, slot in slots.items():
        x, y = margin + (slot % 2) * (WIDTH + gap), top + HEIGHT + 18 + 18 * (slot // 2)
        parts.append(f'<line class="line s{slot}" x1="{x}" x2="{x + 28}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text x="{x + 34}" y="{y}">{escape(GROUPS[group])}</text>')
    width, height = 2 * margin + 2 * WIDTH + gap, top + HEIGHT + 18 * (2 + len(slots) // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{rules}</style><rect width="{width}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )


# Work --------------------------------------------------------------------------------------------------------------


def kept(path: Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier, stopped run with the same settings measured."""
    if path is None or not path.exists():
        return {}
    report = json.loads(path.read_text())
    if report["settings"] != settings:
        raise SystemExit(f"{path} was made with other settings; name another file or delete it")
    return dict(report["results"])


def keep(path: Path | None, report: Mapping[str, Any]) -> None:
    if path:
        beside = path.with_suffix(path.suffix + ".part")
        beside.write_text(json.dumps(report, indent=1))
        beside.replace(path)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    arms = (PHRASINGS[0], ALL) if arguments.quick else ARMS
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    settings = {"steps": arguments.steps, "model": T5, "sft": SFT, "examples": EXAMPLES, "questions": QUESTIONS}
    results = kept(arguments.report, settings)
    for seed in seeds:
        if all(f"{seed}/{arm.name}" in results for arm in arms):
            continue
        lot = Lot(seed)
        with tempfile.TemporaryDirectory(prefix="spintune-flan-") as temporary:
            folder = Path(temporary)
            write_model(folder / "model", seed)
            write_rows(folder / "train.jsonl", lot.train)
            questions = ask(lot, folder, seed)
            for arm in arms:
                key = f"{seed}/{arm.name}"
                if key in results:
                    continue
                results[key] = measure(lot, arm, questions, folder, seed, arguments.steps)
                found = " ".join(f"{group} {share:.2f}" for group, share in results[key]["accuracy"].items())
                print(f"{key}: {found}; {results[key]['seconds']:.0f} s", file=sys.stderr, flush=True)
                keep(arguments.report, {"settings": settings, "machine": describe(), "results": results})
    show(results, arms, seeds, arguments.steps)
    if arguments.figure:
        arguments.figure.write_text(figure(results, seeds))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--quick", action="store_true", help="one seed, two arms, few steps: whether it runs")
    parser.add_argument("--report", type=Path, help="file for everything measured; a stopped benchmark goes on from it")
    parser.add_argument("--figure", type=Path, help="file for the curves, as SVG")
    arguments = parser.parse_args()
    arguments.seeds = arguments.seeds or (1 if arguments.quick else 4)
    arguments.steps = arguments.steps or (100 if arguments.quick else STEPS)
    if arguments.quick and arguments.figure:
        parser.error("--quick has no curves to draw; leave out --figure")
    return arguments


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
