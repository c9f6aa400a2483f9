"""The runs that are disturbed: every stage, in a few seconds each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.machine import Machine

SHARD = 6
"""Prompts per shard, so that a computation has several."""

Values = dict[str, Any]


@dataclass(frozen=True)
class World:
    """A command, and what it works on.

    Attributes:
        recipe: gets the machine; the recipe's values beside ``out``, or None for a command without one.
        command: the words of the command; RECIPE, RUN and OUT stand for paths.
        given: the world whose finished disk this one starts from.
        environment: variables for the command.
        kinds: the only disturbances that it is for; all without it.
    """

    name: str
    recipe: Callable[[Machine], Values] | None = None
    command: tuple[str, ...] = ("run", "RECIPE", "--json")
    given: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    def prepare(self, machine: Machine) -> list[str]:
        """Writes the recipe; gives the command."""
        recipe = machine.inputs / f"{self.name}.yaml"
        if self.recipe:
            recipe.write_text(json.dumps({"out": str(machine.disk / "run"), **self.recipe(machine)}))
        places = {"RECIPE": str(recipe), "RUN": str(machine.disk / "run"), "OUT": str(machine.disk / "out" / "new")}
        return [places.get(word, word) for word in self.command]


def _values(machine: Machine, **changes: Any) -> Values:
    """SFT, two iterations and evaluation, a checkpoint after every step; a change of None leaves a section out."""
    values: Values = {
        "model": str(machine.inputs / "decoder"),
        "data": {"train": str(machine.inputs / "animals.jsonl"), "max_length": 96, "eval_fraction": 0.2},
        "sft": {"tokens_per_step": 192, "learning_rate": 1e-3, "checkpoint_minutes": 0.0, "samples": 2},
        "spin": {
            "iterations": 2,
            "pairs_per_step": 8,
            "max_new_tokens": 8,
            "learning_rate": 1e-3,
            "checkpoint_minutes": 0.0,
        },
    }
    for key, change in changes.items():
        values[key] = _set({**values[key], **change}) if isinstance(change, dict) and key in values else change
    return _set(values)


def _set(values: Values) -> Values:
    return {key: value for key, value in values.items() if value is not None}


def _made(**changes: Any) -> Callable[[Machine], Values]:
    return lambda machine: _values(machine, **changes)


def _seldom(machine: Machine) -> Values:
    minutes = {"checkpoint_minutes": 10.0}
    return _values(machine, sft=minutes, spin={**minutes, "baseline": "sft"})


def _async(machine: Machine) -> Values:
    """A thread writes every checkpoint, of SFT that keeps its best step too."""
    values = _overfit(machine)
    for section in ("sft", "spin"):
        values[section] |= {"checkpoint_write": "async"}
    return values


def _overfit(machine: Machine) -> Values:
    """The held-out loss falls, then rises: the best weights are kept beside the checkpoints."""
    data = {"train": str(machine.inputs / "many.jsonl"), "eval_fraction": 0.75}
    sft = {"epochs": 4.0, "eval_every": 0.5, "keep": "best", "patience": 3, "learning_rate": 2e-2}
    spin = {"iterations": 1, "epochs": 2.0, "baseline": "sft"}
    return _values(machine, data=data, sft={**sft, "schedule": "constant", "samples": 1}, spin=spin, eval=[])


def _t5(machine: Machine) -> Values:
    return _values(machine, model=str(machine.inputs / "t5"), sft={"dropout": 0.05}, spin={"iterations": 1})


def _mixture(machine: Machine) -> Values:
    tasks = [str(machine.inputs / f"{name}.yaml") for name in ("sums", "halves", "doubles")]
    mixture = {"tasks": tasks, "examples": 24, "held_out": ["doubles"], "heldout_rows": 2, "shots": [1, 2]}
    return _values(machine, data={"train": None, "max_length": 256, "mixture": mixture}, spin=None)


def _synth(machine: Machine) -> Values:
    teacher = {"url": machine.teacher.url, "model": "inventor"}
    synth = {"instructions": 12, "requests_per_round": 3, "teacher": teacher}
    return _values(machine, synth=synth, data={"train": "synth"}, spin=None)


def _judge(machine: Machine) -> Values:
    names = {"ifeval": "ifeval", "questions": "questions", "mt_bench": "mt-bench"}
    files: Values = {key: str(machine.inputs / f"{name}.jsonl") for key, name in names.items()}
    files |= {"rivals": [str(machine.inputs / "parrot.jsonl")], "max_new_tokens": 8}
    judge = {"url": machine.teacher.url, "model": "judge", "items": 6}
    return _values(
        machine,
        sft={"max_steps": 2},
        spin=None,
        eval=["heldout", "ifeval", "questions", "mt-bench"],
        evaluation=files,
        judge=judge,
    )


WORLDS = {
    world.name: world
    for world in (
        World("small", _made(sft={"max_steps": 2}, spin={"iterations": 1, "epochs": 0.5}, eval=[])),
        World("weights", _made()),
        World("seldom", _seldom),
        World("overfit", _overfit),
        World("async", _async, kinds=("kill", "nth", "stop", "fail", "half")),
        World("replay", _made(spin={"replay": 1, "negatives": 2, "baseline": "sft"})),
        World("refresh", _made(spin={"refresh": 2})),
        World("step", _made(sft={"max_steps": 2}, spin={"refresh": "step", "iterations": 1})),
        World("keep", _made(sft={"max_steps": 2}, spin={"keep": "best", "epochs": 0.5})),
        World("history", _made(sft={"optimizer": "adafactor"}, spin={"loss": "t_spin", "history": 2})),
        World("lora", _made(lora={"rank": 4, "dropout": 0.1})),
        World("merge", _made(lora={"rank": 4, "dropout": 0.1, "dora": True, "between": "merge"})),
        World("t5", _t5),
        World("mixture", _mixture),
        World("synth", _synth),
        World("judge", _judge),
        World("kernels", _made(spin=None, eval=[]), environment={"SPINTUNE_KERNELS": "on"}, kinds=("cache",)),
        World("export", command=("export", "RUN", "OUT", "--json"), given="small"),
        World("pairs", command=("pairs", "RUN", "OUT", "--json"), given="small"),
        World("report", command=("report", "RUN", "--out", "OUT", "--json"), given="small"),
    )
}


def run_folder(machine: Machine) -> Path:
    return machine.disk / "run"
