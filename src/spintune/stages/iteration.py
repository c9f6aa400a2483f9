"""Trains one iterate of self-play on its pairs, and measures how it differs from its opponent.

::

    spin/iterate-t/model            the trained player
    spin/iterate-t/standing.jsonl   loss, ratios, margin and accuracy of every held-out pair
    spin/iterate-t/later.jsonl      pairs that the player itself wrote while it trained (spin.refresh)
    spin/iterate-t/diagnosis        how the new iterate answers, and how far it has moved
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from spintune.engine.query import Query
from spintune.errors import DeletedModelError
from spintune.evaluation.statistics import bootstrap
from spintune.models.quantized import count_of
from spintune.progress import Progress, Silent
from spintune.recipe import AUTO_RATE, SpinSection
from spintune.record_files import Joined, RecordFile
from spintune.records import Pair, read_records, write_records
from spintune.results import DiagnosisFacts, HeldoutPairFacts, IterationFacts, LaterPairCounts
from spintune.run_folder import MANIFEST, read_manifest
from spintune.selfplay.diagnostics import describe, divergence, identical_share
from spintune.selfplay.filters import FilteredPairs
from spintune.selfplay.opponent import score_pairs
from spintune.selfplay.pair_metrics import PairMetrics, summarize_pairs
from spintune.selfplay.phases import PhasedBatches, Phases
from spintune.selfplay.shards import Shards
from spintune.selfplay.spin import (
    batches_of,
    iteration_optimization,
    measure_pairs,
    objective_of,
    rate_losses,
    train_iteration,
)
from spintune.stages.answers import AnswerSampler
from spintune.stages.context import RunContext
from spintune.stages.heldout import likelihood_stage
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.stages.metering import Meter, step_logger
from spintune.stages.pairs import training_settings
from spintune.stages.rates import RateSearch, TrialSetting
from spintune.storage import digest_json, remove_folder, write_json_if_changed, write_json_lines
from spintune.tokens.rows import TokenRow
from spintune.tracking import Stopwatch, flat
from spintune.training.batches import Batches
from spintune.training.ladder_plan import BACKWARD
from spintune.training.loop import StepReport, Steps, TrainingHooks
from spintune.training.objectives import SelfPlay
from spintune.training.optimization import Optimization
from spintune.training.rate_facts import RateFacts
from spintune.typed_json import JsonObject, from_json, to_json

FEW_STEPS = 10
"""An iteration of fewer steps gets a warning; a judgment: Adam moves a weight by at most about rate x steps."""


# Training ------------------------------------------------------------------------------------------------------------


def training_stage(sampler: AnswerSampler, opponent: Iterate, iteration: int) -> tuple[Iterate, IterationFacts]:
    """Trains the next iterate, which starts as a copy of its opponent."""
    context = sampler.context
    stage = f"spin/iterate-{iteration}"
    folder = context.run.folder / stage
    sampler = _with_rate(sampler, opponent, iteration)
    inputs = _inputs(sampler, opponent, iteration)
    facts = context.run.finished(stage, inputs, IterationFacts)
    if facts is None:
        iterate, facts = _train(sampler, opponent, iteration, inputs)
    else:
        iterate = context.published(f"iterate-{iteration}", stage)
    remove_folder(folder / "checkpoints")
    remove_folder(folder / "rounds")
    return iterate, facts


def _inputs(sampler: AnswerSampler, opponent: Iterate, iteration: int) -> JsonObject:
    context = sampler.context
    return context.training_inputs(
        opponent,
        pairs=context.run.digest(f"spin/iterate-{iteration}/pairs"),
        spin=training_settings(context, sampler.section, iteration),
        iteration=iteration,
    )


def _with_rate(sampler: AnswerSampler, opponent: Iterate, iteration: int) -> AnswerSampler:
    """The sampler with the learning rate that a ladder finds, if the recipe says auto."""
    context, section, stage = sampler.context, sampler.section, f"spin/iterate-{iteration}"
    if section.in_iteration(iteration).learning_rate != AUTO_RATE:
        return sampler
    if section.finds_rate(iteration):
        inputs, title = _inputs(sampler, opponent, iteration), f"SPIN iteration {iteration}"
        search = RateSearch(context, "spin.learning_rate", title, stage, opponent, inputs)
        rate = search.find(lambda player: _trial(sampler, player, iteration)).rate
    else:
        first = context.run.folder / "spin/iterate-1/rates"
        rate = from_json(RateFacts, read_manifest(first).facts, first / MANIFEST).rate
    return replace(sampler, section=section.model_copy(update={"learning_rate": rate}))


def _trial(sampler: AnswerSampler, player: LoadedIterate, iteration: int) -> TrialSetting[Pair, Pair]:
    """What rates of an iteration are tried on: its pairs, as far as they are there before training begins."""
    context, section = sampler.context, sampler.section
    folder, objective = context.run.folder / f"spin/iterate-{iteration}/pairs", objective_of(section, iteration)
    pairs = _stored(folder)
    chosen = sampler.ids_of(context.selection)
    heldout = [pair for pair in read_records(folder / "heldout.jsonl", Pair) if pair.example_id in chosen]
    batches = batches_of(pairs, section, iteration, context.recipe.seed)
    tokens = array("q", (objective.query(pair).tokens for pair in pairs))
    step_tokens = [sum(tokens[index] for index in step) for step in batches.steps]
    if section.refresh != 1:  # the player writes the pairs of later phases; they are taken to be as long
        rows = sampler.rows(player, sampler.train).rows
        steps = len(Phases(len(rows), section, iteration, context.recipe.seed).steps)
        step_tokens = [step_tokens[step % len(step_tokens)] for step in range(steps)]
    tried = section.model_copy(update={"learning_rate": None})
    return TrialSetting(
        batches,
        step_tokens,
        sum(map(len, batches.steps)) / len(batches),
        objective,
        _optimization(sampler, tried, player, iteration),
        heldout,
        [objective.query(pair).tokens for pair in heldout],
        lambda rows: rate_losses(player.engine, rows),
        "loss at λ = 1 and γ = 1",
        BACKWARD + 2,  # an iteration also generates and scores its answers
    )


def _optimization(sampler: AnswerSampler, section: SpinSection, player: LoadedIterate, iteration: int) -> Optimization:
    recipe = sampler.context.recipe
    weights = sum(map(count_of, player.loaded.model.parameters()))
    found = iteration_optimization(section, iteration, recipe.seed, weights)
    return replace(found, router_aux_loss=recipe.router_aux_loss, offload=recipe.offload in ("optimizer", "both"))


def _train(
    sampler: AnswerSampler, opponent: Iterate, iteration: int, inputs: JsonObject
) -> tuple[Iterate, IterationFacts]:
    """The player is a local variable of this function, so that it leaves memory before other models are loaded."""
    context, section, stage = sampler.context, sampler.section, f"spin/iterate-{iteration}"
    folder = context.run.folder / stage
    player = context.load(opponent)
    optimization, objective = _optimization(sampler, section, player, iteration), objective_of(section, iteration)
    clock = Stopwatch()
    phase_pairs = _PhasePairs(sampler, player, iteration, digest_json(inputs)[:12], clock)
    batches = _batches(phase_pairs, folder / "pairs")
    if len(batches) < FEW_STEPS:
        context.progress.note(
            f"warning, iteration {iteration}: only {len(batches)} steps, which will hardly move the player; "
            "lower spin.pairs_per_step, raise spin.epochs, or give more data"
        )
    meter = Meter(player.engine)
    begin, log_step = partial(context.metrics.begin_steps, stage), step_logger(context.metrics, stage, meter)

    def started(step: int) -> None:
        phase_pairs.learned = step
        begin(step)

    def stepped(report: StepReport) -> None:
        phase_pairs.learned = report.step
        log_step(report)

    hooks = TrainingHooks(started, stepped, context.stop)
    checkpoints = context.checkpoints(stage, inputs, section)
    with clock("train"), context.progress.task(f"SPIN iteration {iteration}", len(batches), "steps") as task:
        train_iteration(player.engine, batches, objective, optimization, checkpoints, task, hooks)
    with context.stop.held():  # no checkpoint has the last step
        for line in meter.notes(f"SPIN iteration {iteration}"):
            context.progress.note(line)
        heldout_pairs = read_records(folder / "pairs/heldout.jsonl", Pair)
        progress = context.progress if heldout_pairs else Silent()
        with progress.task(f"iteration {iteration}: held-out pairs", len(heldout_pairs), "pairs") as task:
            measured = measure_pairs(player.engine, heldout_pairs, objective, task.advance)
        reporting = sampler.ids_of(context.reporting)
        heldout = _heldout_facts(heldout_pairs, measured, objective, reporting)
        sizes, seen = _seen(batches, objective)
        later = [phase_pairs.written[phase] for phase in sorted(phase_pairs.written)]
        later_pairs = [pair for pairs in later for pair in pairs.kept]
        facts = IterationFacts(
            iteration=iteration,
            learning_rate=optimization.learning_rate,
            steps=sum(map(bool, sizes)),
            pairs_seen=sum(sizes),
            tokens=seen,
            later=LaterPairCounts(len(later_pairs), dict(sum((pairs.dropped for pairs in later), Counter()))),
            heldout=heldout,
            seconds=clock.seconds,
            hardware=meter.facts(),
        )
        if heldout:
            context.metrics.begin(f"{stage}/heldout", 0)
            context.metrics.add(f"{stage}/heldout", 1, **_means(heldout))
        files = [folder / "later.jsonl", folder / "standing.jsonl"]
        write_records(files[0], later_pairs)
        write_json_lines(files[1], measured)
        return context.publish(player, f"iterate-{iteration}", stage, inputs, facts, *files), facts


def _seen(batches: Steps[Pair], objective: SelfPlay) -> tuple[array[int], int]:
    """The pairs of each step, and the tokens of all steps."""
    if isinstance(batches, Batches):  # each pair is read once, and not in every epoch
        tokens = array("q", (objective.query(pair).tokens for pair in batches.rows))
        return array("q", map(len, batches.steps)), sum(tokens[place] for step in batches.steps for place in step)
    steps = [[objective.query(pair).tokens for pair in batches[step]] for step in range(len(batches))]
    return array("q", map(len, steps)), sum(map(sum, steps))


def _stored(folder: Path) -> Sequence[Pair]:
    """The pairs that the pair stage wrote to train on. They stay on disk."""
    return Joined([RecordFile(folder / "train.jsonl", Pair), RecordFile(folder / "replay.jsonl", Pair)])


def _heldout_facts(
    pairs: Sequence[Pair], measured: Sequence[PairMetrics], objective: SelfPlay, reporting: Collection[str]
) -> HeldoutPairFacts | None:
    """Facts of the pairs that report, by their ids; None without one."""
    pairs = [pair for pair in pairs if pair.example_id in reporting]
    measured = [one for one in measured if one.id in reporting]
    if not pairs:
        return None
    metrics = summarize_pairs(pairs, measured, [objective.start([pair]) for pair in pairs])
    intervals = {
        "loss": bootstrap([one.loss for one in measured]),
        "margin": bootstrap([one.margin for one in measured]),
        "accuracy": bootstrap([one.accuracy for one in measured]),
    }
    return HeldoutPairFacts(**asdict(metrics), intervals=intervals)


def _means(heldout: HeldoutPairFacts) -> dict[str, float]:
    return flat({key: value for key, value in asdict(heldout).items() if key not in ("learned", "intervals")})


def _batches(phase_pairs: _PhasePairs, folder: Path) -> Steps[Pair]:
    """The pairs of each optimizer step."""
    section, seed, iteration = (
        phase_pairs.sampler.section,
        phase_pairs.sampler.context.recipe.seed,
        phase_pairs.iteration,
    )
    if section.refresh == 1:
        return batches_of(_stored(folder), section, iteration, seed)
    phases = Phases(len(phase_pairs.rows), section, iteration, seed)
    phase_pairs.starts = phases.starts
    return PhasedBatches(phases, phase_pairs)


class _PhasePairs:
    """The pairs of each phase of an iteration: the pair stage wrote those of the first, the player writes the others.

    Attributes:
        written: what the player wrote, by phase.
        starts: the first step of each phase.
        learned: optimizer steps that the player has taken.
    """

    def __init__(
        self, sampler: AnswerSampler, player: LoadedIterate, iteration: int, tag: str, clock: Stopwatch
    ) -> None:
        self.sampler, self.player, self.iteration, self.clock = sampler, player, iteration, clock
        self.written: dict[int, FilteredPairs] = {}
        self.starts: Sequence[int] = ()
        self.learned = 0
        self._folder, self._tag = sampler.context.run.folder / f"spin/iterate-{iteration}", tag
        silent = sampler.section.refresh == "step"
        self._progress: Progress = Silent() if silent else sampler.context.progress

    @cached_property
    def rows(self) -> Sequence[TokenRow]:
        """All training prompts."""
        return self.sampler.rows(self.player, self.sampler.train).rows

    def __call__(self, phase: int, prompts: Sequence[int]) -> Mapping[int, Pair]:
        """The pairs to train on, by prompt."""
        return self._written_by_player(phase, prompts) if phase else self._of_pair_stage(prompts)

    def _of_pair_stage(self, prompts: Sequence[int]) -> Mapping[int, Pair]:
        answers = RecordFile(self._folder / "pairs/answers.jsonl", Pair)
        scored = iter(RecordFile(self._folder / "pairs/train.jsonl", Pair))
        usable = zip(prompts, map(self._usable, answers), strict=True)
        return {prompt: next(scored) for prompt, pair in usable if pair}

    def _written_by_player(self, phase: int, prompts: Sequence[int]) -> Mapping[int, Pair]:
        past = self.learned > self.starts[phase]  # the player is no longer the one that wrote this phase
        shards = Shards(self._folder / "rounds", f"{self._tag}-{phase:05d}", self._progress, frozen=past)
        name = f"phase {phase}"
        with self.clock("generate"):
            rows = [self.rows[prompt] for prompt in prompts]
            answers = self.sampler.write(self.player, rows, [self.iteration, phase], shards, name)
        usable = [prompt for prompt, pair in zip(prompts, answers, strict=True) if self._usable(pair)]
        found = self.sampler.usable(answers, self.iteration)
        with self.clock("score"):
            # in memory, since there may be as many phases as steps, each with a file
            scored = list(score_pairs(self.player.engine, found.kept, "opponent", shards, f"{name}: scores"))
        self.written[phase] = replace(found, kept=scored)
        return dict(zip(usable, scored, strict=True))

    def _usable(self, pair: Pair) -> bool:
        return self.sampler.is_usable(pair, self.iteration)


# Diagnosis -----------------------------------------------------------------------------------------------------------


def diagnosis_stage(sampler: AnswerSampler, iterates: Sequence[Iterate], iteration: int) -> DiagnosisFacts | None:
    """How an iterate answers the held-out prompts that report, and how far it is from its opponent and from iterate 0.

    Args:
        iterates: all so far, iterate 0 first.

    None without such prompts.
    """
    context = sampler.context
    start, opponent, iterate = iterates[0], iterates[iteration - 1], iterates[iteration]
    if not context.heldout:
        return None
    stage = f"spin/iterate-{iteration}/diagnosis"
    path = context.run.folder / stage / "diagnosis.json"
    inputs = context.training_inputs(
        iterate, opponent=opponent.digest, base=start.digest, play=sampler.inputs, iteration=iteration
    )
    # asked for first, so that answers that were damaged since are made again
    reporting = sampler.ids_of(context.reporting)
    answers, earlier = (
        [pair for pair in sampler.heldout_answers(one) if pair.example_id in reporting] for one in (iterate, opponent)
    )
    facts = context.run.finished(stage, inputs, DiagnosisFacts)
    if facts is not None:
        with contextlib.suppress(DeletedModelError):  # never measured, and deleted since (spin.keep)
            likelihood_stage(context, iterate)
    else:
        if not answers:
            return None
        whole = {example.id for example in context.reporting}
        likelihoods = [one for one in likelihood_stage(context, iterate) if one.id in whole]
        if not likelihoods:
            return None
        kl_opponent = kl_base = None
        if sampler.section.draws_plainly:
            logprobs = _logprobs(context, iterate, answers)
            negatives = sampler.section.negatives
            kl_opponent = kl_base = divergence(logprobs, _logprobs(context, opponent, answers), negatives)
            if iteration > 1:
                kl_base = divergence(logprobs, _logprobs(context, start, answers), negatives)
        facts = DiagnosisFacts(
            nll_per_token=sum(item.nll for item in likelihoods) / sum(item.tokens for item in likelihoods),
            kl_opponent=kl_opponent,
            kl_base=kl_base,
            answers=describe([pair.generated[0] for pair in answers]),
            real=describe([pair.real for pair in answers]),
            identical_to_opponent=identical_share(_first_ids(answers), _first_ids(earlier)),
        )
        found = to_json(facts)
        write_json_if_changed(path, found)
        context.metrics.begin(stage, 0)
        context.metrics.add(stage, 1, **flat(found))
        context.finish(stage, inputs, [path], facts)
    return facts


def _logprobs(context: RunContext, iterate: Iterate, pairs: Sequence[Pair]) -> list[float]:
    """Log-probabilities of the generated answers under an iterate. [nats, summed over tokens]"""
    queries = [Query(pair.prompt_ids, tuple(answer.ids for answer in pair.generated)) for pair in pairs]
    engine = context.load(iterate).engine
    with context.progress.task(f"{iterate.name} scores held-out pairs", len(pairs), "pairs") as task:
        return list(chain(*engine.score(queries, task.advance)))


def _first_ids(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return [pair.generated[0].ids for pair in pairs]
