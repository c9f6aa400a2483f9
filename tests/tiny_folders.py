"""Tiny models as Hugging Face folders, with tokenizers as real ones have them: a Llama and a FLAN-T5."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CORPUS = ("the quick brown fox jumps over the lazy dog", "user assistant system")
T5_CORPUS = ("the quick brown fox jumps over the lazy dog", "Say fox two times. User: Assistant:")


def write_llama(folder: Path, *, vocabulary: int = 400, corpus: Sequence[str] = CORPUS, **changes: Any) -> Path:
    """A random Llama and a byte-level tokenizer with a ChatML template; ``changes`` are of its config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_level(vocabulary, corpus)
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **{**config, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _byte_level(vocabulary: int, corpus: Sequence[str]) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    controls = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=controls, initial_alphabet=alphabet)
    backend.train_from_iterator([*corpus] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=controls[0], eos_token=controls[1], pad_token=controls[1]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{{ message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


def new_t5_tokenizer(corpus: Sequence[str] = T5_CORPUS) -> PreTrainedTokenizerBase:
    """A tokenizer built as T5's is: Unigram with its control tokens among the pieces, and </s> after every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    controls = ["<pad>", "</s>", "<unk>"]
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(4))]
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=controls, unk_token="<unk>", initial_alphabet=list(string.printable.strip())
    )
    backend.train_from_iterator([*corpus] * 4, trainer)
    pieces = [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=[*pieces, *((text, 0.0) for text in sentinels)], extra_ids=len(sentinels))


def write_t5(folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> Path:
    """A random FLAN-T5, whose head is not tied to its embeddings; ``changes`` are of its config."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **{**config, **changes}))
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 32**0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
