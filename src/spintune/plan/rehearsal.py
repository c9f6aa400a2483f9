"""What training keeps beside weights, gradients and moments: found by a rehearsal that computes nothing.

The engine runs forward and backward over a packed call whose tensors have sizes and no numbers (torch's FakeTensors),
and every tensor is counted from its birth to its death. Two models with few layers are rehearsed, and the rest follows,
since each further layer of a kind takes as much as the one before.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.engine.rotary import layers_of
from spintune.errors import SpintuneError
from spintune.kernels.linear import training_kernels
from spintune.kernels.native.build import rehearsed
from spintune.models.architecture import period, shortened
from spintune.plan.shapes import build
from spintune.recipe import LoraSection


class CannotRehearseError(Exception):
    """A model whose computation depends on numbers, such as one that routes tokens to experts."""


@dataclass(frozen=True)
class Rehearsed:
    """Bytes beside weights, moments and gradients of earlier calls, over one call of a training step.

    Attributes:
        start: the most when backward begins: what forward kept, with the logits and their gradient.
        end: the most later on, as gradients come and activations go.
    """

    start: int
    end: int


@dataclass(frozen=True)
class Setting:
    """What decides how a call of training is computed.

    Attributes:
        dtype: of weights that are not trained.
        autocast: type of matrix products; None: that of the weights.
        compiled: whether layers run in spintune's compiled code, as on a CPU.
    """

    dtype: torch.dtype
    autocast: torch.dtype | None
    compiled: bool
    recompute: float = 0.0
    lora: LoraSection | None = None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and not yet gone.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._kept: dict[int, object] = {tensor.untyped_storage()._cdata: None for tensor in known}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._kept:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._kept.pop(key, None)

        self._kept[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def rehearse(config: PreTrainedConfig, setting: Setting, queries: Sequence[Query]) -> Rehearsed:
    """The memory of one call of training over ``queries``.

    Raises CannotRehearseError where numbers decide what is computed.
    """
    key = config.to_json_string(), repr(setting), tuple(queries)
    if key not in _known:
        _known[key] = _rehearse(config, setting, queries)
    return _known[key]


_known: dict[tuple[str, str, tuple[Query, ...]], Rehearsed] = {}


def _rehearse(config: PreTrainedConfig, setting: Setting, queries: Sequence[Query]) -> Rehearsed:
    whole, repeats = int(config.get_text_config().num_hidden_layers), period(config)
    few, more = repeats, 2 * repeats
    if whole <= more:
        return _shares(config, setting, queries)
    first, second = (_shares(shortened(config, layers), setting, queries) for layers in (few, more))

    def at(name: str) -> int:
        low, high = getattr(first, name), getattr(second, name)
        return round(low + (high - low) * (whole - few) / (more - few))

    return Rehearsed(at("start"), at("end"))


def _shares(config: PreTrainedConfig, setting: Setting, queries: Sequence[Query]) -> Rehearsed:
    """A share of recomputed layers is between none and all, as far as its layers go."""
    share = setting.recompute
    found = [
        _once(config, setting, queries, whole) for whole in (0.0, 1.0) if share not in (0.0, 1.0) or whole == share
    ]
    if len(found) == 1:
        return found[0]
    none, every = found
    mixed = (round(a + (b - a) * share) for a, b in zip(vars(none).values(), vars(every).values(), strict=True))
    return Rehearsed(*mixed)


def _once(config: PreTrainedConfig, setting: Setting, queries: Sequence[Query], recompute: float) -> Rehearsed:
    fake = FakeTensorMode()
    try:
        model = build(config, setting.dtype, setting.lora)
        with fake:
            _as_if_here(model)
        if setting.compiled:  # which finds out by numbers what it may compute
            with training_kernels(model, setting.autocast):
                pass
        if getattr(type(model), "_is_stateful", False):
            raise CannotRehearseError(f"{type(model).__name__} is recurrent")
        engine = LogProbEngine.unprobed(model, setting.autocast, recompute)
        with rehearsed(setting.compiled), fake:
            return _measure(model, engine, queries)
    except (SpintuneError, CannotRehearseError):
        raise
    except Exception as error:  # whatever says that numbers are missing
        raise CannotRehearseError(" ".join(str(error).split())[:160] or type(error).__name__) from error


def _as_if_here(model: PreTrainedModel) -> None:
    """Puts the tensors of a model on the meta device, shared ones once, as if they were in memory."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    here = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(here, tensor.requires_grad) if is_parameter else here
                tensors[name] = made[tensor]


def _measure(model: PreTrainedModel, engine: LogProbEngine, queries: Sequence[Query]) -> Rehearsed:
    """Backward begins in the head: the most before a gradient of the last layer is ``start``, after it ``end``."""
    last = [model, *layers_of(model)][-1]
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        marks: list[int] = []

        def reached(_: Tensor) -> None:
            if not marks:
                marks.append(live.peak)
                live.peak = live.now

        hooks = [p.register_post_accumulate_grad_hook(reached) for p in last.parameters() if p.requires_grad]
        (-engine.tokens(queries).sum()).backward()
        for hook in hooks:
            hook.remove()
    return Rehearsed(max(marks, default=live.peak), live.peak)
