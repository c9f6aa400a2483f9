"""Small run folders written by hand, as the stages write them, and a reader of HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spintune.evaluation.selection import selection_of
from spintune.evaluation.statistics import Interval, bootstrap, verdict_difference
from spintune.records import Example, Message, write_records
from spintune.text.rouge import rouge_l

RECIPE: dict[str, Any] = {
    "model": "smollm2-135m-instruct",
    "seed": 7,
    "precision": "auto",
    "tokens_per_forward": 1024,
    "synth": None,
    "data": {
        "train": [{"path": "builtin:seeds", "format": "auto", "weight": 1.0, "limit": 60, "split": "train"}],
        "eval_fraction": 0.2,
        "max_length": 256,
        "template": "tokenizer",
        "turns": "last",
    },
    "lora": None,
    "sft": {"epochs": 1.0, "learning_rate": 2e-5, "samples": 4},
    "spin": {
        "iterations": 2,
        "lambda": 0.1,
        "loss": "logistic",
        "gamma": 0.0,
        "metric": "nll",
        "baseline": "none",
        "max_new_tokens": 48,
    },
    "eval": ["heldout"],
    "evaluation": {"ifeval": None, "questions": None, "rivals": [], "mt_bench": None},
    "judge": None,
}

MIXTURE: dict[str, Any] = {
    "examples": 90,
    "distinct": 80,
    "tasks": {
        name: {
            "wanted": share,
            "realised": share + 0.01,
            "examples": 45,
            "rows": 15,
            "heldout": 5,
            "passes": 3.0,
            "read": 25,
            "dropped": {"empty": 5},
        }
        for name, share in (("sums", 0.25), ("halves", 0.75))
    },
    "quadrants": {},
    "exemplars": dict.fromkeys(("asked_for", "used", "over_budget", "none_other", "prompts_left_without"), 0),
    **dict.fromkeys(("inverted", "labelled_answers", "hidden_options"), 0.0),
    "held_out_tasks": [],
    "absent_groups": [],
    "files_without_rows": {},
}
"""What the stage data says of a mixture of two tasks."""

HARDWARE = {"share_of_peak": 0.62, "best_gflops": 400.0, "joules": None}

TOKENS = 10
"""Scored tokens of every reference here."""


@dataclass
class Folder:
    """A run folder in the making; ``examples`` are its held-out ones."""

    path: Path
    examples: list[Example] = field(default_factory=list)

    def recipe(self, **changes: Any) -> Folder:
        recipe = {
            key: {**value, **changes[key]} if isinstance(value, dict) and isinstance(changes.get(key), dict) else value
            for key, value in RECIPE.items()
        }
        recipe |= {key: value for key, value in changes.items() if not isinstance(recipe[key], dict) or value is None}
        return self.json("recipe.json", {"spintune": "0.1.0", "recipe": recipe})

    def json(self, name: str, value: Any) -> Folder:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
        return self

    def lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Folder:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return self

    def stage(self, name: str, **facts: Any) -> Folder:
        manifest = {"stage": name, "inputs": "0", "files": {}, "facts": facts, "spintune": "0.1.0"}
        return self.json(f"{name}/manifest.json", manifest)

    def metrics(self, stage: str, rows: Sequence[Mapping[str, Any]]) -> Folder:
        with (self.path / "metrics.jsonl").open("a") as file:
            for step, row in enumerate(rows, 1):
                file.write(json.dumps({"stage": stage, "step": step, **row}) + "\n")
        return self

    # Stages ------------------------------------------------------------------------------------------------------

    def data(self, heldout: int | Sequence[tuple[str, str]] = 12) -> Folder:
        texts = [(f"Say word {n}.", f"word {n}") for n in range(heldout)] if isinstance(heldout, int) else heldout
        self.examples = [Example((Message("user", p), Message("assistant", r))) for p, r in texts]
        (self.path / "data").mkdir(parents=True, exist_ok=True)
        write_records(self.path / "data/heldout.jsonl", self.examples)
        counts = {"read": 70, "repeated": 0, "dropped": {"over_limit": 10}, "train": 60 - len(texts)}
        return self.stage("data", **counts, heldout=len(texts))

    def sft(self, steps: int = 5, losses: Sequence[float] = (3.2, 2.75), **changes: Any) -> Folder:
        self.metrics("sft", [training(loss=3 - 0.1 * n) for n in range(steps)])
        self.metrics("sft/heldout", [{"loss": loss} for loss in losses])
        facts = {"rows": 48, "dropped": {}, "truncated": 2, "steps": steps, "heldout_loss": 2.75}
        told = {"learning_rate": 2e-5, "seconds": {"train": 30.5}, "hardware": HARDWARE}
        return self.stage("sft", **{**facts, **told, **changes})

    def pairs(self, number: int, **changes: Any) -> Folder:
        stage = f"spin/iterate-{number}/pairs"
        train = {"prompts": 48, "played": 47, "kept": 45, "answers": 45, "dropped": {"too_long": 1, "identical": 2}}
        train |= {"replayed": 0, "real_cut": 3, "generated_cut": 4}
        answers = [{"example_id": str(n), "generated": [{"text": "a b c", "ids": [1, 2, 3]}]} for n in range(47)]
        self.lines(f"{stage}/answers.jsonl", answers)
        told = {"separability": None, "warnings": [], "data": "0", "seconds": {"generate": 12.25, "score": 3.5}}
        heldout = {"kept": 12, "dropped": {}, "real_cut": 0, "generated_cut": 1}
        return self.stage(stage, **{"train": train, "heldout": heldout, **told, **changes})

    def iterate(self, number: int, steps: int = 4) -> Folder:
        stage = f"spin/iterate-{number}"
        rows = [training(loss=0.69 - 0.01 * n, **STANDING) for n in range(steps)]
        self.metrics(stage, rows)
        after = {"start_loss": 0.6931, "loss": 0.66, "loss_error": 0.004, **STANDING}
        self.metrics(f"{stage}/heldout", [after])
        return self.stage(
            stage,
            iteration=number,
            learning_rate=5e-6,
            steps=steps,
            pairs_seen=45,
            tokens=4000,
            later={"kept": 0, "dropped": {}},
            heldout={**after, "pairs": 12, **LENGTHS, "learned": True, "intervals": {}},
            seconds={"train": 20.0},
            hardware=HARDWARE,
        )

    def diagnosis(self, number: int) -> Folder:
        profile = {"answers": 12, "tokens": 21.5, "cut": 0.25, "distinct_1": 0.6, "distinct_2": 0.9, "repetition": 0.0}
        return self.stage(
            f"spin/iterate-{number}/diagnosis",
            nll_per_token=2.7,
            kl_opponent={"mean": 0.031, "standard_error": 0.012},
            kl_base={"mean": 0.052, "standard_error": None},
            answers=profile,
            real={**profile, "tokens": 18.0},
            identical_to_opponent=0.125,
        )

    def best(self, name: str, **more: Any) -> Folder:
        """The decision; ``selection=True`` says that the examples of that part have chosen."""
        places = {"sft": "sft/model", "base": "smollm2-135m-instruct", "sft-more": "spin/baseline-sft/model"}
        place = places.get(name, f"spin/{name}/model")
        if more.pop("selection", False):
            more["selection"] = len(selection_of(self.examples))
        return self.json("best.json", {"name": name, "model": place, "why": f"{name} was chosen", **more})

    def baseline(self) -> Folder:
        self.metrics("spin/baseline-sft", [training(loss=2.5)] * 8)
        facts = {"rows": 48, "dropped": {}, "truncated": 0, "steps": 8, "heldout_loss": 2.6, "learning_rate": 2e-5}
        return self.stage("spin/baseline-sft", **facts, seconds={"train": 18.0}, hardware=HARDWARE)

    def judged(self, name: str, nll: float | Sequence[float], answers: Sequence[str] | None = None) -> Folder:
        """A model's likelihoods, ``nll`` nats an example, and its greedy answers."""
        losses = [nll] * len(self.examples) if isinstance(nll, int | float) else nll
        texts = answers or [f"{name} says {example.answer}" for example in self.examples]
        likely, judged = [], []
        for example, loss, text in zip(self.examples, losses, texts, strict=True):
            likely.append({"id": example.id, "nll": loss, "tokens": TOKENS})
            judged.append(
                {
                    "id": example.id,
                    "prompt": example.prompt[-1].content,
                    "reference": example.answer,
                    "answer": text,
                    "finish_reason": "stop",
                    "answer_tokens": len(text.split()),
                    "reference_tokens": TOKENS,
                    "nll": loss,
                    "rouge_l": rouge_l(text, example.answer),
                    "exact_match": example.answer == text,
                }
            )
        self.lines(f"likelihood/{name}/likelihood.jsonl", likely)
        self.stage(f"likelihood/{name}", items=len(likely), left_out=0)
        self.lines(f"eval/heldout/{name}/answers.jsonl", judged)
        return self.stage(f"eval/heldout/{name}", items=len(judged))

    # Evaluations beside the held-out examples ------------------------------------------------------------------------

    def scored(
        self,
        evaluation: str,
        model: str,
        scores: Mapping[str, Sequence[float]],
        weights: Mapping[str, Sequence[float]] | None = None,
        **scales: Mapping[str, Any],
    ) -> Folder:
        """A model's scores of items 0, 1, ...; ``scales`` of measures that are not simply better when higher."""
        items = [
            {
                "id": str(n),
                "text": f"{evaluation} {n}",
                "scores": {key: values[n] for key, values in scores.items()},
                "weights": {key: values[n] for key, values in (weights or {}).items()},
            }
            for n in range(len(next(iter(scores.values()))))
        ]
        stage = f"eval/{evaluation}/{model}"
        measures = {key: {"better": "higher", "right_or_wrong": False, **scales.get(key, {})} for key in scores}
        return self.lines(f"{stage}/scores.jsonl", items).stage(stage, items=len(items), measures=measures)

    def questions(self, model: str, answers: Sequence[str], reference: str = "a b") -> Folder:
        rows = [
            {"id": str(n), "prompt": f"Question {n}?", "reference": reference, "answer": answer}
            for n, answer in enumerate(answers)
        ]
        self.lines(f"eval/questions/{model}/answers.jsonl", rows)
        scores = {
            "rouge_l": [rouge_l(answer, reference) for answer in answers],
            "exact_match": [float(answer == reference) for answer in answers],
            "characters": [float(len(answer)) for answer in answers],
        }
        return self.scored(
            "questions", model, scores, exact_match={"right_or_wrong": True}, characters={"better": None}
        )

    def ifeval(self, model: str, strict: Sequence[Sequence[bool]]) -> Folder:
        rows = [
            {
                "id": str(n),
                "prompt": f"Instruction {n}.",
                "answer": f"{model} follows",
                "finish_reason": "length",
                "answer_tokens": 3,
                "types": [f"rule:{place}" for place in range(len(follows))],
                "strict": list(follows),
            }
            for n, follows in enumerate(strict)
        ]
        self.lines(f"eval/ifeval/{model}/answers.jsonl", rows)
        scores = {
            "prompt_strict": [float(all(follows)) for follows in strict],
            "instruction_strict": [float(sum(follows)) for follows in strict],
        }
        weights = {"instruction_strict": [float(len(follows)) for follows in strict]}
        return self.scored("ifeval", model, scores, weights, prompt_strict={"right_or_wrong": True})

    def mt_bench(self, model: str, ratings: Sequence[tuple[int | None, int | None]] = ()) -> Folder:
        """Answers to two dialogues of two turns, and what a judge rated them."""
        stage = "eval/mt-bench-answers"
        dialogues = [{"id": str(n), "category": "writing", "turns": [f"Write {n}.", "Again?"]} for n in range(2)]
        rows = [{**row, "answers": [f"{model} writes", f"{model} again"]} for row in dialogues]
        self.lines(f"{stage}/{model}/answers.jsonl", rows).stage(f"{stage}/{model}")
        if not ratings:
            return self
        told = [
            {"id": str(n), "turn": turn, "score": score}
            for n, both in enumerate(ratings)
            for turn, score in enumerate(both, 1)
        ]
        self.lines(f"eval/mt-bench/{model}/ratings.jsonl", told)
        given = [[score for score in both if score is not None] for both in ratings]
        return self.scored("mt-bench", model, {"rating": [sum(scores) / len(scores) for scores in given]})

    def results(self, names: Sequence[str], start: str = "sft", **more: Any) -> Folder:
        """results.json, worked out from the files as the end of a run does."""
        rows = {name: self._measures(name) for name in names}
        heldout = {
            name: {key: asdict(bootstrap(values, weights)) for key, (values, weights) in measures.items()}
            for name, measures in rows.items()
        }
        differences = {
            f"{name} - {start}": {
                key: asdict(_difference(values, rows[start][key][0], weights))
                for key, (values, weights) in measures.items()
            }
            for name, measures in rows.items()
            if name != start
        }
        spin = self._iterations()
        found = {"spin": spin or None, "heldout": heldout, "differences": differences, "stopped": None, **more}
        return self.json("results.json", {key: value for key, value in found.items() if value is not None})

    def _iterations(self) -> list[dict[str, Any]]:
        def facts(stage: str) -> Any:
            path = self.path / "spin" / stage / "manifest.json"
            return json.loads(path.read_text())["facts"] if path.is_file() else None

        names = [f"iterate-{number}" for number in range(1, 10) if facts(f"iterate-{number}")]
        return [
            {**facts(name), "pairs": facts(f"{name}/pairs"), "diagnosis": facts(f"{name}/diagnosis")} for name in names
        ]

    def _measures(self, name: str) -> dict[str, tuple[list[float], list[float] | None]]:
        judged = read_lines(self.path / f"eval/heldout/{name}/answers.jsonl")
        return {
            "nll_per_token": ([row["nll"] for row in judged], [row["reference_tokens"] for row in judged]),
            "rouge_l": ([row["rouge_l"] for row in judged], None),
            "exact_match": ([float(row["exact_match"]) for row in judged], None),
            "answer_tokens": ([float(row["answer_tokens"]) for row in judged], None),
            "finished": ([float(row["finish_reason"] == "stop") for row in judged], None),
        }


