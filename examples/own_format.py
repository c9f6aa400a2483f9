"""A data format of your own: rows with the keys ``q`` and ``a``, where a row may hold several answers.

python examples/own_format.py FOLDER
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import spintune
from spintune import Message
from spintune.data.file_rows import FileRow


def conversations(row: FileRow) -> Iterator[tuple[Message, ...]]:
    """One conversation for each answer. Raises DataError, which names file and line, for a value of another type."""
    for answer in row.values["a"]:
        yield Message("user", row.text("q", "a question")), Message("assistant", answer)


spintune.register_format(spintune.Format("q-and-a", (("q", "a"),), conversations))

file = Path(sys.argv[1]) / "questions.jsonl"
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps({"q": "Name a color.", "a": ["Blue.", "Red."]}) + "\n")

examples = spintune.read(file)  # recognized by its keys; in a recipe: {path: questions.jsonl, format: q-and-a}
print(f"{len(examples)} examples: {[example.answer for example in examples]}")
