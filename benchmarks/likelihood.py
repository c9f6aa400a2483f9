"""Scores one multiple-choice benchmark with spintune and with lm-evaluation-harness's own model, and times both.

    python benchmarks/likelihood.py [--data FILE] [--questions 64] [--model NAME] [--cases text,shots,letters]
                                    [--batches 1,4,8,16,32,64] [--repeats 3] [--json FILE]
    python benchmarks/likelihood.py --report FILE      what an earlier --json FILE holds, measured nothing anew

Needs ``pip install "spintune[eval]"``. The questions come from a .tsv file of google-research/FLAN's
``flan/v2/cot_data`` with options (qasc.tsv, aqua.tsv), taken evenly over it. Without a file they are random words: 8 to
16 for a question, and 8 options of 1 to 3. Cases:

* text: the likelihood of each option's text, without exemplars;
* shots: the same behind five exemplars that are drawn for each question, as most of the harness's tasks do;
* letters: options are listed and their letters scored, behind five exemplars that are the same for all questions, as
  MMLU does.

Contestants, each in a process of its own, in alternating order, both in float32 and called by the harness:

* spintune: the model that ``spintune.evaluation.harness`` gives to the harness;
* HFLM: the harness's own ``hf`` model with the fastest of ``--batches``, tried on a quarter of the questions.

What is timed is the answer to the harness's log-likelihood requests, tokenisation included; building prompts is the
harness's own work and the same for both. A process warms up on a few questions. Times count only if both give the same
log-likelihoods and greedy flags, and the exit code is 1 when they do not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import string
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import Lab, describe, peak_memory, threads

BATCHES = (1, 4, 8, 16, 32, 64)
WARM_UP = 4
"""Questions."""
LARGEST_DIFFERENCE = 1e-3
"""Nats, of log-likelihoods in float32."""
EXEMPLARS = 5
CASES: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Question: {question}\nAnswer:"},
    "shots": {"prompt": "Question: {question}\nAnswer:", "shots": EXEMPLARS},
    "letters": {
        "prompt": "Question: {question}\n{choices}\nAnswer:",
        "say": "letter",
        "shots": EXEMPLARS,
        "shots_data": "exemplars.jsonl",
    },
}
_OPTION = re.compile(r"^(?:- )?\((?P<label>[A-Z])\) (?P<text>.+)$", re.MULTILINE)


def questions_of(path: Path, count: int) -> list[dict[str, Any]]:
    """Evenly chosen questions of a file, and as many exemplars from between them. Exits when the file has none."""
    found = []
    for line in path.read_text().splitlines():
        cells = [cell.replace("\\n", "\n") for cell in line.split("\t")]
        question, _, listed = cells[0].partition("\nOptions:\n")
        options = {option["label"]: option["text"].strip() for option in _OPTION.finditer(listed)}
        right = cells[1].strip("() ") if len(cells) > 1 else ""
        if right in options and len(options) > 1:
            texts, labels = list(options.values()), list(options)
            found.append({"question": question, "options": texts, "right": labels.index(right)})
    if len(found) < count + EXEMPLARS:
        sys.exit(f"{path}: {len(found)} questions with options; need {count + EXEMPLARS}")
    chosen = [found[index * len(found) // (count + EXEMPLARS)] for index in range(count + EXEMPLARS)]
    return chosen


def made_up(count: int) -> list[dict[str, Any]]:
    """As many questions, and exemplars, of random words."""
    draw = random.Random(0)

    def text(fewest: int, most: int) -> str:
        words = ("".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 5))) for _ in range(most))
        return " ".join(list(words)[: draw.randint(fewest, most)])

    return [
        {"question": text(8, 16), "options": [text(1, 3) for _ in range(8)], "right": draw.randrange(8)}
        for _ in range(count + EXEMPLARS)
    ]


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Unpacks the model and writes the tasks."""
    from spintune.models.loading import locate_model

    folder = Path(spec["tasks"])
    folder.mkdir()
    count = spec["questions"]
    rows = questions_of(Path(spec["data"]), count) if spec["data"] else made_up(count)
    for name, part in (("exemplars", rows[:EXEMPLARS]), ("questions", rows[EXEMPLARS:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, case in CASES.items():
        task = {"task": name, "kind": "multiple_choice", "data": "questions.jsonl", "choices": "options", **case}
        (folder / f"{name}.yaml").write_text(json.dumps({**task, "answer": "right"}))
    location, _ = locate_model(spec["model"], Path(spec["cache"]))
    return {"model": location, "options": sum(len(row["options"]) for row in rows[EXEMPLARS:])}


def spintune(spec: dict[str, Any]) -> dict[str, Any]:
    """spintune's side."""
    from spintune.engine.logprobs import LogProbEngine
    from spintune.evaluation.harness_model import HarnessModel, InMemory
    from spintune.generation.build import build_generator
    from spintune.models.loading import load_model
    from spintune.progress import Silent

    loaded = load_model(spec["model"], cache=Path(spec["folder"]), precision="float32")
    engine = LogProbEngine(loaded.model)
    if not engine.packed:
        sys.exit("spintune fell back to one response at a time")
    generator = build_generator(engine, loaded.tokenizer, frozenset())
    return score(HarnessModel(InMemory(engine, generator, loaded.tokenizer), Silent(), "benchmark"), spec)


def hflm(spec: dict[str, Any]) -> dict[str, Any]:
    """The harness's side; ``batch`` requests at once."""
    from lm_eval.models.huggingface import HFLM

    return score(HFLM(pretrained=spec["model"], dtype="float32", device="cpu", batch_size=spec["batch"]), spec)


def score(lm: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds for the task's requests, and the answers to them."""
    import torch
    from lm_eval.tasks import TaskManager

    from spintune.evaluation.custom_tasks import read_custom_task

    torch.set_num_threads(threads())
    own = read_custom_task(Path(spec["tasks"]) / f"{spec['case']}.yaml")
    task = TaskManager(include_defaults=False).load([own.config()])["tasks"][own.name]
    task.set_config(key="num_fewshot", value=own.file.shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=spec["limit"])
    requests = task.instances
    lm.loglikelihood([request for request in requests if request.doc_id < WARM_UP])
    began = time.perf_counter()
    answers = lm.loglikelihood(requests)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "answers": answers,
        "characters": sum(len(request.args[0]) + len(request.args[1]) for request in requests),
        "peak_gb": peak_memory(),
    }


ROLES = {"prepare": prepare, "spintune": spintune, "hflm": hflm}


def compete(lab: Lab, case: str, common: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One case: the batch size that suits HFLM, then everybody to and fro."""
    quarter = max(WARM_UP, options.questions // 4)
    searched = {
        batch: lab.run("hflm", case=case, batch=batch, limit=quarter, **common)["seconds"]
        for batch in (options.batches if len(options.batches) > 1 else ())
    }
    batch = min(options.batches, key=lambda size: searched.get(size, 0.0))
    runs: dict[str, list[dict[str, Any]]] = {"spintune": [], "hflm": []}
    for repeat in range(options.repeats):
        for role in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
            extra = {"batch": batch} if role == "hflm" else {}
            runs[role].append(lab.run(role, case=case, limit=None, **common, **extra))
    mine, theirs = (runs[role][0]["answers"] for role in runs)
    medians = {role: statistics.median(run["seconds"] for run in runs[role]) for role in runs}
    return {
        "requests": len(mine),
        "characters": runs["hflm"][0]["characters"],
        "batch_search_seconds": searched,
        "batch": batch,
        "seconds": medians,
        "all_seconds": {role: [run["seconds"] for run in runs[role]] for role in runs},
        "peak_gb": {role: max(run["peak_gb"] for run in runs[role]) for role in runs},
        "ratio": medians["hflm"] / medians["spintune"],
        "largest_difference": max(abs(a - b) for (a, _), (b, _) in zip(mine, theirs, strict=True)),
        "other_greedy_flags": sum(a != b for (_, a), (_, b) in zip(mine, theirs, strict=True)),
    }


def print_results(results: dict[str, Any]) -> bool:
    """Prints the table; whether both sides gave the same answers."""
    machine = results["machine"]
    print(f"{machine['processor']['name']}, {machine['threads']} threads, {json.dumps(machine['versions'])}")
    source = Path(results["data"]).name if results["data"] else "random words"
    print(f"{results['questions']} questions of {source}, model {results['model']}, float32")
    print(f"{'case':8} {'requests':>8} {'HFLM':>9} {'batch':>5} {'spintune':>9} {'ratio':>6} {'peak GB':>12}")
    same = True
    for name, case in results["cases"].items():
        seconds, peak = case["seconds"], case["peak_gb"]
        print(
            f"{name:8} {case['requests']:8d} {seconds['hflm']:7.2f} s {case['batch']:5d} {seconds['spintune']:7.2f} s "
            f"{case['ratio']:6.2f} {peak['hflm']:5.1f}, {peak['spintune']:4.1f}"
        )
        fine = case["largest_difference"] < LARGEST_DIFFERENCE and not case["other_greedy_flags"]
        same = same and fine
        print(
            f"  {'ok   ' if fine else 'WRONG'} largest difference {case['largest_difference']:.1e} nats, "
            f"{case['other_greedy_flags']} greedy flags differ"
        )
    foreign = max(results["foreign_cores"])
    if foreign > 0.2:
        print(f"other work kept up to {foreign:.1f} cores busy; the times are not to be trusted")
    return same


def main() -> int:
    arguments = parse()
    if arguments.role:
        spec = json.loads((arguments.folder / "spec.json").read_text())
        (arguments.folder / "result.json").write_text(json.dumps(ROLES[arguments.role](spec)))
        return 0
    if arguments.report:
        return 0 if print_results(json.loads(arguments.report.read_text())) else 1
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    results: dict[str, Any] = {key: getattr(arguments, key) for key in ("data", "model", "questions")}
    results["machine"] = describe()
    results["machine"]["versions"]["lm_eval"] = version("lm_eval")
    with tempfile.TemporaryDirectory(prefix="spintune-benchmark-") as temporary:
        lab, tasks = Lab(Path(__file__), Path(temporary)), str(Path(temporary) / "tasks")
        wanted = {key: getattr(arguments, key) for key in ("data", "model", "questions")}
        prepared = lab.run("prepare", **wanted, tasks=tasks, cache=str(home / "spintune"))
        common = {"model": prepared["model"], "tasks": tasks}
        results["cases"] = {case: compete(lab, case, common, arguments) for case in arguments.cases}
        results["foreign_cores"] = lab.foreign_cores
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return 0 if print_results(results) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a .tsv file of FLAN's chain-of-thought data with options")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="alias or folder")
    parser.add_argument("--questions", type=int, default=64, help="questions of each case")
    parser.add_argument("--cases", default=",".join(CASES), type=lambda text: text.split(","), help=",".join(CASES))
    sizes = ",".join(map(str, BATCHES))
    parser.add_argument("--batches", default=sizes, type=lambda text: [*map(int, text.split(","))], help="of HFLM")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contestant")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--report", type=Path, help="print an earlier --json file instead of measuring")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.role or arguments.report):
        fewest = max(WARM_UP, EXEMPLARS) + 1  # an exemplar is another question than the one asked
        if arguments.questions < fewest or min(arguments.repeats, *arguments.batches) < 1:
            parser.error(f"--questions are at least {fewest}, --repeats and --batches at least 1")
        if unknown := set(arguments.cases) - CASES.keys():
            parser.error(f"--cases takes {', '.join(CASES)}, not {', '.join(sorted(unknown))}")
        if arguments.data:
            arguments.data = str(Path(arguments.data).resolve())
        if Path(arguments.model).is_dir():
            arguments.model = str(Path(arguments.model).resolve())
    return arguments


if __name__ == "__main__":
    sys.exit(main())
