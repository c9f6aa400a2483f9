"""Models and data of the worlds: as small as they can be, and still of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_folders import CORPUS, T5_CORPUS, new_t5_tokenizer, write_llama, write_t5

ANSWER = "the quick brown fox jumps over the lazy dog"
ANIMALS = ("fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow", "pig", "elk")


def build(folder: str) -> None:
    """Writes everything into ``folder``. It needs torch, so it runs in a child of the fork server."""
    place = Path(folder)
    write_llama(
        place / "decoder", vocabulary=300, corpus=(*CORPUS, T5_CORPUS[1]), intermediate_size=48, num_hidden_layers=1
    )
    write_t5(place / "t5", new_t5_tokenizer(), d_ff=48, num_layers=1)
    rows = [
        {"instruction": f"Say {animal} {count} times.", "input": "", "output": " ".join([animal] * count)}
        for animal in ANIMALS
        for count in (1, 2, 4)
    ]
    _lines(place / "animals.jsonl", rows)
    many = [
        {"instruction": f"Say {animal} {count} times.", "output": " ".join([ANIMALS[(3 * count + number) % 10]] * 2)}
        for number, animal in enumerate(ANIMALS)
        for count in range(8)
    ]
    _lines(place / "many.jsonl", many)
    _tasks(place)
    _evaluations(place)


def _tasks(folder: Path) -> None:
    made = {
        "sums": ("arithmetic", [(f"{n} plus {n}", f"{n} and {n} make {2 * n}.", 2 * n) for n in range(12)]),
        "halves": ("arithmetic", [(f"half of {2 * n}", f"two times {n} is {2 * n}.", n) for n in range(12)]),
        "doubles": ("doubling", [(f"twice {n}", f"{n} and {n} make {2 * n}.", 2 * n) for n in range(12)]),
    }
    for name, (cluster, rows) in made.items():
        _lines(folder / f"{name}.jsonl", [{"question": q, "why": why, "answer": str(a)} for q, why, a in rows])
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\ncluster: {cluster}\nfamily: arithmetic\nfile: {name}.jsonl\ncheck: number\n"
            "fields: {question: question, rationale: why, answer: answer}\nphrasings: builtin:arithmetic\n"
        )


def _evaluations(folder: Path) -> None:
    rule = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    _lines(folder / "ifeval.jsonl", [{"key": n, "prompt": f"Say number {n} without commas.", **rule} for n in range(4)])
    asked = [f"Say it {n} times" for n in range(11)]
    instances = [{"input": "", "output": ANSWER}]
    _lines(
        folder / "questions.jsonl",
        [{"id": f"q{n}", "instruction": text, "instances": instances} for n, text in enumerate(asked)],
    )
    _lines(folder / "parrot.jsonl", [{"instruction": text, "input": "", "response": ANSWER} for text in asked])
    _lines(
        folder / "mt-bench.jsonl",
        [{"question_id": n, "category": "writing", "turns": [f"Write {n}", "Again"]} for n in range(2)],
    )


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
