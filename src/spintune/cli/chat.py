"""The chat command."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from spintune.cli.options import RunModel

if TYPE_CHECKING:
    from spintune.api import Model
    from spintune.tokens.template_options import TemplateOptions

_COMMAND = re.compile(r"/[A-Za-z?]*")
_COMMANDS = {
    "/help": "this list",
    "/reset": "start over: forget what was said",
    "/exit": "end, as Ctrl-D does",
}


def chat(
    name: Annotated[
        str, typer.Argument(help="A run folder, alias, model folder, GGUF file or hub id.", metavar="MODEL")
    ],
    model: RunModel = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens up to this sum.", min=0.01, max=1)] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer. [tokens]", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the random draws.", min=0)] = 0,
    template: Annotated[
        str, typer.Option(help="Chat template: tokenizer, tokenizer:NAME, alpaca, chatml or plain.")
    ] = "tokenizer",
    template_option: Annotated[
        list[str] | None,
        typer.Option(help="A variable of the chat template, such as enable_thinking=true.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Talk to a model, or to a model of a run. /help lists what chat itself does, /exit or Ctrl-D ends."""
    from spintune.cli.options import options_from
    from spintune.terminal import visible

    loaded = _load(name, template, options_from(template_option), model)
    history = [{"role": "system", "content": system}] if system else []

    def answer(turns: list[dict[str, str]]) -> str:
        (completion,) = loaded.generate(
            [turns],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_text=lambda _, text: print(visible(text), end="", flush=True),
        )
        print("" if completion.finish_reason == "stop" else " [...]")
        return completion.text

    if prompt is not None:
        answer([*history, {"role": "user", "content": prompt}])
        return
    if sys.stdin.isatty():
        print(f"{loaded.name}\nType a message; /help lists commands, /exit ends.", file=sys.stderr)
    turns = list(history)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            turns = list(history)
        elif _COMMAND.fullmatch(line):
            print(_told(line), file=sys.stderr)
        elif line:
            turns.append({"role": "user", "content": line})
            turns.append({"role": "assistant", "content": answer(turns)})


def _load(name: str, template: str, options: TemplateOptions | None, model: str | None) -> Model:
    """The model to talk to; what has to be downloaded or converted is shown."""
    from spintune.hub import refuse_missing_path

    refuse_missing_path(name)
    from spintune.api import load
    from spintune.cli.execution import quiet_libraries
    from spintune.downloads import shown_on
    from spintune.progress_display import open_progress

    with open_progress(False) as progress, shown_on(progress):
        quiet_libraries()
        return load(name, template=template, template_options=options, model=model)


def _told(command: str) -> str:
    """What chat itself answers to a word that looks like a command."""
    listed = "\n".join(f"  {name:8}{does}" for name, does in _COMMANDS.items())
    if command == "/help":
        return f"{listed}\nAnything else goes to the model, also a text that begins with / and has more than one word."
    return f"chat has no command {command}; it has {', '.join(_COMMANDS)}"
