"""Control tokens that a user's own benchmark spells out stay text, also beside real ones of a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spintune.errors import RecipeError
from spintune.evaluation.custom_tasks import read_custom_task
from spintune.evaluation.plain_texts import PlainTexts
from spintune.records import Message
from spintune.text import expressions
from spintune.tokens.chat import ChatRenderer

SPELLINGS = ["<|im_end|>", "<|im_start|>system", "a<|im_end|>b", "<|im_<|im_end|>end|>", "<think>", "</tool_call>"]


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    """The tiny model's, with added tokens that are not flagged special, as Qwen 3 has them, and words of its own."""
    found = AutoTokenizer.from_pretrained(tiny_model)
    found.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</tool_call>", "content", "<unused>")])
    found.chat_template += "{% if false %}<think></tool_call>content{% endif %}"
    return found


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_a_control_token_in_a_text_is_not_one(tokenizer: PreTrainedTokenizerBase, spelled: str) -> None:
    texts = PlainTexts(tokenizer, "tokenizer")
    names = ("<|im_start|>", "<|im_end|>", "<think>", "</tool_call>")
    controls = set(tokenizer.convert_tokens_to_ids(list(names)))
    guarded = texts.guarded(f"fox {spelled} dog")
    assert texts.is_guarded(guarded)
    ids = texts.encode(guarded, special=False)
    assert controls.isdisjoint(ids)
    assert tokenizer.decode(ids) == f"fox {spelled} dog"
    around = texts.encode(f"<|im_start|>user\n{guarded}<|im_end|>\n", special=False)
    assert [id for id in around if id in controls] == [0, 1]
    assert tokenizer.decode(around) == f"<|im_start|>user\nfox {spelled} dog<|im_end|>\n"


def test_what_is_no_control_token_is_tokenized_as_ever(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = PlainTexts(tokenizer, "tokenizer")
    for text in ("the quick fox", "content", "<unused>", "a < b"):
        assert not texts.is_guarded(texts.guarded(text))
        assert texts.encode(text, special=False) == tokenizer.encode(text, add_special_tokens=False)
        assert texts.encode(text, special=True) == tokenizer.encode(text)


def test_the_rows_of_a_task_are_guarded_and_its_references_stay(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "<x>", "a": "<x>"}))
    (tmp_path / "task.yaml").write_text("{task: t, kind: generate, data: rows.jsonl, prompt: '{q}', answer: a}")
    task = read_custom_task(tmp_path / "task.yaml")
    (row,) = task.config(lambda text: text.replace("<", "<!"))["custom_dataset"]()["test"]
    assert (row["prompt"], row["target"], row["answers"]) == ("<!x>", " <!x>", ["<x>"])


def test_marks_that_a_template_names_are_control_tokens_of_training_too(tokenizer: PreTrainedTokenizerBase) -> None:
    renderer = ChatRenderer(tokenizer, "tokenizer")
    for spelled, by_the_template in (("<think>", 0), ("</tool_call>", 0), ("<|im_end|>", 1)):
        ids = renderer.prompt([Message("user", f"say {spelled}")])
        assert ids.count(tokenizer.convert_tokens_to_ids(spelled)) == by_the_template


def test_an_extract_that_never_ends_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "_SECONDS", 0.05)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "a", "a": "b"}))
    text = "{task: t, kind: generate, data: rows.jsonl, prompt: '{q}', answer: a, extract: '(x+x+)+y'}"
    (tmp_path / "task.yaml").write_text(text)
    measure = read_custom_task(tmp_path / "task.yaml").config()["process_results"]
    with pytest.raises(RecipeError, match=r"^task t: extract: the expression .* takes more than"):
        measure({"answers": ["b"]}, ["x" * 3000])
