"""AdamW with moments of 8 bits (arXiv 2110.02861), through bitsandbytes.

Each block of 256 moments has a scale of its own, and a table of 256 values that lie denser near zero. Parameters of
less than 4,096 numbers keep moments in float32.
"""

from __future__ import annotations

import bitsandbytes
import torch
from torch.optim.optimizer import ParamsT, StateDict

_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""Tables of values that all parameters share, which a checkpoint need not hold."""


class AdamW8bit(bitsandbytes.optim.AdamW8bit):
    """bitsandbytes' AdamW whose state is tensors alone, as a checkpoint of ours holds them."""

    def __init__(self, params: ParamsT, lr: float) -> None:
        super().__init__(params, lr=lr, weight_decay=0.0)

    def state_dict(self) -> StateDict:
        """Tensors by parameter, without the shared tables."""
        content = torch.optim.Optimizer.state_dict(self)
        content["state"] = {
            index: {
                name: torch.tensor(float(value)) if name == "step" else value
                for name, value in state.items()
                if name not in _TABLES
            }
            for index, state in content["state"].items()
        }
        return content

    def load_state_dict(self, state_dict: StateDict, move_to_device: bool = True) -> None:
        """Loads what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict, move_to_device)
        for parameter, state in self.state.items():
            state["step"] = int(state["step"])
            if state["state1"].dtype == torch.uint8:
                tables = {name: self.name2qmap[kind] for name, kind in _TABLES.items()}
                state |= {name: table.to(parameter.device) for name, table in tables.items()}
