"""What ``spintune`` does before any command: suggestions, ``--version``, and a short help where no command is given."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import Annotated

import typer
from typer.core import TyperGroup

from spintune.version import __version__

_COMMANDS = (
    ("Begin", "init FILE", "look at data, write a recipe"),
    ("Train", "run RECIPE.yaml", "all stages; again, it goes on"),
    ("", "sft --model MODEL --data FILE", "fine-tune on your own data"),
    ("", "spin --model MODEL --data FILE", "self-play"),
    ("", "sweep RECIPE.yaml seed=0..4", "many seeds and settings"),
    ("", "synth", "a teacher writes data"),
    ("Look", "plan RECIPE.yaml", "time, memory and disk of a run"),
    ("", "inspect RECIPE.yaml", "the very tokens of training"),
    ("", "mix RECIPE.yaml", "a mixture of tasks"),
    ("", "watch RUN", "a run in the browser, live"),
    ("", "report RUN", "one page about a run"),
    ("", "compare RUN RUN", "which model is better"),
    ("", "eval --model MODEL --on TASK", "benchmarks and own tasks"),
    ("", "verify RUN", "whether all files are whole"),
    ("Use", "chat RUN", "talk to the chosen model"),
    ("", "export RUN FOLDER", "a folder to serve or upload"),
    ("", "pairs RUN FILE", "preference data for others"),
    ("Help", "recipes", "recipes to run or to copy"),
    ("", "doctor", "what is installed, or wrong"),
    ("", "schema", "a schema of recipes"),
    ("", "COMMAND --help", "all that a command takes"),
)
SHORT_HELP = "\n".join(
    (
        "spintune: instruction tuning and self-play from one recipe and one command\n",
        *(f"{group:8}spintune {usage:31}{told}" for group, usage, told in _COMMANDS),
    )
)
IN_A_LINE = {usage.split()[0]: f"{told[0].upper()}{told[1:]}." for _, usage, told in _COMMANDS[:-1]}
"""By command: what it does, in so few words that a list of commands has room for them."""


HOMES = MappingProxyType(
    {
        "init": "init.init",
        "run": "stages.run",
        "synth": "stages.synth",
        "sft": "stages.sft",
        "spin": "stages.spin",
        "eval": "stages.evaluate",
        "sweep": "sweep.sweep",
        "plan": "plan.plan",
        "inspect": "look.inspect",
        "mix": "look.mix",
        "watch": "watch.watch",
        "chat": "chat.chat",
        "compare": "results.compare",
        "report": "results.report",
        "export": "export.export",
        "pairs": "results.pairs",
        "verify": "look.verify",
        "doctor": "look.doctor",
        "recipes": "recipes.recipes",
        "schema": "look.schema",
    }
)
"""By command, in the order of ``--help``: its module in this package, and its function there."""


class SpintuneGroup(TyperGroup):
    """The commands, each imported when it is called; a word that is none is answered with the one that was meant."""

    def list_commands(self, ctx):  # type: ignore[no-untyped-def]  # its classes are another library's
        """The names of all commands."""
        return list(HOMES)

    def get_command(self, ctx, cmd_name):  # type: ignore[no-untyped-def]
        """A command by its name."""
        if cmd_name not in HOMES:
            return None
        module, function = HOMES[cmd_name].split(".")
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        command = getattr(import_module(f"spintune.cli.{module}"), function)
        alone.command(cmd_name, short_help=IN_A_LINE[cmd_name])(command)
        return typer.main.get_command(alone)

    def format_commands(self, ctx, formatter):  # type: ignore[no-untyped-def]
        """The list of ``--help``, for which no command is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, IN_A_LINE[name]) for name in HOMES])

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def]
        """The command that the words begin with."""
        if args and args[0] not in HOMES and not args[0].startswith("-") and not ctx.resilient_parsing:
            from spintune.cli.suggestions import unknown_command

            ctx.fail(unknown_command(args[0], HOMES))
        return super().resolve_command(ctx, args)


def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and stop.")] = False,
) -> None:
    """Instruction tuning and self-play fine-tuning (SPIN) from one recipe and one command."""
    if version:
        print(f"spintune {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(SHORT_HELP)
