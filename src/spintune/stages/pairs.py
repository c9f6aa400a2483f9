"""Who answers which prompts in an iteration, and how likely the opponent finds each answer.

::

    spin/heldout/NAME/answers.jsonl       what an iterate answers to the held-out prompts, always with the same draws
    spin/iterate-t/pairs/answers.jsonl    what was written to the training prompts, everything
    spin/iterate-t/pairs/train.jsonl      what can teach, scored by the opponent
    spin/iterate-t/pairs/replay.jsonl     pairs of earlier iterations, scored again
    spin/iterate-t/pairs/heldout.jsonl    held-out pairs, scored by the opponent
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from spintune.data.preferences import read_answers, turns_of_example
from spintune.data.sources import Source, source_digest
from spintune.errors import DataError
from spintune.generation.sampling import Sampling
from spintune.progress import Silent
from spintune.recipe import SpinSection
from spintune.records import Answer, Example, Pair, read_records, write_records
from spintune.selfplay.diagnostics import separability, warnings
from spintune.selfplay.opponent import (
    EMPTY,
    FilteredPairs,
    Shards,
    check_sampler,
    draw_writer,
    given_answers,
    score,
    with_first,
    without_degenerate,
    write_answers,
)
from spintune.selfplay.phases import Phases
from spintune.selfplay.spin import learns_from_identical
from spintune.stages.context import Iterate, LoadedIterate, RunContext, delete
from spintune.storage import digest_json
from spintune.tokens.rows import RenderedRows, TokenRow
from spintune.tracking import Stopwatch, flat


class NothingToLearnError(DataError):
    """Every answer of an iteration is empty, or equal to the real one."""


@dataclass
class PairStage:
    """The answering side of self-play.

    Attributes:
        iterates: those that are there, iterate 0 first; the last one is the opponent. Grows as self-play goes on.
    """

    context: RunContext
    section: SpinSection
    iterates: list[Iterate]

    def pairs(self, iteration: int) -> dict[str, Any]:
        """Iterates answer the training prompts, and the opponent scores what can teach; what was kept and dropped."""
        context, section, opponent = self.context, self.section, self.iterates[-1]
        stage = f"spin/iterate-{iteration}/pairs"
        folder = context.run.folder / stage
        replayed = range(max(1, iteration - section.replay), iteration)
        back = section.loss_in(iteration).needs_first_answers and iteration > 1
        inputs = context.inputs(
            opponent,
            play=self.settings,
            iteration=iteration,
            writers=[iterate.digest for iterate in self.iterates[-section.history :]],
            replay=[context.run.digest(f"spin/iterate-{earlier}/pairs") for earlier in replayed],
            replay_weight=section.replay_weight,
            mixture=self.iterates[0].digest if section.reference_mixture else None,
            first=context.run.digest("spin/iterate-1/pairs") if back else None,
            identical=learns_from_identical(section, iteration),
            stretch=None if section.refresh == 1 else training_settings(context, section, iteration),
        )
        facts = context.run.finished(stage, inputs)
        if facts is not None:
            delete(folder / "shards")
            return facts
        clock = Stopwatch()
        shards = Shards(folder / "shards", digest_json(inputs)[:12], context.progress)
        with clock("generate"):
            heldout_written = self.heldout_answers(opponent)
            written, rendered = self._answers(iteration, shards)
        write_records(folder / "answers.jsonl", written)
        kept, heldout = self.teaching(written, iteration), self.teaching(heldout_written, iteration)
        if not kept.kept:
            raise NothingToLearnError(
                f"spin: no pair is left to learn from in iteration {iteration} ({_counts(kept.dropped)}): "
                + (
                    "the opponent answers with nothing; train it by SFT first"
                    if set(kept.dropped) == {EMPTY}
                    else "every answer of the opponent equals the real one or is empty; give data that the model does "
                    "not know by heart"
                )
            )
        older = [
            replace(pair, weight=section.replay_weight, first=None)
            for earlier in replayed
            for pair in read_records(context.run.folder / f"spin/iterate-{earlier}/pairs/train.jsonl", Pair)
        ]
        older = self.teaching(older, iteration).kept
        sides = {"train": kept.kept, "replay": older, "heldout": heldout.kept}
        if back:
            first = self._first_answers()
            sides = {side: with_first(pairs, first) for side, pairs in sides.items()}
        scorers: list[tuple[Iterate, Literal["opponent", "base"]]] = [(opponent, "opponent")]
        if section.reference_mixture:
            scorers.append((self.iterates[0], "base"))
        for scorer, under in scorers:
            with clock("score"):
                player = context.load(scorer)
                for side, pairs in sides.items():
                    sides[side] = score(
                        player.engine,
                        pairs,
                        under,
                        Shards(shards.folder, f"{shards.tag}-{side}", context.progress if pairs else Silent()),
                        f"{scorer.name} scores {side} pairs",
                    )
                del player  # one model at a time
        if self.draws_plainly:
            check_sampler(
                sides["train"], opponent.name, 0.05 if context.load(opponent).engine.autocast is None else 1.0
            )
        for side, pairs in sides.items():
            write_records(folder / f"{side}.jsonl", pairs)
        probed = separability(sides["train"])
        if probed:
            context.metrics.begin(stage, 0)
            context.metrics.add(stage, 1, **flat(probed.to_json()))
        warned = warnings(sides["train"], probed)
        if probed:
            context.progress.note(
                f"iteration {iteration}: real and generated answers can be told apart by length alone with an AUC of "
                f"{probed.length_auc:.2f}, by last token {probed.last_token_auc:.2f}, by being cut {probed.cut_auc:.2f}"
            )
        for warning in warned:
            context.progress.note(f"warning, iteration {iteration}: {warning}")
        facts = {
            "train": {
                "prompts": rendered.read,
                "played": len(written),
                "kept": len(kept.kept),
                "answers": sum(len(pair.generated) for pair in kept.kept),
                "dropped": {**rendered.dropped, **kept.dropped},
                "replayed": len(older),
                **_cut(kept.kept),
            },
            "heldout": {"kept": len(heldout.kept), "dropped": dict(heldout.dropped), **_cut(heldout.kept)},
            "separability": probed.to_json() if probed else None,
            "warnings": warned,
            "data": context.run.digest("data"),
            "seconds": clock.seconds,
        }
        files = [folder / f"{name}.jsonl" for name in ("answers", *sides)]
        context.run.finish(stage, inputs, files, facts)
        delete(folder / "shards")
        return facts

    def _answers(self, iteration: int, shards: Shards) -> tuple[list[Pair], RenderedRows]:
        """Everything that is written in an iteration before it trains, in the order of the prompts."""
        context, section = self.context, self.section
        rendered = self.rows(context.load(self.iterates[-1]), self.played)
        rows: Sequence[TokenRow] = rendered.rows
        if section.refresh != 1:  # the first phase alone; the current player answers the others
            phases = Phases(len(rows), section, iteration, context.recipe.seed)
            rows = [rows[prompt] for prompt in phases.prompts(0)]
        given = self._given if iteration == 1 else {}
        by_writer: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            if row.example_id not in given:
                writer = draw_writer(row.example_id, iteration, section.history, context.recipe.seed)
                by_writer.setdefault(writer, []).append(place)
        written: dict[int, Pair] = {}
        for writer in sorted(by_writer):  # the opponent comes last, and stays in memory for the scores
            player, places = context.load(self.iterates[writer]), by_writer[writer]
            name = f"{player.iterate.name} answers training prompts"
            part = replace(shards, tag=f"{shards.tag}-{writer}")
            pairs = self.write(player, [rows[place] for place in places], [iteration], part, name)
            written.update(zip(places, pairs, strict=True))
            del player  # one model at a time
        if given:
            places = [place for place in range(len(rows)) if place not in written]
            if not places:
                raise DataError(f"{section.generated}: none of its answers is to a training prompt; check the file")
            player = context.load(self.iterates[-1])
            renderer = player.renderer("last")
            answers = {rows[p].example_id: renderer.rows(given[rows[p].example_id]) for p in places}
            context.progress.note(f"{section.generated}: answers to {len(places)} of {len(rows)} training prompts")
            pairs = given_answers(
                player.generator,
                [rows[place] for place in places],
                answers,
                self._longest,
                context.recipe.data.max_length,
                str(section.generated),
            )
            written.update(zip(places, pairs, strict=True))
        return [written[place] for place in range(len(rows))], rendered

    def teaching(self, pairs: Sequence[Pair], iteration: int) -> FilteredPairs:
        return without_degenerate(pairs, learns_from_identical(self.section, iteration))

    def write(
        self,
        player: LoadedIterate,
        rows: Sequence[TokenRow],
        stream: Sequence[Any],
        shards: Shards,
        name: str,
    ) -> list[Pair]:
        section, recipe = self.section, self.context.recipe
        seed = int(digest_json(["opponent", recipe.seed, *stream])[:12], 16)
        sampling = Sampling(self._longest, section.temperature, section.top_p, section.top_k, seed)
        return write_answers(
            player.generator,
            rows,
            sampling,
            section.negatives,
            recipe.data.max_length,
            player.iterate.name,
            shards,
            name,
        )

    def score(self, player: LoadedIterate, pairs: Sequence[Pair], shards: Shards, name: str) -> list[Pair]:
        return score(player.engine, pairs, "opponent", shards, f"{name}: scores")

    def rows(self, player: LoadedIterate, examples: Sequence[Example]) -> RenderedRows:
        return self.context.render(examples, player.renderer("last"), self.section.max_new_tokens)

    @property
    def played(self) -> Sequence[Example]:
        """What is played: the last assistant turn of each training example, or every one by itself."""
        return _every_turn(self.context.train) if self.section.turns == "all" else self.context.train

    @property
    def _played_heldout(self) -> list[Example]:
        """The same of held-out examples, without beginnings that a training example shares."""
        if self.section.turns == "last":
            return self.context.heldout
        trained = {turn.prompt for turn in self.played}
        return [turn for turn in _every_turn(self.context.heldout) if turn.prompt not in trained]

    @property
    def _longest(self) -> int:
        """Tokens of a written answer: no more than a real one may have."""
        return min(
            self.section.max_new_tokens, self.context.recipe.data.max_target_length or self.section.max_new_tokens
        )

    @property
    def draws_plainly(self) -> bool:
        """Whether answers are draws from the model itself, and not from a sharpened or cut distribution."""
        return self.section.temperature == 1 and self.section.top_p == 1 and self.section.top_k == 0

    @property
    def settings(self) -> dict[str, Any]:
        keys = ("max_new_tokens", "temperature", "top_p", "top_k", "negatives", "turns", "history")
        plain = {key: getattr(self.section, key) for key in keys}
        given = self.section.generated
        return {**plain, "generated": [given, source_digest(Source(given))] if given else None}

    @cached_property
    def _given(self) -> dict[str, list[Example]]:
        return read_answers(self.section.generated) if self.section.generated else {}

    def _first_answers(self) -> dict[str, Answer]:
        """Iterate 0's answer to every prompt, by example id."""
        folder = self.context.run.folder / "spin"
        files = (folder / "iterate-1/pairs/answers.jsonl", folder / f"heldout/{self.iterates[0].name}/answers.jsonl")
        return {pair.example_id: pair.generated[0] for file in files for pair in read_records(file, Pair)}

    def heldout_answers(self, iterate: Iterate) -> list[Pair]:
        """An iterate's answers to the held-out prompts. Draws are the same for all, so answers differ as models do."""
        context = self.context
        if not context.heldout:
            return []
        stage = f"spin/heldout/{iterate.name}"
        folder = context.run.folder / stage
        settings = {key: value for key, value in self.settings.items() if key not in ("generated", "history")}
        inputs = context.inputs(iterate, play=settings)
        if context.run.finished(stage, inputs) is None:
            player = context.load(iterate)
            shards = Shards(folder / "shards", digest_json(inputs)[:12], context.progress)
            heldout = self._played_heldout
            rows = context.render_heldout(heldout, player.renderer("last"), self.section.max_new_tokens)
            name = f"{iterate.name} answers held-out prompts"
            pairs = self.write(player, rows, ["heldout"], shards, name)
            write_records(folder / "answers.jsonl", pairs)
            context.run.finish(
                stage, inputs, [folder / "answers.jsonl"], {"prompts": len(heldout), "played": len(pairs)}
            )
        delete(folder / "shards")
        return read_records(folder / "answers.jsonl", Pair)


def training_settings(context: RunContext, section: SpinSection, iteration: int) -> dict[str, Any]:
    """What of the recipe's spin section decides the training of an iteration."""
    elsewhere = {"iterations", "lambda", "stop", "metric", "baseline", "baseline_learning_rate"}
    plain = {key: value for key, value in context.settings["spin"].items() if key not in elsewhere}
    return plain | asdict(section.in_iteration(iteration))


def _every_turn(examples: Sequence[Example]) -> list[Example]:
    """One example for each assistant turn; a beginning that several conversations share counts once."""
    owners: dict[str, str] = {}
    turns = [(example, turn) for example in examples for turn in turns_of_example(example)]
    return [turn for example, turn in turns if owners.setdefault(turn.id, example.id) == example.id]


def _cut(pairs: Sequence[Pair]) -> dict[str, int]:
    return {
        "real_cut": sum(not pair.real.complete for pair in pairs),
        "generated_cut": sum(not answer.complete for pair in pairs for answer in pair.generated),
    }


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(counter.items()))
