"""llama.cpp cuts texts as the tokenizer does: each rule that has a name, over texts that tell rules apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_cpp_models import opened, write_random_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from spintune.errors import ModelError
from spintune.export.gguf.vocabulary import begins_itself, read_vocabulary
from spintune.export.gguf.writing import GgufMetadata, write_gguf
from spintune.progress import Silent

TEXTS = [
    "Hello world",
    " Hello  world   again    .",
    "I'm, you'RE, they've 'tis 'Twas don'T",
    "3 33 333 3333 33333 3.3 3,333 ½ ² ٣٤ १२३",
    "a1b22c333d4444",
    "\n\n\n \n\t\t x\r\n\r\ny \n  \n",
    "end with spaces   ",
    "   begin with spaces",
    "日本語のテキスト。中文，한국어! ไทย हिन्दी",
    "😀😶\u200d🌫️ 🦙🦙 é e\u0301 ñ Å ß İ ı",
    "snake_case camelCase HTTPServer __init__ x+=1; // -> ===> ```py\n    def f(x):\n\treturn x**2\n```",
    "price: $1,234.56 (−5%) №7 «quoted» “curly” … — –",
    "\u00a0nbsp\u2003em\u3000ideographic\u200bzero",
    "MiXeD ΑΒΓ αβγ ДЖЗ джз ǅ ʰ",
    "!!??..,,::;;--__//\\\\||",
    "https://example.com/a/b?c=1&d=2#e",
    "",
    " ",
    "\n",
]
OTHER_ALPHABETS = (TEXTS[8], TEXTS[9], TEXTS[13])
"""Texts with combining marks, or with cases of letters outside of a to z."""
LATIN = [
    "日本語のテキスト。中文，한국어! ไทย",
    "naïve café Straße",
    "MiXeD camelCase HTTPServer IT'S we'RE don'T x/y//z/\n/",
]
NEARLY = ("gpt-4o", "tekken")
CORPUS = [text * 3 for text in TEXTS] + ["the quick brown fox jumps over the lazy dog 12 345 6789"] * 4
ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
THREE = ENGLISH + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
ONE = ENGLISH + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
MARKS = ENGLISH + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + SPACES
UPPER, LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    f"{UPPER}*{LOWER}+{ENGLISH[:-1]}?|{UPPER}+{LOWER}*{ENGLISH[:-1]}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)
TEKKEN = f"{UPPER}*{LOWER}+|{UPPER}+{LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES,
)
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] + '<end>' }}{% endfor %}"


def split(*patterns: str) -> Any:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole()])


def whole() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(pre_tokenizer: Any, ignore_merges: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer of 700 tokens that cuts texts by a rule."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<begin>", "<end>"], initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<begin>", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def sentencepiece(prepend: bool, metaspace: str = "") -> PreTrainedTokenizerBase:
    """A tokenizer as Llama 2's (or, without a prepended space, Gemma's): merges of characters, bytes for the rest."""
    pieces = ["<unk>", "<begin>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=330, limit_alphabet=60)
    learned.train_from_iterator(CORPUS, trainer)
    model = json.loads(learned.to_str())["model"]
    learnt = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: id for id, piece in enumerate([*pieces, *learnt])}
    order = {piece: rank for rank, piece in enumerate(learnt)}
    cuts = [(piece[:i], piece[i:]) for piece in learnt for i in range(1, len(piece))]
    merges = [pair for pair in cuts if all(part in order for part in pair)]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prepend else [spaces])
    if metaspace:
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<begin>", eos_token="<end>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def phi_3() -> PreTrainedTokenizerBase:
    """Control tokens that take away the white space behind them, but for three."""
    tokenizer = sentencepiece(False)
    backend = tokenizer.backend_tokenizer
    marks = ["</s>", "<|user|>", "<|end|>", "<|assistant|>"]
    backend.add_special_tokens([AddedToken(mark, rstrip=True, special=True, normalized=False) for mark in marks])
    content = json.loads(backend.to_str())
    names = {"<begin>": "<s>", "<end>": "<|endoftext|>"}
    for one in content["added_tokens"]:
        one["content"] = names.get(one["content"], one["content"])
    content["model"]["vocab"] = {names.get(text, text): id for text, id in content["model"]["vocab"].items()}
    backend = Tokenizer.from_str(json.dumps(content))
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>"
    )
    made.chat_template = (
        "{% for message in messages %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    )
    return made


RULES: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], str]] = {
    "gpt-2": (lambda: byte_level(whole()), "gpt-2"),
    "digits": (lambda: byte_level(digits()), "smollm"),
    "llama-3": (lambda: byte_level(split(THREE), True), "llama-bpe"),
    "olmo-2": (lambda: byte_level(split(THREE)), "dbrx"),
    "qwen-2": (lambda: byte_level(split(ONE)), "qwen2"),
    "qwen-3.5": (lambda: byte_level(split(MARKS)), "qwen35"),
    "deepseek-3": (lambda: byte_level(split(*DEEPSEEK)), "deepseek-v3"),
    "gpt-oss": (lambda: byte_level(split(O200K)), "gpt-4o"),
    "tekken": (lambda: byte_level(split(TEKKEN), True), "tekken"),
    "llama-2": (lambda: sentencepiece(True), "default"),
    "gemma": (lambda: sentencepiece(False), "default"),
    "phi-3": (phi_3, "default"),
    "metaspace": (lambda: sentencepiece(False, "first"), "default"),
}


@pytest.mark.parametrize("name", RULES)
def test_texts_are_cut_as_the_tokenizer_cuts_them(tmp_path: Path, name: str) -> None:
    pytest.importorskip("llama_cpp")
    make, rule = RULES[name]
    tokenizer = make()
    folder = tmp_path / "model"
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    write_random_model(folder, "llama", vocab_size=len(tokenizer) + 3, **small)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, tmp_path / "model.gguf", "f16", GgufMetadata("tiny", "random"), Silent())
    model = opened(tmp_path / "model.gguf")
    assert model.metadata["tokenizer.ggml.pre"] == rule
    more = {
        "metaspace": [f"<begin>{text}<end>" for text in TEXTS] + ["<begin>a<end>  b <begin> c"],
        "phi-3": [*TEXTS, "<|user|>\n a b<|end|>\n\n <|assistant|>\tc", "<s> <|endoftext|> d<unk>  e"],
    }
    texts = more.get(name, TEXTS)
    if rule in NEARLY:
        texts = [text for text in texts if text not in OTHER_ALPHABETS] + LATIN
    for text in texts:
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert model.tokenize(text.encode(), add_bos=False, special=True) == expected, repr(text)
    model.close()


def test_a_rule_that_llama_cpp_does_not_have_is_refused() -> None:
    with pytest.raises(ModelError, match="tokens would silently differ"):
        read_vocabulary(byte_level(split(r"\p{N}{1,4}|\p{L}+")), 800)
    with pytest.raises(ModelError, match="tokens would silently differ"):
        read_vocabulary(byte_level(split(ONE), True), 800)
    with pytest.raises(ModelError, match="tokens would silently differ"):
        read_vocabulary(byte_level(split(O200K), True), 800)


def test_a_rule_that_llama_cpp_has_but_for_some_alphabets_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for made, rule in ((byte_level(split(O200K)), "gpt-4o"), (byte_level(split(TEKKEN), True), "tekken")):
        caplog.clear()
        assert read_vocabulary(made, 800).rule == rule
        (line,) = caplog.messages
        assert rule in line
        assert "combining marks" in line


def test_other_kinds_of_tokenizers_are_refused(t5_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match="Unigram"):
        read_vocabulary(t5_tokenizer, 800)
    lower = byte_level(whole())
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="rewrites texts"):
        read_vocabulary(lower, 800)
    with pytest.raises(ModelError, match="embeddings 10 rows"):
        read_vocabulary(byte_level(whole()), 10)


def test_a_token_that_takes_spaces_away_is_refused_where_the_template_writes_it() -> None:
    tokenizer = byte_level(whole())
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|user|>", rstrip=True, special=True)]})
    read_vocabulary(tokenizer, 800)
    tokenizer.chat_template = "<|user|>" + TEMPLATE
    with pytest.raises(ModelError, match=r"<\|user\|> takes away white space"):
        read_vocabulary(tokenizer, 800)


def test_the_first_token_is_llama_cpps_to_write_only_where_tokenizer_and_template_write_it() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level(whole())
    assert not begins_itself(tokenizer)
    begin = TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 0)])
    tokenizer.backend_tokenizer.post_processor = begin
    assert begins_itself(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + '<end>' }}{% endfor %}"
    assert not begins_itself(tokenizer)