STANDING = {
    "margin": 0.4,
    "accuracy": 0.75,
    "real_ratio": 0.3,
    "generated_ratio": -0.1,
    "real_logprob": -60.0,
    "generated_logprob": -45.0,
}


LENGTHS = {"real_tokens": 18.0, "generated_tokens": 21.5, "real_cut": 0.0, "generated_cut": 0.25}


def training(**facts: float) -> dict[str, float]:
    """What every optimizer step says."""
    return {"grad_norm": 2.5, "learning_rate": 2e-5, "tokens": 500, "seconds": 2.0, **facts}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Folder]:
    """An empty run folder with a recipe: ``folder(name, **changes of the recipe)``."""

    def make(name: str = "run", **changes: Any) -> Folder:
        (tmp_path / name).mkdir()
        return Folder(tmp_path / name).recipe(**changes)

    return make


@pytest.fixture
def whole(folder: Callable[..., Folder]) -> Callable[..., Folder]:
    """A finished run of SFT, two iterations and a baseline. Every model is 0.1 nats a token better than the one before.

    ``whole(name, heldout)``; sft-more is worse than iterate-2 and better than iterate-1.
    """

    def make(name: str = "run", heldout: int | Sequence[tuple[str, str]] = 12, **changes: Any) -> Folder:
        made = folder(name, **{"spin": {"baseline": "sft"}, **changes}).data(heldout).sft()
        for number in (1, 2):
            made.pairs(number).iterate(number).diagnosis(number)
        made.best("iterate-2").baseline()
        losses = {"base": 30.0, "sft": 29.0, "iterate-1": 28.0, "iterate-2": 27.0, "sft-more": 27.5}
        for model, loss in losses.items():
            made.judged(model, [loss + n for n in range(len(made.examples))])
        return made.results(list(losses))

    return make


