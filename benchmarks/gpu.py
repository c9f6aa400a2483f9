"""All that a GPU can tell, in ten parts that end together after ``--minutes``: a JSON file and a table in Markdown.

    python benchmarks/gpu.py --report gpu.json [--minutes 11] [--only PART,...] [--tokens 32768] [--budget 16384]
                             [--prompts 256] [--new-tokens 256] [--repeats 3]
    python benchmarks/gpu.py --rehearse [--report FILE]      tiny shapes, on whatever there is: does the script work?

Parts, the most telling first, each in a process of its own. One gets its share of the time that is left, so that what
the parts before did not need is there for it, and is ended when that is over:

* tests: ``pytest tests/engine tests/kernels``, and all other tests that need a GPU; by eight processes where there is
  pytest-xdist;
* spintune: SFT and SPIN, tokens a second and the share of the GPU's measured peak, with ``compile`` and ``recompute``;
* trl sft, generation, trl spin: spintune's steps beside TRL's with its best settings on the same rows, and its answers
  beside those of transformers ``generate``;
* memory MODE: a few steps of a model of 1.1 billion weights (random, from a config) in float32, bfloat16, adamw8bit,
  nf4 and offload, beside what ``spintune plan`` says.

Parts that are in the report are not run again, so a call that was stopped goes on; a part that failed is tried again.
What is measured is in gpu_parts.py. It has been run with --rehearse on a processor only; no GPU was to be had so far.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEMORY_MODES = ("float32", "bfloat16", "adamw8bit", "nf4", "offload")
PARTS = {
    **{"tests": 1.5, "spintune": 2.0, "trl sft": 1.5, "generation": 1.5, "trl spin": 1.5},
    **{f"memory {mode}": 0.6 for mode in MEMORY_MODES},
}
"""Parts in their order, and their shares of the time."""
ROOT = Path(__file__).parents[1]
TESTED = (
    "tests/engine",
    "tests/kernels",
    "tests/generation/test_batch.py::test_a_recorded_step_writes_what_single_launches_write",
    "tests/models/test_quantized.py::TestWithTheLibrary::test_a_gpu_holds_the_same_weights",
    "tests/ranks/test_steps.py::test_shares_in_the_memory_of_the_cpu",
    "tests/training/test_eight_bit.py",  # skipped as a whole without bitsandbytes
    "tests/training/test_rounding.py::test_moments_on_the_cpu_of_weights_on_a_gpu",
    "tests/worlds/test_memory_modes.py::test_on_a_gpu_offload_changes_no_result_beyond_rounding",
)
"""What has a part for a GPU; tests/plan/test_gpu_script.py looks for tests that are missing here."""
REHEARSED = ("tests/engine/test_peak.py",)


def run_tests(options: argparse.Namespace) -> dict[str, Any]:
    """What pytest says of the tests that have a part for a GPU."""
    paths = REHEARSED if options.rehearse else TESTED
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *paths]
    if importlib.util.find_spec("xdist") and not options.rehearse:
        command += ["-n", "8"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return {
        **counts,
        "failures": failed,
        **({"failed": f"pytest ended with {done.returncode}"} if done.returncode else {}),
    }


def seconds_of(part: str, parts: Sequence[str], left: float) -> float:
    """A part's share of the seconds that are left to it and all others that still run."""
    return left * PARTS[part] / sum(PARTS[other] for other in parts)


