"""The table of families: verdicts as they were measured, and the page of the docs that shows them.

``python tests/families/table.py`` prints the page from ``verdicts.json``. With ``--measure`` it measures all families
first, or those named, and writes their verdicts and the page; a family with a wrong number gets no verdict.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = Path(__file__).with_name("verdicts.json")
PAGE = ROOT / "docs/reference/families.md"

INTRO = """# Families of models

Every row is a tiny random model of a family, as the installed transformers ({version}) builds it. A test holds the tool
against plain calls of transformers on each: scores in float32 and bfloat16, gradients, greedy and sampled text, two
steps of SFT and of SPIN, and what a saved folder computes. Rows are longer than every window and rotary threshold.
The checks fail when a number or a path differs from this table.

- **packed**: many rows in one call, and generation in batches. Fast.
- **one at a time**: each response is computed alone, with the model's own layers. Right, but several times slower for
  small models; the first lines of a run say so.
- **no self-play beyond N tokens**: a sparse choice of keys with ties, which transformers breaks by the number of keys.
  Two heads make ties likely; with more heads, as in the row above, there are none.
- **refused**: in one line, before anything is spent.

`spintune doctor --model MODEL` says which path a model of yours takes, and why. This page is printed by
`python tests/families/table.py`.
"""


def read_verdicts() -> dict[str, dict[str, str]]:
    """The expected verdict of each variant: ``path``, and ``why`` it is refused or has no bfloat16."""
    return json.loads(VERDICTS.read_text())


def page(verdicts: dict[str, dict[str, str]]) -> str:
    """The page of the docs."""
    from families.variants import DECODERS, ENCODER_DECODERS

    parts = [INTRO.format(version=transformers_version())]
    for title, variants in (("Decoders", DECODERS), ("Encoder-decoders", ENCODER_DECODERS)):
        groups: dict[tuple[str, str, str], list[str]] = {}
        for name, (family, _) in variants.items():
            if name in verdicts:
                key = (family, verdicts[name]["path"], verdicts[name].get("why", ""))
                groups.setdefault(key, []).append(name)
        rows = [
            f"| `{family}` | {_variants(family, names)} | {path} | {_cell(why)} |"
            for (family, path, why), names in sorted(groups.items())
        ]
        parts.append(
            "\n".join([f"## {title}\n", "| family | variants | path | note |", "| --- | --- | --- | --- |", *rows])
        )
    unmeasured = [f"`{name}`" for name in (*DECODERS, *ENCODER_DECODERS) if name not in verdicts]
    if unmeasured:
        parts.append(f"## Without a verdict\n\nA number of these is wrong or unknown: {', '.join(unmeasured)}.")
    return "\n".join(parts[:1]) + "\n" + "\n\n".join(parts[1:]) + "\n"


def _variants(family: str, names: list[str]) -> str:
    """What tells variants of a family apart."""
    prefix = family.replace("_", " ")
    own = [name.removeprefix(family).removeprefix(prefix).strip() for name in names]
    return ", ".join(variant or "as its config has it" for variant in own) if any(own) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def transformers_version() -> str:
    """Major and minor number of the installed transformers."""
    import transformers

    return ".".join(transformers.__version__.split(".")[:2])


def measure_all(names: list[str]) -> int:
    """Measures variants and writes verdicts and page. Returns how many are wrong."""
    import torch
    from families.checks import measure
    from families.variants import VARIANTS
    from transformers import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    verdicts, wrong = read_verdicts() if VERDICTS.is_file() else {}, 0
    for name in names or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            verdicts.pop(name, None)
            try:
                found = measure(name, Path(folder))
            except Exception as error:  # a traceback is never a verdict; go on with the others
                found, problem = None, f"{type(error).__name__}: {error}"
            else:
                problem = str(found.wrong or "")
            if found and not problem:
                verdicts[name] = found.expected()
        wrong += bool(problem)
        print(f"{name}: {problem or verdicts[name]['path']}", flush=True)
    ordered = {name: verdicts[name] for name in VARIANTS if name in verdicts}
    VERDICTS.write_text(json.dumps(ordered, indent=1) + "\n")
    PAGE.write_text(page(ordered))
    return wrong


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    if "--measure" in sys.argv:
        sys.exit(bool(measure_all([name for name in sys.argv[1:] if name != "--measure"])))
    sys.stdout.write(page(read_verdicts()))
