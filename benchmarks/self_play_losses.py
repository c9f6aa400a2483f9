"""Does self-play help a real model, and with which loss? SFT once, then every loss from that same start.

    python benchmarks/self_play_losses.py --data FILE [--model NAME] [--out FOLDER] [--limit 560] [--heldout 220]
        [--sft-epochs 2] [--iterations 2] [--losses logistic,logistic+sft,space,t_spin] [--learning-rate auto]
        [--seed 7]

Every stage finds its learning rate (``auto``), the SFT that goes on as well; ``--learning-rate`` gives self-play one.
Prints, for held-out examples: every model's loss, ROUGE-L and exact match; paired differences from the SFT start, and
from SFT that went on for as many steps and tokens as self-play did; and the rates. Each run is an ordinary run folder
below ``--out``; a stopped benchmark goes on from there.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from spintune.evaluation.heldout import HeldoutAnswer, heldout_differences, summarize_heldout
from spintune.pipeline import run_recipe
from spintune.progress_display import open_progress
from spintune.recipe import parse_recipe
from spintune.recipe.measured import LOSS
from spintune.recipe.section import AUTO_RATE
from spintune.records import read_records
from spintune.typed_json import to_json

LOSSES: dict[str, dict[str, Any]] = {
    "logistic": {},
    "logistic+sft": dict(LOSS),
    "space": {"loss": "space"},
    "t_spin": {"loss": "t_spin"},
}
"""Settings of self-play: the papers' (λ = 0.1 for logistic), and what ``spintune spin`` writes into its recipes."""

MEASURES = {"nll_per_token": "loss, nats/token", "rouge_l": "ROUGE-L", "exact_match": "exact match"}


def main() -> None:
    arguments = parse()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spintune"
    common: dict[str, Any] = {
        "seed": arguments.seed,
        "data": {
            "train": [{"path": arguments.data, "limit": arguments.limit}],
            "eval_fraction": arguments.heldout / arguments.limit,
            "max_length": arguments.max_length,
        },
    }
    sft = {"epochs": arguments.sft_epochs, "learning_rate": AUTO_RATE, "tokens_per_step": 2048, "samples": 0}
    start = {**common, "out": str(arguments.out / "sft"), "model": arguments.model, "sft": sft}
    judged: dict[str, list[HeldoutAnswer]] = {}
    results: dict[str, Any] = {}
    with open_progress(False) as progress:
        results["sft"] = to_json(run_recipe(parse_recipe(start, "sft"), cache, progress))
        for name in ("base", "sft"):
            judged[name] = answers(arguments.out / "sft", name)
        for number, loss in enumerate(arguments.losses):
            spin = {
                **LOSSES[loss],
                "iterations": arguments.iterations,
                "learning_rate": arguments.learning_rate,
                "pairs_per_step": 16,
                "max_new_tokens": arguments.max_new_tokens,
                # the same for all losses, up to a few tokens
                **({} if number else {"baseline": "sft", "baseline_learning_rate": AUTO_RATE}),
            }
            run = {
                **common,
                "out": str(arguments.out / loss),
                "model": str(arguments.out / "sft/sft/model"),
                "spin": spin,
            }
            results[loss] = to_json(run_recipe(parse_recipe(run, loss), cache, progress))
            for iteration in range(1, arguments.iterations + 1):
                judged[f"{loss}, iterate {iteration}"] = answers(arguments.out / loss, f"iterate-{iteration}")
            if not number:
                judged["more SFT"] = answers(arguments.out / loss, "sft-more")
    report(judged, results)


def answers(run: Path, name: str) -> list[HeldoutAnswer]:
    return read_records(run / "eval" / "heldout" / name / "answers.jsonl", HeldoutAnswer)


def report(judged: dict[str, list[HeldoutAnswer]], results: dict[str, Any]) -> None:
    print(f"\n{len(judged['sft'])} held-out examples\n")
    table("model", {name: summarize_heldout(rows) for name, rows in judged.items()})
    for reference in ("sft", "more SFT"):
        print()
        others = {name: rows for name, rows in judged.items() if name not in ("base", reference)}
        table(
            f"minus {reference}", {name: heldout_differences(rows, judged[reference]) for name, rows in others.items()}
        )
    rates = {"sft": results.pop("sft")["sft"]["learning_rate"]}
    print("\n| iterate | rate | steps | pairs | identical | held-out loss | margin | r | r' ", end="")
    print("| KL to opponent | KL to iterate 0 | tokens |")
    print("|---" * 12 + "|")
    for loss, result in results.items():
        if result.get("baseline"):
            rates["more SFT"] = result["baseline"]["learning_rate"]
        for entry in result["spin"]:
            facts, seen, found = entry["pairs"]["train"], entry["heldout"], entry["diagnosis"]
            print(
                f"| {loss} {entry['iteration']} | {entry['learning_rate']:.1e} | {entry['steps']} | {facts['kept']} "
                f"| {facts['dropped'].get('identical', 0)} | {seen['start_loss']:.4f} to {seen['loss']:.4f} "
                f"| {seen['margin']:+.2f} | {seen['real_ratio']:+.2f} | {seen['generated_ratio']:+.2f} "
                f"| {found['kl_opponent']['mean']:.2f} | {found['kl_base']['mean']:.2f} "
                f"| {found['answers']['tokens']:.0f} |"
            )
    print("\nrates: " + ", ".join(f"{name} {rate:.1e}" for name, rate in rates.items()))


def table(head: str, rows: dict[str, Any]) -> None:
    print(f"| {head} | " + " | ".join(MEASURES.values()) + " |")
    print("|---" * (1 + len(MEASURES)) + "|")
    for name, intervals in rows.items():
        cells = [f"{i.mean:.4f} ({i.low:.4f} to {i.high:.4f})" for i in (intervals[measure] for measure in MEASURES)]
        print(f"| {name} | " + " | ".join(cells) + " |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of examples that spintune reads")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=Path("runs/self-play-losses"))
    parser.add_argument("--limit", type=int, default=560, help="examples read")
    parser.add_argument("--heldout", type=int, default=220, help="of them held out")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--sft-epochs", type=float, default=2.0, help="where held-out loss stops improving")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--losses", default=list(LOSSES), type=lambda text: text.split(","))
    parser.add_argument("--learning-rate", default=AUTO_RATE, help="peak of self-play")
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
