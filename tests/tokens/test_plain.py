"""No text becomes a control token, whatever the vocabulary holds."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from spintune.errors import ModelError
from spintune.tokens.plain import PlainEncoder


def unigram(extra=()):
    """A SentencePiece vocabulary in which </s> is an ordinary entry too, as in T5's."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((char, -2.0) for char in "▁</s>ab"), *extra]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    return tokenizer


@pytest.mark.parametrize("text", ["</s>", "a</s>b", "</s></s>", "a </s>", "<</s>", "\uff1c/s\uff1e", "ab"])
@pytest.mark.parametrize("position", ["start", "control", "cut"])
def test_a_vocabulary_that_spells_a_control_token_as_text_is_made_not_to(text, position):
    tokenizer = unigram()
    [ids] = PlainEncoder(tokenizer, ["</s>", "<unk>"]).encode([text], position)
    assert tokenizer.token_to_id("</s>") not in ids
    spelled = tokenizer.decode(ids, skip_special_tokens=False)
    assert spelled.removeprefix(" ") == text.replace("\uff1c", "<").replace("\uff1e", ">")
    assert spelled.startswith(" ") == (position == "start")


def test_an_unknown_character_is_not_taken_for_a_control_token():
    [ids] = PlainEncoder(unigram(), ["</s>", "<unk>"]).encode(["a☃b"], "cut")
    assert unigram().token_to_id("<unk>") in ids


def test_a_control_token_of_one_character_that_is_also_text_is_refused():
    tokenizer = unigram()
    tokenizer.add_special_tokens(["a"])
    with pytest.raises(ModelError, match="spells the plain text 'ba' with a control token"):
        PlainEncoder(tokenizer, ["</s>", "a"]).encode(["ba"], "cut")


def test_positions_differ_only_in_the_prefix_space():
    tokenizer = Tokenizer(models.BPE(vocab={"Ġ": 0, "a": 1, "Ġa": 2}, merges=[("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    encoder = PlainEncoder(tokenizer, [])
    assert [encoder.encode(["a", " a"], position) for position in ("start", "control", "cut")] == [
        [[2], [2]],
        [[2], [2]],
        [[1], [2]],
    ]
