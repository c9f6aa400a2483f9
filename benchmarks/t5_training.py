"""Trains one FLAN-T5 on the same token ids with spintune and with transformers' Seq2SeqTrainer, and times both.

    python benchmarks/t5_training.py --data FILE [--rows 32] [--repeats 3] [--steps 2] [--report FILE]

Needs ``pip install "spintune[benchmarks]"``. The model has FLAN-T5 small's shape (77 million weights, its vocabulary of
32,128) and random weights; the rows are examples of ``--data``, taken evenly over it, cut to 512 tokens on each side,
and tokenized by a Unigram tokenizer that is trained on the same file. Contestants, each in a process of its own, in
alternating order:

* spintune: its engine and training loop, as a recipe runs them;
* Seq2SeqTrainer tuned: float32, rows sorted by length and read in that order, which is the least padding that batches
  can have, and the fastest batch size of those tried.

A step is forward, backward and optimizer (AdamW, clipping) on all rows, without dropout. A process takes one step to
warm up, then those that count. Left alone, Seq2SeqTrainer adds up the mean losses of T5's accumulated batches
(transformers 5.23: eight of them give eight times the loss and gradient), so it is given a loss that divides by the
trained tokens of the whole step. Times count only if losses before and after the first step and gradient norms agree,
and the exit code is 1 when they do not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import Lab, describe, peak_memory, threads

LEARNING_RATE = 2e-5
LONGEST = 512
BATCHES = (1, 2, 4, 8, 16)
IGNORED = -100
ROLES = ("prepare", "spintune", "trainer")
FLAN_T5_SMALL = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
"""google/flan-t5-small's config.json, but for dropout."""


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Writes the model's folder; the rows as token ids."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    from spintune.data.sources import Source, read_sources
    from spintune.tokens.rows import fit
    from spintune.tokens.seq2seq import Seq2SeqRenderer, flatten

    examples = read_sources([Source(spec["data"])], seed=0).examples
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=32000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    texts = [text for example in examples for text in (flatten(example.prompt), example.answer)]
    backend.train_from_iterator(texts, trainer)
    pieces = [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    torch.manual_seed(spec["seed"])
    model = T5ForConditionalGeneration(T5Config(**FLAN_T5_SMALL))
    head = torch.randn(FLAN_T5_SMALL["vocab_size"], FLAN_T5_SMALL["d_model"]) * FLAN_T5_SMALL["d_model"] ** -0.5
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(spec["model"])
    tokenizer.save_pretrained(spec["model"])

    rows = [fit(row, 2 * LONGEST, LONGEST, LONGEST) for row in Seq2SeqRenderer(tokenizer).rows(examples)]
    kept = [row for row in rows if not isinstance(row, str)]
    count = min(spec["rows"], len(kept))
    chosen = [kept[index * len(kept) // count] for index in range(count)]
    return {
        "rows": [[list(row.prompt_ids), list(row.response_ids)] for row in chosen],
        "pieces": len(pieces),
        "examples": len(examples),
    }


def spintune(spec: dict[str, Any]) -> dict[str, Any]:
    """spintune's side."""
    import torch

    from spintune.engine.logprobs import LogProbEngine
    from spintune.models.loading import load_model
    from spintune.tokens.rows import TokenRow
    from spintune.training.batches import Batches
    from spintune.training.checkpoint import Checkpoints
    from spintune.training.loop import StepReport, TrainingHooks, train
    from spintune.training.objectives import NegativeLogLikelihood
    from spintune.training.optimization import Optimization

    torch.set_num_threads(threads())
    loaded = load_model(spec["model"], cache=Path(spec["folder"]), precision="float32")
    engine = LogProbEngine(loaded.model)
    if not engine.packed:
        raise SystemExit("spintune fell back to one response at a time")
    rows = [TokenRow("", tuple(prompt), tuple(answer), (True,) * len(answer), True) for prompt, answer in spec["rows"]]
    ends, reports = [time.perf_counter()], []

    def note(report: StepReport) -> None:
        ends.append(time.perf_counter())
        reports.append(report)

    train(
        engine,
        Batches(rows, [range(len(rows))] * (1 + spec["steps"])),
        NegativeLogLikelihood(),
        Optimization(LEARNING_RATE, "constant", warmup=0.0),
        Checkpoints(Path(spec["folder"]) / "checkpoints", 1e9),
        TrainingHooks(on_step=note),
    )
    return _result(ends, [report.loss for report in reports], [report.grad_norm for report in reports])


def trainer(spec: dict[str, Any]) -> dict[str, Any]:
    """Seq2SeqTrainer's side; ``batch`` rows at once."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    torch.set_num_threads(threads())
    model = AutoModelForSeq2SeqLM.from_pretrained(spec["model"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    rows = sorted(spec["rows"], key=lambda row: (len(row[0]) + len(row[1]), len(row[1])))
    ends: list[float] = []
    logs: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                found.append(logs)

    found = logs

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        logits = outputs.logits.flatten(0, 1)
        total = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / num_items_in_batch

    arguments = Seq2SeqTrainingArguments(
        output_dir=spec["folder"],
        use_cpu=True,
        per_device_train_batch_size=spec["batch"],
        gradient_accumulation_steps=-(-len(rows) // spec["batch"]),
        max_steps=1 + spec["steps"],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": [r[0] for r in rows], "labels": [r[1] for r in rows]}),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model, label_pad_token_id=IGNORED),
        compute_loss_func=loss,
        callbacks=[Clock()],
    ).train()
    return _result(ends, [log["loss"] for log in logs], [log["grad_norm"] for log in logs])


def _result(ends: list[float], losses: list[float], norms: list[float]) -> dict[str, Any]:
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    return {
        "warm_up_seconds": seconds[0],
        "seconds": seconds[1:],
        "losses": losses,
        "grad_norms": [float(norm) for norm in norms],
        "peak_gb": peak_memory(),
    }


def padded_slots(rows: list[list[list[int]]], batch: int) -> int:
    """Tokens that batches of sorted rows hold, padding included."""
    ordered = sorted(rows, key=lambda row: (len(row[0]) + len(row[1]), len(row[1])))
    batches = [ordered[begin : begin + batch] for begin in range(0, len(ordered), batch)]
    return sum(len(b) * (max(len(row[0]) for row in b) + max(len(row[1]) for row in b)) for b in batches)


def compete(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that was measured."""
    lab, model = Lab(Path(__file__), folder), str(folder / "model")
    prepared = lab.run("prepare", model=model, data=arguments.data, rows=arguments.rows, seed=arguments.seed)
    rows = prepared["rows"]
    common = {"model": model, "rows": rows, "steps": arguments.steps}
    searched = {
        batch: lab.run("trainer", **{**common, "steps": 0}, batch=batch)["warm_up_seconds"]
        for batch in BATCHES
        if batch <= len(rows)
    }
    batch = min(searched, key=lambda size: searched[size])
    runs: dict[str, list[dict[str, Any]]] = {"spintune": [], "trainer": []}
    for repeat in range(arguments.repeats):
        for role in ("spintune", "trainer") if repeat % 2 == 0 else ("trainer", "spintune"):
            runs[role].append(lab.run(role, **common, **({"batch": batch} if role == "trainer" else {})))
    tokens = sum(len(prompt) + len(answer) for prompt, answer in rows)
    medians = {role: statistics.median(s for run in runs[role] for s in run["seconds"]) for role in runs}
    return {
        "machine": describe(),
        "data": arguments.data,
        "rows": len(rows),
        "prompt_tokens": _spread_of([len(prompt) for prompt, _ in rows]),
        "answer_tokens": _spread_of([len(answer) for _, answer in rows]),
        "tokens": tokens,
        "padded_slots": padded_slots(rows, batch),
        "batch_search_seconds": searched,
        "batch": batch,
        "step_seconds": medians,
        "ratio": medians["trainer"] / medians["spintune"],
        "peak_gb": {role: max(run["peak_gb"] for run in runs[role]) for role in runs},
        "runs": runs,
        "foreign_cores": lab.foreign_cores,
        "differences": differences(runs["spintune"][0], runs["trainer"][0]),
    }


def _spread_of(lengths: list[int]) -> dict[str, float]:
    return {"shortest": min(lengths), "median": statistics.median(lengths), "longest": max(lengths)}


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Relative, of what both computed in the first two steps; Trainer logs losses with four decimals."""
    pairs = {
        "loss before the first step": (mine["losses"][0], theirs["losses"][0]),
        "loss after it": (mine["losses"][1], theirs["losses"][1]),
        "gradient norm of the first step": (mine["grad_norms"][0], theirs["grad_norms"][0]),
    }
    return {name: abs(a - b) / abs(b) for name, (a, b) in pairs.items()}


def print_results(results: dict[str, Any]) -> bool:
    """Prints the table; whether both computed the same."""
    machine = results["machine"]
    print(f"{machine['processor']['name']}, {machine['threads']} threads, {json.dumps(machine['versions'])}")
    prompts, answers = results["prompt_tokens"], results["answer_tokens"]
    print(
        f"{results['rows']} rows, {results['tokens']} tokens (prompts {prompts['shortest']} to {prompts['longest']}, "
        f"median {prompts['median']:g}; answers {answers['shortest']} to {answers['longest']}, median "
        f"{answers['median']:g}); {results['padded_slots']} slots in padded batches of {results['batch']}"
    )
    for role, title in (("spintune", "spintune"), ("trainer", f"Seq2SeqTrainer, batch {results['batch']}")):
        seconds = results["step_seconds"][role]
        print(
            f"{title:26} {seconds:8.2f} s a step  {results['tokens'] / seconds:8.0f} tokens/s  "
            f"{results['peak_gb'][role]:5.2f} GB"
        )
    print(f"ratio of step times: {results['ratio']:.2f}")
    foreign = max(results["foreign_cores"])
    if foreign > 0.2:
        print(f"other work kept up to {foreign:.1f} cores busy; the times are not to be trusted")
    same = True
    for name, difference in results["differences"].items():
        fine = difference < 1e-4
        same = same and fine
        print(f"{'ok   ' if fine else 'WRONG'} {name}: relative difference {difference:.1e}")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:seeds", help="builtin:NAME or a file that spintune reads")
    parser.add_argument("--rows", type=int, default=32, help="examples of a step")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contestant")
    parser.add_argument("--steps", type=int, default=2, help="steps of a process that count")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--report", type=Path, help="file for everything that was measured")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        spec = json.loads((arguments.folder / "spec.json").read_text())
        roles = {"prepare": prepare, "spintune": spintune, "trainer": trainer}
        (arguments.folder / "result.json").write_text(json.dumps(roles[arguments.role](spec)))
        return 0
    if min(arguments.rows, arguments.repeats, arguments.steps) < 1:
        parser.error("--rows, --repeats and --steps are at least 1")
    if not arguments.data.startswith("builtin:"):
        arguments.data = str(Path(arguments.data).resolve())
    with tempfile.TemporaryDirectory(prefix="spintune-benchmark-") as temporary:
        results = compete(arguments, Path(temporary))
    if arguments.report:
        arguments.report.write_text(json.dumps(results, indent=1))
    return 0 if print_results(results) else 1


if __name__ == "__main__":
    sys.exit(main())
