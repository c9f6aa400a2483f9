"""What ``spintune`` does before any command: suggestions, ``--version``, and a short help where no command is given."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from spintune.cli.suggestions import unknown_command
from spintune.version import __version__

SHORT_HELP = """\
spintune: instruction tuning and self-play from one recipe and one command

Begin   spintune init FILE                      look at data, write a recipe
Train   spintune run RECIPE.yaml                all stages; again, it goes on
        spintune sft --model MODEL --data FILE  fine-tune on your own data
        spintune spin --model MODEL --data FILE self-play
        spintune sweep RECIPE.yaml seed=0..4    many seeds and settings
        spintune synth                          a teacher writes data
Look    spintune plan RECIPE.yaml               time, memory and disk of a run
        spintune inspect RECIPE.yaml            the very tokens of training
        spintune mix RECIPE.yaml                a mixture of tasks
        spintune watch RUN                      the same page while it goes on
        spintune report RUN                     one page about a run
        spintune compare RUN RUN                which model is better
        spintune eval --model MODEL --on TASK   benchmarks
        spintune verify RUN                     whether all files are whole
Use     spintune chat RUN                       talk to the chosen model
        spintune export RUN FOLDER              a folder to serve or upload
        spintune pairs RUN FILE                 preference data for others
Help    spintune recipes                        recipes to run or to copy
        spintune doctor                         what is installed, or wrong
        spintune schema                         a schema of recipes
        spintune COMMAND --help                 all that a command takes"""


class SpintuneGroup(TyperGroup):
    """The commands; a word that is none is answered with the one that was meant."""

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def]  # its classes are another library's
        """The command that the words begin with."""
        if args and args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(unknown_command(args[0], self.commands))
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
