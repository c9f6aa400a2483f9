"""Files of generated examples in the formats of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from spintune.storage import atomic_file, write_json, write_json_lines
from spintune.synthesis.examples import GeneratedExample

ExportFormat = Literal["alpaca", "chat", "parquet"]


def export_examples(folder: Path, examples: Sequence[GeneratedExample], format: ExportFormat) -> Path:
    """Writes the examples for other tools: alpaca.json, chat.jsonl (messages) or examples.parquet."""
    rows = [one.to_json() for one in examples]
    if format == "alpaca":
        path = folder / "alpaca.json"
        write_json(path, rows)
    elif format == "chat":
        path = folder / "chat.jsonl"
        conversations = [[asdict(message) for message in one.example.messages] for one in examples]
        write_json_lines(
            path,
            [
                {"messages": messages, "provenance": row["provenance"]}
                for messages, row in zip(conversations, rows, strict=True)
            ],
        )
    else:
        import pyarrow
        import pyarrow.parquet

        path = folder / "examples.parquet"
        with atomic_file(path) as file:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return path
