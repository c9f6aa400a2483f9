"""A recipe's stages, in order. Each reads files of the run folder, writes files, and ends with a manifest.

    data -> sft -> spin/iterate-1/pairs -> spin/iterate-1 -> spin/iterate-2/pairs ... -> eval/heldout

A stage whose manifest names the same inputs is not run again, so one command starts, resumes and repeats a run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from spintune.data.sources import Source, read_sources, source_digest
from spintune.data.split import split_examples
from spintune.errors import DataError, ModelError
from spintune.evaluation.heldout import Judged, compare, judge_heldout, read_judged, summarise, write_judged
from spintune.models.generation import build_generator
from spintune.models.loading import LoadedModel, load_model, model_identity, save_folder
from spintune.models.logprobs import LogProbEngine
from spintune.models.sampling import Sampling
from spintune.progress import Progress
from spintune.recipe import Recipe, SftSection, SpinSection
from spintune.records import Example, Pair, read_records, write_records
from spintune.run import Run
from spintune.selfplay.opponent import play
from spintune.selfplay.spin import standing, train_iteration
from spintune.storage import digest_json, read_json, write_json_if_changed
from spintune.tokens.chat import Rendered, Renderer, Row, Turns, fit, render
from spintune.tokens.templates import template_source
from spintune.tracking import Metrics
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport
from spintune.training.objectives import SelfPlay
from spintune.training.sft import run_sft

Stage = Literal["sft", "spin", "eval"]

HELDOUT_TOKENS = 256
"""Longest held-out answer of a recipe without a spin section."""


@dataclass(frozen=True)
class Iterate:
    """A model of the run: its name in tables, where it is, and the digest of its contents."""

    name: str
    location: str
    digest: str


class Player:
    """An iterate in memory, with what reads, scores and writes for it."""

    def __init__(self, iterate: Iterate, loaded: LoadedModel, template: str) -> None:
        self.iterate, self.loaded, self.template = iterate, loaded, template
        self.engine = LogProbEngine(loaded.model, loaded.autocast)
        self.generator = build_generator(self.engine, loaded.tokenizer, self.renderer("last").stop_ids)

    def renderer(self, turns: Turns) -> Renderer:
        return Renderer(self.loaded.tokenizer, self.template, turns)

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder that stops and renders as it was trained to."""
        if self.template != "tokenizer":
            self.loaded.tokenizer.chat_template = template_source(self.loaded.tokenizer, self.template)
        if self.loaded.model.generation_config is not None:
            self.loaded.model.generation_config.eos_token_id = sorted(self.renderer("last").stop_ids)
        save_folder(self.loaded.model, self.loaded.tokenizer, folder)


def run_recipe(recipe: Recipe, cache: Path, progress: Progress, until: Stage = "eval") -> dict[str, Any]:
    """Runs the stages of a recipe up to ``until``; what was found, as it stands in ``results.json``.

    Raises SpintuneError for everything that is the user's to mend.
    """
    with Run(recipe) as run:
        metrics = Metrics(run.folder, recipe.tracking)
        try:
            return _Pipeline(recipe, run, cache, progress, metrics).execute(until)
        finally:
            metrics.close()


