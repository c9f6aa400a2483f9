"""The page of the docs that says which families of decoders are written to GGUF, and why the others are not.

``python tests/gguf_table.py`` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/reference/gguf-families.md"

UNKNOWN = "llama.cpp does not know it"
PACKAGE = "the gguf package (0.19) does not know it"
ENCODER = "llama.cpp knows no decoder of this kind"
NEWER = {
    "bailing_hybrid": "bailingmoe3",
    "cohere2_moe": "cohere2moe",
    "deepseek_v32": "deepseek32",
    "deepseek_v4": "deepseek4",
    "dots3_note_text": "dots3note",
    "granite_swa": "granite_swa",
    "granitemoe_swa": "granite_swa",
    "hrm_text": "hrm_text",
    "hy_v3": "hy_v3",
    "hy_v4": "hy_v4",
    "laguna": "laguna",
    "mellum": "mellum",
    "minimax": "minimax-01",
    "minimax_m3_vl_text": "minimax-m3",
}
"""Families that llama.cpp knows, by its name for them, and the package does not."""
REASONS: dict[str, tuple[str, ...]] = {
    UNKNOWN: (
        *("aria_text", "axk1", "axk2", "beam", "biogpt", "codegen", "cpmant", "ctrl", "diffllama", "doge", "flex_olmo"),
        *("flint", "gpt_neo", "gpt_neox_japanese", "gptj", "inkling2_text", "inkling_text", "jetmoe", "kolibri1"),
        *("lfm3", "longcat_flash", "modernbert-decoder", "nanochat", "olmo_hybrid", "openai-gpt", "opt", "persimmon"),
        *("recurrent_gemma", "rwkv", "vaultgemma", "xglm", "xlstm", "zamba", "zamba2", "zaya"),
    ),
    PACKAGE: tuple(NEWER),
    ENCODER: ("bert", "bert-generation", "electra", "megatron-bert", "rembert", "roberta", "roformer", "xlnet"),
    "its activation is not llama.cpp's": ("bitnet",),
    "its router is not llama.cpp's": ("phimoe",),
}

INTRO = """# Families of models in GGUF

`spintune export --to gguf` and `--to ollama` write these families of decoders. A tiny random model of each gives the
same logits in llama.cpp as in transformers (`tests/export/test_gguf_families.py`), also with other values of what
changes the computation in its config. A config that llama.cpp cannot express is refused in one line.

- Experts may be a tensor each in the checkpoint, or all in one.
- Rotary positions of the types linear, dynamic and YaRN are written for most families, Llama 3's where llama.cpp reads
  factors. Dynamic ones are as they are by default up to the model's longest text, where the file's context ends. Where
  llama.cpp has numbers of YaRN of its own (32, 1, whole dimensions), others are refused: gpt-oss as OpenAI published it
  (`truncate: false`) is among these.
- The tokenizer must be one whose rule llama.cpp has ([export](../how-to/export.md#llamacpp)). Of those of gpt-oss,
  Llama 4 and Mistral's Tekken it cuts some words of other alphabets than a to z otherwise; a warning says so.
- Layers that only predict further tokens (MTP) are not written; transformers does not load them.

This page is printed by `python tests/gguf_table.py`.
"""


def page() -> str:
    """The text of the page."""
    from spintune.export.gguf.families import FAMILIES

    written = "\n".join(f"| `{name}` | {family.architecture} |" for name, family in FAMILIES.items())
    others = "\n".join(
        f"| `{name}` | {reason} |"
        for name, reason in sorted((name, reason) for reason, names in REASONS.items() for name in names)
    )
    return (
        f"{INTRO}\n## Written\n\n| family | llama.cpp's name |\n| --- | --- |\n{written}\n\n"
        f"## Not written\n\nNo encoder-decoder is (T5 and others), nor the parts of a multimodal model.\n\n"
        f"| family | reason |\n| --- | --- |\n{others}\n"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    PAGE.write_text(page())
