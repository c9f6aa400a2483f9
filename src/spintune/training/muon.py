"""Muon for the matrices of hidden layers (Jordan et al. 2024), and AdamW for all other weights, in one optimizer."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spintune.errors import ModelError
from spintune.kernels.linear import linear_layers
from spintune.training.rounding import ParameterGroup

log = logging.getLogger(__name__)


def check_muon(what: str, device: torch.device) -> None:
    """Raises ModelError as :func:`require_muon`, and warns where updates on a device take long."""
    require_muon(what)
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if device.type == "cpu" and not (known and known()):
        log.warning(
            "%s multiplies in bfloat16, which torch does slowly on this processor: updates of large matrices may take "
            "longer than the rest of a step",
            what,
        )


def require_muon(what: str) -> None:
    """Raises ModelError when torch has no Muon; ``what`` needs it."""
    if not hasattr(torch.optim, "Muon"):
        raise ModelError(f"{what} needs torch 2.9 or newer (here: {torch.__version__}); pip install --upgrade torch")


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """The weights of linear layers but that of the head, which may be the embeddings, too."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return {layer.weight for layer in linear_layers(model) if layer is not head}


class Muon(torch.optim.Optimizer):
    """torch's Muon over the groups that have ``hidden: True``, and torch's AdamW over the others.

    Muon orthogonalizes the momentum of a matrix, so that all of its singular values become about 1. Its rate is scaled
    by 0.2 · √(the larger side), after which an update is about as large as one of AdamW (arXiv 2502.16982).
    """

    def __init__(self, groups: list[ParameterGroup], lr: float) -> None:
        super().__init__(groups, {"hidden": False})
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        if hidden := self._groups(True):
            self._parts[True] = torch.optim.Muon(hidden, lr=lr, adjust_lr_fn="match_rms_adamw")
        if rest := self._groups(False):
            self._parts[False] = torch.optim.AdamW(rest, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for hidden, part in self._parts.items():  # whose groups are these, as long as nobody replaces them
            part.param_groups, part.state = self._groups(hidden), self.state
            part.step()

    def _groups(self, hidden: bool) -> list[ParameterGroup]:
        return [group for group in self.param_groups if group["hidden"] == hidden]
