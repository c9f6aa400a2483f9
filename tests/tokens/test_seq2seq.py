"""Text to text: what the encoder reads and the decoder writes, in which no text is ever control."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from spintune.errors import DataError, ModelError
from spintune.records import Example, Message, ToolCall
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.rendering import build_renderer
from spintune.tokens.rows import PROMPT_TOO_LONG, fit, render
from spintune.tokens.seq2seq import Seq2SeqRenderer, flatten

PAD, EOS, UNKNOWN = 0, 1, 2


def ask(text):
    return [Message("user", text)]


def example(question, answer):
    return Example((Message("user", question), Message("assistant", answer)))


@pytest.fixture(scope="module")
def renderer(t5_tokenizer):
    return Seq2SeqRenderer(t5_tokenizer)


@pytest.mark.parametrize(
    "text",
    ["the quick brown fox", " the  fox ", "line one\nline two\n", "", "  ", "fox", "ﬁne ½", "☃", "a<b>c", "x" * 300],
)
def test_ordinary_text_gets_the_tokenizers_own_ids_on_both_sides(renderer, t5_tokenizer, text):
    expected = tuple(t5_tokenizer(text).input_ids)
    assert expected[-1] == EOS
    row = renderer.row(example(text, text))
    assert row.prompt_ids == renderer.prompt(ask(text)) == expected
    assert row.response_ids == expected
    assert row.trained == (True,) * len(expected)
    assert row.complete


@pytest.mark.parametrize(
    "control",
    ["</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_3>"],
    ids=lambda text: text.strip("<>"),
)
@pytest.mark.parametrize("around", ["{}", "the {} fox", "the{}fox", "{}{}", "<{}>"])
def test_text_that_spells_a_control_token_stays_text(renderer, t5_tokenizer, control, around):
    text = around.replace("{}", control)
    *ids, last = renderer.prompt(ask(text))
    assert last == EOS
    sentinels = t5_tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(4)])
    assert not {PAD, EOS, UNKNOWN, *sentinels} & set(ids)
    assert t5_tokenizer.decode(ids) == text


def test_words_beside_a_control_text_keep_their_own_ids(renderer, t5_tokenizer):
    """Splitting the text there would take the space before "fox" for none."""
    ids = renderer.prompt(ask("the quick </s> brown fox"))
    words = t5_tokenizer("brown fox").input_ids
    assert ids[-len(words) :] == tuple(words)
    assert ids[: len(t5_tokenizer("the quick").input_ids) - 1] == tuple(t5_tokenizer("the quick").input_ids[:-1])


def test_a_conversation_is_flattened_as_documented():
    turns = [("user", "Hello!"), ("assistant", "Bonjour !"), ("user", "How are you?")]
    messages = [Message("system", "Answer in French."), *(Message(role, text) for role, text in turns)]
    assert flatten(messages) == (
        "Answer in French.\n\nUser: Hello!\nAssistant: Bonjour !\nUser: How are you?\nAssistant:"
    )
    assert flatten(messages[:2]) == "Answer in French.\n\nHello!"
    assert flatten(messages[1:2]) == "Hello!"


def test_the_prompt_of_a_row_is_what_generation_reads(renderer):
    messages = (*ask("say fox"), Message("assistant", "fox"), *ask("again"), Message("assistant", "fox fox"))
    row = renderer.row(Example(messages))
    assert row.prompt_ids == renderer.prompt(messages[:-1])
    assert row.response_ids == renderer.row(example("anything", "fox fox")).response_ids


def test_a_prompt_with_a_tool_is_refused_as_a_row_is(renderer):
    called = (*ask("Hi"), Message("assistant", "", tool_calls=(ToolCall("now", "{}"),)), Message("tool", "12:00"))
    for messages, tools in ((called, ()), (called[:2], ()), (ask("Hi"), ('{"type": "function"}',))):
        with pytest.raises(DataError, match="a text-to-text model has no form for tools; use a chat model"):
            renderer.prompt(messages, tools)


def test_generation_stops_where_training_ends(renderer):
    assert renderer.stop_ids == {EOS}
    assert renderer.end_ids == (EOS,)


def test_prompts_and_answers_have_limits_of_their_own(renderer):
    short, long = "fox", "the quick brown fox jumps over the lazy dog"
    examples = [example(short, long), example(long, short)]
    long_ids = len(renderer.prompt(ask(long)))
    rendered = render(examples, renderer, 8 + long_ids - 1, long_ids - 1, max_prompt=8)
    (row,) = rendered.rows
    assert rendered.dropped == {PROMPT_TOO_LONG: 1}
    assert (len(row.response_ids), row.complete) == (long_ids - 1, False)
    assert fit(renderer.row(examples[1]), 10_000, max_prompt=long_ids) == renderer.row(examples[1])
    with pytest.raises(DataError, match="every prompt is longer than 2 tokens"):
        render(examples, renderer, 100, max_prompt=2)


@pytest.mark.parametrize(
    "messages",
    [(), tuple(ask("Hi")), (Message("assistant", "Hi"),)],
    ids=["nothing", "no answer", "no question"],
)
def test_a_conversation_without_question_and_answer_is_refused_with_its_place(renderer, messages):
    with pytest.raises(DataError, match=r"data\.jsonl:3: the conversation does not end with an answer"):
        renderer.row(Example(messages, source="data.jsonl:3"))


@pytest.mark.parametrize(
    ("options", "message"),
    [(("alpaca",), "set data.template to tokenizer"), (("tokenizer", "all"), "set data.turns to last")],
)
def test_what_makes_no_sense_here_is_refused(t5_tokenizer, options, message):
    with pytest.raises(ModelError, match=message):
        Seq2SeqRenderer(t5_tokenizer, *options)


def test_a_tokenizer_that_does_not_end_texts_is_refused(t5_tokenizer):
    backend = PreTrainedTokenizerFast(tokenizer_object=t5_tokenizer.backend_tokenizer, eos_token="</s>")
    bare = PreTrainedTokenizerFast(tokenizer_object=_without_processor(backend), eos_token="</s>")
    with pytest.raises(ModelError, match="does not end a text"):
        Seq2SeqRenderer(bare)


def test_the_fingerprint_follows_the_tokenizer(t5_tokenizer, renderer):
    assert Seq2SeqRenderer(t5_tokenizer).fingerprint() == renderer.fingerprint()
    other = type(t5_tokenizer).from_pretrained(t5_tokenizer.name_or_path)
    other.add_tokens([AddedToken("quick", special=False)])
    assert Seq2SeqRenderer(other).fingerprint() != renderer.fingerprint()


def test_the_kind_of_model_decides_the_renderer(t5_tokenizer):
    assert isinstance(build_renderer(t5_tokenizer, "tokenizer", "last", encoder_decoder=True), Seq2SeqRenderer)
    assert isinstance(build_renderer(t5_tokenizer, "plain", "last", encoder_decoder=False), ChatRenderer)


def _without_processor(tokenizer):
    import json

    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}))
