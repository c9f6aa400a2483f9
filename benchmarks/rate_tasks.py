"""What benchmarks/rates.py trains: small models, data sets, and the stages that a learning rate is chosen for.

A model that is trained from random first learns by SFT on one part of a data set; its start is what that gives. The
stage whose rate is chosen then goes on from there, by SFT or self-play, on another part.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import self_play_grammar as grammar
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from spintune.data.sources import Source, read_sources
from spintune.data.split import split_examples
from spintune.engine.logprobs import LogProbEngine
from spintune.errors import NonFiniteError
from spintune.evaluation.selection import MIN_SELECTION, selection_of
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.models.loading import load_model
from spintune.progress import Silent
from spintune.recipe import SftSection, SpinSection
from spintune.records import Example, Message, Pair
from spintune.selfplay.filters import without_degenerate
from spintune.selfplay.opponent import sample_pairs, score_pairs
from spintune.selfplay.shards import Shards
from spintune.selfplay.spin import batches_of, default_rate, measure_pairs, objective_of, rate_losses
from spintune.tokens.rows import TokenRow, fit
from spintune.training.batches import Batches
from spintune.training.checkpoint import Checkpoints
from spintune.training.ladder import Ladder, choose, climb, for_stage, kept_gain, mean_loss, usual_rate
from spintune.training.ladder_plan import BACKWARD, plan_ladder
from spintune.training.loop import TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood, Objective, SelfPlay
from spintune.training.optimization import Optimization, optimization_of
from spintune.training.sft import heldout_loss, row_losses, steps_of_epochs

LONGEST, ANSWER = 256, 96
"""Tokens of a row and of an answer, at most."""


@dataclass(frozen=True)
class DataSet:
    """Examples by name: ``first`` is what a model from random learns first, ``then`` what the stage trains on."""

    first: list[Example]
    then: list[Example]

    @cached_property
    def parts(self) -> tuple[Sequence[Example], list[Example], list[Example]]:
        """Training, selection and reporting examples of the stage."""
        train, heldout = split_examples(self.then, 0.25, seed=0)
        chosen = selection_of(list(heldout))
        return train, chosen, [example for example in heldout if example not in chosen]


def arithmetic(rows: int) -> list[Example]:
    """Sums of two numbers with carries, written out digit by digit."""
    draw = random.Random(0)
    found: dict[str, str] = {}
    while len(found) < rows:
        one, other = draw.randrange(1000), draw.randrange(1000)
        found[f"{' '.join(f'{one:03d}')} + {' '.join(f'{other:03d}')}"] = " ".join(f"{one + other:04d}"[::-1])
    return [Example((Message("user", prompt), Message("assistant", answer))) for prompt, answer in found.items()]


def read_data(name: str, place: Path | None, rows: int) -> DataSet:
    """Twice ``rows`` examples of a data set; ``place`` is its file or folder, None for the worlds."""
    if name == "grammar":
        found = [row.example for row in grammar.draw(grammar.World(), 0, 2 * rows)]
    elif name == "arithmetic":
        found = arithmetic(2 * rows)
    else:
        found = list(read_sources([Source(str(place))], seed=0).examples)
        random.Random(0).shuffle(found)
        short = [one for one in found if sum(len(message.content) for message in one.messages) < 3 * LONGEST]
        found = short[: 2 * rows]
    return DataSet(found[: len(found) // 2], found[len(found) // 2 :])


def _tokenizer(examples: Sequence[Example], seq2seq: bool) -> PreTrainedTokenizerFast:
    """Byte-level pieces learned from the examples, at most 512."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    controls = ["<pad>", "</s>", "<|im_start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=controls,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((m.content for example in examples for m in example.messages), trainer)
    if seq2seq:
        backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    if not seq2seq:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
    return tokenizer


