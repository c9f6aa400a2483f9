"""Who may read what a run and its caches hold is decided by the umask, and by nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.gguf_files import tiny_gguf


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022])
def test_everything_that_a_run_writes_follows_the_umask(
    values: Callable[..., dict[str, Any]], tiny_model: Path, tmp_path: Path, umask: int
) -> None:
    from spintune.pipeline import run_recipe
    from spintune.progress import Silent
    from spintune.recipe import parse_recipe
    from spintune.report.page import write_report

    gguf = tiny_gguf(tmp_path / "tiny.gguf", tiny_model)
    script = tmp_path / "script.jsonl"
    script.write_text(
        """{"when": "classification task when", "reply": "No"}
        {"when": "Write examples of each task", "reply": "Output: Oats, apples and walnuts."}
        {"reply": "9. List three ingredients of a healthy breakfast."}"""
    )
    synth = {"instructions": 1, "requests_per_round": 1, "teacher": {"kind": "scripted", "model": str(script)}}
    alone = {"data": {"train": "synth"}, "sft": None, "spin": None, "eval": []}
    before = os.umask(umask)
    try:
        for name, changes in {"train": {"spin": {"iterations": 1}}, "synth": {"synth": synth, **alone}}.items():
            recipe = parse_recipe(values(tmp_path / "out" / name, model=str(gguf), **changes), "test")
            run_recipe(recipe, tmp_path / "out" / "cache", Silent())
        write_report([tmp_path / "out" / "train"])
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in (tmp_path / "out").rglob("*")}
    names = {path.name for path in found}
    assert {"model.safetensors", "rows.jsonl", "replies.sqlite", "report.html", "metrics.jsonl", "run.lock"} <= names
    wrong = {
        str(path.relative_to(tmp_path)): oct(mode)
        for path, mode in found.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
