"""What of a model runs in our kernels, and what in torch's own: for people, not for computing."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import nn

from spintune.kernels.fused import fused_layers
from spintune.kernels.linear import linear_layers, training_kernels
from spintune.kernels.native.build import kernels
from spintune.kernels.rotary import rotary_functions


@dataclass(frozen=True)
class LayerCount:
    """Layers of one kind: how many a kernel of ours computes, of how many."""

    fast: int
    total: int

    def __str__(self) -> str:
        return f"{self.fast} of {self.total}" if self.total else "none"


@dataclass(frozen=True)
class KernelUsage:
    """What a model's layers run in.

    Attributes:
        compiled: whether this machine has compiled code of ours; without it most layers are left to torch.
        rotary: architectures by module name, with whether their rotary embedding is computed by our code.
    """

    products: LayerCount
    norms: LayerCount
    gated: LayerCount
    compiled: bool
    rotary: dict[str, bool]

    def __str__(self) -> str:
        rotary = "yes" if self.rotary and all(self.rotary.values()) else "no" if self.rotary else "none"
        parts = f"linear layers {self.products}, norms {self.norms}, gated blocks {self.gated}, rotary {rotary}"
        return parts + ("" if self.compiled else "; nothing of ours is compiled here, and spintune doctor says why")


def kernel_usage(model: nn.Module, autocast: torch.dtype | None) -> KernelUsage:
    """What of ``model`` training computes with our kernels. Nothing is changed."""
    fused = {id(module) for module in fused_layers(model)}
    norms = [module for module in model.modules() if type(module).__name__.endswith(("Norm", "RMSNorm"))]
    gated = [module for module in model.modules() if hasattr(module, "gate_proj") and hasattr(module, "down_proj")]
    linears = linear_layers(model)
    with training_kernels(model, autocast):
        products = sum("forward" in layer.__dict__ for layer in linears)
    files = {type(module).__module__: sys.modules.get(type(module).__module__) for module in model.modules()}
    return KernelUsage(
        LayerCount(products, len(linears)),
        LayerCount(sum(id(module) in fused for module in norms), len(norms)),
        LayerCount(sum(id(module) in fused for module in gated), len(gated)),
        kernels() is not None,
        rotary_functions(filter(None, files.values())),
    )