def write_random_model(kind: str, examples: Sequence[Example], folder: Path) -> None:
    """``tiny`` and ``small`` are Llamas of 0.1 and 1 million weights, ``t5`` is a T5 of 0.2 million."""
    tokenizer = _tokenizer(examples, kind == "t5")
    torch.manual_seed(0)
    ends: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 0}
    model: nn.Module
    if kind == "t5":
        shape = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(dropout_rate=0.0, decoder_start_token_id=0, **shape, **ends))
    else:
        width, layers = (64, 2) if kind == "tiny" else (128, 4)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=2 * LONGEST,
                bos_token_id=None,
                tie_word_embeddings=True,
                **ends,
            )
        )
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)


class Player:
    """A model in memory that returns to its start, and its data as tokens."""

    def __init__(self, location: str, data: DataSet, cache: Path) -> None:
        self.loaded = load_model(location, cache=cache, precision="float32")
        self.engine = LogProbEngine(self.loaded.model, self.loaded.autocast, tokens_per_forward=2048)
        self.renderer = self.loaded.renderer("tokenizer", "last")
        self.first = self._rows(data.first)
        self.train, self.selection, self.report = map(self._rows, data.parts)
        self.keep()

    def _rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        fitted = [fit(row, LONGEST, ANSWER, None) for row in self.renderer.rows(examples)]
        return [row for row in fitted if isinstance(row, TokenRow)]

    @property
    def weights(self) -> int:
        return sum(parameter.numel() for parameter in self.loaded.model.parameters())

    def keep(self) -> None:
        """Makes the model as it is the start."""
        self._start = {name: value.clone() for name, value in self.loaded.model.state_dict().items()}

    def reset(self) -> None:
        self.loaded.model.load_state_dict(self._start)

    def learn_first(self, epochs: float, scratch: Path) -> None:
        """SFT on the other part of the data, for a model that is random so far; then this is the start."""
        section = SftSection(epochs=epochs, learning_rate=3e-3, tokens_per_step=512)
        steps = Batches(self.first, steps_of_epochs([row.tokens for row in self.first], section, 5))
        checkpoints = Checkpoints(scratch, math.inf)
        train(self.engine, steps, NegativeLogLikelihood(), optimization_of(section, 3e-3, 5), checkpoints)
        self.keep()


class Task(ABC):
    """A stage whose rate is chosen."""

    name: str
    player: Player
    batches: Batches[Any]
    objective: Objective[Any]
    passes = BACKWARD
    self_play = False
    plain_rate: float
    """The default of the recipe."""
    heldout: Sequence[Any]

    @abstractmethod
    def optimization(self, rate: float) -> Optimization:
        """Of the stage."""

    @abstractmethod
    def losses(self, rows: Sequence[Any]) -> list[float]:
        """What a ladder chooses by, of each held-out row."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """The model as it is: ``loss`` is the ladder's on the selection part, ``report`` on the other part."""

    def tokens(self, rows: Sequence[Any]) -> list[int]:
        return [self.objective.query(row).tokens for row in rows]

    def train(self, rate: float, scratch: Path) -> dict[str, float]:
        """The whole stage at a rate, measured; then the start again. All infinite where training broke."""
        self.player.reset()
        try:
            checkpoints = Checkpoints(scratch, math.inf)
            train(self.player.engine, self.batches, self.objective, self.optimization(rate), checkpoints)
            return self.measure()
        except NonFiniteError:
            return {"loss": math.inf, "report": math.inf}
        finally:
            self.player.reset()

    def climb(self, scratch: Path) -> dict[str, Any]:
        """The ladder as a run climbs it: the rate, every rung, and its cost over that of the stage."""
        steps = [sum(self.tokens(self.batches[step])) for step in range(len(self.batches))]
        rows = len(self.batches.rows) / len(self.batches)
        plan = plan_ladder(steps, rows, self.tokens(self.heldout), MIN_SELECTION, self.passes)
        heldout = self.heldout[: plan.heldout]
        engine, optimization = self.player.engine, self.optimization(0.0)
        ladder = Ladder(engine, self.batches, self.objective, optimization, plan, scratch, TrainingHooks())

        def losses_of(rate: float) -> list[float] | None:
            found = self.losses(heldout) if ladder.train(rate) else None
            return found if found and all(map(math.isfinite, found)) else None

        start, middle = self.losses(heldout), usual_rate(self.player.weights, adapters=False, self_play=self.self_play)
        kept = 1.0 if self.self_play else kept_gain(plan.steps, len(self.batches))
        losses = climb(losses_of, start, middle, kept)
        ladder.restore()
        trained = ladder.moment_tokens + len(losses) * ladder.rung_tokens
        judged = len(losses) * sum(self.tokens(heldout))
        share = (BACKWARD * trained + judged) / (self.passes * sum(steps))
        rungs = {f"{rate:g}": mean_loss(rows) for rate, rows in losses.items()} | {"0": mean_loss(start)}
        rate = choose(losses, start, kept)
        rate = for_stage(rate, plan.steps, len(self.batches)) if self.self_play else rate
        return {
            "rate": rate,
            "rungs": rungs,
            "steps": plan.steps,
            "parts": plan.parts,
            "share": share,
        }


