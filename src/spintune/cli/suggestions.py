"""What was meant by a command or flag that there is none of, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from spintune.terminal import visible

_MEANT = {
    "train": ("run", "sft", "spin"),
    "finetune": ("sft", "run"),
    "fine-tune": ("sft", "run"),
    "tune": ("sft", "run"),
    "dpo": ("spin",),
    "selfplay": ("spin",),
    "self-play": ("spin",),
    "resume": ("run",),
    "evaluate": ("eval",),
    "test": ("eval",),
    "benchmark": ("eval",),
    "generate": ("chat", "synth"),
    "infer": ("chat",),
    "predict": ("chat",),
    "talk": ("chat",),
    "serve": ("export",),
    "convert": ("export",),
    "push": ("export",),
    "diff": ("compare",),
    "show": ("report", "inspect"),
    "status": ("run --dry-run", "report"),
    "info": ("doctor",),
    "env": ("doctor",),
    "check": ("verify", "doctor"),
    "version": ("--version",),
    "help": ("--help",),
    "grid": ("sweep",),
    "search": ("sweep",),
}
TAKE_KEYS = ("run", "synth", "sft", "spin", "eval", "sweep", "inspect", "mix", "plan")
"""Commands that take key.path=value behind the recipe."""


def unknown_command(word: str, commands: Iterable[str]) -> str:
    """What to tell who asks for a command that does not exist."""
    known = list(commands)
    if word.endswith((".yaml", ".yml")):
        return f"{visible(word)!r} is no command; a recipe is run by: spintune run {visible(word)}"
    if (Path(word) / "recipe.json").is_file():
        return f"{visible(word)!r} is no command but a run folder; see spintune chat or spintune report {visible(word)}"
    close = difflib.get_close_matches(word.lower(), [*known, *_MEANT], 1)
    found = [name for one in close for name in _MEANT.get(one, (one,))]
    advice = f"did you mean {_either(found)}?" if found else f"there are: {', '.join(known)}"
    return f"there is no command {visible(word)!r}; {advice}"


def unknown_option(option: str, command: str, options: Sequence[str]) -> str:
    """What to tell who gives a flag that a command does not have: another flag, or the key of a recipe.

    Args:
        options: those of the command.
    """
    name = visible(option)
    told = f"spintune {command} has no option {name}" if command else f"spintune has no option {name}"
    if keys := _keys(option, command):
        from spintune.recipe.other_names import counted

        others = f" (or {', '.join(keys[1:3])})" if keys[1:] else ""
        return ". ".join(filter(None, (f"{told}; write {keys[0]}=VALUE{others}", counted(keys[0]))))
    if close := difflib.get_close_matches(option, options, 1):
        return f"{told}; did you mean {close[0]}?"
    return f"{told}; see spintune {command} --help".replace("  ", " ")


def _keys(option: str, command: str) -> list[str]:
    """The recipe's keys that a flag may stand for."""
    if command not in TAKE_KEYS:
        return []
    from spintune.recipe import keys_called

    word = option.lstrip("-").replace("-", "_")
    return keys_called(word, "evaluation" if command == "eval" else command)


def _either(names: Sequence[str]) -> str:
    whole = [f"spintune {name}" for name in names]
    return whole[0] if len(whole) == 1 else f"{', '.join(whole[:-1])} or {whole[-1]}"
