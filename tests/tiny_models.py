"""Tiny real models of many families, and queries with every awkward shape."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from spintune.engine.query import Query
from spintune.kernels.native.build import SWITCH, why_not

VOCABULARY = 97

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 6.0, 9.0],
    "original_max_position_embeddings": 20,
    "factor": 6.4,
}
"""Rotary frequencies that change at 20 tokens, for heads of width 8."""
WINDOW = {"sliding_window": 5}
# what differs from COMMON; every window is shorter than the rows, every soft cap is small enough to matter
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"head_dim": 8},
    "mistral": WINDOW,
    "gemma2": {"head_dim": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0, **WINDOW},
    "gemma3_text": {
        "head_dim": 8,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        **WINDOW,
    },
    "phi3": WINDOW,
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    # longer than the engine's probe, shorter than the rows
    "doge": {"sliding_window": 13},
}


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compiled(cache: Path) -> None:
    """Skips where there is no compiler; where there is one, it must do."""
    absent = sys.platform != "linux" or not any(map(shutil.which, ("g++", "c++")))
    if absent or os.environ.get(SWITCH, "").lower() in ("0", "off", "no"):
        pytest.skip("no compiler here, or switched off")
    assert why_not() is None


Build = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def build() -> Build:
    """``build(family, **changes)``: a fresh random model; equal arguments give equal weights."""

    def model(family: str, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
        config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **changes})
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
            with torch.no_grad():
                # wide weights: what a token sees then changes its prediction by whole nats
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.normal_(0, 0.3)
        return model.to(dtype)

    return model


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the word "wi"."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="session")
def queries() -> list[Query]:
    """1, 2 and 3 responses; a prompt and a response of one token; masks with holes, and one without any token."""
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=generator).tolist())

    holes = tuple(i % 3 != 1 for i in range(9))
    return [
        Query(ids(9), (ids(11), ids(1), ids(8))),
        Query(ids(1), (ids(1), ids(12))),
        Query(ids(13), (ids(9),), (holes,)),
        Query(ids(4), (ids(6), ids(9)), ((False,) * 6, holes)),
    ]


Plain = Callable[[PreTrainedModel, list[Query]], torch.Tensor]


@pytest.fixture(scope="session")
def plain() -> Plain:
    """The definition: for each response, log softmax of one forward over prompt and response, scored tokens summed."""

    def sums(model: PreTrainedModel, queries: list[Query]) -> torch.Tensor:
        result = []
        for query in queries:
            for j, response in enumerate(query.responses):
                ids = torch.tensor([[*query.prompt, *response]])
                logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
                begin = len(query.prompt)
                scored = query.scored[j] if query.scored else (True,) * len(response)
                terms = [logprobs[begin + i - 1, token] for i, token in enumerate(response) if scored[i]]
                result.append(torch.stack(terms).sum() if terms else logprobs.sum() * 0)
        return torch.stack(result)

    return sums
