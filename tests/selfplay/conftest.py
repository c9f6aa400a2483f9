"""Two tiny Llamas: one that must follow a chain of tokens, and a random one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.batch import BatchGenerator

VOCABULARY = 23
STOP = 1

Player = tuple[LogProbEngine, BatchGenerator]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = LlamaForCausalLM(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.2)
    return model


def _player(model: LlamaForCausalLM) -> Player:
    engine = LogProbEngine(model, tokens_per_forward=200)
    return engine, BatchGenerator(engine, _words(), frozenset({STOP}))


@pytest.fixture(scope="session")
def random_player() -> Callable[[], Player]:
    """A fresh engine and generator around always the same random weights, in float64."""
    return lambda: _player(_llama())


@pytest.fixture(scope="session")
def chain_player() -> Callable[[dict[int, int]], Player]:
    """``chain_player({5: 6, 6: 1})`` writes 6 after 5 and stops after 6, with probability 1 - 1e-200.

    Layers add nothing, token t is the unit vector t, and the head turns t into its successor.
    """

    def player(successors: dict[int, int]) -> Player:
        model = _llama()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight", "embed_tokens.weight")):
                    parameter.zero_()
            for token in range(VOCABULARY):
                model.model.embed_tokens.weight[token, token] = 1
            for token, successor in successors.items():
                model.lm_head.weight[successor, token] = 100
        return _player(model)

    return player
