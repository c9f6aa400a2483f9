"""Self-play over a run folder: iteration after iteration, until the last one or until it stops helping.

::

    spin/heldout/NAME/answers.jsonl       what an iterate answers to the held-out prompts, always with the same draws
    spin/iterate-t/pairs/answers.jsonl    what was written to the training prompts, everything
    spin/iterate-t/pairs/train.jsonl      what can teach, scored by the opponent
    spin/iterate-t/pairs/replay.jsonl     pairs of earlier iterations, scored again
    spin/iterate-t/pairs/heldout.jsonl    held-out pairs, scored by the opponent
    spin/iterate-t/model                  the player, trained
    spin/iterate-t/later.jsonl            pairs that the player itself wrote on the way (refresh)
    spin/iterate-t/diagnosis              how far it moved, and in what direction
    spin/best.json                        the iterate to use, and why
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spintune.data.preferences import read_answers, turns_of_example
from spintune.data.sources import Source, source_digest
from spintune.errors import DataError
from spintune.models.logprobs import Query
from spintune.models.sampling import Sampling
from spintune.progress import Progress, Silent
from spintune.recipe import SftSection, SpinSection
from spintune.records import Answer, Example, Pair, read_records, write_records
from spintune.selfplay.diagnostics import describe, divergence, identical_share, separability, warnings
from spintune.selfplay.opponent import (
    EMPTY,
    Pairs,
    Shards,
    check_sampler,
    draw_writer,
    given_answers,
    score,
    with_first,
    without_degenerate,
    write_answers,
)
from spintune.selfplay.spin import (
    Rounds,
    batches_of,
    default_rate,
    learns_from_identical,
    objective_of,
    standing,
    train_iteration,
)
from spintune.stages.judging import likelihood_stage, metric_difference
from spintune.stages.sft import baseline_stage
from spintune.stages.workbench import Iterate, Player, Workbench, delete
from spintune.storage import digest_json, write_json_if_changed
from spintune.tokens.chat import Rendered, Row
from spintune.training.loop import Steps

FEW_STEPS = 10
"""Below this an iteration is called short; a judgement: Adam moves a weight by at most about rate x steps."""


@dataclass
class Outcome:
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


def selfplay_stage(bench: Workbench, section: SpinSection, start: Iterate) -> Outcome:
    """Plays from iterate 0 (``start``) on."""
    return _SelfPlay(bench, section, start).play()


class NothingToLearnError(DataError):
    """Every answer of an iteration is empty, or equal to the real one."""


class _SelfPlay:
    def __init__(self, bench: Workbench, section: SpinSection, start: Iterate) -> None:
        self.bench, self.section, self.start = bench, section, start
        self.iterates = [start]

    def play(self) -> Outcome:
        iterations: list[dict[str, Any]] = []
        best, why, waited, stopped = self.start, "it is where self-play starts", 0, None
        for iteration in range(1, self.section.iterations + 1):
            try:
                facts = self._iteration(iteration)
            except NothingToLearnError as error:
                if not iterations:
                    raise
                stopped = str(error).removeprefix("spin: ")
                self.bench.progress.note(f"self-play stops before iteration {iteration}: {stopped}")
                break
            iterations.append(facts)
            newest = self.iterates[-1]
            better = self._better(newest, best)
            best, why, waited = (newest, better, 0) if better else (best, why, waited + 1)
            if not (self.bench.run.folder / f"spin/iterate-{iteration + 1}/pairs").exists():
                self._remember(best, why)  # a run that is repeated has written its last word already
            if iteration < self.section.iterations and (stopped := self._stop_reason(iterations, waited)):
                self.bench.progress.note(f"self-play stops after iteration {iteration}: {stopped}")
                break
        chosen = self._remember(best, why)
        iterates, baseline = self.iterates[1:], None
        if self.section.baseline == "sft":
            iterate, baseline = baseline_stage(
                self.bench,
                self.bench.recipe.sft or SftSection.model_validate({}),
                self.start,
                sum(facts["steps"] for facts in iterations),
                sum(facts["tokens"] for facts in iterations),
            )
            iterates = [*iterates, iterate]
        return Outcome(iterates, iterations, chosen, stopped, baseline)

    # An iteration ----------------------------------------------------------------------------------------------

    def _iteration(self, iteration: int) -> dict[str, Any]:
        pair_facts = self._pairs(iteration)
        facts = self._train(iteration)
        return {**facts, "pairs": pair_facts, "diagnosis": self._diagnosis(iteration)}

    def _train(self, iteration: int) -> dict[str, Any]:
        """Trains the next iterate; in a method of its own, so that it is out of memory when others are loaded."""
        bench, section, opponent = self.bench, self.section, self.iterates[-1]
        stage, name = f"spin/iterate-{iteration}", f"iterate-{iteration}"
        folder = bench.run.folder / stage
        inputs = bench.inputs(
            opponent, pairs=bench.run.digest(f"{stage}/pairs"), spin=self._settings(iteration), iteration=iteration
        )
        facts = bench.run.finished(stage, inputs)
        if facts is None:
            player = bench.load(opponent)
            if section.learning_rate is None:
                weights = sum(parameter.numel() for parameter in player.loaded.model.parameters())
                section = section.model_copy(update={"learning_rate": default_rate(weights)})
            checkpoints = bench.checkpoints(folder, inputs, section)
            later: dict[int, Pairs] = {}
            batches = self._batches(player, iteration, folder, digest_json(inputs)[:12], later)
            if len(batches) < FEW_STEPS:
                bench.progress.note(
                    f"warning, iteration {iteration}: only {len(batches)} steps, which will hardly move the player; "
                    "lower spin.pairs_per_step, raise spin.epochs, or give more data"
                )
            started = time.monotonic()
            train_iteration(
                player.engine,
                batches,
                section,
                iteration,
                bench.recipe.seed,
                bench.recipe.tokens_per_forward,
                checkpoints,
                bench.progress,
                lambda step: bench.metrics.begin(stage, step),
                bench.step_logger(stage),
            )
            objective = objective_of(section, iteration)
            heldout = read_records(folder / "pairs" / "heldout.jsonl", Pair)
            after = standing(player.engine, heldout, objective, bench.recipe.tokens_per_forward)
            queries = [[objective.query(pair).tokens for pair in batches[step]] for step in range(len(batches))]
            facts = {
                "iteration": iteration,
                "learning_rate": section.at("learning_rate", iteration),
                "steps": sum(bool(step) for step in queries),
                "pairs_seen": sum(map(len, queries)),
                "tokens": sum(map(sum, queries)),
                "later": {
                    "kept": sum(len(pairs.kept) for pairs in later.values()),
                    "dropped": dict(sum((pairs.dropped for pairs in later.values()), Counter())),
                },
                "heldout": after.to_json() | {"learned": after.learned} if after else None,
                "seconds": time.monotonic() - started,
            }
            if after:
                bench.metrics.begin(f"{stage}/heldout", 0)
                bench.metrics.add(f"{stage}/heldout", 1, **_flat(after.to_json()))
            write_records(folder / "later.jsonl", itertools.chain(*(later[n].kept for n in sorted(later))))
            iterate = bench.publish(player, name, stage, inputs, facts, folder / "later.jsonl")
        else:
            iterate = bench.published(name, stage)
        delete(folder / "checkpoints")
        delete(folder / "rounds")
        self.iterates.append(iterate)
        return facts

    def _batches(self, player: Player, iteration: int, folder: Path, tag: str, later: dict[int, Pairs]) -> Steps[Pair]:
        """The iteration's steps. Pairs of stretches after the first are put into ``later`` as they are played."""
        section, seed = self.section, self.bench.recipe.seed
        pairs = read_records(folder / "pairs" / "train.jsonl", Pair)
        if section.refresh == 1:
            return batches_of(pairs + read_records(folder / "pairs" / "replay.jsonl", Pair), section, iteration, seed)
        rows = self._rows(player, self._played).rows
        progress: Progress = Silent() if section.refresh == "step" else self.bench.progress

        def first(prompts: Sequence[int]) -> Mapping[int, Pair]:
            written = read_records(folder / "pairs" / "answers.jsonl", Pair)
            teaching = iter(pairs)
            return {
                prompt: next(teaching)
                for prompt, pair in zip(prompts, written, strict=True)
                if self._teaching([pair], iteration).kept
            }

        def play(number: int, prompts: Sequence[int]) -> Mapping[int, Pair]:
            shards = Shards(folder / "rounds", f"{tag}-{number:05d}")
            written = self._write(
                player, [rows[prompt] for prompt in prompts], [iteration, number], shards, progress, f"round {number}"
            )
            teaching = [
                (i, k) for i, pair in zip(prompts, written, strict=True) for k in self._teaching([pair], iteration).kept
            ]
            scored = self._score(player, [pair for _, pair in teaching], shards, progress, f"round {number}")
            later[number] = Pairs(scored, self._teaching(written, iteration).dropped)
            return {prompt: pair for (prompt, _), pair in zip(teaching, scored, strict=True)}

        return Rounds(len(rows), section, iteration, seed, first, play)

    def _settings(self, iteration: int) -> dict[str, Any]:
        """What of the recipe's spin section decides the training of an iteration."""
        elsewhere = {"iterations", "lambda", "stop", "metric", "baseline"}
        plain = {key: value for key, value in self.bench.settings["spin"].items() if key not in elsewhere}
        return plain | {key: self.section.at(key, iteration) for key in ("lambda_", "loss", "learning_rate", "epochs")}

    # Pairs -----------------------------------------------------------------------------------------------------

    def _pairs(self, iteration: int) -> dict[str, Any]:
        """Iterates answer the training prompts, and the opponent scores what can teach; what was kept and dropped."""
        bench, section, opponent = self.bench, self.section, self.iterates[-1]
        stage = f"spin/iterate-{iteration}/pairs"
        folder = bench.run.folder / stage
        replayed = range(max(1, iteration - section.replay), iteration)
        back = section.at("loss", iteration) == "t_spin" and iteration > 1
        inputs = bench.inputs(
            opponent,
            play=self._play_settings,
            iteration=iteration,
            writers=[iterate.digest for iterate in self.iterates[-section.history :]],
            replay=[bench.run.digest(f"spin/iterate-{earlier}/pairs") for earlier in replayed],
            replay_weight=section.replay_weight,
            mixture=self.start.digest if section.reference_mixture else None,
            first=bench.run.digest("spin/iterate-1/pairs") if back else None,
            identical=learns_from_identical(section, iteration),
            stretch=None if section.refresh == 1 else self._settings(iteration),
        )
        facts = bench.run.finished(stage, inputs)
        if facts is not None:
            delete(folder / "shards")
            return facts
        started = time.monotonic()
        shards = Shards(folder / "shards", digest_json(inputs)[:12])
        heldout_written = self._heldout_answers(opponent)
        written, rendered = self._answers(iteration, shards)
        write_records(folder / "answers.jsonl", written)
        kept, heldout = self._teaching(written, iteration), self._teaching(heldout_written, iteration)
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
            for pair in read_records(bench.run.folder / f"spin/iterate-{earlier}/pairs/train.jsonl", Pair)
        ]
        older = self._teaching(older, iteration).kept
        sides = {"train": kept.kept, "replay": older, "heldout": heldout.kept}
        if back:
            first = self._first_answers()
            sides = {side: with_first(pairs, first) for side, pairs in sides.items()}
        for pairs_scored_by, under in ((opponent, "opponent"), (self.start, "base")):
            if under == "base" and not section.reference_mixture:
                continue
            player = bench.load(pairs_scored_by)
            for side, pairs in sides.items():
                sides[side] = score(
                    player.engine,
                    pairs,
                    under,  # type: ignore[arg-type]
                    bench.recipe.tokens_per_forward,
                    replace(shards, tag=f"{shards.tag}-{side}"),
                    bench.progress if pairs else Silent(),
                    f"{pairs_scored_by.name} scores {side} pairs",
                )
            del player  # one model at a time
        if self._draws_plainly:
            check_sampler(sides["train"], opponent.name, 0.05 if bench.load(opponent).engine.autocast is None else 1.0)
        for side, pairs in sides.items():
            write_records(folder / f"{side}.jsonl", pairs)
        probed = separability(sides["train"])
        if probed:
            bench.metrics.begin(stage, 0)
            bench.metrics.add(stage, 1, **_flat(probed.to_json()))
        warned = warnings(sides["train"], probed)
        if probed:
            bench.progress.note(
                f"iteration {iteration}: real and generated answers can be told apart by length alone with an AUC of "
                f"{probed.length_auc:.2f}, by last token {probed.last_token_auc:.2f}, by being cut {probed.cut_auc:.2f}"
            )
        for warning in warned:
            bench.progress.note(f"warning, iteration {iteration}: {warning}")
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
            "seconds": time.monotonic() - started,
        }
        files = [folder / f"{name}.jsonl" for name in ("answers", *sides)]
        bench.run.finish(stage, inputs, files, facts)
        delete(folder / "shards")
        return facts

    def _answers(self, iteration: int, shards: Shards) -> tuple[list[Pair], Rendered]:
        """Everything that is written in an iteration before it trains, in the order of the prompts."""
        bench, section = self.bench, self.section
        rendered = self._rows(bench.load(self.iterates[-1]), self._played)
        rows = rendered.rows
        if section.refresh != 1:  # the first stretch alone; the newest player answers the others
            stretch = Rounds(len(rows), section, iteration, bench.recipe.seed, _nothing, _nothing)
            rows = [rows[prompt] for prompt in stretch.prompts_of(0)]
        given = self._given if iteration == 1 else {}
        by_writer: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            if row.example_id not in given:
                writer = draw_writer(row.example_id, iteration, section.history, bench.recipe.seed)
                by_writer.setdefault(writer, []).append(place)
        written: dict[int, Pair] = {}
        for writer in sorted(by_writer):  # the opponent comes last, and stays in memory for the scores
            player, places = bench.load(self.iterates[writer]), by_writer[writer]
            name = f"{player.iterate.name} answers training prompts"
            part = replace(shards, tag=f"{shards.tag}-{writer}")
            pairs = self._write(player, [rows[place] for place in places], [iteration], part, bench.progress, name)
            written.update(zip(places, pairs, strict=True))
            del player  # one model at a time
        if given:
            places = [place for place in range(len(rows)) if place not in written]
            if not places:
                raise DataError(f"{section.generated}: none of its answers is to a training prompt; check the file")
            player = bench.load(self.iterates[-1])
            renderer = player.renderer("last")
            answers = {rows[p].example_id: renderer.rows(given[rows[p].example_id]) for p in places}
            bench.progress.note(f"{section.generated}: answers to {len(places)} of {len(rows)} training prompts")
            pairs = given_answers(
                player.generator,
                [rows[place] for place in places],
                answers,
                section.max_new_tokens,
                bench.recipe.data.max_length,
                str(section.generated),
            )
            written.update(zip(places, pairs, strict=True))
        return [written[place] for place in range(len(rows))], rendered

    def _teaching(self, pairs: Sequence[Pair], iteration: int) -> Pairs:
        return without_degenerate(pairs, learns_from_identical(self.section, iteration))

    def _write(
        self, player: Player, rows: Sequence[Row], stream: Sequence[Any], shards: Shards, progress: Progress, name: str
    ) -> list[Pair]:
        section, recipe = self.section, self.bench.recipe
        seed = int(digest_json(["opponent", recipe.seed, *stream])[:12], 16)
        sampling = Sampling(section.max_new_tokens, section.temperature, section.top_p, section.top_k, seed)
        return write_answers(
            player.generator,
            rows,
            sampling,
            section.negatives,
            recipe.data.max_length,
            player.iterate.name,
            shards,
            progress,
            name,
        )

    def _score(
        self, player: Player, pairs: Sequence[Pair], shards: Shards, progress: Progress, name: str
    ) -> list[Pair]:
        tokens = self.bench.recipe.tokens_per_forward
        return score(player.engine, pairs, "opponent", tokens, shards, progress, f"{name}: scores")

    def _rows(self, player: Player, examples: Sequence[Example]) -> Rendered:
        return self.bench.render(examples, player.renderer("last"), self.section.max_new_tokens)

    @property
    def _played(self) -> list[Example]:
        """What is played: the last assistant turn of each training example, or every one by itself."""
        return _every_turn(self.bench.train) if self.section.turns == "all" else self.bench.train

    @property
    def _played_heldout(self) -> list[Example]:
        """The same of held-out examples, without beginnings that a training example shares."""
        if self.section.turns == "last":
            return self.bench.heldout
        trained = {turn.prompt for turn in self._played}
        return [turn for turn in _every_turn(self.bench.heldout) if turn.prompt not in trained]

    @property
    def _draws_plainly(self) -> bool:
        """Whether answers are draws from the model itself, and not from a sharpened or cut distribution."""
        return self.section.temperature == 1 and self.section.top_p == 1 and self.section.top_k == 0

    @property
    def _play_settings(self) -> dict[str, Any]:
        keys = ("max_new_tokens", "temperature", "top_p", "top_k", "negatives", "turns", "history")
        plain = {key: getattr(self.section, key) for key in keys}
        given = self.section.generated
        return {**plain, "generated": [given, source_digest(Source(given))] if given else None}

    @cached_property
    def _given(self) -> dict[str, list[Example]]:
        return read_answers(self.section.generated) if self.section.generated else {}

    def _first_answers(self) -> dict[str, Answer]:
        """Iterate 0's answer to every prompt, by example id."""
        folder = self.bench.run.folder / "spin"
        files = (folder / "iterate-1/pairs/answers.jsonl", folder / f"heldout/{self.start.name}/answers.jsonl")
        return {pair.example_id: pair.generated[0] for file in files for pair in read_records(file, Pair)}

    # Held out --------------------------------------------------------------------------------------------------

    def _heldout_answers(self, iterate: Iterate) -> list[Pair]:
        """An iterate's answers to the held-out prompts. Draws are the same for all, so answers differ as models do."""
        bench = self.bench
        if not bench.heldout:
            return []
        stage = f"spin/heldout/{iterate.name}"
        folder = bench.run.folder / stage
        settings = {key: value for key, value in self._play_settings.items() if key not in ("generated", "history")}
        inputs = bench.inputs(iterate, play=settings)
        if bench.run.finished(stage, inputs) is None:
            player = bench.load(iterate)
            shards = Shards(folder / "shards", digest_json(inputs)[:12])
            heldout = self._played_heldout
            rows = self._rows(player, heldout).rows if heldout else []
            name = f"{iterate.name} answers held-out prompts"
            pairs = self._write(player, rows, ["heldout"], shards, bench.progress, name)
            write_records(folder / "answers.jsonl", pairs)
            bench.run.finish(stage, inputs, [folder / "answers.jsonl"], {"answers": len(pairs)})
        delete(folder / "shards")
        return read_records(folder / "answers.jsonl", Pair)

    def _diagnosis(self, iteration: int) -> dict[str, Any] | None:
        """How the newest iterate writes, and how far it is from its opponent and from iterate 0."""
        bench = self.bench
        iterate, opponent = self.iterates[iteration], self.iterates[iteration - 1]
        if not bench.heldout:
            return None
        stage = f"spin/iterate-{iteration}/diagnosis"
        path = bench.run.folder / stage / "diagnosis.json"
        inputs = bench.inputs(
            iterate, opponent=opponent.digest, base=self.start.digest, play=self._play_settings, iteration=iteration
        )
        facts = bench.run.finished(stage, inputs)
        if facts is None:
            mine, earlier = self._heldout_answers(iterate), self._heldout_answers(opponent)
            if not mine:
                return None
            likelihoods = likelihood_stage(bench, iterate)
            kl_opponent = kl_base = None
            if self._draws_plainly:
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
            bench.metrics.begin(stage, 0)
            bench.metrics.add(stage, 1, **_flat(facts))
            bench.run.finish(stage, inputs, [path], facts)
        return facts

    def _logprobs(self, iterate: Iterate, pairs: Sequence[Pair]) -> list[float]:
        engine = self.bench.load(iterate).engine
        queries = [Query(pair.prompt_ids, tuple(answer.ids for answer in pair.generated)) for pair in pairs]
        return list(itertools.chain(*engine.score(queries, self.bench.recipe.tokens_per_forward)))

    # Stopping and choosing -------------------------------------------------------------------------------------

    def _better(self, newest: Iterate, best: Iterate) -> str | None:
        """Why the newest iterate takes the place of the best one; None when it cannot be told to be better."""
        if not self.bench.heldout:
            return "it is the newest, and no example is held out to judge by"
        metric = self.section.metric
        gain = metric_difference(self.bench, metric, newest, best)
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
        newest, start = (likelihood_stage(self.bench, iterate) for iterate in (self.iterates[-1], self.start))
        return sum(a.nll - b.nll for a, b in zip(newest, start, strict=True)) / len(start)

    def _remember(self, best: Iterate, why: str) -> dict[str, str]:
        """Points ``best`` at the best iterate. Iterate 0 is kept when no later one can be told to be better."""
        if best is self.start and len(self.iterates) > 1:
            why = f"no later iterate can be told to be better on held-out {self.section.metric}"
        folder, target = self.bench.run.folder, Path(best.location)
        inside = target.is_relative_to(folder)
        # a run folder may be moved
        location = str(target.relative_to(folder)) if inside else best.location
        chosen = {"name": best.name, "model": location, "why": why}
        write_json_if_changed(folder / "spin" / "best.json", chosen)
        return chosen


def _every_turn(examples: Sequence[Example]) -> list[Example]:
    """One example for each assistant turn; a beginning that several conversations share counts once."""
    owners: dict[str, str] = {}
    turns = [(example, turn) for example in examples for turn in turns_of_example(example)]
    return [turn for example, turn in turns if owners.setdefault(turn.id, example.id) == example.id]


def _nothing(*_: Any) -> Mapping[int, Pair]:
    return {}


def _cut(pairs: Sequence[Pair]) -> dict[str, int]:
    return {
        "real_cut": sum(not pair.real.complete for pair in pairs),
        "generated_cut": sum(not answer.complete for pair in pairs for answer in pair.generated),
    }


def _first_ids(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return [pair.generated[0].ids for pair in pairs]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested facts as one level, for the metrics; what is None is left out."""
    flat: dict[str, float] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(counter.items()))