JUDGED: dict[str, Any] = {
    "judge": "wise-1 at example.org",
    "canary": {
        "questions": {"judge": "wise-1 at example.org", "items": 4, "preferences": [0.0, 0.0, 0.5, 0.0], "limit": 0.2},
        "mt-bench": {"judge": "wise-1 at example.org", "items": 2, "preferences": [1.0, 0.5], "limit": 0.2},
    },
    "pairs": {
        "questions": {
            "sft - base": {
                "prompt": "judge/pairwise/1",
                "items": 11,
                "wins": 6,
                "losses": 2,
                "ties": 2,
                "invalid": 1,
                "problems": {"budget": 2},
                "identical": 0,
                "flips": 2,
                "opposite": 1,
                "flip_rate": 0.2,
                "shown_first": 0.6,
                "win_rate": {"mean": 0.7, "low": 0.4, "high": 0.9},
                "decided_win_rate": {"mean": 0.75, "low": 0.4, "high": 0.9},
                "length_controlled": {"rate": {"mean": 0.6, "low": 0.3, "high": 0.8}, "weight": 0.5},
                "bounds": [7 / 11, 8 / 11],
            },
            "sft - parrot": {
                "prompt": "judge/pairwise/1",
                "items": 11,
                "wins": 0,
                "losses": 0,
                "ties": 0,
                "invalid": 11,
                "problems": {"refused": 22},
                "identical": 0,
                "flips": 0,
                "opposite": 0,
                "flip_rate": None,
                "shown_first": None,
                "win_rate": None,
                "decided_win_rate": None,
                "length_controlled": None,
                "bounds": [0.0, 1.0],
            },
        }
    },
    "ratings": {
        "sft": {
            "prompt": "judge/rating/1",
            "items": 4,
            "invalid": 1,
            "problems": {"no_verdict": 1},
            "mean": {"mean": 6.0, "low": 5.0, "high": 7.0},
            "turns": {"1": {"mean": 6.5, "low": 6.0, "high": 7.0}, "2": {"mean": 5.0, "low": 5.0, "high": 5.0}},
            "categories": {},
        },
    },
    "words": [],
    "problems": [],
    "cost": {"requests": 60, "prompt_tokens": 9000, "completion_tokens": 1200, "dollars": 0.25},
}
"""What a judge said, as it stands in results.json."""


