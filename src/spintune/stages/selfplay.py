"""Self-play over a run folder: iteration after iteration, until the last one or until it stops helping.

::

    spin/iterate-t/pairs        who answers what: play.py
    spin/iterate-t/model        the player, trained
    spin/iterate-t/standing.jsonl   loss, ratios, margin and accuracy of every held-out pair
    spin/iterate-t/later.jsonl  pairs that the player itself wrote on the way (refresh)
    spin/iterate-t/diagnosis    how far it moved, and in what direction
    spin/best.json              the iterate to use, and why
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spintune.engine.query import Query
from spintune.evaluation.measures import bootstrap
from spintune.progress import Progress, Silent
from spintune.recipe import SpinSection
from spintune.records import Pair, read_records, write_records
from spintune.selfplay.diagnostics import describe, divergence, identical_share
from spintune.selfplay.opponent import (
    FilteredPairs,
    Shards,
)
from spintune.selfplay.phases import PhasedBatches, Phases
from spintune.selfplay.spin import (
    HeldoutPairMetrics,
    batches_of,
    heldout_pair_metrics,
    iteration_optimization,
    objective_of,
    train_iteration,
)
from spintune.stages.context import Iterate, LoadedIterate, RunContext, delete
from spintune.stages.heldout import likelihood_stage, metric_difference
from spintune.stages.metering import Meter
from spintune.stages.pairs import NothingToLearnError, PairStage, training_settings
from spintune.stages.sft import baseline_stage
from spintune.storage import digest_json, write_json_if_changed, write_json_lines
from spintune.tracking import Stopwatch, flat
from spintune.training.loop import Steps, TrainingHooks

FEW_STEPS = 10
"""Below this an iteration is called short; a judgement: Adam moves a weight by at most about rate x steps."""


@dataclass
class SelfPlayOutcome:
    """What self-play left behind.

    Attributes:
        iterates: iterate 1, 2, ...; with the baseline behind them where the recipe asks for one.
        iterations: what was measured of each.
        best: name of the best iterate, where it is, and why.
        stopped: why it ended before the last iteration, or None.
        baseline: what was measured of the baseline, or None.
    """

    iterates: list[Iterate]
    iterations: list[dict[str, Any]]
    best: dict[str, str]
    stopped: str | None
    baseline: dict[str, Any] | None


def selfplay_stage(context: RunContext, section: SpinSection, start: Iterate) -> SelfPlayOutcome:
    """Plays from iterate 0 (``start``) on."""
    return _SelfPlay(context, section, start).play()


class _SelfPlay:
    def __init__(self, context: RunContext, section: SpinSection, start: Iterate) -> None:
        self.context, self.section, self.start = context, section, start
        self.iterates = [start]
        self.answering = PairStage(context, section, self.iterates)

    def play(self) -> SelfPlayOutcome:
        iterations: list[dict[str, Any]] = []
        best, why, waited, stopped = self.start, "it is where self-play starts", 0, None
        for iteration in range(1, self.section.iterations + 1):
            try:
                facts = self._iteration(iteration)
            except NothingToLearnError as error:
                if not iterations:
                    raise
                stopped = str(error).removeprefix("spin: ")
                self.context.progress.note(f"self-play stops before iteration {iteration}: {stopped}")
                break
            iterations.append(facts)
            newest = self.iterates[-1]
            better = self._better(newest, best)
            best, why, waited = (newest, better, 0) if better else (best, why, waited + 1)
            if not (self.context.run.folder / f"spin/iterate-{iteration + 1}/pairs").exists():
                self._remember(best, why)  # a run that is repeated has written its last word already
            if iteration < self.section.iterations and (stopped := self._stop_reason(iterations, waited)):
                self.context.progress.note(f"self-play stops after iteration {iteration}: {stopped}")
                break
        chosen = self._remember(best, why)
        iterates, baseline = self.iterates[1:], None
        if self.section.baseline == "sft":
            iterate, baseline = baseline_stage(
                self.context,
                self.section,
                self.start,
                sum(facts["steps"] for facts in iterations),
                sum(facts["tokens"] for facts in iterations),
            )
            iterates = [*iterates, iterate]
        return SelfPlayOutcome(iterates, iterations, chosen, stopped, baseline)

    # An iteration ----------------------------------------------------------------------------------------------

    def _iteration(self, iteration: int) -> dict[str, Any]:
        pair_facts = self.answering.pairs(iteration)
        facts = self._train(iteration)
        return {**facts, "pairs": pair_facts, "diagnosis": self._diagnosis(iteration)}

    def _train(self, iteration: int) -> dict[str, Any]:
        """Trains the next iterate; in a method of its own, so that it is out of memory when others are loaded."""
        context, section, opponent = self.context, self.section, self.iterates[-1]
        stage, name = f"spin/iterate-{iteration}", f"iterate-{iteration}"
        folder = context.run.folder / stage
        inputs = context.inputs(
            opponent,
            pairs=context.run.digest(f"{stage}/pairs"),
            spin=training_settings(context, section, iteration),
            iteration=iteration,
        )
        facts = context.run.finished(stage, inputs)
        if facts is None:
            player = context.load(opponent)
            weights = sum(parameter.numel() for parameter in player.loaded.model.parameters())
            optimization = iteration_optimization(section, iteration, context.recipe.seed, weights)
            objective = objective_of(section, iteration)
            checkpoints = context.checkpoints(folder, inputs, section)
            later: dict[int, FilteredPairs] = {}
            clock = Stopwatch()
            batches = self._batches(player, iteration, folder, digest_json(inputs)[:12], later, clock)
            if len(batches) < FEW_STEPS:
                context.progress.note(
                    f"warning, iteration {iteration}: only {len(batches)} steps, which will hardly move the player; "
                    "lower spin.pairs_per_step, raise spin.epochs, or give more data"
                )
            meter = Meter(player.engine)
            title = f"SPIN iteration {iteration}"
            with clock("train"), context.progress.task(title, len(batches), "steps") as task:
                train_iteration(
                    player.engine,
                    batches,
                    objective,
                    optimization,
                    checkpoints,
                    task,
                    TrainingHooks(lambda step: context.metrics.begin(stage, step), context.step_logger(stage, meter)),
                )
            heldout = read_records(folder / "pairs" / "heldout.jsonl", Pair)
            after = heldout_pair_metrics(player.engine, heldout, objective)
            queries = [[objective.query(pair).tokens for pair in batches[step]] for step in range(len(batches))]
            facts = {
                "iteration": iteration,
                "learning_rate": optimization.learning_rate,
                "steps": sum(bool(step) for step in queries),
                "pairs_seen": sum(map(len, queries)),
                "tokens": sum(map(sum, queries)),
                "later": {
                    "kept": sum(len(pairs.kept) for pairs in later.values()),
                    "dropped": dict(sum((pairs.dropped for pairs in later.values()), Counter())),
                },
                "heldout": _told(after) if after else None,
                "seconds": clock.seconds,
                "hardware": meter.facts(),
            }
            if after:
                context.metrics.begin(f"{stage}/heldout", 0)
                context.metrics.add(f"{stage}/heldout", 1, **flat(after.to_json()))
            write_records(folder / "later.jsonl", itertools.chain(*(later[n].kept for n in sorted(later))))
            write_json_lines(folder / "standing.jsonl", after.each if after else ())
            written = (folder / "later.jsonl", folder / "standing.jsonl")
            iterate = context.publish(player, name, stage, inputs, facts, *written)
        else:
            iterate = context.published(name, stage)
        delete(folder / "checkpoints")
        delete(folder / "rounds")
        self.iterates.append(iterate)
        return facts

    def _batches(
        self,
        player: LoadedIterate,
        iteration: int,
        folder: Path,
        tag: str,
        later: dict[int, FilteredPairs],
        clock: Stopwatch,
    ) -> Steps[Pair]:
        """The iteration's steps. Pairs of the phases after the first go into ``later`` when they are written."""
        section, seed = self.section, self.context.recipe.seed
        pairs = read_records(folder / "pairs" / "train.jsonl", Pair)
        if section.refresh == 1:
            return batches_of(pairs + read_records(folder / "pairs" / "replay.jsonl", Pair), section, iteration, seed)
        rows = self.answering.rows(player, self.answering.played).rows
        progress: Progress = Silent() if section.refresh == "step" else self.context.progress

        def first_pairs(prompts: Sequence[int]) -> Mapping[int, Pair]:
            written = read_records(folder / "pairs" / "answers.jsonl", Pair)
            teaching = iter(pairs)
            return {
                prompt: next(teaching)
                for prompt, pair in zip(prompts, written, strict=True)
                if self.answering.teaching([pair], iteration).kept
            }

        def pairs_of(phase: int, prompts: Sequence[int]) -> Mapping[int, Pair]:
            if phase == 0:
                return first_pairs(prompts)
            shards = Shards(folder / "rounds", f"{tag}-{phase:05d}", progress)
            with clock("generate"):
                asked = [rows[prompt] for prompt in prompts]
                written = self.answering.write(player, asked, [iteration, phase], shards, f"phase {phase}")
            teaching = [
                (i, k)
                for i, pair in zip(prompts, written, strict=True)
                for k in self.answering.teaching([pair], iteration).kept
            ]
            with clock("score"):
                scored = self.answering.score(player, [pair for _, pair in teaching], shards, f"phase {phase}")
            later[phase] = FilteredPairs(scored, self.answering.teaching(written, iteration).dropped)
            return {prompt: pair for (prompt, _), pair in zip(teaching, scored, strict=True)}

        return PhasedBatches(Phases(len(rows), section, iteration, seed), pairs_of)

    def _diagnosis(self, iteration: int) -> dict[str, Any] | None:
        """How the newest iterate writes, and how far it is from its opponent and from iterate 0."""
        context = self.context
        iterate, opponent = self.iterates[iteration], self.iterates[iteration - 1]
        if not context.heldout:
            return None
        stage = f"spin/iterate-{iteration}/diagnosis"
        path = context.run.folder / stage / "diagnosis.json"
        inputs = context.inputs(
            iterate, opponent=opponent.digest, base=self.start.digest, play=self.answering.settings, iteration=iteration
        )
        facts = context.run.finished(stage, inputs)
        if facts is None:
            mine, earlier = self.answering.heldout_answers(iterate), self.answering.heldout_answers(opponent)
            if not mine:
                return None
            likelihoods = likelihood_stage(context, iterate)
            kl_opponent = kl_base = None
            if self.answering.draws_plainly:
                logprobs = self._logprobs(iterate, mine)
                kl_opponent = divergence(logprobs, self._logprobs(opponent, mine)).to_json()
                kl_base = kl_opponent
                if iteration > 1:
                    kl_base = divergence(logprobs, self._logprobs(self.start, mine)).to_json()
            facts = {
                "nll_per_token": sum(item.nll for item in likelihoods) / sum(item.tokens for item in likelihoods),
                "kl_opponent": kl_opponent,
                "kl_base": kl_base,
                "answers": describe([answer for pair in mine for answer in pair.generated]).to_json(),
                "real": describe([pair.real for pair in mine]).to_json(),
                "identical_to_opponent": identical_share(_first_ids(mine), _first_ids(earlier)),
            }
            write_json_if_changed(path, facts)
            context.metrics.begin(stage, 0)
            context.metrics.add(stage, 1, **flat(facts))
            context.run.finish(stage, inputs, [path], facts)
        return facts

    def _logprobs(self, iterate: Iterate, pairs: Sequence[Pair]) -> list[float]:
        engine = self.context.load(iterate).engine
        queries = [Query(pair.prompt_ids, tuple(answer.ids for answer in pair.generated)) for pair in pairs]
        return list(itertools.chain(*engine.score(queries)))

    # Stopping and choosing -------------------------------------------------------------------------------------

    def _better(self, newest: Iterate, best: Iterate) -> str | None:
        """Why the newest iterate takes the place of the best one; None when it cannot be told to be better."""
        if not self.context.heldout:
            return "it is the newest, and no example is held out to judge by"
        metric = self.section.metric
        gain = metric_difference(self.context, metric, newest, best)
        if gain.low <= 0:
            return None
        unit = " nats a token" if metric == "nll" else ""
        return (
            f"held-out {metric} is better than {best.name}'s by {gain.mean:.4g}{unit} "
            f"(95 % interval {gain.low:.4g} to {gain.high:.4g})"
        )

    def _stop_reason(self, iterations: Sequence[dict[str, Any]], waited: int) -> str | None:
        rules, newest = self.section.stop, iterations[-1]["heldout"]
        if rules.start_loss and newest and not newest["learned"]:
            return (
                f"the held-out loss {newest['loss']:.4f} cannot be told from its start {newest['start_loss']:.4f}: "
                "nothing is left to learn from the opponent"
            )
        if rules.real_logprob_drop is not None and (drop := self._real_logprob_drop()) > rules.real_logprob_drop:
            return (
                f"held-out real answers lost {drop:.2f} nats since iterate 0, more than spin.stop.real_logprob_drop "
                f"({rules.real_logprob_drop:g})"
            )
        if rules.patience is not None and waited >= rules.patience:
            return f"{self.section.metric} has found no better iterate for {waited} iterations (spin.stop.patience)"
        return None

    def _real_logprob_drop(self) -> float:
        """By how much less likely the newest iterate finds held-out references than iterate 0. [nats an answer]"""
        newest, start = (likelihood_stage(self.context, iterate) for iterate in (self.iterates[-1], self.start))
        return sum(a.nll - b.nll for a, b in zip(newest, start, strict=True)) / len(start)

    def _remember(self, best: Iterate, why: str) -> dict[str, str]:
        """Points ``best`` at the best iterate. Iterate 0 is kept when no later one can be told to be better."""
        if best is self.start and len(self.iterates) > 1:
            why = f"no later iterate can be told to be better on held-out {self.section.metric}"
        folder, target = self.context.run.folder, Path(best.location)
        inside = target.is_relative_to(folder)
        # a run folder may be moved
        location = str(target.relative_to(folder)) if inside else best.location
        chosen = {"name": best.name, "model": location, "why": why}
        write_json_if_changed(folder / "spin" / "best.json", chosen)
        return chosen


def _told(after: HeldoutPairMetrics) -> dict[str, Any]:
    """The means over held-out pairs, with 95 % intervals of those that judge."""
    judging = ("loss", "margin", "accuracy")
    intervals = {name: bootstrap([pair[name] for pair in after.each]).to_json() for name in judging}
    return {**after.to_json(), "learned": after.learned, "intervals": intervals}


def _first_ids(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return [pair.generated[0].ids for pair in pairs]