class SftTask(Task):
    plain_rate = 2e-5

    def __init__(self, name: str, player: Player, section: SftSection) -> None:
        self.name, self.player, self.section = name, player, section
        self.objective, self.heldout = NegativeLogLikelihood(), player.selection
        self.batches = Batches(player.train, steps_of_epochs([row.tokens for row in player.train], section, 0))

    def optimization(self, rate: float) -> Optimization:
        return optimization_of(self.section, rate, 0)

    def losses(self, rows: Sequence[TokenRow]) -> list[float]:
        return row_losses(self.player.engine, rows)

    def measure(self) -> dict[str, float]:
        return {"loss": mean_loss(self.losses(self.heldout)), "report": mean_loss(self.losses(self.player.report))}


class SpinTask(Task):
    passes = BACKWARD + 2
    self_play = True

    def __init__(self, name: str, player: Player, section: SpinSection, scratch: Path) -> None:
        self.name, self.player, self.section, self._scratch = name, player, section, scratch
        self.objective, self.plain_rate = objective_of(section, 1), default_rate(player.weights)
        self.generator = build_generator(player.engine, player.loaded.tokenizer, player.renderer.stop_ids)
        pairs = self._pairs(player.train)
        self.heldout, self.report = self._pairs(player.selection), self._pairs(player.report)
        self.batches = batches_of(pairs, section, 1, 0)

    def _pairs(self, rows: Sequence[TokenRow]) -> list[Pair]:
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            shards, sampling = Shards(Path(folder), "pairs", Silent()), Sampling(ANSWER, seed=1)
            written = sample_pairs(self.generator, rows, sampling, 1, LONGEST, "start", shards, "answers")
            return score_pairs(self.player.engine, without_degenerate(written).kept, "opponent", shards, "scores")

    def optimization(self, rate: float) -> Optimization:
        return optimization_of(self.section, rate, 1)

    def losses(self, rows: Sequence[Pair]) -> list[float]:
        return rate_losses(self.player.engine, rows)

    def measure(self) -> dict[str, float]:
        """The pair loss at λ = 1, that of training (``own``), the KL from the opponent, the loss per real token."""
        engine, plain = self.player.engine, SelfPlay("logistic", lambda_=1.0)
        pairs = measure_pairs(engine, self.report, self.objective)
        own = measure_pairs(engine, self.heldout, self.objective)
        return {
            "loss": statistics.fmean(one.loss for one in measure_pairs(engine, self.heldout, plain)),
            "report": statistics.fmean(one.loss for one in measure_pairs(engine, self.report, plain)),
            "own": statistics.fmean(one.loss for one in own),
            "margin": statistics.fmean(one.margin for one in pairs),
            "moved": -statistics.fmean(one.generated_ratio for one in pairs),
            "nll": heldout_loss(engine, self.player.report),
        }
