"""Reference pages that are printed from the code.

``python docs/generate.py`` writes those that can be read without the site; a test says when that is due. The page on
Python consists of directives for mkdocstrings: a hook of mkdocs (``hooks`` in mkdocs.yml) adds it to the site.
"""

from __future__ import annotations

import inspect
import itertools
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import griffe
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import spintune
from spintune import errors
from spintune.cli import app
from spintune.recipe import Recipe
from spintune.recipe.checking import section_in
from spintune.recipe.other_names import COUNTS, OTHER_NAMES

EXTEND = "how-to/extend"
"""Pages in this folder join the navigation by themselves."""

ONLY_IN_THE_SITE = "reference/python.md"

RECIPE_INTRO = """# Recipe keys

A recipe is a YAML file. Unknown keys are errors, with a suggestion. A default names its source where it has one; a unit
stands in brackets. Any key can be set on the command line behind the recipe, as `key.path=value`:

```console
$ spintune run recipes/quickstart.yaml spin.iterations=1 out=runs/one
```

`lambda`, `loss`, `learning_rate` and `epochs` of `spin` take one value, or a list with one for each iteration.
`spintune schema` prints this page as JSON Schema; `recipes/recipe.schema.json` holds it for editors."""

OTHER_NAMES_INTRO = """## Names in other tools { #names-in-other-tools }

What TRL, transformers, LLaMA-Factory, axolotl and torchtune call a key. A recipe with a name from there is answered
with ours, and with what ours counts where that is something else."""

COMMANDS_INTRO = """# Commands

Every command ends with an [exit code](exit-codes.md) that says what kind of problem it met. `--json` prints results to
stdout and events to stderr, one JSON object a line."""

EXIT_CODES_INTRO = """# Exit codes

A mistake that you can mend ends in one line that says what is wrong, where, and what to do, and in a code of its own.
From Python the same mistake raises the exception named here; all are subclasses of `spintune.SpintuneError`. Code 70 is
a bug: please report it with the traceback that the line names (from Python the error itself is raised). A second signal
of the same kind ends a command at once, with the code that your shell gives to it (143 after SIGTERM). So does the
system's killer of processes when memory runs out (137).

"""


