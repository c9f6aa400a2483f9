"""One contestant's process: ``contestant.py ROLE SPEC RESULT``, called by training.py and not by hand.

Every role runs in a process of its own, so that its peak memory is its own: SPEC and RESULT are JSON files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from machine import matmul_peak
from workload import Workload


def run(role: str, spec: dict[str, Any]) -> Any:
    """The result of a role. Imports wait until the role is known: they are part of what a contestant holds."""
    path = Path(spec["workload"])
    if role == "prepare":
        import peer_spintune

        peer_spintune.prepare(spec).save(path)
        return {}
    workload = Workload.load(path)
    if role == "peak":
        shape = workload.shape
        return matmul_peak(shape.hidden, shape.inner, shape.vocabulary, spec["precision"])
    if role == "spintune":
        import peer_spintune

        return peer_spintune.measure(spec, workload)
    import peer_trl

    return peer_trl.measure(spec, workload)


def main() -> None:
    role, spec, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    result.write_text(json.dumps(run(role, json.loads(spec.read_text()))))


if __name__ == "__main__":
    main()
