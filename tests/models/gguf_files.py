"""Tiny GGUF files with a model and a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np


def tiny_gguf(path: Path, tokenizer_folder: Path, seed: int = 0) -> Path:
    """A Llama of one layer, quantized to 8 bits, with the byte-level tokenizer of a Hugging Face folder."""
    settings = json.loads((tokenizer_folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(settings["vocab"], key=settings["vocab"].get)
    width, inner = 32, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in settings["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}")
    random = np.random.default_rng(seed)
    block = {"attn_q": (width, width), "attn_k": (16, width), "attn_v": (16, width), "attn_output": (width, width)}
    block |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    shapes = {"token_embd": (len(tokens), width)} | {f"blk.0.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        weights = random.standard_normal(shape, np.float32) / 8
        packed = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
