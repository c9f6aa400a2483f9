"""Makes the pairs of an iteration: iterates answer the training prompts, and the opponent scores every answer.

::

    spin/iterate-t/pairs/answers.jsonl    all answers to the training prompts
    spin/iterate-t/pairs/train.jsonl      pairs that can be learned from, scored by the opponent
    spin/iterate-t/pairs/replay.jsonl     pairs of earlier iterations, scored again
    spin/iterate-t/pairs/heldout.jsonl    held-out pairs, scored by the opponent
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from spintune.errors import DataError, ServerError
from spintune.progress import Silent
from spintune.recipe import SpinSection
from spintune.record_files import Joined, RecordFile, Selection
from spintune.records import Answer, Pair, write_records
from spintune.results import HeldoutPairCounts, PairFacts, TrainPairCounts
from spintune.selfplay.artifacts import artifact_warnings
from spintune.selfplay.filters import EMPTY, FilteredPairs, with_first_answers
from spintune.selfplay.opponent import (
    check_sampler,
    draw_writer,
    given_pairs,
    score_pairs,
)
from spintune.selfplay.phases import Phases
from spintune.selfplay.sampler_gap import SamplerGap, sampler_gap
from spintune.selfplay.separability import Separability, separability
from spintune.selfplay.shards import Shards
from spintune.selfplay.spin import learns_from_identical
from spintune.stages.answers import AnswerSampler
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate
from spintune.storage import digest_json, remove_folder
from spintune.tokens.rows import RenderedRows, TokenRow
from spintune.tracking import Stopwatch, flat
from spintune.typed_json import JsonObject

Sides = dict[str, Sequence[Pair]]
"""The files with pairs of an iteration, by name: train, replay, heldout. Those of training stay on disk."""


_GIVEN = -2
"""In place of the number of an iterate: the recipe's file of answers. It comes first, as no model is needed then."""


class NothingToLearnError(DataError):
    """No pair of an iteration can be learned from: generated answers equal the real ones, or have no token."""


