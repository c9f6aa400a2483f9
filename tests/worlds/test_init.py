"""``spintune init``: what it says, asks and writes, and that what it writes runs as it stands."""

from __future__ import annotations

import csv
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.cli.questions import Questions

Spintune = Callable[..., Any]
ROWS = 70


def asked(n: int) -> str:
    return f"My lamp number {n} is broken, what can I do?"


def told(n: int) -> str:
    return f"Send number {n} back."


def write_csv(path: Path, head: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *head])
        writer.writerows([n, asked(n), told(n)] for n in range(ROWS))
    return path


def write_xlsx(path: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["prompt", "response"])
    for n in range(ROWS):
        book.active.append([asked(n), told(n)])
    book.save(path)
    return path


def write_lines(path: Path, row: Callable[[int], dict[str, Any]], rows: int = ROWS) -> Path:
    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(rows)))
    return path


def chat_row(n: int) -> dict[str, Any]:
    turns = [
        ("system", "Be brief."),
        ("user", asked(n)),
        ("assistant", told(n)),
        ("user", "Thanks."),
        ("assistant", "!"),
    ]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


FILES: dict[str, Callable[[Path], Path]] = {
    "csv": lambda folder: write_csv(folder / "data.csv", ["customer message", "agent reply"]),
    "xlsx": lambda folder: write_xlsx(folder / "data.xlsx"),
    "chat": lambda folder: write_lines(folder / "data.jsonl", chat_row),
    "alpaca": lambda folder: write_lines(
        folder / "data.json", lambda n: {"instruction": asked(n), "input": "", "output": told(n)}
    ),
    "preferences": lambda folder: write_lines(
        folder / "data.jsonl", lambda n: {"prompt": asked(n), "chosen": told(n), "rejected": "No."}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_the_recipe_runs_as_it_stands(
    kind: str, spintune: Spintune, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    play = ["--self-play"] if kind == "preferences" else []
    made = spintune("init", FILES[kind](tmp_path).name, "--model", tiny_model, "--yes", *play)
    assert made.code == 0, made.err
    assert "fits: " in made.out
    assert "spintune run data.yaml" in made.out
    ran = spintune("run", "data.yaml", "--quiet")
    assert ran.code == 0, ran.err
    assert "The model to use is" in ran.out
    assert (tmp_path / "runs/data/best.json").is_file()
    if kind == "chat":
        assert "system messages in 70, earlier turns in 70" in made.out
        assert "turns: all" in (tmp_path / "data.yaml").read_text()


def test_what_is_missing_is_named_with_its_flag(
    spintune: Spintune, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = spintune("init")
    assert (nothing.code, len(nothing.err.splitlines())) == (2, 1)
    assert "spintune init needs data: spintune init FILE" in nothing.err
    write_csv(tmp_path / "support.csv", ["customer message", "agent reply"])
    unknown = spintune("init", "support.csv", "--model", tiny_model)
    assert unknown.code == 2
    assert unknown.err.splitlines()[-1] == (
        "spintune: support.csv: no column is known as a prompt or an answer (columns: id, customer message, agent "
        "reply); give --prompt COLUMN and --response COLUMN, or --yes for customer message and agent reply"
    )
    assert not (tmp_path / "support.yaml").exists()
    (tmp_path / "support.yaml").write_text("mine")
    taken = spintune("init", "support.csv", "--model", tiny_model, "--out", "support.yaml")
    assert taken.code == 2
    assert "support.yaml exists, and nothing is overwritten" in taken.err
    assert (tmp_path / "support.yaml").read_text() == "mine"
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nosuch.yaml")
    taken = spintune("init", "support.csv", "--model", tiny_model, "--out", "link.yaml")
    assert (taken.code, "link.yaml exists" in taken.err) == (2, True)


def test_columns_that_are_named_are_in_the_recipe(
    spintune: Spintune, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spintune.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "support.csv", ["customer message", "agent reply"])
    (tmp_path / "held.csv").write_text(f'customer message,agent reply\nHello,Hi\n"{asked(1)}",Yes\n')
    flags = ["--prompt", "customer message", "--response", "agent reply", "--out", "mine.yaml", "--json"]
    flags += ["--heldout", "held.csv"]
    made = spintune("init", "support.csv", "--model", tiny_model, *flags)
    assert made.code == 0, made.err
    found = json.loads(made.out)
    assert found["recipe"] == "mine.yaml"
    assert found["text"] == (tmp_path / "mine.yaml").read_text()
    assert (found["found"]["kept"], found["found"]["format"]) == (ROWS, "prompt")
    data = load_recipe(tmp_path / "mine.yaml").data
    assert data.train[0].columns == {"prompt": "customer message", "response": "agent reply"}
    assert (found["heldout"]["kept"], [source.path for source in data.heldout or ()]) == (2, ["held.csv"])
    assert "These are 2 prompts, fewer than the 50 by which a model can be chosen." in found["text"].replace(
        "\n  # ", " "
    )


@pytest.mark.slow
def test_the_recipe_fits_memory_and_patience(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    """Of 300 rows, as many as train in no time are the fewest, 200. LoRA where all weights take too much memory."""
    from spintune.cli.init import InitOptions, _Opened
    from spintune.cli.questions import Questions
    from spintune.plan.devices import Target
    from spintune.progress import Silent

    path = write_lines(tmp_path / "d.jsonl", lambda n: {"prompt": asked(n), "response": told(n)}, 300)
    options = InitOptions(str(tiny_model), None, None, False, None)
    rows = [{"prompt": asked(0), "response": told(0)}]
    seen = _Opened.of(str(path), rows, options, Questions(False, True)).look(Silent())
    drafted = seen.draft(False, None)
    here = Target(False, None, 1, 10**10, 0.35, True)
    values, plan = seen.fitted(drafted, here, Silent(), budget=1e-6)
    assert values["data"]["train"]["limit"] == 200
    assert plan.fits
    assert plan.rows.sft.rows + plan.rows.heldout == 200
    assert seen.fitted(drafted, here, Silent())[0] == drafted
    small = Target(False, None, 1, 1000, 0.35, False)
    values, plan = seen.fitted(drafted, small, Silent())
    assert (values["lora"], values["sft"]["learning_rate"], plan.fits) == ({"rank": 16}, "auto", False)
    seen.write(values, tmp_path / "r.yaml")
    assert "All weights would not fit" in (tmp_path / "r.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", b"", "empty; give a file with at least one row"),
        ("paper.pdf", b"%PDF-1.7\n\x00", "'.pdf' is not a supported data file"),
        ("latin.csv", "prompt,response\nWie?,Für heute\n".encode("latin-1"), "not UTF-8 (byte 0xfc)"),
        ("rows.jsonl", b'{"prompt": "a", "response": ""}\n', "no examples are left (1 empty_answer)"),
        ("turns.jsonl", b'{"turns": ["a"], "id": 1}\n', "give --prompt COLUMN and --response COLUMN"),
    ],
)
def test_files_that_are_no_data_get_one_line(
    name: str, content: bytes, says: str, spintune: Spintune, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    ended = spintune("init", tmp_path / name, "--model", tiny_model, "--out", tmp_path / "r.yaml")
    assert ended.code != 0
    (line,) = [line for line in ended.err.splitlines() if line.startswith("spintune:")]
    assert says in line
    assert not (tmp_path / "r.yaml").exists()


def session(words: list[str], answers: dict[str, str], folder: Path) -> tuple[int, str]:
    """A command at a pseudo-terminal, whose questions are answered in their order; its exit code and its screen."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "spintune", *words]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, start_new_session=True)
    os.close(slave)
    screen, waiting, place, until = "", list(answers.items()), 0, time.monotonic() + 900
    while time.monotonic() < until:
        if not select.select([master], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(master, 65536)
        except OSError:  # the other side has closed
            break
        if not data:
            break
        screen += data.decode("utf-8", "replace")
        while waiting and (at := screen.find(waiting[0][0], place)) >= 0:
            os.write(master, f"{waiting[0][1]}\n".encode())
            place = at + len(waiting.pop(0)[0])
    os.close(master)
    return process.wait(), screen


@pytest.mark.parametrize(
    ("typed", "taken"),
    [("", "Frage"), ("Frage", "Frage"), ("FRAGE", "Frage"), ("frage", "frage"), ("antwort", "Antwort")],
)
def test_an_answer_is_the_choice_as_it_is_spelled(monkeypatch: pytest.MonkeyPatch, typed: str, taken: str) -> None:
    monkeypatch.setattr("builtins.input", lambda question: typed)
    questions = Questions(asks=True, accepts=False)
    assert questions.text("Column", "Frage", "--prompt", ["Frage", "frage", "Antwort"]) == taken
    monkeypatch.setattr("builtins.input", lambda question: "YES")
    assert questions.agrees("Sure?", False, "--yes")


@pytest.mark.slow
def test_a_session_at_a_terminal(tiny_model: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "support.csv", ["customer message", "agent reply"])
    answers = {
        "Column of prompts [customer message]:": "",
        "Column of answers [agent reply]:": "no such column",
        "one of: id, customer message, agent reply": "",
        "Model [smollm2-135m-instruct]:": str(tiny_model),
        "Self-play after SFT, with a baseline at equal compute? (y/n) [n]:": "y",
        "Recipe to write [support.yaml]:": "mine.yaml",
    }
    code, screen = session(["init", "support.csv"], answers, tmp_path)
    assert code == 0, screen
    assert "70 read, 70 kept, 70 distinct prompts" in screen
    assert "spintune run mine.yaml" in screen
    text = (tmp_path / "mine.yaml").read_text()
    assert "baseline: sft" in text
    assert 'columns: {prompt: "customer message", response: "agent reply"}' in text