def pages() -> dict[str, str]:
    """The Markdown of every generated page, by its path below docs/."""
    return {
        "reference/recipe.md": recipe_page(),
        "reference/commands.md": commands_page(),
        "reference/exit-codes.md": exit_codes_page(),
        ONLY_IN_THE_SITE: python_page(),
    }


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    cells = ((cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


# The recipe ---------------------------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Every key of a recipe, section by section, with its type, default and description."""
    parts = [RECIPE_INTRO]
    for path, section in sections(Recipe, ""):
        title = f"`{path}`" if path else "Top level"
        intro = inspect.getdoc(section) if section.__doc__ and section is not Recipe else ""
        parts.append(
            f"## {title} {{ #{anchor(path)} }}\n\n"
            + (f"{markdown(intro)}\n\n" if intro else "")
            + keys_table(section, path)
        )
    names = (
        (f"`{ours}`", ", ".join(f"`{other}`" for other in others), COUNTS.get(ours, ""))
        for ours, others in OTHER_NAMES.items()
    )
    parts.append(f"{OTHER_NAMES_INTRO}\n\n{table(('here', 'elsewhere', 'ours'), names)}")
    return "\n\n".join(parts) + "\n"


def anchor(path: str) -> str:
    """The anchor of a section's heading."""
    return path.replace(".", "-").replace("[]", "") or "top-level"


def sections(
    section: type[BaseModel], path: str, seen: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those inside it, each with its dotted path."""
    yield path, section
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner and inner not in (*seen, section):
            many = "[]" if get_origin(strip_optional(field.annotation)) in (list, dict) else ""
            yield from sections(inner, f"{path}.{field.alias or name}{many}".lstrip("."), (*seen, section))


def strip_optional(annotation: Any) -> Any:
    """An annotation without ``| None``."""
    arms = [arm for arm in get_args(annotation) if arm is not type(None)]
    return arms[0] if get_origin(annotation) in (types.UnionType,) and len(arms) == 1 else annotation


def keys_table(section: type[BaseModel], path: str) -> str:
    """The keys of one section."""
    rows = (
        (
            f"`{field.alias or name}`",
            kind(field, path, field.alias or name),
            default(field),
            markdown(field.description or ""),
        )
        for name, field in section.model_fields.items()
    )
    return table(("key", "value", "default", "what it does"), rows)


def kind(field: FieldInfo, path: str, key: str) -> str:
    """What a key takes, in words."""
    inner = section_in(field.annotation)
    if inner:
        target = f"{path}.{key}".lstrip(".")
        many = get_origin(strip_optional(field.annotation))
        printed = {anchor(place): section for place, section in sections(Recipe, "")}
        if anchor(target) not in printed:  # a section inside its own kind
            target = next(place for place, section in printed.items() if section is inner)
        linked = f"[section](#{anchor(target)})"
        return f"list of {linked}s" if many is list else f"names of {linked}s" if many is dict else linked
    limits = ", ".join(filter(None, map(limit, field.metadata)))
    return words(field.annotation) + (f", {limits}" if limits else "")


def limit(bound: Any) -> str:
    """One bound of a number, such as ``> 0``."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(
        f"{sign} {getattr(bound, name):g}" for name, sign in signs.items() if getattr(bound, name, None) is not None
    )


def words(annotation: Any) -> str:
    """A type in a reader's words."""
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        type(None): "null",
        Any: "any value",
    }
    if annotation in names:
        return names[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " / ".join(f"`{value}`" for value in arguments)
    if hasattr(annotation, "__metadata__"):
        bounds = [limit(bound) for one in annotation.__metadata__ for bound in (one, *getattr(one, "metadata", ()))]
        return ", ".join([words(arguments[0] if origin is None else annotation.__origin__), *filter(None, bounds)])
    if origin is list:
        return f"list of ({words(arguments[0])})" if "," in words(arguments[0]) else f"list of {words(arguments[0])}s"
    if origin is tuple:
        return f"[{', '.join(words(one) for one in arguments)}]"
    if origin is dict:
        return f"{words(arguments[0])} to {words(arguments[1])}"
    arms = [words(one) for one in arguments if one is not type(None)]
    return " or ".join(dict.fromkeys(arms)) if arms else str(annotation)


def default(field: FieldInfo) -> str:
    """A key's default, as YAML would write it."""
    value = field.default
    if value is PydanticUndefined:
        return "required" if field.default_factory is None else "its defaults"
    if value is None:
        return "as described" if "Default: " in (field.description or "") else "none"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{list(value)}`" if isinstance(value, list | tuple) else f"`{value}`" if value != "" else "empty"


def markdown(text: str) -> str:
    """A description whose special characters stay what they are."""
    return " ".join(text.split()).replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


# Commands -----------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    parts = [COMMANDS_INTRO]
    for name, command in commands().items():
        help_text = markdown(command.help or "")
        parts.append(f"## `spintune {name}` {{ #{name} }}\n\n{help_text}\n\n" + options(command))
    return "\n\n".join(parts) + "\n"


def commands() -> dict[str, Any]:
    """The commands of the command line, by name."""
    group: Any = typer.main.get_command(app)
    return {name: group.get_command(None, name) for name in group.list_commands(None)}


def options(command: Any) -> str:
    """The parameters of a command."""
    rows = []
    for one in command.params:
        if one.name == "help":
            continue
        is_argument = one.param_type_name == "argument"
        shown = (
            f"`{one.metavar or (one.name or '').upper()}`"
            if is_argument
            else " ".join(f"`{option}`" for option in one.opts)
        )
        given = one.default is not None and one.default is not False and not callable(one.default) and not one.required
        rows.append((shown, markdown(getattr(one, "help", "") or ""), f"`{one.default}`" if given else ""))
    return table(("argument or option", "what it does", "default"), iter(rows)) if rows else ""


# Exit codes ---------------------------------------------------------------------------------------------------------


def exit_codes() -> dict[int, str]:
    """What each exit code means, from the errors themselves."""
    kinds = [one for _, one in inspect.getmembers(errors, inspect.isclass) if hasattr(one, "exit_code")]
    known = {one.exit_code: f"`{one.__name__}`: {' '.join((inspect.getdoc(one) or '').split())}" for one in kinds}
    return {0: "Done.", **dict(sorted(known.items()))}


def exit_codes_page() -> str:
    """The exit codes."""
    rows = ((str(code), meaning.replace("``", "`")) for code, meaning in exit_codes().items())
    return EXIT_CODES_INTRO + table(("code", "meaning"), rows) + "\n"


# Python -------------------------------------------------------------------------------------------------------------


def python_page() -> str:
    """Everything that ``spintune`` exports: first what it does, then what it is made of."""
    names = [name for name in spintune.__all__ if not name.startswith("__")]
    values = {name: getattr(spintune, name) for name in names}
    groups = {
        "Functions": [name for name in names if inspect.isfunction(values[name])],
        "Classes": [name for name in names if inspect.isclass(values[name])],
        "Modules": [name for name in names if inspect.ismodule(values[name])],
    }
    parts = ["# Python\n\n" + as_markdown(inspect.getdoc(spintune) or "")]
    for title, members in groups.items():
        parts.append(f"## {title}")
        parts += [member(name, values[name]) for name in members]
    return "\n\n".join(parts) + "\n"


def member(name: str, value: Any) -> str:
    """One exported thing, for mkdocstrings to print."""
    path = value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{value.__qualname__}"
    more = "\nIts fields are the [keys of a recipe](recipe.md).\n" if value is Recipe else ""
    return f"::: {path}\n    options:\n      heading: spintune.{name}\n      toc_label: {name}\n{more}"


ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
RULE = re.compile(r"=+(  +=+)+")


def as_markdown(docstring: str) -> str:
    """A docstring in reStructuredText's manner as Markdown: roles, literal blocks, simple tables, doctests."""
    lines: list[str] = []
    rows = iter(ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", docstring).split("\n"))
    for line in rows:
        if RULE.fullmatch(line.strip()):
            lines += simple_table(line, rows)
        elif line.strip().startswith(">>>") and not (lines and lines[-1].startswith("    ")):
            indent = line[: len(line) - len(line.lstrip())]
            block = [line, *itertools.takewhile(str.strip, rows)]
            lines += [f"{indent}```pycon", *block, f"{indent}```", ""]
        elif line.strip() == "::":
            continue
        else:
            lines.append(line[:-1] if line.endswith("::") else line)
    return "\n".join(lines)


def simple_table(rule: str, rows: Iterator[str]) -> list[str]:
    """A simple table of reStructuredText, of which the first rule was read, as a Markdown table."""
    indent = len(rule) - len(rule.lstrip())
    rule = rule.strip()
    starts = [0, *(gap.end() for gap in re.finditer(r"  +", rule))]
    cells: list[list[str]] = []
    header: list[str] = [""] * len(starts)
    for line in rows:
        text = line[indent:].rstrip()
        if text == rule:
            text = next(rows, "")[indent:].rstrip()
            if not text:
                break
            header, cells = [" ".join(column).strip() for column in zip(*cells, strict=True)], []
        row = [text[begin:end].strip() for begin, end in itertools.zip_longest(starts, starts[1:])]
        if cells and not row[0]:
            cells[-1] = [f"{known} {more}".strip() for known, more in zip(cells[-1], row, strict=True)]
        else:
            cells.append(row)
    return ["", *table(tuple(header), (tuple(row) for row in cells)).split("\n"), ""]


class Docstrings(griffe.Extension):
    """Lets mkdocstrings read docstrings as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of one module, class or function."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


# The hook -----------------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Adds the pages on extending spintune to the navigation, as soon as there are some."""
    folder = Path(config["docs_dir"]) / EXTEND
    found = sorted(path.relative_to(config["docs_dir"]).as_posix() for path in folder.glob("*.md"))
    found.sort(key=lambda page: not page.endswith("/index.md"))
    how_to = next(entry["How to"] for entry in config["nav"] if "How to" in entry)
    if found and not any("Extend spintune" in entry for entry in how_to if isinstance(entry, dict)):
        how_to.append({"Extend spintune": found})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the page on Python to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, ONLY_IN_THE_SITE, content=python_page()))
    return files


if __name__ == "__main__":
    for place, text in pages().items():
        if place != ONLY_IN_THE_SITE:
            Path(__file__).with_name("reference").joinpath(Path(place).name).write_text(text)
