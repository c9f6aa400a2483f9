"""Finds out whether packed rows are right for a model, before anything is computed with it.

Packing is right when three things hold:

1. Structure: every layer that computes a packed row asks for attention by its layout, with the window that the
   configuration gives it. Layers of another kind (recurrent, convolutional) carry something from row to row.
2. A row does not depend on what is packed beside it.
3. Logits, and the gradient at the embeddings, are those of plain forwards, one row at a time, in float32, with rows
   beyond every length at which the model computes differently (:mod:`.thresholds`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spintune.engine.attention import Asked, recording
from spintune.engine.float32 import in_float32
from spintune.engine.head import logprob, precision
from spintune.engine.probing import APART, EXACT, Score, affordable, evaluating, other, row_errors, seeded, spread
from spintune.engine.query import Query
from spintune.engine.rotary import LengthDependentRotary, layers_of
from spintune.engine.thresholds import lowered, thresholds
from spintune.errors import ModelError
from spintune.memory import is_out_of_memory

log = logging.getLogger(__name__)


class PackingError(Exception):
    """Why packed rows are not right for a model."""


def check_packing(model: PreTrainedModel, packed: Score, plain: Score, autocast: torch.dtype | None) -> str:
    """Returns in a phrase why packed rows are right for ``model``; raises :class:`PackingError` when they are not."""
    rotary = LengthDependentRotary(model)
    if rotary and rotary.inside(layers_of(model)):
        raise PackingError("rotary embeddings inside its layers look at the longest row")
    longest = affordable(model)
    lengths = {*thresholds(model), *rotary.thresholds()}
    near, far = ({n for n in lengths if (n <= longest) is affordable} for affordable in (True, False))
    queries = probe_queries(model.config.get_text_config().vocab_size, sorted(near))
    narrow = model.dtype.itemsize < 4  # widened a layer at a time, and backward needs all layers
    with evaluating(model):
        with lowered(model, above=longest), in_float32(model), torch.set_grad_enabled(not narrow):
            found = _check_structure(model, packed, queries)
            _check_apart(packed, queries, found.logits)
            exact = _check_exact(found, _with_gradient(model, plain, queries), queries)
        if autocast is not None or narrow:
            _check_rounding(model, packed, plain, queries, (exact, autocast))
    beyond = f" beyond {', '.join(map(str, sorted(near)))} tokens" if near else ""
    by_rule = f"; {', '.join(map(str, sorted(far)))} tokens by rule" if far else ""
    return f"equal to plain forwards{beyond}{by_rule}"


def check_precision(model: PreTrainedModel, plain: Score, autocast: torch.dtype | None) -> None:
    """Raises ModelError for a model that does not compute in its own precision, by plain forwards."""
    if autocast is None and model.dtype.itemsize >= 4:
        return
    first, *_ = probe_queries(model.config.get_text_config().vocab_size, [])
    try:
        with evaluating(model), precision(model, autocast), torch.no_grad():
            plain([first], logprob)
    except RuntimeError as error:
        raise ModelError(
            f"{type(model).__name__} does not compute in bfloat16: {str(error).splitlines()[0]}; set precision: float32"
        ) from error


def probe_queries(vocabulary: int, lengths: Sequence[int]) -> list[Query]:
    """Short rows; for each of ``lengths``, a prompt beyond it, and one whose responses end on both sides of it."""
    drawn = iter(torch.randint(vocabulary, (64 + 4 * sum(lengths) + 64 * len(lengths),), generator=seeded()).tolist())

    def ids(count: int) -> tuple[int, ...]:
        return tuple(next(drawn) for _ in range(count))

    queries = [Query(ids(7), (ids(5), ids(3))), Query(ids(2), (ids(4),))]
    for length in lengths:
        queries.append(Query(ids(length + 3), (ids(4),)))
        queries.append(Query(ids(max(1, length - 3)), (ids(2), ids(9), ids(4))))
    return queries


class _Found(NamedTuple):
    """Centered logits ``[M, V]``, and a gradient ``[1, D]``, or None where none was asked for."""

    logits: Tensor
    gradient: Tensor | None


def _check_structure(model: PreTrainedModel, packed: Score, queries: Sequence[Query]) -> _Found:
    called: list[nn.Module] = []
    with contextlib.ExitStack() as stack:
        for layer in layers_of(model):
            stack.callback(layer.register_forward_pre_hook(lambda module, _: called.append(module)).remove)
        asked = stack.enter_context(recording())
        try:
            found = _with_gradient(model, packed, queries)
        except Exception as error:  # whatever a foreign architecture raises, the plain path still works
            if is_out_of_memory(error):
                raise
            log.debug("packed probe failed", exc_info=error)
            raise PackingError("its layers do not take packed rows") from error
    if not asked:
        raise PackingError("its attention is outside of transformers' attention interface")
    for layer in called:
        if not any(part in asked for part in layer.modules()):
            raise PackingError(f"{type(layer).__name__} has a layer that is not attention")
    if not called and len({module.layer_idx for module in asked}) != model.config.get_text_config().num_hidden_layers:
        raise PackingError("some of its layers are not attention")
    _check_windows(model, asked)
    return found


def _check_windows(model: PreTrainedModel, asked: Asked) -> None:
    """Some models put their windows only into masks (Qwen2-MoE), which a packed row does not have."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        missing = getattr(config, "sliding_window", None) is not None and not any(asked.values())
    elif "chunked_attention" in kinds:
        raise PackingError("its attention is in chunks")
    else:
        windows = {getattr(module, "layer_idx", None): window for module, window in asked.items()}
        missing = any(windows.get(i) is None for i, kind in enumerate(kinds) if kind == "sliding_attention")
    if missing:
        raise PackingError("its sliding window is in a mask only")


