"""Finds out whether each token is computed from those before it alone, as a causal language model has it.

Only then is the score of a text the probability with which it is written, token by token. In transformers two kinds of
models break this: those whose tokens see later ones, and those in which the length of a row changes what is computed
for its beginning, as where a sparse choice of keys breaks ties by the number of keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spintune.engine.float32 import in_float32
from spintune.engine.positions import position_limit
from spintune.engine.probing import APART, EXACT, Score, affordable, evaluating, other, row_errors, seeded, spread
from spintune.engine.query import Query
from spintune.engine.rotary import LengthDependentRotary
from spintune.engine.thresholds import lowered, reaches
from spintune.errors import ModelError, NonFiniteError

_SHORT = 12
_LONG = 48
_LOWERED = 6
"""Tokens of a window or a choice of keys that is too long for a probe, while it computes."""


def check_causal(model: PreTrainedModel, plain: Score) -> None:
    """Raises ModelError for a model whose tokens see those that follow, NonFiniteError for one without numbers."""
    name = type(model).__name__
    ids = _ids(model, _fitting(model, _SHORT))
    changed = (*ids[:-2], *other(ids[-2:-1]), ids[-1])  # the last token is not read
    with evaluating(model), in_float32(model), torch.no_grad():
        before_MV, after_MV = (_logits(plain, row) for row in (ids, changed))
    if not torch.isfinite(before_MV).all():
        raise NonFiniteError(f"{name}: the model's scores are not numbers; it is damaged or has diverged")
    if not (row_errors(after_MV, before_MV)[:-1] <= APART).all():
        raise ModelError(
            f"{name} is not causal as configured: its tokens see those that follow; "
            "bring a decoder, or set is_decoder in config.json"
        )


def row_limit(model: PreTrainedModel, plain: Score) -> int | None:
    """Tokens of the longest row that is computed alike when it begins a longer one; None where every row is.

    Beyond a length with frequencies of its own (:mod:`.rotary`) a row is another by design; that is not counted here.

    Raises ModelError where no row is.
    """
    longest, lengths = affordable(model), reaches(model)
    near, far = ([n for n in lengths if (n <= longest) is affordable] for affordable in (True, False))
    if near or not far:
        with evaluating(model), in_float32(model), torch.no_grad():
            wrong = _first_difference(model, plain, max(near, default=0))
        if wrong is not None:
            exact = [length for length in near if length < wrong]
            if not exact:
                raise ModelError(
                    f"{type(model).__name__}: in transformers the length of a row changes what is computed for its "
                    "earlier tokens, so a text has no score of its own; bring another model"
                )
            return min(exact)
    if far:
        with evaluating(model), lowered(model, above=longest, to=_LOWERED), in_float32(model), torch.no_grad():
            if _first_difference(model, plain, _LOWERED) is not None:
                return min(far)
    return None


def _first_difference(model: PreTrainedModel, plain: Score, reach: int) -> int | None:
    """Tokens that the first prediction has read which a longer row changes; None where none is changed."""
    rotary = LengthDependentRotary(model)
    most = _fitting(model, max(_LONG, 2 * reach) if reach else 2 * _SHORT)
    ids = _ids(model, most)
    long_MV = _logits(plain, ids)
    for length in [most // 3, 2 * most // 3] if reach else [most // 2]:
        if length > 1 and rotary.side(length - 1) == rotary.side(most - 1):
            errors = row_errors(_logits(plain, ids[:length]), long_MV[: length - 1])
            wrong = (errors > EXACT) & errors.isfinite()  # the first loss tells of scores that are not numbers
            if wrong.any():
                return 1 + int(wrong.nonzero()[0])
    return None


def _fitting(model: PreTrainedModel, tokens: int) -> int:
    limit = position_limit(model)
    return tokens if limit is None else max(2, min(tokens, limit))


def _ids(model: PreTrainedModel, count: int) -> tuple[int, ...]:
    return tuple(torch.randint(model.config.get_text_config().vocab_size, (count,), generator=seeded()).tolist())


def _logits(plain: Score, ids: Sequence[int]) -> Tensor:
    """Centered logits that follow each token of a row but the last."""
    return plain([Query(tuple(ids[:1]), (tuple(ids[1:]),))], spread)
