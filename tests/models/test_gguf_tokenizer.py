"""A GGUF file whose tokenizer is known to differ says so."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from models.gguf_vocabularies import SEPARATOR, compare

from spintune.models.gguf_tokenizer import known_difference, tell_of_difference


def gguf_file(path: Path, architecture: str, kind: str | None, rule: str | None) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    if kind is not None:
        writer.add_tokenizer_model(kind)
    if rule is not None:
        writer.add_tokenizer_pre(rule)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "kind", "rule", "difference"),
    [
        ("gpt2", "gpt2", "gpt-2", None),
        ("qwen2", "gpt2", "qwen2", None),
        ("phi3", "llama", "default", None),
        ("llama", None, None, None),
        ("llama", "llama", "default", "runs of spaces"),
        ("falcon", "gpt2", "falcon", "some texts with numbers and marks"),
        ("llama", "gpt2", "smollm", "numbers, which transformers does not split into digits"),
        ("llama", "gpt2", "tekken", "its rule 'tekken' was not compared"),
        ("llama", "gpt2", None, "the file names no rule"),
    ],
)
def test_a_difference_is_known_by_the_kind_of_tokenizer_and_its_rule(
    tmp_path: Path, architecture: str, kind: str | None, rule: str | None, difference: str | None
) -> None:
    assert known_difference(gguf_file(tmp_path / "m.gguf", architecture, kind, rule)) == difference


def test_it_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = gguf_file(tmp_path / "m.gguf", "llama", "llama", "default")
    tell_of_difference(path, known_difference(path))
    tell_of_difference(path, known_difference(path))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{path}: its tokenizer may cut some texts otherwise than the model's own (runs of spaces)"
    )


def test_the_table_counts_the_texts_whose_ids_are_not_those_expected(tmp_path: Path) -> None:
    path = tmp_path / "ggml-vocab-tiny.gguf"
    tokens = ["<|endoftext|>", "a", "b", "Ġ", "ab"]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * 4])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    Path(f"{path}.inp").write_text(SEPARATOR.join(["ab", "ba", "b a", ""]))
    Path(f"{path}.out").write_text(" 4\n 2 1\n 2 3 2\n")  # the third is another text's
    found = compare(path)
    assert (found.rule, found.texts, found.different, found.said) == ("gpt2/gpt2/gpt-2", 4, ("b a",), "equal")
    assert found.row() == "| tiny | gpt2/gpt2/gpt-2 | 3 of 4 | equal | 'b a' |"
