"""Self-play, iteration after iteration, until the last one or until it stops helping.

::

    spin/iterate-t/pairs         pairs of real and generated answers: pairs.py
    spin/iterate-t, .../diagnosis    the trained player: iteration.py
    spin/baseline-sft            further SFT instead of self-play: sft.py
    best.json                    the model to use so far, and why: decision.py

With ``spin.keep``, iterates that are neither the model to use nor needed again lose their weights on the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from spintune.errors import DeletedModelError, RunError
from spintune.recipe import SpinSection
from spintune.results import IterationResults, TrainingResults
from spintune.run_models import read_best
from spintune.stages.answers import AnswerSampler
from spintune.stages.context import RunContext
from spintune.stages.decision import decide_model, measure_for_decision, write_decision
from spintune.stages.heldout import likelihood_stage
from spintune.stages.iterates import Iterate
from spintune.stages.iteration import diagnosis_stage, training_stage
from spintune.stages.measure import metric_of
from spintune.stages.pairs import NothingToLearnError, PairStage
from spintune.stages.schedule import BASELINE_TRAINING, answers_of, training_of
from spintune.stages.sft import baseline_stage


def selfplay_stage(
    context: RunContext,
    section: SpinSection,
    models: Sequence[Iterate],
    evaluate: Callable[[Iterate], None],
) -> tuple[Sequence[Iterate], TrainingResults]:
    """Runs self-play from iterate 0 on, which is the last of ``models``, those that the run has so far.

    ``evaluate`` is called with an iterate that may be deleted later.

    Returns iterate 1, 2, ..., the baseline if the recipe asks for one, and what was measured of them.
    """
    return _SelfPlay(context, section, models, evaluate).run()


class _SelfPlay:
    def __init__(
        self,
        context: RunContext,
        section: SpinSection,
        models: Sequence[Iterate],
        evaluate: Callable[[Iterate], None],
    ) -> None:
        self.context, self.section, self.evaluate = context, section, evaluate
        self.before, self.start = models[:-1], models[-1]
        self.iterates = [self.start]
        self.results: list[IterationResults] = []
        self.sampler = AnswerSampler(context, section)
        self.pair_stage = PairStage(self.sampler, self.iterates)
        self.best = self.start.name
        # deleted by now in a run that does all at once; a repeated run has deleted more, and decides as that one did
        self.deleted: set[str] = set()

    def run(self) -> tuple[Sequence[Iterate], TrainingResults]:
        self._decide_so_far()
        stopped = self._iterate()
        iterates, baseline = self.iterates[1:], None
        if self.section.baseline == "sft":
            steps = sum(result.steps for result in self.results)
            tokens = sum(result.tokens for result in self.results)
            with self.context.progress.stage(BASELINE_TRAINING):
                iterate, baseline = baseline_stage(self.context, self.section, self.start, steps, tokens)
                measure_for_decision(self.context, iterate)
            iterates = [*iterates, iterate]
        return iterates, TrainingResults(spin=self.results, stopped=stopped, baseline=baseline)

    def _iterate(self) -> str | None:
        """Runs iterations until the last one, or until there is a reason to stop, which it returns."""
        note = self.context.progress.note
        for iteration in range(1, self.section.iterations + 1):
            try:
                self.results.append(self._iteration(iteration))
            except NothingToLearnError as error:
                if not self.results:
                    raise
                reason = str(error).removeprefix("spin: ")
                note(f"self-play stops before iteration {iteration}: {reason}")
                return reason
            self._decide_so_far()
            if self.section.keep != "all":
                self._discard_iterates()
            if iteration < self.section.iterations and (stop := self._reason_to_stop()):
                note(f"self-play stops after iteration {iteration}: {stop}")
                return stop
        return None

    def _iteration(self, iteration: int) -> IterationResults:
        with self.context.progress.stage(answers_of(iteration)):
            pairs = self.pair_stage.pairs(iteration)
        with self.context.progress.stage(training_of(iteration)):
            iterate, facts = training_stage(self.sampler, self.iterates[-1], iteration)
            self.iterates.append(iterate)
            diagnosis = diagnosis_stage(self.sampler, self.iterates, iteration)
            with contextlib.suppress(DeletedModelError):  # never measured, and deleted since (spin.keep)
                measure_for_decision(self.context, iterate)
        return IterationResults(**vars(facts), pairs=pairs, diagnosis=diagnosis)

    def _discard_iterates(self) -> None:
        """Deletes the weights of iterates that are neither the best nor needed by the next iteration."""
        with contextlib.suppress(DeletedModelError):  # it was deleted before this evaluation was asked for
            self.evaluate(self.iterates[-1])
        needed = {self.best, *(iterate.name for iterate in self.iterates[-self.section.history :])}
        # a repeated run has decided among all its models already, and need not have chosen one of those on the way
        with contextlib.suppress(RunError):  # damaged: it is written anew
            if self.section.keep == "best" and (decided := read_best(self.context.run.folder)):
                needed.add(decided.name)
        for iterate in self.iterates[1:]:
            if iterate.name in needed:
                continue
            self.deleted.add(iterate.name)
            if Path(iterate.location).exists():
                self.context.run.discard(f"spin/{iterate.name}", "model")
                self.context.progress.note(f"deleted the weights of {iterate.name} (spin.keep: {self.section.keep})")

    # Choosing and stopping -------------------------------------------------------------------------------------------

    def _decide_so_far(self) -> None:
        """Decides among the models that are there, and writes that unless a run that is repeated has gone on.

        One model alone, which the run has not made, is no decision yet.
        """
        models = [*self.before, *self.iterates]
        best = decide_model(self.context, models, self.deleted)
        self.best = best.name
        later = (f"iterate-{len(self.iterates)}/pairs", "baseline-sft")
        if len(models) > 1 and not any((self.context.run.folder / "spin" / name).exists() for name in later):
            write_decision(self.context, best)

    @property
    def _since_best(self) -> int:
        """Iterations since the model to use was made."""
        names = [iterate.name for iterate in self.iterates]
        return len(names) - 1 - (names.index(self.best) if self.best in names else 0)

    def _reason_to_stop(self) -> str | None:
        rules, heldout = self.section.stop, self.results[-1].heldout
        if rules.start_loss and heldout and not heldout.learned:
            return (
                f"the held-out loss {heldout.loss:.4f} is not significantly below its start "
                f"{heldout.start_loss:.4f}: nothing is left to learn from the opponent"
            )
        if rules.real_logprob_drop is not None and (drop := self._real_logprob_drop()) > rules.real_logprob_drop:
            return (
                f"held-out real answers lost {drop:.2f} nats since iterate 0, more than spin.stop.real_logprob_drop "
                f"({rules.real_logprob_drop:g})"
            )
        if rules.patience is not None and self._since_best >= rules.patience:
            metric, since = metric_of(self.context), self._since_best
            return f"no better iterate on {metric} for {since} iteration{'s' * (since != 1)} (spin.stop.patience)"
        return None

    def _real_logprob_drop(self) -> float:
        """How much less likely the held-out references are than under iterate 0. [nats per answer]"""
        newest, start = (likelihood_stage(self.context, iterate) for iterate in (self.iterates[-1], self.start))
        return sum(a.nll - b.nll for a, b in zip(newest, start, strict=True)) / len(start)
