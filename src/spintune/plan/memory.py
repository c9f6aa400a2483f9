"""Memory of a run by component, on one device and on each of a mesh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spintune.engine.query import Query
from spintune.engine.rotary import layers_of
from spintune.generation.batch import GenerationLimits, fitting_slots
from spintune.generation.decoder import cache_width
from spintune.kernels.allocator import why_no_pool
from spintune.kernels.linear import linear_layers
from spintune.models.quantized import bytes_of, pack_on_meta
from spintune.plan.calls import Calls
from spintune.plan.devices import Target
from spintune.plan.rehearsal import CannotRehearseError, Rehearsed, Setting, rehearse
from spintune.plan.shapes import ModelShape, parameters
from spintune.recipe import Recipe
from spintune.recipe.section import OptimizerName
from spintune.recipe.training import TrainingSection
from spintune.training.footprint import TrainingFootprint, footprint
from spintune.training.muon import hidden_matrices
from spintune.training.rounding import PIECE

_HEAD_BYTES = 512 * 2**20
"""What :class:`spintune.engine.logprobs.LogProbEngine` computes of the logits at once."""

_SHARE_OF_FREE = 0.6
"""What :class:`spintune.engine.sharded.ShardedModel` lets all weights take of a GPU's free memory."""

_POOLED, _UNPOOLED = 0.5, 1.6
"""Freed pieces that a CPU keeps, and small tensors, as a share of the activations of a call: in the pool of
:mod:`spintune.kernels.allocator`, and without it. Measured in whole runs of 12 and 135 million weights: 0.3 to 0.5, and
0.9 where layers are recomputed, which have few; without the pool 0.7 to 1.7, and more with adapters."""

