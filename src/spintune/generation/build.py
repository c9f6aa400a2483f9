"""Which generator a model gets."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.batch import BatchGenerator
from spintune.generation.plain import PlainGenerator
from spintune.generation.protocol import Generator


def build_generator(engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> Generator:
    """The fastest generator that is right for the engine's model."""
    if not engine.packed:
        return PlainGenerator(engine.model, tokenizer, stop_ids, engine.autocast)
    device = engine.model.device
    megabytes = torch.cuda.get_device_properties(device).total_memory // 2**22 if device.type == "cuda" else 4096
    return BatchGenerator(
        engine.model, tokenizer, stop_ids, engine.autocast, cache_megabytes=megabytes, compiled=engine.compiled
    )
