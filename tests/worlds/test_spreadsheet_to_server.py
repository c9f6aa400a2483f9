"""From a spreadsheet by a drafted recipe, a run and an export to a server that answers as we do."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import openpyxl
import pytest
from command_server import Command
from transformers_serve import free_port, served

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

QUESTION = "Mein Drucker 7 ist kaputt."


def spreadsheet(path: Path) -> Path:
    """As support teams have them: headings with capitals, umlauts, a column that means nothing here."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Nr", "Kundenfrage", "Unsere Antwort"])
    for number in range(40):
        device = ("Drucker", "Wasserkocher", "Kopfhörer", "Rucksack")[number % 4]
        sheet.append(
            [number, f"Mein {device} {number} ist kaputt.", f"Das tut uns leid. Ein neuer {device} ist unterwegs."]
        )
    book.save(path)
    return path


def answered(url: str, model: Path) -> str:
    """The greedy answer of a server."""
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": str(model), "messages": messages, "temperature": 0.0, "max_tokens": 12, "stream": False}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


@pytest.mark.slow
def test_a_spreadsheet_becomes_a_model_that_another_server_serves(tiny_model: Path, tmp_path: Path) -> None:
    rows = spreadsheet(tmp_path / "Anfragen 2026.xlsx")
    asked = ["--prompt", "Kundenfrage", "--response", "Unsere Antwort", "--model", tiny_model, "--yes"]
    made = Command("init", rows, *asked, "--out", "support.yaml", folder=tmp_path)
    assert made.wait() == 0, made.err
    ran = Command("run", "support.yaml", "out=runs/support", folder=tmp_path)
    assert ran.wait() == 0, ran.err
    exported = Command("export", "runs/support", "served model", "--model", "sft", folder=tmp_path)
    assert exported.wait() == 0, exported.err
    model = tmp_path / "served model"
    ours = Command("chat", model, "--prompt", QUESTION, "--temperature", "0", "--max-new-tokens", "12", folder=tmp_path)
    assert ours.wait() == 0, ours.err
    port = free_port()
    with served(port, tmp_path / "server.log"):
        theirs = answered(f"http://127.0.0.1:{port}", model).strip()
    cut = "[...]"  # chat says that there would be more
    assert theirs
    assert theirs == ours.out.strip().removesuffix(cut).strip()
