"""Tokens that the vocabulary or the model lacks, and answers that are not to be trained."""

from __future__ import annotations

import logging

import pytest

from spintune.errors import DataError, ModelError
from spintune.records import Example, Message
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rendering import check_embeddings
from spintune.tokens.rows import NOTHING_TO_TRAIN, fit, render
from spintune.tokens.seq2seq import Seq2SeqRenderer

QUESTION = Message("user", "What is two plus two?")


def example(answer, **more):
    return Example((QUESTION, Message("assistant", answer, **more)))


# Unknown tokens --------------------------------------------------------------------------------------------------


def test_unknown_tokens_of_answers_are_counted_with_their_characters(t5_tokenizer):
    renderer = Seq2SeqRenderer(t5_tokenizer)
    answers = ["the fox", "the ☃ fox", "☃"]
    rendered = render([example(answer) for answer in answers], renderer, 100)
    ids = [t5_tokenizer(answer).input_ids for answer in answers]
    assert rendered.unknown == sum(row.count(t5_tokenizer.unk_token_id) for row in ids) == 2
    assert rendered.answer_tokens == sum(map(len, ids))
    assert rendered.unknown_characters == "☃"


def test_unknown_tokens_of_prompts_and_untrained_turns_do_not_count(t5_tokenizer):
    conversation = (Message("user", "☃"), Message("assistant", "the fox"))
    assert render([Example(conversation)], Seq2SeqRenderer(t5_tokenizer), 100).unknown == 0


def test_few_unknown_tokens_are_warned_about_in_one_line(t5_tokenizer, caplog):
    renderer = Seq2SeqRenderer(t5_tokenizer)
    rendered = render([example("the quick brown fox " * 30), example("a ☃")], renderer, 1000)
    with caplog.at_level(logging.WARNING):
        rendered.check_unknown()
    (record,) = caplog.records
    assert "answer tokens (" in record.getMessage()
    assert "the tokenizer has none for ☃" in record.getMessage()


def test_many_unknown_tokens_are_refused(t5_tokenizer):
    rendered = render([example("☃ fox ☃")], Seq2SeqRenderer(t5_tokenizer), 100)
    with pytest.raises(DataError, match="are unknown: the tokenizer has none for ☃; choose a model"):
        rendered.check_unknown()


def test_a_byte_level_vocabulary_knows_every_character(byte_level):
    renderer = ChatRenderer(byte_level("chatml"))
    assert renderer.unknown_id is None
    assert render([example("☃")], renderer, 100).unknown == 0


def test_a_chat_model_with_unknown_characters_counts_them_too(metaspace):
    rendered = render([example("two ☃ four")], ChatRenderer(metaspace("zephyr")), 100)
    assert (rendered.unknown, rendered.unknown_characters) == (1, "☃")


# Embeddings ------------------------------------------------------------------------------------------------------


def test_a_template_token_beyond_the_embeddings_is_named_with_both_sizes(byte_level, ordinary_token):
    mark = ordinary_token("<|late|>", special=True)
    template = "{% for m in messages %}{{ '<|late|>' + m.content + '<|im_end|>' }}{% endfor %}"
    tokenizer = byte_level(template, more=[mark])
    late = tokenizer.convert_tokens_to_ids("<|late|>")
    renderer = ChatRenderer(tokenizer)
    check_embeddings(renderer, late + 1, "model")
    with pytest.raises(ModelError, match=rf"model: the tokenizer gives the token '<\|late\|>' the id {late}, but"):
        check_embeddings(renderer, late, "model")


def test_a_special_token_that_is_never_written_may_lie_beyond_the_embeddings(byte_level, ordinary_token):
    tokenizer = byte_level("chatml", more=[ordinary_token("<|pad|>", special=True)])
    check_embeddings(ChatRenderer(tokenizer), tokenizer.convert_tokens_to_ids("<|pad|>"), "model")


def test_ordinary_vocabulary_beyond_the_embeddings_is_refused(byte_level, ordinary_token, t5_tokenizer):
    tokenizer = byte_level("chatml", more=[ordinary_token("<tool>")])
    with pytest.raises(ModelError, match="'<tool>'"):
        check_embeddings(ChatRenderer(tokenizer), len(tokenizer) - 1, "model")
    with pytest.raises(ModelError, match="the model has embeddings for 5 tokens"):
        check_embeddings(Seq2SeqRenderer(t5_tokenizer), 5, "model")


# Turns out of the loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", ["last", "all"])
def test_an_untrained_answer_leaves_nothing_to_train(byte_level, turns):
    row = ChatRenderer(byte_level("chatml"), turns=turns).row(example("Bad.", trained=False))
    assert not any(row.trained)
    assert fit(row, 1000) == NOTHING_TO_TRAIN


def test_an_untrained_answer_of_a_text_to_text_model_leaves_nothing_to_train(t5_tokenizer):
    assert fit(Seq2SeqRenderer(t5_tokenizer).row(example("fox", trained=False)), 1000) == NOTHING_TO_TRAIN


def test_all_turns_trains_those_that_are_to_be_trained(byte_level):
    tokenizer = byte_level("chatml", eos="<|im_end|>")
    bad = Message("assistant", "Bad.", trained=False)
    good = Message("assistant", "Four.")
    for messages in ((QUESTION, bad, QUESTION, good), (QUESTION, good, QUESTION, bad)):
        row = ChatRenderer(tokenizer, turns="all").row(Example(messages))
        ids = (*row.prompt_ids, *row.response_ids)
        trained = (False,) * len(row.prompt_ids) + row.trained
        assert tokenizer.decode([id for id, learns in zip(ids, trained, strict=True) if learns]) == "Four.<|im_end|>"
