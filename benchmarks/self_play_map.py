"""Where does self-play help? Experiments with rivals at equal compute; each is one command that can be stopped.

    python benchmarks/self_play_map.py checkable [--seeds 5] [--out runs/map] [--worlds paths,lists,sums]
    python benchmarks/self_play_map.py unseen ...
    python benchmarks/self_play_map.py long ...
    python benchmarks/self_play_map.py transfer --data FILE --ifeval FILE --questions FILE --text FILE [--seeds 2]
    python benchmarks/self_play_map.py pilot --world paths --seen 1000 --epochs 16 --method NAME --rates 1e-4,3e-4

    checkable   self-play on the prompts that SFT was trained on, in worlds with a checker
    unseen      on prompts that SFT has not seen, at the same total of human answers
    long        twelve rounds: where the curves of SFT and self-play cross
    transfer    a real model, self-play or SFT on instructions: gain on two other sets against forgetting
    pilot       one method of these from one start, seed by seed, at some rates; NAME as in the tables

Every method tries the same rates and rounds. A rate and a round are chosen on 300 problems, apart for temperature 0 and
1; accuracy is reported on 700 others. Differences are paired within a seed, with 95 % t-intervals over seeds.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from self_play.experiments import EXPERIMENTS, Experiment
from self_play.figure import figure
from self_play.ledger import Ledger
from self_play.tables import Results, panels, tables
from self_play.transfer import Transfer, add_transfer_arguments
from self_play.trials import Setting
from transformers.utils import logging as transformers_logging


def small(experiment: Experiment, name: str, arguments: argparse.Namespace) -> None:
    """Runs an experiment in small worlds, and prints its tables."""
    settings = [setting for setting in experiment.settings if setting.world in arguments.worlds]
    experiment = replace(experiment, settings=settings)
    began = time.monotonic()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    ledger = Ledger(arguments.out / f"{name}-{'-'.join(arguments.worlds)}.jsonl", experiment.facts())
    found = ledger.run(experiment.units(seeds))
    results = [Results(experiment, setting, seeds, found) for setting in settings]
    print(f"## {experiment.title}")
    for one in results:
        print("\n".join(tables(one)))
    path = arguments.out / f"{name}-{'-'.join(arguments.worlds)}.svg"
    path.write_text(figure([panel for one in results for panel in panels(one)]))
    print(f"\nfigure: {path}; {time.monotonic() - began:.0f} s in this call")


def pilot(arguments: argparse.Namespace) -> None:
    """One method of the experiments, at some rates, as lines of a log."""
    every = {method.name: method for one in EXPERIMENTS.values() for method in one.methods}
    if arguments.method not in every:
        raise SystemExit(f"--method {arguments.method}: no such method; one of {', '.join(every)}")
    method = every[arguments.method]
    if arguments.negatives > 1:
        method = replace(method, options={**method.options, "negatives": arguments.negatives})
    setting = Setting(
        arguments.world, arguments.seen, arguments.unseen, arguments.epochs, arguments.rounds, arguments.pairs
    )
    experiment = Experiment("", (setting,), (method,), arguments.rates)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    # one after the other: each unit is small, and its line is printed at once
    for unit in experiment.units(seeds):
        facts = unit.work()
        for number, one in enumerate(facts.get("rounds", [facts]), 1):
            values = ", ".join(f"{name} {value:.4g}" for name, value in one.items())
            print(f"{unit.key}, round {number}: {values}" if "rounds" in facts else f"{unit.key}: {values}", flush=True)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if arguments.experiment == "pilot":
        pilot(arguments)
    elif arguments.experiment == "transfer":
        Transfer(arguments).run()
    else:
        small(EXPERIMENTS[arguments.experiment], arguments.experiment, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="experiment", required=True)
    for name, experiment in EXPERIMENTS.items():
        command = commands.add_parser(name, help=experiment.title)
        worlds = [setting.world for setting in experiment.settings]
        command.add_argument("--worlds", type=lambda text: text.split(","), default=worlds)
        _common(command, seeds=5, threads=1)
    one = commands.add_parser("pilot", help="one method at some rates")
    one.add_argument("--world", required=True)
    one.add_argument("--seen", type=int, required=True, help="problems that the start is trained on")
    one.add_argument("--unseen", type=int, default=0, help="further ones, for methods that use them")
    one.add_argument("--epochs", type=int, required=True, help="of the start")
    one.add_argument("--method", required=True)
    one.add_argument("--rates", type=lambda text: [float(rate) for rate in text.split(",")], required=True)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--pairs", type=int, default=32, help="per step")
    one.add_argument("--negatives", type=int, default=1, help="generated answers per prompt")
    _common(one, seeds=1, threads=1)
    transfer = commands.add_parser("transfer", help="a real model: gain against forgetting")
    add_transfer_arguments(transfer)
    _common(transfer, seeds=2, threads=2)
    return parser.parse_args()


def _common(command: argparse.ArgumentParser, seeds: int, threads: int) -> None:
    command.add_argument("--seeds", type=int, default=seeds)
    command.add_argument("--first-seed", type=int, default=1)
    command.add_argument("--threads", type=int, default=threads)
    command.add_argument("--out", type=Path, default=Path("runs/map"), help="where results are kept; a stop goes on")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
