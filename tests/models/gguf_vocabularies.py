"""How the tokenizers that transformers makes from GGUF files differ from llama.cpp's own, as a table.

    python tests/models/gguf_vocabularies.py FOLDER [NAME ...]

``FOLDER`` holds ``ggml-vocab-*.gguf`` with the ``.inp`` texts and ``.out`` ids beside them: ``models/`` of
github.com/ggml-org/llama.cpp, which the source distribution of llama-cpp-python holds as well. What
:mod:`spintune.models.gguf_tokenizer` says of a rule was printed by this.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader
from transformers import AutoTokenizer
from transformers.utils import logging

from spintune.models.gguf_tokenizer import known_difference

RULE = ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
SEPARATOR = "\n__ggml_vocab_test__\n"


@dataclass(frozen=True)
class Comparison:
    """One vocabulary: the texts whose ids are not those that llama.cpp expects, out of ``texts``."""

    name: str
    rule: str
    texts: int
    different: tuple[str, ...]
    said: str
    problem: str = ""

    def row(self) -> str:
        """A row of the table."""
        examples = ", ".join(repr(text) for text in sorted(self.different, key=len)[:3])
        equal = self.problem or f"{self.texts - len(self.different)} of {self.texts}"
        return f"| {self.name} | {self.rule} | {equal} | {self.said} | {examples.replace('|', chr(92) + '|')} |"


def compare(path: Path) -> Comparison:
    """Holds the tokenizer of one file against the ids that are expected beside it."""
    fields = GGUFReader(path).fields
    rule = "/".join(str(fields[key].contents()) if key in fields else "" for key in RULE)
    name = path.stem.removeprefix("ggml-vocab-")
    said = known_difference(path) or "equal"
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    expected = [[int(id) for id in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers cannot read every kind
        return Comparison(name, rule, len(texts), (), said, f"{type(error).__name__}")
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    different = [text for text, mine, right in zip(texts, found, expected, strict=True) if mine != right]
    return Comparison(name, rule, len(texts), tuple(different), said)


def main(folder: Path, names: list[str]) -> None:
    """Prints the table, of some vocabularies or all."""
    logging.set_verbosity_error()
    print("| vocabulary | rule | texts with equal ids | what spintune says | such as |")
    print("| --- | --- | --- | --- | --- |")
    for path in sorted(folder.glob("ggml-vocab-*.gguf")):
        chosen = not names or path.stem.removeprefix("ggml-vocab-") in names
        if chosen and Path(f"{path}.inp").is_file():
            print(compare(path).row(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