class _Pipeline:
    def __init__(self, recipe: Recipe, run: Run, cache: Path, progress: Progress, metrics: Metrics) -> None:
        self.recipe, self.run, self.cache, self.progress, self.metrics = recipe, run, cache, progress, metrics
        self.settings = recipe.identity()
        self._player: Player | None = None

    def execute(self, until: Stage) -> dict[str, Any]:
        base = Iterate("base", self.recipe.model, model_identity(self.recipe.model, self.cache))
        iterates = [base]
        results: dict[str, Any] = {"data": self._data_facts}
        if self.recipe.sft:
            iterates.append(self._sft(self.recipe.sft, base, results))
        if self.recipe.spin and until != "sft":
            results["spin"] = []
            for iteration in range(1, self.recipe.spin.iterations + 1):
                iterates.append(self._iteration(self.recipe.spin, iteration, iterates[-1], results))
        if "heldout" in self.recipe.eval and until == "eval":
            if self._heldout:
                self._evaluate(iterates, results)
            else:
                self.progress.note("no example is held out, so none is judged; set data.eval_fraction above 0")
        results["models"] = {iterate.name: iterate.location for iterate in iterates}
        self._remember(results)
        return results

    def _remember(self, results: dict[str, Any]) -> None:
        """Writes results.json. What an earlier command found in later stages stays while it follows from the same."""
        path = self.run.folder / "results.json"
        known = read_json(path) if path.is_file() else {}
        if all(known.get(key) == value for key, value in results.items() if key != "models"):
            results = {**known, **results, "models": {**known["models"], **results["models"]}}
        write_json_if_changed(path, results)

    # Data ------------------------------------------------------------------------------------------------------

    @cached_property
    def _data_facts(self) -> dict[str, Any]:
        """Reads and splits the sources, unless that is done."""
        sources = [Source(**section.model_dump()) for section in self.recipe.data.train]
        inputs = {
            "data": self.settings["data"]["train"],
            "fraction": self.recipe.data.eval_fraction,
            "seed": self.recipe.seed,
            "contents": [source_digest(source) for source in sources],
        }
        facts = self.run.finished("data", inputs)
        if facts is None:
            collection = read_sources(sources, self.recipe.seed, self.progress)
            train, heldout = split_examples(collection.examples, self.recipe.data.eval_fraction, self.recipe.seed)
            # a source with a weight above 1 repeats rows; judging one twice would only narrow the intervals
            heldout = list({example.id: example for example in heldout}.values())
            write_records(self._train_file, train)
            write_records(self._heldout_file, heldout)
            facts = {
                "read": collection.read,
                "repeated": collection.repeated,
                "dropped": dict(collection.dropped),
                "train": len(train),
                "heldout": len(heldout),
            }
            self.run.finish("data", inputs, [self._train_file, self._heldout_file], facts)
        return facts

    @property
    def _train_file(self) -> Path:
        return self.run.folder / "data" / "train.jsonl"

    @property
    def _heldout_file(self) -> Path:
        return self.run.folder / "data" / "heldout.jsonl"

    @cached_property
    def _train(self) -> list[Example]:
        return read_records(self._train_file, Example)

    @cached_property
    def _heldout(self) -> list[Example]:
        return read_records(self._heldout_file, Example)

    def _inputs(self, iterate: Iterate, **more: Any) -> dict[str, Any]:
        """What every stage with a model depends on."""
        return {
            "model": iterate.digest,
            "data": self.run.digest("data"),
            "rendering": {key: self.settings["data"][key] for key in ("max_length", "template", "turns")},
            "seed": self.recipe.seed,
            "precision": self.recipe.precision,
            "tokens_per_forward": self.recipe.tokens_per_forward,
            **more,
        }

    # Models ----------------------------------------------------------------------------------------------------

    def _load(self, iterate: Iterate) -> Player:
        """The iterate in memory; what is there already is not read again."""
        if self._player is None or self._player.iterate != iterate:
            self._player = None
            loaded = load_model(iterate.location, cache=self.cache, precision=self.recipe.precision)
            longest = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
            if longest is not None and self.recipe.data.max_length > longest:
                raise ModelError(
                    f"data.max_length ({self.recipe.data.max_length} tokens) is more than {self.recipe.model} reads "
                    f"({longest}); lower it"
                )
            # iterates of this run carry their template with them
            template = self.recipe.data.template if iterate.name == "base" else "tokenizer"
            self._player = Player(iterate, loaded, template)
        return self._player

    def _publish(self, player: Player, name: str, stage: str, inputs: dict[str, Any], facts: dict[str, Any]) -> Iterate:
        folder = self.run.folder / stage / "model"
        player.save(folder)
        iterate = Iterate(name, str(folder), self.run.finish(stage, inputs, [folder], facts))
        player.iterate = iterate
        return iterate

    def _checkpoints(self, folder: Path, inputs: dict[str, Any], section: SftSection | SpinSection) -> Checkpoints:
        """Checkpoints of a stage with these inputs; what a stopped run left of other inputs is deleted."""
        tag = digest_json(inputs)[:12]
        for other in folder.glob("checkpoints/*"):
            if other.name != tag:
                _delete(other)
        return Checkpoints(folder / "checkpoints" / tag, section.checkpoint_minutes)

    def _render(self, examples: Sequence[Example], renderer: Renderer, max_response: int | None = None) -> Rendered:
        return render(examples, renderer, self.recipe.data.max_length, max_response, self.progress)

    # Stages ----------------------------------------------------------------------------------------------------

    def _sft(self, section: SftSection, base: Iterate, results: dict[str, Any]) -> Iterate:
        inputs = self._inputs(base, sft=self.settings["sft"])
        facts = self.run.finished("sft", inputs)
        folder = self.run.folder / "sft"
        if facts is None:
            player = self._load(base)
            renderer = player.renderer(self.recipe.data.turns)
            train = self._render(self._train, renderer)
            heldout = self._render(self._heldout, renderer).rows if self._heldout else []
            checkpoints = self._checkpoints(folder, inputs, section)
            prompts = {example.id: example for example in self._heldout}
            losses: list[float] = []

            def start(step: int) -> None:
                self.metrics.begin("sft", step)
                # an evaluation of the step that the checkpoint was taken after stays; one of step 0 comes again
                evaluated_until = step or -1
                self.metrics.begin("sft/heldout", evaluated_until)
                samples.rewind("sft", evaluated_until)

            def evaluated(step: int, loss: float, answers: list[str]) -> None:
                losses.append(loss)
                self.metrics.add("sft/heldout", step, loss=loss)
                self.progress.note(f"SFT step {step}: held-out loss {loss:.4f} nats a token")
                for row, answer in zip(heldout, answers, strict=False):
                    example = prompts[row.example_id]
                    samples.append(
                        "sft", step, prompt=example.prompt[-1].content, reference=example.answer, answer=answer
                    )

            started = time.monotonic()
            with self.run.log("sft/samples.jsonl") as samples:
                steps = run_sft(
                    player.engine,
                    player.generator,
                    train.rows,
                    heldout,
                    section,
                    self.recipe.seed,
                    self.recipe.tokens_per_forward,
                    checkpoints,
                    self.progress,
                    start,
                    self._step_logger("sft"),
                    evaluated,
                )
            facts = {
                "rows": len(train.rows),
                "dropped": dict(train.dropped),
                "truncated": train.truncated,
                "steps": steps,
                "heldout_loss": losses[-1] if losses else None,
                "seconds": time.monotonic() - started,
            }
            iterate = self._publish(player, "sft", "sft", inputs, facts)
        else:
            iterate = Iterate("sft", str(folder / "model"), self.run.digest("sft"))
        _delete(folder / "checkpoints")
        results["sft"] = facts
        return iterate

    def _iteration(self, section: SpinSection, iteration: int, opponent: Iterate, results: dict[str, Any]) -> Iterate:
        stage = f"spin/iterate-{iteration}"
        name = f"iterate-{iteration}"
        pair_facts = self._pairs(section, iteration, opponent)
        schedule = {
            **self.settings["spin"],
            **{key: section.at(key, iteration) for key in ("lambda_", "loss", "learning_rate", "epochs")},
            "iterations": None,
            "lambda": None,
        }
        inputs = self._inputs(opponent, pairs=self.run.digest(f"{stage}/pairs"), spin=schedule, iteration=iteration)
        facts = self.run.finished(stage, inputs)
        folder = self.run.folder / stage
        if facts is None:
            player = self._load(opponent)
            pairs, heldout = (read_records(folder / "pairs" / file, Pair) for file in ("train.jsonl", "heldout.jsonl"))
            checkpoints = self._checkpoints(folder, inputs, section)
            started = time.monotonic()
            steps = train_iteration(
                player.engine,
                pairs,
                section,
                iteration,
                self.recipe.seed,
                self.recipe.tokens_per_forward,
                checkpoints,
                self.progress,
                lambda step: self.metrics.begin(stage, step),
                self._step_logger(stage),
            )
            objective = SelfPlay(section.at("loss", iteration), section.at("lambda_", iteration))
            after = standing(player.engine, heldout, objective, self.recipe.tokens_per_forward)
            facts = {
                "iteration": iteration,
                "steps": steps,
                "start_loss": objective.start,
                "heldout": after.to_json() if after else None,
                "seconds": time.monotonic() - started,
            }
            iterate = self._publish(player, name, stage, inputs, facts)
        else:
            iterate = Iterate(name, str(folder / "model"), self.run.digest(stage))
        _delete(folder / "checkpoints")
        results["spin"].append({**facts, "pairs": pair_facts})
        return iterate

    def _pairs(self, section: SpinSection, iteration: int, opponent: Iterate) -> dict[str, Any]:
        """The opponent plays the training prompts and the held-out ones."""
        stage = f"spin/iterate-{iteration}/pairs"
        folder = self.run.folder / stage
        keys = ("max_new_tokens", "temperature", "top_p", "top_k")
        inputs = self._inputs(opponent, sampling={key: getattr(section, key) for key in keys}, iteration=iteration)
        facts = self.run.finished(stage, inputs)
        if facts is not None:
            _delete(folder / "shards")
            return facts
        player = self._load(opponent)
        renderer = player.renderer("last")
        started = time.monotonic()
        facts = {}
        for side, examples in (("train", self._train), ("heldout", self._heldout)):
            if not examples:
                write_records(folder / f"{side}.jsonl", [])
                continue
            rendered = self._render(examples, renderer, section.max_new_tokens)
            pairs = play(
                player.engine,
                player.generator,
                rendered.rows,
                Sampling(
                    section.max_new_tokens, section.temperature, section.top_p, section.top_k, self._seed(iteration)
                ),
                self.recipe.data.max_length,
                self.recipe.tokens_per_forward,
                folder / "shards",
                f"{side}-{digest_json(inputs)[:12]}",
                self.progress,
                f"opponent {iteration} plays {side} prompts",
            )
            if side == "train" and not pairs.kept:
                raise DataError(
                    f"spin: no pair is left to learn from ({_counts(pairs.dropped)}): every answer of the opponent "
                    "equals the real one or is empty; give data that the model does not know by heart"
                )
            write_records(folder / f"{side}.jsonl", pairs.kept)
            facts[side] = {
                "prompts": len(examples),
                "kept": len(pairs.kept),
                "dropped": {**rendered.dropped, **pairs.dropped},
                "real_cut": sum(not pair.real_complete for pair in pairs.kept),
                "generated_cut": sum(not pair.generated_complete for pair in pairs.kept),
            }
        facts["seconds"] = time.monotonic() - started
        self.run.finish(stage, inputs, [folder / "train.jsonl", folder / "heldout.jsonl"], facts)
        _delete(folder / "shards")
        return facts

    def _evaluate(self, iterates: Sequence[Iterate], results: dict[str, Any]) -> None:
        """Judges every iterate on the held-out examples, and each against the one before self-play."""
        judged = {iterate.name: self._judge(iterate) for iterate in iterates}
        reference = "sft" if "sft" in judged else "base"
        results["heldout"] = {
            name: {measure: interval.to_json() for measure, interval in summarise(rows).items()}
            for name, rows in judged.items()
        }
        results["differences"] = {
            f"{name} - {reference}": {
                measure: interval.to_json() for measure, interval in compare(rows, judged[reference]).items()
            }
            for name, rows in judged.items()
            if name != reference
        }

    def _judge(self, iterate: Iterate) -> list[Judged]:
        stage = f"eval/heldout/{iterate.name}"
        path = self.run.folder / stage / "answers.jsonl"
        longest = self.recipe.spin.max_new_tokens if self.recipe.spin else HELDOUT_TOKENS
        inputs = self._inputs(iterate, max_new_tokens=longest)
        if self.run.finished(stage, inputs) is None:
            player = self._load(iterate)
            examples, rows = self._whole_rows(player.renderer("last"))
            judged = judge_heldout(
                player.engine,
                player.generator,
                examples,
                rows,
                longest,
                self.recipe.tokens_per_forward,
                self.progress,
                iterate.name,
            )
            write_judged(path, judged)
            facts = {"items": len(judged), "left_out": len(self._heldout) - len(judged)}
            self.run.finish(stage, inputs, [path], facts)
        return read_judged(path)

    def _whole_rows(self, renderer: Renderer) -> tuple[list[Example], list[Row]]:
        """Held-out examples that fit, with their rows."""
        fitted = [fit(row, self.recipe.data.max_length) for row in renderer.rows(self._heldout)]
        kept = [(example, row) for example, row in zip(self._heldout, fitted, strict=True) if isinstance(row, Row)]
        if not kept:
            raise DataError("no held-out example fits data.max_length; raise it, or set eval: []")
        return [example for example, _ in kept], [row for _, row in kept]

    # Small things ----------------------------------------------------------------------------------------------

    def _step_logger(self, stage: str) -> Any:
        def write(report: StepReport) -> None:
            self.metrics.add(
                stage,
                report.step,
                loss=report.loss,
                grad_norm=report.grad_norm,
                learning_rate=report.learning_rate,
                tokens=report.tokens,
                seconds=report.seconds,
                **report.facts,
            )

        return write

    def _seed(self, iteration: int) -> int:
        """Seed of the opponent's answers: another one in every iteration."""
        return int(digest_json(["opponent", self.recipe.seed, iteration])[:12], 16)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _counts(counter: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(counter.items()))


def final_model(folder: Path) -> Path:
    """The last iterate of a run folder. Raises ModelError when the run has written none yet."""
    iterates = sorted(folder.glob("spin/iterate-*/model"), key=lambda path: int(path.parent.name.rpartition("-")[2]))
    for path in [*reversed(iterates), folder / "sft" / "model"]:
        if (path.parent / "manifest.json").is_file():
            return path
    raise ModelError(f"run {folder} has no finished model yet; run its recipe again to go on")
