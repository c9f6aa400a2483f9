"""What is known of tokenizers that transformers makes from GGUF files.

A GGUF file holds a vocabulary, and only the name of the rule that cuts a text before it is looked up. What is said here
is what tests/models/gguf_vocabularies.py prints: the texts that llama.cpp keeps beside its vocabularies, with the ids
that it expects, against transformers 5.23. docs/how-to/bring-a-model.md has the table.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_KNOWN_RIGHT = {"gpt-2", "qwen2", "qwen35", "phi3"}  # phi3 is an architecture
_KNOWN_DIFFERENT = {
    "llama": "runs of spaces",
    "falcon": "some texts with numbers and marks",
    "llama-bpe": "rare texts",
    "starcoder": "rare texts",
    "deepseek-llm": "rare texts",
    "deepseek-coder": "rare texts",
    "smollm": "numbers, which transformers does not split into digits",
}


@cache
def tell_of_difference(path: Path, difference: str | None) -> None:
    """Warns, once a file, when its tokenizer is known to differ or of a kind that was not compared.

    Args:
        difference: what :func:`known_difference` found.
    """
    if difference is not None:
        log.warning(
            "%s: its tokenizer may cut some texts otherwise than the model's own (%s); name the model's Hugging Face "
            "folder where tokens must be equal",
            path,
            difference,
        )


@cache
def known_difference(path: Path) -> str | None:
    """How the tokenizer that transformers makes of a file differs from the model's own; None where it is equal."""
    from gguf import GGUFReader  # it takes a tenth of a second

    fields = GGUFReader(path).fields
    architecture, kind, rule = (
        str(fields[key].contents()) if key in fields else ""
        for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    )
    name = kind if kind == "llama" else rule
    if architecture in _KNOWN_RIGHT or name in _KNOWN_RIGHT or not kind:
        return None
    return _KNOWN_DIFFERENT.get(name, f"its rule {name!r} was not compared" if name else "the file names no rule")


def split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Restores SmolLM2's pre-tokenizer, which splits off every digit; its GGUF file only names it ("smollm")."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
