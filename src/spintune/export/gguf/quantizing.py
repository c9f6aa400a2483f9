"""Types that llama.cpp alone writes: K-quants, through llama-quantize or llama-cpp-python."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from spintune.errors import MissingExtraError, ModelError
from spintune.progress import Progress

QUANTIZED = {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_0": 2,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_0": 8,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
}
"""llama.cpp's numbers of file types."""
PROGRAM = "llama-quantize"


def need_quantizer(kind: str) -> None:
    """Raises MissingExtraError where nothing here writes this type."""
    if shutil.which(PROGRAM) is None and importlib.util.find_spec("llama_cpp") is None:
        raise MissingExtraError(
            f"{kind} is written by llama.cpp: put its {PROGRAM} on the PATH, or pip install 'spintune[gguf]'; q8_0, "
            "f16, bf16 and f32 need neither"
        )


def quantize_file(source: Path, target: Path, kind: str, progress: Progress) -> None:
    """Writes a file of another type. Raises ModelError where llama.cpp cannot."""
    with progress.task(f"quantize to {kind}", source.stat().st_size / 1e6, "MB") as task:
        if program := shutil.which(PROGRAM):
            _by_program(program, source, target, kind)
        else:
            _by_library(source, target, kind)
        task.advance(source.stat().st_size / 1e6)


def _by_program(program: str, source: Path, target: Path, kind: str) -> None:
    done = subprocess.run(
        [program, str(source), str(target), kind.upper()], capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode or not target.is_file():
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ModelError(f"{PROGRAM} could not write {kind} ({(lines or ['it gave no reason'])[-1]}); not exported")


def _by_library(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = QUANTIZED[kind]
    silence = llama_cpp.llama_log_callback(lambda *_: None)  # a line for each tensor
    llama_cpp.llama_log_set(silence, None)
    try:
        code = llama_cpp.llama_model_quantize(bytes(source), bytes(target), settings)
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), None)
    if code or not target.is_file():
        raise ModelError(f"llama.cpp could not write {kind}; not exported")
