"""Reference pages that are printed from the code while the site is built, so they cannot go stale.

A hook of mkdocs: see ``hooks`` in mkdocs.yml. Without mkdocs, ``pages()`` gives the same Markdown by path.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import spintune
from spintune import errors
from spintune.cli import app
from spintune.recipe import Recipe, Section

EXTEND = "how-to/extend"
"""Pages in this folder join the navigation by themselves."""


def pages() -> dict[str, str]:
    """The Markdown of every generated page, by its path below docs/."""
    return {
        "reference/recipe.md": recipe_page(),
        "reference/commands.md": commands_page(),
        "reference/exit-codes.md": exit_codes_page(),
        "reference/python.md": python_page(),
    }


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines)


# The recipe ---------------------------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Every key of a recipe, section by section, with its type, default and description."""
    parts = [
        "# Recipe keys\n\n"
        "A recipe is a YAML file. Unknown keys are errors, with a suggestion. A default names its source where it has "
        "one; a unit stands in brackets. Any key can be set on the command line behind the recipe, as `key.path=value`:\n\n"
        "```console\n$ spintune run recipes/quickstart.yaml spin.iterations=1 out=runs/one\n```\n\n"
        "`spintune schema` prints the same as JSON Schema; `recipes/recipe.schema.json` holds it for editors."
    ]
    for path, section in sections(Recipe, ""):
        title = f"`{path}`" if path else "Top level"
        intro = inspect.getdoc(section) if section.__doc__ and section is not Recipe else ""
        parts.append(f"## {title} {{ #{anchor(path)} }}\n\n" + (f"{markdown(intro)}\n\n" if intro else "") + keys_table(section, path))
    return "\n\n".join(parts) + "\n"


def anchor(path: str) -> str:
    """The anchor of a section's heading."""
    return path.replace(".", "-").replace("[]", "") or "top-level"


def sections(section: type[BaseModel], path: str, seen: tuple[type[BaseModel], ...] = ()) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those inside it, each with its dotted path."""
    yield path, section
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner and inner not in (*seen, section):
            many = "[]" if get_origin(strip_optional(field.annotation)) in (list, dict) else ""
            yield from sections(inner, f"{path}.{field.alias or name}{many}".lstrip("."), (*seen, section))


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation holds, if any."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def strip_optional(annotation: Any) -> Any:
    """An annotation without ``| None``."""
    arms = [arm for arm in get_args(annotation) if arm is not type(None)]
    return arms[0] if get_origin(annotation) in (types.UnionType,) and len(arms) == 1 else annotation


def keys_table(section: type[BaseModel], path: str) -> str:
    """The keys of one section."""
    rows = (
        (f"`{field.alias or name}`", kind(field, path, field.alias or name), default(field), markdown(field.description or ""))
        for name, field in section.model_fields.items()
    )
    return table(("key", "value", "default", "what it does"), rows)


def kind(field: FieldInfo, path: str, key: str) -> str:
    """What a key takes, in words."""
    inner = section_in(field.annotation)
    if inner:
        target = f"{path}.{key}".lstrip(".")
        many = get_origin(strip_optional(field.annotation))
        linked = f"[section](#{anchor(target)})"
        return f"list of {linked}s" if many is list else f"names of {linked}s" if many is dict else linked
    limits = ", ".join(filter(None, map(limit, field.metadata)))
    return words(field.annotation) + (f", {limits}" if limits else "")


def limit(bound: Any) -> str:
    """One bound of a number, such as ``> 0``."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(f"{sign} {getattr(bound, name):g}" for name, sign in signs.items() if getattr(bound, name, None) is not None)


def words(annotation: Any) -> str:
    """A type in a reader's words."""
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any value"}
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
    if field.default is PydanticUndefined:
        return "required" if field.default_factory is None else "its defaults"
    value = field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    plain = {None: "none", True: "`true`", False: "`false`", "": "empty"}
    if value is None or isinstance(value, bool) or value == "":
        return plain[value]
    return f"`{value:g}`" if isinstance(value, float) else f"`{list(value)}`" if isinstance(value, list | tuple) else f"`{value}`"


def markdown(text: str) -> str:
    """A description whose special characters stay what they are."""
    return " ".join(text.split()).replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


# Commands -----------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    parts = ["# Commands\n\nEvery command ends with an [exit code](exit-codes.md) that says what kind of problem it met. `--json` prints results to stdout and events to stderr, one JSON object a line."]
    for name, command in commands().items():
        help_text = markdown(command.help or "")
        parts.append(f"## `spintune {name}` {{ #{name} }}\n\n{help_text}\n\n" + options(command))
    return "\n\n".join(parts) + "\n"


def commands() -> dict[str, Any]:
    """The commands of the command line, by name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options(command: Any) -> str:
    """The parameters of a command."""
    rows = []
    for one in command.params:
        if one.name == "help":
            continue
        is_argument = one.param_type_name == "argument"
        shown = f"`{one.metavar or (one.name or '').upper()}`" if is_argument else " ".join(f"`{option}`" for option in one.opts)
        given = one.default is not None and one.default is not False and not callable(one.default) and not one.required
        rows.append((shown, markdown(getattr(one, "help", "") or ""), f"`{one.default}`" if given else ""))
    return table(("argument or option", "what it does", "default"), iter(rows)) if rows else ""


# Exit codes ---------------------------------------------------------------------------------------------------------


def exit_codes() -> dict[int, str]:
    """What each exit code means, from the errors themselves."""
    kinds = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.SpintuneError)]
    known = {one.exit_code: f"`{one.__name__}`: {' '.join((inspect.getdoc(one) or '').split())}" for one in kinds}
    return {0: "Done.", **dict(sorted(known.items())), 130: "Stopped by Ctrl-C. The same command goes on from there."}


def exit_codes_page() -> str:
    """The exit codes."""
    rows = ((str(code), meaning.replace("``", "`")) for code, meaning in exit_codes().items())
    return (
        "# Exit codes\n\n"
        "A mistake that you can mend ends in one line, which says what is wrong, where, and what to do, and in a code of "
        "its own. From Python the same mistake raises the exception named here; all are subclasses of "
        "`spintune.SpintuneError`. A traceback is a bug: please report it.\n\n" + table(("code", "meaning"), rows) + "\n"
    )


# Python -------------------------------------------------------------------------------------------------------------


def python_page() -> str:
    """Everything that ``spintune`` exports."""
    names = [name for name in spintune.__all__ if not name.startswith("__")]
    parts = ["# Python\n\n" + markdown(inspect.getdoc(spintune) or "") + "\n\nEverything below is imported from `spintune`."]
    for name in names:
        value = getattr(spintune, name)
        if inspect.ismodule(value):
            parts.append(f"## `spintune.{name}` {{ #{name} }}\n\n::: {value.__name__}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false")
        elif inspect.isclass(value) or inspect.isfunction(value):
            parts.append(f"## `spintune.{name}` {{ #{name} }}\n\n::: {value.__module__}.{value.__qualname__}\n    options:\n      show_root_toc_entry: false")
        else:
            parts.append(f"## `spintune.{name}` {{ #{name} }}\n\n`{type(value).__name__}`")
    return "\n\n".join(parts) + "\n"


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
    """Adds the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files