_GUESSED_WIDTHS = 34
"""Numbers that a layer keeps of each token, in widths of the model, where no rehearsal is possible (arXiv 2205.05198,
section 4.1, without its attention scores)."""


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on one device, at the moment that needs the most.

    Attributes:
        activations: that backward needs, and what it makes on the way.
        logits: of the scored tokens, at most the part that the head computes at once.
        cache: keys and values of answers that are being written.
        copies: of weights, in the order or type of the generator's products.
        gathered: weights and gradients of the layers at work, whole, where all else is sharded; of all layers while
            answers are written, if they fit.
        snapshot: the copy of weights and moments that a checkpoint is written from, where that is the same memory.
        heap: freed pieces that a CPU keeps, where calls of another size cannot use them.
        context: what Python and its libraries hold on the device.
    """

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    copies: int = 0
    gathered: int = 0
    snapshot: int = 0
    heap: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, field.name) for field in fields(self))

    def parts(self) -> dict[str, int]:
        """The parts that are not 0, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a recipe's model on a target.

    Attributes:
        shape: of the model.
        target: replicated weights, or a share of them on each device.
        sharded: whether weights, gradients and moments are.
    """

    recipe: Recipe
    shape: ModelShape
    target: Target
    sharded: bool

    @property
    def autocast(self) -> torch.dtype | None:
        """Type of matrix products on the target."""
        wanted = self.recipe.precision
        rounds = "bfloat16" in (wanted, self.recipe.weights) or (wanted == "auto" and self.target.on_gpu)
        return torch.bfloat16 if rounds else None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights that are read: frozen ones are kept in the type of the products."""
        lora = self.recipe.lora
        narrow = self.recipe.weights == "bfloat16" or (lora is not None and lora.between == "continue")
        return self.autocast if narrow and self.autocast else torch.float32

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model as it is trained, without numbers."""
        return self.shape.whole(self.dtype, self.recipe.lora)

    def kept(self, optimizer: OptimizerName) -> TrainingFootprint:
        """Weights, gradients and moments of one device; moments, or whole shares, only where they are not offloaded."""
        if self.sharded and self.recipe.offload in ("optimizer", "both"):
            return TrainingFootprint(0, 0, 0)
        whole = footprint(self.model, optimizer)
        weights, trained = whole.weights - self._saved_by_4_bits, whole.gradients
        if self.sharded:
            every, trained = (sharded_bytes(self.model, self.target.gpus, only) for only in (False, True))
            weights = round(weights * every / max(1, whole.weights))
        share = trained / max(1, whole.gradients)
        moments = 0 if self.recipe.offload in ("optimizer", "both") else round(whole.moments * share)
        return TrainingFootprint(weights, trained, moments)

    @cached_property
    def _saved_by_4_bits(self) -> int:
        """Bytes by which a base in 4 bits is smaller."""
        lora = self.recipe.lora
        if lora is None or lora.base is None:
            return 0
        base = self.shape.whole(self.dtype)
        before = sum(map(bytes_of, base.parameters()))
        pack_on_meta(base)
        return before - sum(map(bytes_of, base.parameters()))

    def training(self, section: TrainingSection, calls: Calls) -> tuple[MemoryParts, str]:
        """The parts of a training step at its most, and how the activations were found."""
        optimizer = section.optimizer
        kept, (call, how) = self.kept(optimizer), self._call(calls.largest)
        copied = not self.target.on_gpu and self.recipe.copies_checkpoints(section, on_gpu=False)
        # what a call adds to gradients of the calls before, or makes itself
        adds = calls.several or self.sharded  # shares of gradients are kept, and none is whole for long
        new = call.start if adds else max(0, max(call.start, call.end) - kept.gradients)
        new = max(new - self._moved(calls.largest), self._step(section))
        logits = min(new, self._logits(calls.largest))
        parts = MemoryParts(
            kept.weights,
            kept.gradients,
            kept.moments,
            new - logits,
            logits,
            gathered=self._gathered() if self.sharded else 0,
            snapshot=copied * kept.checkpoint,
            heap=0 if self.target.on_gpu else round((_UNPOOLED if why_no_pool() else _POOLED) * new),
            context=self.target.context,
        )
        return parts, how

    def generation(
        self, prompts: int, longest_prompt: int, longest_answer: int, moments: int = 0, checks: bool = False
    ) -> MemoryParts:
        """The parts while answers are written.

        Args:
            moments: bytes that are kept meanwhile, as in the middle of training.
            checks: the texts by which a generator is checked are written in the type of the weights.
        """
        limits = GenerationLimits()
        most = limits.cache_bytes(torch.device("cpu")) if not self.target.on_gpu else (self.target.memory or 0) // 4
        slots = min(limits.slots, max(1, prompts // self.target.gpus))
        weights = self.kept("adamw").weights
        cache = 0
        if not self.shape.config.is_encoder_decoder:
            per_slot = self.cache_width * (longest_prompt + longest_answer) * self.dtype.itemsize
            cache = fitting_slots(slots, per_slot, most or per_slot * slots) * per_slot
        products = (self.dtype if checks else self.autocast or self.dtype).itemsize
        copied = sum(layer.weight.numel() * products for layer in linear_layers(self.model))
        rounds = not self.target.on_gpu or self.dtype != (self.autocast or self.dtype)
        copies = copied if rounds and copied <= most // 2 and prompts > 1 and not self.sharded else 0
        vocabulary = self.shape.config.get_text_config().vocab_size
        return MemoryParts(
            weights,
            moments=moments,
            logits=3 * 4 * slots * vocabulary,  # logits, probabilities, and one between
            cache=cache,
            copies=copies,
            gathered=self._gathered_to_write(weights + moments, products) if self.sharded else 0,
            context=self.target.context,
        )

    @cached_property
    def cache_width(self) -> int:
        """Numbers that a cache keeps of each token; by the config of a model that does not tell by its attention."""
        try:
            return cache_width(self.model)
        except Exception:  # whatever an architecture needs numbers for
            text = self.shape.config.get_text_config()
            heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
            width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
            return int(2 * text.num_hidden_layers * heads * width)

    def _call(self, queries: Sequence[Query]) -> tuple[Rehearsed, str]:
        if not queries:
            return Rehearsed(0, 0), "there are no rows"
        compiled = not self.target.on_gpu
        setting = Setting(self.dtype, self.autocast, compiled, self.recipe.recompute, self.recipe.lora)
        try:
            return rehearse(self.shape.config, setting, queries), "by a rehearsal"
        except CannotRehearseError as reason:
            return self._guessed(queries), f"by a rule of thumb, since the model cannot be rehearsed ({reason})"

    def _step(self, section: TrainingSection) -> int:
        """Bytes on the device that an update takes: of one rank's share, and none where it is computed on the CPU."""
        if self.recipe.offload in ("optimizer", "both"):
            return 0
        ranks = self.target.gpus if self.sharded else 1
        return step_bytes(self.model, section.optimizer, ranks, decays=section.weight_decay > 0)

    def _moved(self, queries: Sequence[Query]) -> int:
        """Bytes of the inputs of recomputed layers, where those are offloaded."""
        if self.recipe.offload not in ("activations", "both"):
            return 0
        width, size = self.shape.config.get_text_config().hidden_size, (self.autocast or self.dtype).itemsize
        tokens = sum(query.tokens for query in queries)
        return int(self.recipe.recompute * self.shape.layers) * tokens * int(width) * size

    def _guessed(self, queries: Sequence[Query]) -> Rehearsed:
        text = self.shape.config.get_text_config()
        tokens, size = sum(query.tokens for query in queries), (self.autocast or self.dtype).itemsize
        layers = 1 + (self.shape.layers - 1) * (1 - self.recipe.recompute)
        kept = tokens * text.hidden_size * (_GUESSED_WIDTHS / 2 * size * layers + size * self.shape.layers)
        start = round(kept) + self._logits(queries)
        return Rehearsed(start, start)

    def _logits(self, queries: Sequence[Query]) -> int:
        scored = sum(len(answer) for query in queries for answer in query.responses)
        return min(_HEAD_BYTES, 4 * scored * int(self.shape.config.get_text_config().vocab_size))

    def _gathered(self, gradients: bool = True) -> int:
        """Embeddings, head, the layer at work and the next one, whole; and gradients of the root and of one layer."""
        size = (self.autocast or self.dtype).itemsize
        layers = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(self.model)]
        largest = max(layers, default=0)
        root = sum(p.numel() for p in self.model.parameters()) - sum(layers)
        numbers = root + 2 * largest + (root + largest if gradients and not self.recipe.lora else 0)
        return numbers * size

    def _gathered_to_write(self, kept: int, size: int) -> int:
        """All weights where they take little enough of what is free; else embeddings, head and a layer."""
        everything = size * parameters(self.model)
        free = (self.target.memory or everything) - kept - self.target.context
        at_once = everything < _SHARE_OF_FREE * free or self.shape.config.is_encoder_decoder
        return everything if at_once or not self.target.on_gpu else self._gathered(gradients=False)