def _check_apart(packed: Score, queries: Sequence[Query], before_MV: Tensor) -> None:
    """Changes the first of several responses to a prompt; those beside and after it must stay."""
    changed = [
        replace(query, responses=(other(query.responses[0]), *query.responses[1:])) if query.responses[1:] else query
        for query in queries
    ]
    with torch.no_grad():
        after_MV = packed(changed, spread)
    same = [
        old is new
        for query, other in zip(queries, changed, strict=True)
        for old, new in zip(query.responses, other.responses, strict=True)
        for _ in old
    ]
    same_M = torch.tensor(same, device=before_MV.device)
    if not _error(after_MV[same_M], before_MV[same_M]) <= APART:
        raise PackingError("its packed rows depend on each other")


def _check_exact(mine: _Found, plain: _Found, queries: Sequence[Query]) -> Tensor:
    """Returns the log-probabilities of the scored tokens by plain forwards."""
    if not _error(mine.logits, plain.logits) <= EXACT:
        raise PackingError("its packed rows differ from plain forwards")
    known = mine.gradient is not None and plain.gradient is not None
    if known and not _error(cast(Tensor, mine.gradient), cast(Tensor, plain.gradient)) <= 10 * EXACT:
        raise PackingError("the gradients of its packed rows differ from those of plain forwards")
    return _of_targets(plain.logits, queries)


def _with_gradient(model: PreTrainedModel, score: Score, queries: Sequence[Query]) -> _Found:
    """The gradient is that of some sum of log-probabilities by one vector that every embedding gains."""
    if not torch.is_grad_enabled():
        return _Found(score(queries, spread), None)
    shifts: list[Tensor] = []

    def shifted(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        if not shifts:
            shifts.append(output.new_zeros(output.shape[-1]).requires_grad_())
        return output + shifts[0]

    hook = model.get_input_embeddings().register_forward_hook(shifted)
    try:
        logits = score(queries, spread)
    finally:
        hook.remove()
    weighted = (_of_targets(logits, queries) * torch.linspace(0.3, 1.7, len(logits), device=logits.device)).sum()
    gradient = torch.autograd.grad(weighted, shifts, allow_unused=True)[0] if shifts else None
    return _Found(logits.detach(), None if gradient is None else gradient[None])


def _check_rounding(
    model: PreTrainedModel,
    packed: Score,
    plain: Score,
    queries: Sequence[Query],
    computed: tuple[Tensor, torch.dtype | None],
) -> None:
    """In the model's own precision, packed rows may be off by twice what plain forwards are.

    It looks at the median token, because rounding sends single tokens of a mixture to other experts.
    """
    exact, autocast = computed
    with torch.no_grad(), precision(model, autocast):
        mine, theirs = ((score(queries, logprob) - exact).abs().median() for score in (packed, plain))
    if not mine <= 2 * theirs + 0.02:
        raise PackingError(f"its packed rows are off by {mine:.2f} nats in half precision, plain ones by {theirs:.2f}")


def _of_targets(logits_MV: Tensor, queries: Sequence[Query]) -> Tensor:
    targets = [token for query in queries for response in query.responses for token in response]
    return logprob(logits_MV, torch.tensor(targets, device=logits_MV.device))


def _error(found_MV: Tensor, expected_MV: Tensor) -> float:
    return float(row_errors(found_MV, expected_MV).max())
