"""llama.cpp in this process, through llama-cpp-python: what a GGUF file computes and how it cuts texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


def opened(path: Path, context: int = 64, **options: Any) -> Any:
    """A GGUF file in llama.cpp; skips where that is not installed."""
    llama_cpp = pytest.importorskip("llama_cpp")
    options = {"logits_all": True, "verbose": False, "n_threads": 1, "flash_attn": False, **options}
    return llama_cpp.Llama(str(path), n_ctx=context, **options)


def logits_of(path: Path, ids: list[int]) -> NDArray[np.float32]:
    """The logits at every position, with keys and values in float32 and not in float16."""
    float32 = pytest.importorskip("llama_cpp").GGML_TYPE_F32
    model = opened(path, max(64, len(ids)), type_k=float32, type_v=float32)
    model.eval(ids)
    found = np.array(model.scores[: len(ids)])
    model.close()
    return found


def write_random_model(folder: Path, family: str, **changes: Any) -> Path:
    """The weights and config of a random model of a family, with wide weights and norms that are not one."""
    config = AutoConfig.for_model(family, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, 0.15)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            for buffer in _stored_buffers(model):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    model.save_pretrained(folder)
    return folder


def _stored_buffers(model: PreTrainedModel) -> list[torch.Tensor]:
    """Numbers of the checkpoint that are not trained, such as what routers add to the scores of experts."""
    trained = {name for name, _ in model.named_parameters()}
    return [one for name, one in model.state_dict().items() if name not in trained and one.is_floating_point()]