def step_bytes(model: nn.Module, optimizer: OptimizerName, ranks: int = 1, decays: bool = False) -> int:
    """Bytes that an update of the weights takes for its length.

    Args:
        ranks: among which the weights are divided.
        decays: matrices have weight decay.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    hidden = hidden_matrices(model) if optimizer == "muon" else set()
    if any(p.dtype == torch.bfloat16 for p in trained):
        whole = optimizer in ("adafactor", "adamw8bit")
        pieces = [(p, p.numel() if whole or p in hidden else min(p.numel(), PIECE)) for p in trained]
        # weights and gradients in float32 and what the update makes; then the weights, random bits, and all rounded
        return max((max(8 * n + _made(p, n, optimizer, hidden, decays), 10 * n) for p, n in pieces), default=0)
    made = [(p, _made(p, _share(p, ranks), optimizer, hidden, decays)) for p in trained]
    if optimizer == "rmsprop":  # all matrices at once, then all others
        return max(sum(size for p, size in made if (p.ndim >= 2) == matrices) for matrices in (True, False))
    return max((size for _, size in made), default=0)


def _made(parameter: nn.Parameter, numbers: int, optimizer: OptimizerName, hidden: set[Tensor], decays: bool) -> int:
    """Bytes that the update of so many numbers of a parameter makes in float32."""
    if optimizer == "rmsprop":  # the square roots of the moments; gradients with the decay added
        return (8 if decays and parameter.ndim >= 2 else 4) * numbers
    if parameter in hidden:  # the momentum, its copies in bfloat16, and products of their shorter side
        return 8 * numbers + 4 * min(parameter.shape) ** 2
    return 12 * numbers if optimizer == "adafactor" else 0


def sharded_bytes(model: nn.Module, ranks: int, trained: bool) -> int:
    """Bytes of the first rank's share: FSDP2 cuts each tensor along its first dimension, rounded up."""
    return sum(_share(p, ranks) * p.element_size() for p in model.parameters() if p.requires_grad or not trained)


def _share(parameter: nn.Parameter, ranks: int) -> int:
    if parameter.ndim == 0:
        return 1
    rows = -(-parameter.shape[0] // ranks)
    return rows * (parameter.numel() // max(1, parameter.shape[0]))


def stages_of(recipe: Recipe) -> Iterator[tuple[str, OptimizerName]]:
    """The training stages of a recipe with their optimizers."""
    if recipe.sft:
        yield "sft", recipe.sft.optimizer
    if recipe.spin:
        yield "spin", recipe.spin.optimizer
        if recipe.spin.baseline == "sft":
            yield "baseline", recipe.sft.optimizer if recipe.sft else "adamw"


def larger(one: MemoryParts, other: MemoryParts | None) -> MemoryParts:
    """The parts with the larger total."""
    return one if other is None or one.total >= other.total else other
