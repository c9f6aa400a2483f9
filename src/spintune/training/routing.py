"""Mixtures of experts: how evenly tokens are spread, and the loss that keeps them spread.

The load-balancing loss is the one of the Switch Transformer (arXiv 2101.03961, equations 4 to 6), as transformers
computes it: over the tokens of all layers of a call, E * sum over experts of f * P, where f is the number of times that
an expert is chosen per token and P the mean of its probability. It is the number of experts per token when all are
chosen alike, and at most E.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from spintune.errors import ModelError


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

    Raises ModelError when a coefficient is given for a model that has no such loss.
    """

    def __init__(self, model: PreTrainedModel, coefficient: float | None = None) -> None:
        # a module of one's own has no config and no routers
        self._config = model.config.get_text_config() if isinstance(model, PreTrainedModel) else PreTrainedConfig()
        own, top_k = (getattr(self._config, name, None) for name in ("router_aux_loss_coef", "num_experts_per_tok"))
        self._top_k = int(top_k) if own is not None and top_k and not self._config.is_encoder_decoder else None
        if coefficient and self._top_k is None:
            raise ModelError(
                f"router_aux_loss: {type(model).__name__} has no load-balancing loss for experts; leave it out"
            )
        asked = bool(getattr(self._config, "output_router_logits", False))
        self.coefficient = float(own or 0.0) * asked if coefficient is None else coefficient
        self._decoder: nn.Module | None = None if self._top_k is None else model.get_decoder()

    @contextmanager
    def watch(self) -> Iterator[Routing]:
        """Collects the routers' logits of the model's calls inside the block."""
        routing = Routing(self._top_k or 0)
        if self._decoder is None:
            yield routing
            return

        def read(module: nn.Module, arguments: object, output: object) -> None:
            # layers without experts give None
            if logits := [one for one in getattr(output, "router_logits", None) or () if one is not None]:
                routing.add(logits)

        before = getattr(self._config, "output_router_logits", False)
        self._config.output_router_logits = True
        hook = self._decoder.register_forward_hook(read)
        try:
            yield routing
        finally:
            hook.remove()
            self._config.output_router_logits = before


def load_facts(counts: Sequence[Tensor]) -> dict[str, float]:
    """How tokens were spread, from the counts of each layer.

    ``expert_load``: tokens of the busiest expert, relative to an even spread (1), mean over layers. ``experts_idle``:
    share of experts without any token.
    """
    if not counts:
        return {}
    count_LE = torch.stack(list(counts)).double()
    return {
        "expert_load": float((count_LE.max(1).values / count_LE.mean(1)).mean()),
        "experts_idle": float((count_LE == 0).double().mean()),
    }