def run_part(part: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own; of one that ends badly or takes too long, ``failed`` says why."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "result.json"
        settings = {key: value for key, value in vars(options).items() if key not in ("report", "only", "part")}
        command = [
            sys.executable,
            __file__,
            "--part",
            part,
            "--result",
            str(result),
            "--settings",
            json.dumps(settings),
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (Path(temporary) / "words").open("w+") as words:
            process = subprocess.Popen(command, env=environment, stdout=words, stderr=words, start_new_session=True)
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it started
                process.wait()
            words.seek(0)
            last = words.read().strip()[-600:]
        if code == 0 and result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
        elif code is None:
            found = {"failed": f"took more than its share of --minutes, {seconds:.0f} s"}
        else:
            found = {"failed": last.splitlines()[-1] if last else f"ended with {code}", "words": last}
    return {**found, "took": round(time.monotonic() - began, 1)}


def skipped(part: str, has_gpu: bool) -> str | None:
    """Why a part cannot run here."""
    return "moves what a GPU has no room for, and there is none" if part == "memory offload" and not has_gpu else None


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    parts, own = report["parts"], report["parts"].get("spintune", {})
    lines = [f"{report['device']}; {report['settings']}", ""]
    lines += [
        "| task | tokens a second | share of peak | peer | times the peer's speed | memory |",
        "|---|---|---|---|---|---|",
    ]
    for task in ("sft", "spin"):
        peer = parts.get(f"trl {task}", {})
        if task in own:
            one = own[task]
            ratio = f"{peer['seconds'] / one['seconds']:.2f}" if "seconds" in peer else ""
            name = f"TRL, batch {peer['batch']}" if "batch" in peer else ""
            lines.append(
                f"| {task} | {one['tokens_per_second']:,.0f} | {one['share_of_peak']:.0%} | {name} | {ratio} "
                f"| {one['peak_gb']:.1f} GB |"
            )
    if "peer" in (one := parts.get("generation", {})):
        ratio, batch = one["peer"]["seconds"] / one["seconds"], one["peer"]["batch"]
        rate = one["tokens_per_second"]
        lines.append(f"| generation | {rate:,.0f} | | transformers, batch {batch} | {ratio:.2f} | |")
    for name, option in own.get("options", {}).items():
        times = option["seconds"] / own["sft"]["seconds"]
        lines.append(f"| sft, {name} | | | itself without | {1 / times:.2f} | {option['peak_gb']:.1f} GB |")
    lines += ["", "| memory mode | bytes a weight | peak | planned | planned / peak |", "|---|---|---|---|---|"]
    for mode in MEMORY_MODES:
        if "peak_gb" in (one := parts.get(f"memory {mode}", {})):
            lines.append(
                f"| {mode} | {one['bytes_per_weight']:.2f} | {one['peak_gb']:.2f} GB | {one['planned_gb']:.2f} GB "
                f"| {one['planned_gb'] / max(one['peak_gb'], 1e-9):.2f} |"
            )
    if tests := parts.get("tests"):
        lines += ["", f"tests: {tests.get('passed', 0)} passed, {tests.get('skipped', 0)} skipped"]
        lines += [f"tests: {name} failed" for name in tests.get("failures", ())]
    lines += [f"{part}: {one['failed']}" for part, one in parts.items() if "failed" in one]
    lines += [f"{part}: not run, {one['skipped']}" for part, one in parts.items() if "skipped" in one]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the parts that are not in the report yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--minutes", type=float, default=11.0, help="of all parts together, at most")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--tokens", type=int, default=32768, help="of a training step")
    parser.add_argument("--budget", type=int, default=16384, help="tokens of one forward pass")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rehearse", action="store_true")
    for hidden in ("--part", "--result", "--settings"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        settings = argparse.Namespace(**json.loads(options.settings))
        Path(options.result).write_text(json.dumps(_result(options.part, settings)))
        return
    deadline = time.monotonic() + 60 * options.minutes
    import torch

    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.rehearse:
        sys.exit("there is no GPU here; --rehearse tries the script out without one")
    if options.rehearse:
        options.tokens, options.budget, options.prompts, options.new_tokens, options.repeats = 256, 128, 4, 4, 1
    unknown = [part for part in options.only.split(",") if part not in PARTS]
    if unknown:
        sys.exit(f"--only: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    named = ("tokens", "budget", "prompts", "new_tokens", "repeats", "rehearse")
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if has_gpu else "no GPU, tiny shapes: no number here says anything",
        "settings": {key: getattr(options, key) for key in named},
        "parts": {},
    }
    if options.report and options.report.exists():
        known = json.loads(options.report.read_text())
        if any(known[key] != report[key] for key in ("device", "settings")):
            sys.exit(f"{options.report} was made with other settings or on another device; give another --report")
        report = known
    wanted = sorted(options.only.split(","), key=list(PARTS).index)
    parts = [part for part in wanted if "failed" in report["parts"].get(part, {"failed": "not run"})]
    for place, part in enumerate(parts):
        print(part, file=sys.stderr, flush=True)
        seconds = seconds_of(part, parts[place:], max(0.0, deadline - time.monotonic()))
        reason = skipped(part, has_gpu)
        report["parts"][part] = {"skipped": reason} if reason else run_part(part, options, seconds)
        if options.report:
            _write(options.report, json.dumps(report, indent=1))
            _write(options.report.with_suffix(".md"), table(report) + "\n")
    print(table(report))


def _result(part: str, settings: argparse.Namespace) -> dict[str, Any]:
    if part == "tests":
        return run_tests(settings)
    from gpu_parts import compute

    return compute(part, settings)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    main()
