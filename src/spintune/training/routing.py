"""Mixtures of experts: how evenly tokens are spread, and the loss that keeps them spread.

The load-balancing loss is the one of the Switch Transformer (arXiv 2101.03961, equations 4 to 6), as transformers
computes it: over the tokens of all layers of a call, E * sum over experts of f * P, where f is the number of times that
an expert is chosen per token and P the mean of its probability. It is the number of experts per token when all are
chosen alike, and at most E.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from spintune.engine.probing import evaluating
from spintune.errors import ModelError

log = logging.getLogger(__name__)

_TRIED = 3
"""Tokens that are read to find out whether a model gives the logits of its routers."""


@dataclass
class Routing:
    """What the routers of a model did in the calls of one block.

    Attributes:
        top_k: experts per token.
        counts: for each layer, how often each of E experts was chosen.
    """

    top_k: int
    counts: list[Tensor] = field(default_factory=list)
    _probabilities: list[Tensor] = field(default_factory=list)
    _rows: int = 0

    def add(self, logits: Sequence[Tensor]) -> None:
        """Adds one call of the model: logits ``[T, E]`` of the router of each layer."""
        counts = []
        for logits_TE in logits:
            probability_TE = logits_TE.float().softmax(-1)
            chosen = probability_TE.detach().topk(self.top_k, -1).indices.flatten()
            counts.append(torch.bincount(chosen, minlength=probability_TE.shape[1]))
            self._probabilities.append(probability_TE.sum(0))
            self._rows += len(probability_TE)
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)] if self.counts else counts

    def loss(self) -> Tensor | None:
        """The load-balancing loss of the calls, differentiable; None when no router was called."""
        if not self._rows:
            return None
        chosen_E, probability_E = torch.stack(self.counts).sum(0), torch.stack(self._probabilities).sum(0)
        return len(chosen_E) * (chosen_E / self._rows * probability_E / self._rows).sum()


class Routers:
    """The routers of a model whose architecture has a load-balancing loss; of others there is nothing to see.

    Args:
        coefficient: weight of the loss; None: the model's own where its config asks for the loss, else 0.

    A model may have the loss and give no logits of routers: a dense one of a family of mixtures, or one whose layers
    all route by a table of tokens. It trains without, and a line says so where its config asks for the loss.

    Raises ModelError when a coefficient is given for a model that has no such loss.
    """

    def __init__(self, model: PreTrainedModel, coefficient: float | None = None) -> None:
        # a module of one's own has no config and no routers
        config = model.config.get_text_config() if isinstance(model, PreTrainedModel) else PreTrainedConfig()
        own, top_k = (getattr(config, name, None) for name in ("router_aux_loss_coef", "num_experts_per_tok"))
        self._top_k = 0 if own is None or config.is_encoder_decoder or not isinstance(top_k, int) else top_k
        named = self._top_k > 0
        self._decoder: nn.Module | None = model.get_decoder() if named else None
        asked = bool(getattr(config, "output_router_logits", False))
        self.coefficient = float(own or 0.0) * asked if coefficient is None else coefficient
        name = type(model).__name__
        if named and not self._gives_logits(model):
            self._decoder = None
            if coefficient is None and asked:
                self.coefficient = 0.0
                _tell_of_silence(name)
        if coefficient and self._decoder is None:
            raise ModelError(f"router_aux_loss: {name} has no load-balancing loss for experts; leave it out")

    def _gives_logits(self, model: PreTrainedModel) -> bool:
        """Reads a few tokens to see: a config names the loss for dense models of a family as well."""
        ids = torch.zeros(1, _TRIED, dtype=torch.long, device=model.device)
        try:
            with evaluating(model), torch.no_grad(), self.watch() as routing:
                model(input_ids=ids, use_cache=False)
        except Exception as error:  # whatever a foreign router returns, the model trains without this loss
            log.debug("no router logits", exc_info=error)
            return False
        return bool(routing.counts) and all(count_E.sum() == _TRIED * self._top_k for count_E in routing.counts)

    @contextmanager
    def watch(self) -> Iterator[Routing]:
        """Collects the routers' logits of the model's calls inside the block."""
        routing = Routing(self._top_k)
        if self._decoder is None:
            yield routing
            return

        def ask(
            module: nn.Module, arguments: tuple[object, ...], options: dict[str, object]
        ) -> tuple[tuple[object, ...], dict[str, object]]:
            # the decoder alone: the model around it would compute the loss as well, and fails where no layer routes
            return arguments, {**options, "output_router_logits": True}

        def read(module: nn.Module, arguments: object, output: object) -> None:
            # layers without experts give None
            if logits := [one for one in getattr(output, "router_logits", None) or () if one is not None]:
                routing.add(logits)

        hooks = [
            self._decoder.register_forward_pre_hook(ask, with_kwargs=True),
            self._decoder.register_forward_hook(read),
        ]
        try:
            yield routing
        finally:
            for hook in hooks:
                hook.remove()


@cache
def _tell_of_silence(name: str) -> None:
    log.warning(
        "%s: its config asks for a load-balancing loss (output_router_logits), but its routers give no logits; it is "
        "trained without that loss",
        name,
    )


def load_facts(counts: Sequence[Tensor]) -> dict[str, float]:
    """How tokens were spread, from the counts of each layer.

    ``expert_load``: tokens of the busiest expert, relative to an even spread (1), mean over layers. ``experts_idle``:
    share of experts without any token.
    """
    if not counts:
        return {}
    count_LE = torch.stack(list(counts)).cpu().double()
    return {
        "expert_load": float((count_LE.max(1).values / count_LE.mean(1)).mean()),
        "experts_idle": float((count_LE == 0).double().mean()),
    }