@dataclass
class PairStage:
    """Makes the pairs of each iteration.

    Attributes:
        iterates: those that exist, iterate 0 first; the last one is the opponent. Self-play appends to it.
    """

    sampler: AnswerSampler
    iterates: list[Iterate]

    @property
    def context(self) -> RunContext:
        return self.sampler.context

    @property
    def section(self) -> SpinSection:
        return self.sampler.section

    @property
    def opponent(self) -> Iterate:
        return self.iterates[-1]

    def pairs(self, iteration: int) -> PairFacts:
        """Writes the pairs of an iteration. Raises NothingToLearnError when none can be learned from."""
        stage = f"spin/iterate-{iteration}/pairs"
        inputs = self._inputs(iteration)
        facts = self.context.run.finished(stage, inputs, PairFacts)
        if facts is None:
            facts = self._make(iteration, stage, inputs)
        remove_folder(self.context.run.folder / stage / "shards")
        return facts

    def _inputs(self, iteration: int) -> JsonObject:
        context, section = self.context, self.section
        earlier_pairs = [context.run.digest(_stage(earlier)) for earlier in self._replayed(iteration)]
        return {
            **self._answer_inputs(iteration),
            "replay": earlier_pairs,
            "replay_weight": section.replay_weight,
            "mixture": self.iterates[0].digest if section.reference_mixture else None,
            "first": context.run.digest(_stage(1)) if self._needs_first(iteration) else None,
            "identical": learns_from_identical(section, iteration),
            # earlier versions took single answers out of pairs
            **({"filter": "whole pairs"} if section.negatives > 1 else {}),
        }

    def _answer_inputs(self, iteration: int) -> JsonObject:
        """What the answers to the training prompts depend on; of losses that differ they may be the same."""
        context, section = self.context, self.section
        return context.training_inputs(
            self.opponent,
            play=self.sampler.inputs,
            iteration=iteration,
            writers=[iterate.digest for iterate in self.iterates[-section.history :]],
            stretch=None if section.refresh == 1 else training_settings(context, section, iteration),
        )

    def _make(self, iteration: int, stage: str, inputs: JsonObject) -> PairFacts:
        context, folder = self.context, self.context.run.folder / stage
        clock = Stopwatch()
        shards = Shards(folder / "shards", digest_json(inputs)[:12], context.progress)
        with clock("generate"):
            heldout_answers = self.sampler.heldout_answers(self.opponent)
            answers, rendered = self._answers(iteration, shards)
        write_records(folder / "answers.jsonl", answers)
        train = self.sampler.usable(answers, iteration)
        heldout = self.sampler.usable(heldout_answers, iteration)
        if not train.kept:
            raise _nothing_to_learn(iteration, train)
        sides = {"train": train.kept, "replay": self._replay(iteration), "heldout": heldout.kept}
        if self._needs_first(iteration):
            first = self._first_answers()
            sides = {side: with_first_answers(pairs, first) for side, pairs in sides.items()}
        sides = self._scored(sides, shards, clock)
        gap = self._check_gap(sides, stage)
        for side, pairs in sides.items():
            write_records(folder / f"{side}.jsonl", pairs)
        separable, warned = self._check_artifacts(iteration, stage, sides["train"])
        facts = PairFacts(
            train=TrainPairCounts(
                prompts=rendered.read,
                played=len(answers),
                kept=len(train.kept),
                answers=sum(len(pair.generated) for pair in train.kept),
                dropped=dict(rendered.dropped + train.dropped),
                replayed=len(sides["replay"]),
                real_cut=_real_cut(train.kept),
                generated_cut=_generated_cut(train.kept),
            ),
            heldout=HeldoutPairCounts(
                len(heldout.kept), dict(heldout.dropped), _real_cut(heldout.kept), _generated_cut(heldout.kept)
            ),
            separability=separable,
            warnings=warned,
            data=context.run.digest("data"),
            seconds=clock.seconds,
            answers=digest_json(self._answer_inputs(iteration)),
            engine=context.engine_facts,
            gap=gap,
            max_new_tokens=self.sampler.max_tokens,
        )
        files = [folder / f"{name}.jsonl" for name in ("answers", *sides)]
        context.finish(stage, inputs, files, facts)
        return facts

    # Answers ---------------------------------------------------------------------------------------------------------

    def _answers(self, iteration: int, shards: Shards) -> tuple[Sequence[Pair], RenderedRows]:
        """The answers to all prompts, in their order, that exist before training begins; and the rendered prompts."""
        context, section = self.context, self.section
        rendered = self.sampler.rows(context.load(self.opponent), self.sampler.train)
        rows: Sequence[TokenRow] = rendered.rows
        if context.run.siblings:
            same = digest_json(self._answer_inputs(iteration))
            if file := context.run.siblings.file(_stage(iteration), "answers.jsonl", "answers", same):
                return RecordFile(file, Pair), rendered
        if section.refresh != 1:  # of the first phase; the player itself answers the others while it trains
            phases = Phases(len(rows), section, iteration, context.recipe.seed)
            rows = Selection(rows, phases.prompts(0))
        given = self.sampler.given if iteration == 1 else {}
        by_writer: dict[int, array[int]] = {}
        for place, row in enumerate(rows):
            writer = draw_writer(row.example_id, iteration, section.history, context.recipe.seed)
            by_writer.setdefault(_GIVEN if row.example_id in given else writer, array("q")).append(place)
        if given and _GIVEN not in by_writer:
            raise DataError(f"{section.generated}: none of its answers is to a training prompt; check the file")
        parts: dict[int, Sequence[Pair]] = {}
        for writer in sorted(by_writer):  # the opponent comes last, so it is in memory when scoring begins
            own = rows if len(by_writer) == 1 else Selection(rows, by_writer[writer])
            if writer == _GIVEN:
                parts[writer] = self._given_answers(own, len(rows))
            else:
                part = replace(shards, tag=f"{shards.tag}-{writer}")
                parts[writer] = self._answers_of(self.iterates[writer], own, iteration, part)
        if len(parts) == 1:
            return next(iter(parts.values())), rendered
        places = array("q", bytes(8 * len(rows)))
        for joined, place in enumerate(place for writer in parts for place in by_writer[writer]):
            places[place] = joined
        return Selection(Joined(parts.values()), places), rendered

    def _answers_of(self, writer: Iterate, rows: Sequence[TokenRow], iteration: int, shards: Shards) -> Sequence[Pair]:
        """The answers of one iterate. It is a local variable here, so that the next one can take its memory."""
        player = self.context.load(writer)
        return self.sampler.write(player, rows, [iteration], shards, f"{writer.name} answers training prompts")

    def _given_answers(self, rows: Sequence[TokenRow], prompts: int) -> Sequence[Pair]:
        """The answers that the recipe gives in a file, for ``rows`` out of so many ``prompts``."""
        file, context = str(self.section.generated), self.context
        player = context.load(self.opponent)
        renderer = player.renderer("last")
        given = {row.example_id: renderer.rows(self.sampler.given[row.example_id]) for row in rows}
        context.progress.note(f"{file}: answers to {len(rows)} of {prompts} training prompts")
        max_length = context.recipe.data.max_length
        return given_pairs(player.generator, rows, given, self.sampler.max_tokens, max_length, file)

    def _replayed(self, iteration: int) -> range:
        """The iterations whose pairs are trained on again."""
        return range(max(1, iteration - self.section.replay), iteration)

    def _replay(self, iteration: int) -> Sequence[Pair]:
        folder = self.context.run.folder
        older = (
            replace(pair, weight=self.section.replay_weight, first=None)
            for earlier in self._replayed(iteration)
            for pair in RecordFile(folder / _stage(earlier) / "train.jsonl", Pair)
        )
        return self.sampler.usable(older, iteration).kept

    def _needs_first(self, iteration: int) -> bool:
        """Whether the loss compares with iterate 0's answers; in iteration 1 the generated answers are those."""
        return self.section.loss_in(iteration).needs_first_answers and iteration > 1

    def _first_answers(self) -> Mapping[str, Answer]:
        """Iterate 0's answer to every prompt, by example id."""
        folder = self.context.run.folder
        files = [folder / _stage(1) / "answers.jsonl"]
        if self.context.heldout:
            files.append(folder / f"spin/heldout/{self.iterates[0].name}/answers.jsonl")
        return {pair.example_id: pair.generated[0] for file in files for pair in RecordFile(file, Pair)}

    # Scores ----------------------------------------------------------------------------------------------------------

    def _scored(self, sides: Sides, shards: Shards, clock: Stopwatch) -> Sides:
        """The pairs with the opponent's scores, and with those of iterate 0 where the recipe mixes both."""
        with clock("score"):
            sides = self._scored_by(self.opponent, "opponent", sides, shards)
            if self.section.reference_mixture:
                sides = self._scored_by(self.iterates[0], "base", sides, shards)
        return sides

    def _check_gap(self, sides: Sides, stage: str) -> SamplerGap | None:
        """How far the sampler's log-probabilities of its answers are from the scores. Raises when that is too far.

        Those of another engine are the model's own at any temperature; the built-in generator's are not.
        """
        engine, engines = self.context.load(self.opponent).engine, self.context.engines
        pairs = itertools.chain(sides["train"], sides["heldout"] if engines else ())
        drawn = (pair for pair in pairs if all(engine.scores_as_drawn(*lengths) for lengths in _lengths(pair)))
        if engines is None:
            tolerance = 0.05 if engine.autocast is None else 1.0
            return check_sampler(drawn, self.opponent.name, tolerance) if self.section.draws_plainly else None
        gap = sampler_gap(drawn, self.opponent.name)
        if gap:
            self.context.metrics.begin(f"{stage}/gap", 0)
            self.context.metrics.add(f"{stage}/gap", 1, **flat(asdict(gap)))
            self.context.progress.note(
                f"{engines.facts} against the scores here: {gap.per_token:.2g} nats a token, {gap.mean:.2g} an answer, "
                f"{gap.largest:.2g} at most"
            )
        if gap and not gap.per_token <= engines.section.max_gap:
            folder = self.context.run.folder  # answers of another model are asked for again
            remove_folder(folder / stage / "shards")
            remove_folder(folder / f"spin/heldout/{self.opponent.name}")
            raise ServerError(
                f"{engines.facts}: its log-probabilities of {gap.answers} answers of {self.opponent.name} differ from "
                f"the scores here by {gap.per_token:.3g} nats a token (generate.max_gap: {engines.section.max_gap:g}), "
                f"so they are no samples of it and are thrown away; serve {self.opponent.location}, unquantized, and "
                "run again"
            )
        return gap

    def _scored_by(self, scorer: Iterate, under: Literal["opponent", "base"], sides: Sides, shards: Shards) -> Sides:
        engine, progress = self.context.load(scorer).engine, self.context.progress
        return {
            side: score_pairs(
                engine,
                pairs,
                under,
                Shards(shards.folder, f"{shards.tag}-{side}", progress if pairs else Silent()),
                f"{scorer.name} scores {side} pairs",
            )
            for side, pairs in sides.items()
        }

    def _check_artifacts(
        self, iteration: int, stage: str, pairs: Sequence[Pair]
    ) -> tuple[Separability | None, list[str]]:
        """Whether length, last token or being cut tell real from generated answers, and warnings about it."""
        context = self.context
        found = separability(pairs)
        if found:
            context.metrics.begin(stage, 0)
            context.metrics.add(stage, 1, **flat(asdict(found)))
            context.progress.note(
                f"iteration {iteration}: AUC of telling real from generated answers by length alone "
                f"{found.length_auc:.2f}, by last token {found.last_token_auc:.2f}, by being cut {found.cut_auc:.2f}"
            )
        warned = artifact_warnings(pairs, found)
        for warning in warned:
            context.progress.note(f"warning, iteration {iteration}: {warning}")
        return found, warned


