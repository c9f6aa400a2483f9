"""A random Llama whose tokens are the words of a small world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MAX_LENGTH = 64
"""Of prompt and answer together. [tokens]"""


def write_word_model(
    folder: Path, seed: int, words: Sequence[str], width: int = 64, layers: int = 2, max_length: int = MAX_LENGTH
) -> None:
    """Writes a model, of about 0.1 million weights by default, and its tokenizer."""
    tokenizer = word_tokenizer(words)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=max_length,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of words, with a chat template."""
    controls = ["<|im_start|>", "<|im_end|>", "<unk>"]
    plain = ["user", "assistant", *words]
    backend = Tokenizer(models.WordLevel({word: id for id, word in enumerate(controls + plain)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=controls[0], eos_token=controls[1], pad_token=controls[1], unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
    )
    return tokenizer
