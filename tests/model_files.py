"""Files of models in a run folder, with the digests that the run wrote down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer_config.json": b'{"model_max_length": 512}',
    "model.safetensors": bytes(range(256)),
    "additional_chat_templates/tool.jinja": b"{{ messages }}",
}


def write_model(run: Path, stage: str, files: dict[str, bytes] = FILES) -> Path:
    """The files of a model, and their digests in the stage's manifest."""
    listed = {}
    for name, content in files.items():
        path = run / stage / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        facts = {"bytes": len(content), "mtime_ns": path.stat().st_mtime_ns}
        listed[f"model/{name}"] = {**facts, "sha256": hashlib.sha256(content).hexdigest()}
    manifest = run / stage / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": listed}))
    return run / stage / "model"
