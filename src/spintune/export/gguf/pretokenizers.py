"""Which rule of llama.cpp cuts a text as a tokenizer's own pre-tokenizer does.

llama.cpp has no rules of its own in a file: it looks up a name. The name is found here by the structure of
tokenizer.json, which says what is done, and not by what it does to one text. ``tests/export/test_gguf_tokens.py`` holds
each rule against llama.cpp over many texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from spintune.errors import ModelError
from spintune.typed_json import JsonObject

log = logging.getLogger(__name__)

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_BYTES = "bytes"  # GPT-2's expression inside ByteLevel
_DIGITS = "digits, bytes"
_THREE_DIGITS = rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1,3}}{_REST}"
_ONE_DIGIT = rf"{_ENGLISH}|{_WORD}|\p{{N}}{_REST}"
_MARKED_LETTERS = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_DEEPSEEK = "\n".join(
    (
        r"\p{N}{1,3}",
        r"[一-龥\u3040-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)

_UPPER, _LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = rf"{_UPPER}*{_LOWER}+{_ENGLISH}?|{_UPPER}+{_LOWER}*{_ENGLISH}?|\p{{N}}{{1,3}}{_PATHS}"
_TEKKEN = rf"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*|\p{{N}}{_PATHS}"

_NAMES: dict[tuple[str, bool], str] = {
    (_BYTES, False): "gpt-2",
    (_DIGITS, False): "smollm",
    (_THREE_DIGITS, True): "llama-bpe",
    (_THREE_DIGITS, False): "dbrx",
    (_ONE_DIGIT, False): "qwen2",
    (_MARKED_LETTERS, False): "qwen35",
    (_DEEPSEEK, False): "deepseek-v3",
}
"""By what is done, and whether words that are tokens are taken whole (ignore_merges)."""
_NEARLY: dict[tuple[str, bool], str] = {(_O200K, False): "gpt-4o", (_TEKKEN, True): "tekken"}
"""Rules that llama.cpp has but for letters outside of a to z: it cuts before combining marks and cannot tell cases."""


def rule_name(pre_tokenizer: JsonObject | None, ignore_merges: bool) -> str:
    """llama.cpp's name for a pre-tokenizer of tokenizer.json, with a warning where its rule differs for some alphabets.

    Raises ModelError where no name is known.
    """
    rule = _structure(_steps(pre_tokenizer)), ignore_merges
    if (nearly := _NEARLY.get(rule)) is not None:
        log.warning(
            "llama.cpp's rule %s cuts some words of other alphabets than a to z otherwise than the model's tokenizer: "
            "before combining marks (Hindi, Arabic with vowels), and where large letters follow small ones",
            nearly,
        )
        return nearly
    if (found := _NAMES.get(rule)) is None:
        raise ModelError(
            "its tokenizer cuts texts by a rule that llama.cpp is not known to have, so tokens would silently differ; "
            "not exported to GGUF (export the folder instead)"
        )
    return found


def _steps(pre_tokenizer: JsonObject | None) -> list[JsonObject]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [step for one in pre_tokenizer["pretokenizers"] for step in _steps(one)]
    return [pre_tokenizer]


def _structure(steps: Sequence[JsonObject]) -> str:
    """What the steps do, in one text; empty for what is not known."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return ""
    *before, bytes_step = steps
    whole = bytes_step.get("use_regex", True)
    if whole and not before:
        return _BYTES
    if whole:
        digits = len(before) == 1 and before[0]["type"] == "Digits" and before[0].get("individual_digits")
        return _DIGITS if digits else ""
    # cutting out every match, or removing what lies between matches that leave nothing over
    ways = (("Isolated", False), ("Removed", True))
    if any(one["type"] != "Split" or (one.get("behavior"), one.get("invert", False)) not in ways for one in before):
        return ""
    return "\n".join(str(one["pattern"].get("Regex", "")) for one in before)