@pytest.fixture
def everything(folder: Callable[..., Folder]) -> Callable[..., Folder]:
    """A finished run of SFT without held-out examples, judged by ifeval, questions with a rival, mt-bench and a judge.

    base follows no instruction, sft 3 of 4; sft answers 6 of 12 questions exactly, the rival all of 10.
    """

    def make(name: str = "run", said: Mapping[str, Any] | None = None, **changes: Any) -> Folder:
        files = {"ifeval": "i.jsonl", "questions": "q.jsonl", "mt_bench": "m.jsonl", "rivals": ["files/parrot.jsonl"]}
        settings = {
            "eval": ["ifeval", "questions", "mt-bench"],
            "evaluation": files,
            "data": {"eval_fraction": 0.0},
            "spin": None,
            **changes,
        }
        made = folder(name, **settings, judge={"model": "wise-1"}).data(0).sft()
        made.ifeval("base", [(False, False), (False, False)]).ifeval("sft", [(True, True), (True, False)])
        made.questions("base", ["c d"] * 12).questions("sft", ["a b"] * 6 + ["c d"] * 6).questions(
            "parrot", ["a b"] * 10
        )
        made.mt_bench("base", [(1, 3), (2, 2)]).mt_bench("sft", [(7, 5), (6, None)])
        sets = {
            "questions": {"items": 12, "8": 4, "13": 3, "unclean": ["0", "1", "2"]},
            "ifeval": {"items": 2, "8": 0, "13": 0, "unclean": []},
        }
        made.stage("contamination", training_rows=60, sets=sets)
        scores = {"base": {"rouge_l": {"mean": 0.0, "low": 0.0, "high": 0.0}}}
        scores["sft"] = {"rouge_l": {"mean": 0.5, "low": 0.125, "high": 0.875}}
        measures = {"rouge_l": {"better": "higher", "right_or_wrong": False}}
        found = {"items": {"base": 12, "sft": 12}, "measures": measures, "scores": scores}
        told = {"benchmarks": {"questions": found}, "conclusions": ["sft is better than base"]}
        return made.json("results.json", {**told, "judge": {**JUDGED, **(said or {})}})

    return make


