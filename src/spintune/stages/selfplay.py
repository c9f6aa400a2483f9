"""Self-play, iteration after iteration, until the last one or until it stops helping.

::

    spin/iterate-t/pairs         pairs of real and generated answers: pairs.py
    spin/iterate-t, .../diagnosis    the trained player: iteration.py
    spin/baseline-sft            further SFT instead of self-play: sft.py
    spin/best.json               the iterate to use, and why

With ``spin.keep``, iterates that are neither the run's model nor needed again lose their weights on the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from spintune.errors import DeletedModelError
from spintune.recipe import SpinSection
from spintune.results import BestModel, IterationResults, TrainingResults
from spintune.stages.answers import AnswerSampler
from spintune.stages.context import RunContext
from spintune.stages.heldout import likelihood_stage, metric_difference
from spintune.stages.iterates import Iterate
from spintune.stages.iteration import diagnosis_stage, training_stage
from spintune.stages.measure import metric_of
from spintune.stages.pairs import NothingToLearnError, PairStage
from spintune.stages.sft import baseline_stage
from spintune.storage import write_json_if_changed
from spintune.typed_json import to_json


def selfplay_stage(
    context: RunContext,
    section: SpinSection,
    start: Iterate,
    evaluate: Callable[[Iterate], None],
) -> tuple[Sequence[Iterate], TrainingResults]:
    """Runs self-play from iterate 0 (``start``) on; ``evaluate`` is called with an iterate that may be deleted later.

    Returns iterate 1, 2, ..., the baseline if the recipe asks for one, and what was measured of them.
    """
    return _SelfPlay(context, section, start, evaluate).run()


class _SelfPlay:
    def __init__(
        self, context: RunContext, section: SpinSection, start: Iterate, evaluate: Callable[[Iterate], None]
    ) -> None:
        self.context, self.section, self.start, self.evaluate = context, section, start, evaluate
        self.iterates = [start]
        self.results: list[IterationResults] = []
        self.sampler = AnswerSampler(context, section)
        self.pair_stage = PairStage(self.sampler, self.iterates)
        self.best, self.why = start, "it is where self-play starts"
        self.since_best = 0  # iterations

    def run(self) -> tuple[Sequence[Iterate], TrainingResults]:
        stopped = self._iterate()
        best = self._write_best()
        iterates, baseline = self.iterates[1:], None
        if self.section.baseline == "sft":
            steps = sum(result.steps for result in self.results)
            tokens = sum(result.tokens for result in self.results)
            iterate, baseline = baseline_stage(self.context, self.section, self.start, steps, tokens)
            iterates = [*iterates, iterate]
        return iterates, TrainingResults(spin=self.results, best=best, stopped=stopped, baseline=baseline)

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
            self._update_best()
            if not (self.context.run.folder / f"spin/iterate-{iteration + 1}/pairs").exists():
                self._write_best()  # in a run that is repeated, best.json is already final
            if self.section.keep != "all":
                self._discard_iterates()
            if iteration < self.section.iterations and (stop := self._reason_to_stop()):
                note(f"self-play stops after iteration {iteration}: {stop}")
                return stop
        return None

    def _iteration(self, iteration: int) -> IterationResults:
        pairs = self.pair_stage.pairs(iteration)
        iterate, facts = training_stage(self.sampler, self.iterates[-1], iteration)
        self.iterates.append(iterate)
        diagnosis = diagnosis_stage(self.sampler, self.iterates, iteration)
        return IterationResults(**vars(facts), pairs=pairs, diagnosis=diagnosis)

    def _discard_iterates(self) -> None:
        """Deletes the weights of iterates that are neither the best nor needed by the next iteration."""
        with contextlib.suppress(DeletedModelError):  # it was deleted before this evaluation was asked for
            self.evaluate(self.iterates[-1])
        needed = [self.best, *self.iterates[-self.section.history :]]
        for iterate in self.iterates[1:]:
            if iterate not in needed and Path(iterate.location).exists():
                self.context.run.discard(f"spin/{iterate.name}", "model")
                self.context.progress.note(f"deleted the weights of {iterate.name} (spin.keep: {self.section.keep})")

    # Choosing and stopping -------------------------------------------------------------------------------------------

    def _update_best(self) -> None:
        if why := self._better():
            self.best, self.why, self.since_best = self.iterates[-1], why, 0
        else:
            self.since_best += 1

    def _better(self) -> str | None:
        """Why the newest iterate replaces the best one; None when it is not significantly better."""
        if self.section.keep == "last":
            return "it is the newest (spin.keep: last)"
        if not self.context.heldout:
            return "it is the newest, and no example is held out to judge by"
        metric = metric_of(self.context)
        gain = metric_difference(self.context, metric, self.iterates[-1], self.best)
        if gain.low <= 0:
            return None
        unit = " nats per token" if metric == "nll" else ""
        return (
            f"held-out {metric} is better than {self.best.name}'s by {gain.mean:.4g}{unit} "
            f"(95 % interval {gain.low:.4g} to {gain.high:.4g})"
        )

    def _write_best(self) -> BestModel:
        """Writes best.json. Iterate 0 stays the best until a later one is significantly better."""
        if self.best is self.start and len(self.iterates) > 1:
            self.why = f"no later iterate is significantly better on held-out {metric_of(self.context)}"
        folder, model = self.context.run.folder, Path(self.best.location)
        # relative, because a run folder may be moved
        location = str(model.relative_to(folder)) if model.is_relative_to(folder) else self.best.location
        best = BestModel(self.best.name, location, self.why)
        write_json_if_changed(folder / "spin" / "best.json", to_json(best))
        return best

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
        if rules.patience is not None and self.since_best >= rules.patience:
            return (
                f"no better iterate on {metric_of(self.context)} for {self.since_best} iterations (spin.stop.patience)"
            )
        return None

    def _real_logprob_drop(self) -> float:
        """How much less likely the held-out references are than under iterate 0. [nats per answer]"""
        newest, start = (likelihood_stage(self.context, iterate) for iterate in (self.iterates[-1], self.start))
        return sum(a.nll - b.nll for a, b in zip(newest, start, strict=True)) / len(start)