def training_settings(context: RunContext, section: SpinSection, iteration: int) -> JsonObject:
    """The settings of the spin section that decide the training of an iteration.

    Keys that are not set and that the first version did not have are left out, so that what it finished stays so.
    """
    elsewhere = {"iterations", "lambda", "stop", "metric", "baseline", "baseline_learning_rate"}
    plain = {key: value for key, value in context.settings["spin"].items() if key not in elsewhere}
    known = {key: value for key, value in plain.items() if value is not None or key == "generated"}
    return known | asdict(section.in_iteration(iteration))


def _stage(iteration: int) -> str:
    return f"spin/iterate-{iteration}/pairs"


def _nothing_to_learn(iteration: int, found: FilteredPairs) -> NothingToLearnError:
    dropped = ", ".join(f"{reason}: {count}" for reason, count in sorted(found.dropped.items()))
    advice = (
        "the answers of spin.generated are empty; give others"
        if set(found.dropped) == {EMPTY}
        else "every generated answer equals the real one; give data that the model does not know by heart"
    )
    return NothingToLearnError(f"spin: no pair is left to learn from in iteration {iteration} ({dropped}): {advice}")


def _real_cut(pairs: Sequence[Pair]) -> int:
    return sum(not pair.real.complete for pair in pairs)


def _generated_cut(pairs: Sequence[Pair]) -> int:
    return sum(not answer.complete for pair in pairs for answer in pair.generated)


def _lengths(pair: Pair) -> list[tuple[int, int]]:
    return [(len(pair.prompt_ids), len(answer.ids)) for answer in pair.generated]
