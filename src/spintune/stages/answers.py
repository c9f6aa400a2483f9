"""Samples what an iterate answers to prompts in self-play.

::

    spin/heldout/NAME/answers.jsonl    answers to the held-out prompts; the random draws are the same for every iterate
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from spintune.data.preferences import read_answers, turns_of_example
from spintune.data.tables import source_digest
from spintune.errors import DataError
from spintune.generation.sampling import Sampling
from spintune.recipe import SpinSection
from spintune.record_files import Selection
from spintune.records import Example, Pair, read_records, write_records
from spintune.selfplay.filters import FilteredPairs, drop_reason, without_degenerate
from spintune.selfplay.opponent import sample_pairs
from spintune.selfplay.shards import Shards
from spintune.selfplay.spin import learns_from_identical
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.storage import digest_json, remove_folder
from spintune.tokens.rows import RenderedRows, TokenRow
from spintune.typed_json import JsonObject


@dataclass
class AnswerSampler:
    """Samples answers as the recipe's spin section says."""

    context: RunContext
    section: SpinSection

    @property
    def inputs(self) -> JsonObject:
        """The settings that decide what is answered."""
        keys = ("max_new_tokens", "temperature", "top_p", "top_k", "negatives", "turns", "history")
        given = self.section.generated
        digest = [given, source_digest(given)] if given else None
        prompts = {"prompts": self.section.prompts} if self.section.prompts else {}
        return {**{key: getattr(self.section, key) for key in keys}, "generated": digest, **prompts}

    @property
    def max_tokens(self) -> int:
        """Maximum length of a generated answer, which is no longer than a real one may be."""
        longest = self.section.longest_answer
        return min(longest, self.context.recipe.data.max_target_length or longest)

    @cached_property
    def given(self) -> dict[str, list[Example]]:
        """Answers that the recipe gives in a file (``spin.generated``), by example id."""
        return read_answers(self.section.generated) if self.section.generated else {}

    @property
    def train(self) -> Sequence[Example]:
        """The training examples whose prompts are answered; with ``turns: all``, one per assistant turn.

        A prompt that SFT does not see is none that begins a conversation that it sees, where turns count.
        """
        examples: Sequence[Example] = self.context.played
        if self.section.turns == "all":
            examples = _every_turn(examples)
        if self.section.prompts == "unseen" and self.context.recipe.learns_every_turn:
            seen = {turn.prompt for turn in _every_turn(self.context.seen)}
            unseen = [place for place, example in enumerate(examples) if example.prompt not in seen]
            if not unseen:
                raise DataError(
                    "spin.prompts: every prompt kept out of SFT begins a conversation that it sees; use all"
                )
            examples = examples if len(unseen) == len(examples) else Selection(examples, unseen)
        return examples

    @property
    def heldout(self) -> list[Example]:
        """The same of held-out examples, without prompts that are also training prompts."""
        if self.section.turns == "last":
            return self.context.heldout
        trained = {turn.prompt for turn in _every_turn(self.context.train)}
        return [turn for turn in _every_turn(self.context.heldout) if turn.prompt not in trained]

    def ids_of(self, examples: Sequence[Example]) -> set[str]:
        """The ids in :attr:`heldout` of some held-out examples: their own, or those of their turns."""
        ids = {example.id for example in examples}
        if self.section.turns == "last":
            return ids
        return {turn for turn, owner in _owners(self.context.heldout).items() if owner in ids}

    def rows(self, player: LoadedIterate, examples: Sequence[Example]) -> RenderedRows:
        """The examples as tokens, real answers within the length of generated ones."""
        return self.context.render(examples, player.renderer("last"), self.section.longest_answer)

    def write(
        self, player: LoadedIterate, rows: Sequence[TokenRow], stream: Sequence[object], shards: Shards, name: str
    ) -> Sequence[Pair]:
        """The player's answers to the prompts of rows, as pairs with the real answers; not scored yet.

        Args:
            stream: name of the random stream to draw from.
            name: for progress.
        """
        section, recipe = self.section, self.context.recipe
        seed = int(digest_json(["opponent", recipe.seed, *stream])[:12], 16)
        sampling = Sampling(self.max_tokens, section.temperature, section.top_p, section.top_k, seed)
        return sample_pairs(
            player.writer,
            rows,
            sampling,
            section.negatives,
            recipe.data.max_length,
            player.iterate.name,
            shards,
            name,
        )

    def usable(self, pairs: Iterable[Pair], iteration: int) -> FilteredPairs:
        """The pairs that an iteration can learn from."""
        return without_degenerate(pairs, learns_from_identical(self.section, iteration))

    def is_usable(self, pair: Pair, iteration: int) -> bool:
        """Whether an iteration can learn from a pair."""
        return drop_reason(pair, learns_from_identical(self.section, iteration)) is None

    def heldout_answers(self, iterate: Iterate) -> list[Pair]:
        """An iterate's answers to the held-out prompts. All iterates use the same draws, so only models differ."""
        context = self.context
        if not context.heldout:
            return []
        stage = f"spin/heldout/{iterate.name}"
        folder = context.run.folder / stage
        file = folder / "answers.jsonl"
        settings = {key: value for key, value in self.inputs.items() if key not in ("generated", "history")}
        inputs = context.training_inputs(iterate, play=settings)
        if context.run.finished(stage, inputs) is None:
            player = context.load(iterate, stage, inputs)
            shards = Shards(folder / "shards", digest_json(inputs)[:12], context.progress)
            examples = self.heldout
            rows = context.render_heldout(examples, player.renderer("last"), self.section.longest_answer)
            pairs = self.write(player, rows, ["heldout"], shards, f"{iterate.name} answers held-out prompts")
            write_records(file, pairs)
            context.run.finish(
                stage, inputs, [file], {"prompts": len(examples), "played": len(pairs), **context.written_by}
            )
        remove_folder(folder / "shards")
        return read_records(file, Pair)


def _every_turn(examples: Sequence[Example]) -> list[Example]:
    """One example per assistant turn. Conversations that share a prompt give it once."""
    owners = _owners(examples)
    return [turn for example in examples for turn in turns_of_example(example) if owners[turn.id] == example.id]


def _owners(examples: Sequence[Example]) -> dict[str, str]:
    """The id of the first example that each turn is of, by the turn's id."""
    owners: dict[str, str] = {}
    for example in examples:
        for turn in turns_of_example(example):
            owners.setdefault(turn.id, example.id)
    return owners