# HTML ---------------------------------------------------------------------------------------------------------------

VOID = {"meta", "input", "br", "link", "img", "hr"}


@dataclass
class Page(HTMLParser):
    """A page as a reader finds it: its texts, tables and attributes. Fails on tags that do not match."""

    text: str = ""
    tables: list[list[list[str]]] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[tuple[dict[str, str | None], str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append((dict(attributes), ""))
        elif tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif inside == "style":
            self.styles[-1] += data
        else:
            self.text += data
            if {"td", "th"} & set(self._open):
                self.tables[-1][-1][-1] += data

    def row(self, heading: str) -> list[list[str]]:
        """Every table row that begins with this, its cells as words joined by single spaces."""
        rows = [[" ".join(cell.split()) for cell in row] for table in self.tables for row in table]
        return [row for row in rows if row and row[0] == heading]

    @property
    def data(self) -> Any:
        """The sets of examples that the page carries."""
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "examples-data"))


@pytest.fixture
def page() -> Callable[[str | Path], Page]:
    def read(source: str | Path) -> Page:
        html = source.read_text("utf-8") if isinstance(source, Path) else source
        read = Page()
        read.feed(html)
        read.close()
        assert read._open == []
        return read

    return read


def _difference(one: Sequence[float], other: Sequence[float], weights: Sequence[float] | None) -> Interval:
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    return verdict_difference(gaps) if {*one, *other} <= {0, 1} else bootstrap(gaps, weights)
