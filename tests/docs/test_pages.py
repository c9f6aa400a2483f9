"""The documentation says what is true: its commands run, its links lead somewhere, its tables are complete.

Conventions in the Markdown: a comment before a fenced block says what becomes of it here.

    <!-- run -->           its commands or statements run, in the order of the page, in one folder and one namespace
    <!-- file: NAME -->    it is written to NAME in that folder
    <!-- recipe -->        it is a part of a recipe, and valid

Real models of the pages are replaced by tiny ones.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from markdown.extensions.toc import slugify

from spintune.plugins import Table

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
BESIDE = {
    name: (REPOSITORY / name).read_text()
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
}

MARK = r"<!-- (?P<mark>run|recipe|file: (?P<name>\S+)) -->\n"
FENCE = re.compile(rf"(?:{MARK})?```(?P<kind>\w*)\n(?P<text>.*?)\n```", re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    mark: str
    name: str | None
    kind: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(found["mark"] or "", found["name"], found["kind"], found["text"]) for found in FENCE.finditer(text)]


def lines(text: str) -> list[list[str]]:
    """The words of every command in a console block."""
    shown = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in shown]


def commands(text: str) -> list[list[str]]:
    """The words behind spintune of every such command in a console block."""
    return [words[1:] for words in lines(text) if words[0].rpartition("/")[2] == "spintune"]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py, which prints the reference."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def all_pages(generate: ModuleType) -> dict[str, str]:
    return PAGES | generate.pages()


# What is printed from the code --------------------------------------------------------------------------------------


def test_the_printed_pages_are_what_the_code_prints(generate: ModuleType) -> None:
    printed = {path: text for path, text in generate.pages().items() if path != generate.ONLY_IN_THE_SITE}
    assert len(printed) == 3
    assert [path for path, text in printed.items() if PAGES.get(path) != text] == [], "run python docs/generate.py"


def test_every_recipe_key_is_in_the_reference(all_pages: dict[str, str]) -> None:
    from spintune.recipe import recipe_schema

    schema = recipe_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = {key for section in sections for key in section.get("properties", {})}
    page = all_pages["reference/recipe.md"]
    assert len(keys) > 100
    assert [key for key in sorted(keys) if f"| `{key}` |" not in page] == []


def test_every_command_and_option_is_in_the_reference(
    all_pages: dict[str, str], spintune: Callable[..., Any], generate: ModuleType
) -> None:
    page = all_pages["reference/commands.md"]
    listed = re.findall(r"^\s+([a-z]+) {2,}\S", spintune("--help").out.partition("Commands:")[2], re.M)
    assert sorted(listed) == sorted(re.findall(r"^## `spintune (\w+)`", page, re.M))
    for name in listed:
        text = page.partition(f"## `spintune {name}`")[2].partition("\n## ")[0]
        options = set(re.findall(r"^\s+(--[a-z-]+)", spintune(name, "--help").out, re.M)) - {"--help"}
        assert [option for option in sorted(options) if f"`{option}`" not in text] == [], name


def test_every_exit_code_is_in_the_reference(all_pages: dict[str, str]) -> None:
    source = (REPOSITORY / "src/spintune/errors.py").read_text()
    codes = {int(code) for code in re.findall(r"exit_code = (\d+)", source)}
    assert codes == {*range(1, 16), 70, 75, 130}
    page = all_pages["reference/exit-codes.md"]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)} == codes | {0}


def test_everything_that_spintune_exports_is_in_the_reference(all_pages: dict[str, str]) -> None:
    import spintune

    page = all_pages["reference/python.md"]
    names = [name for name in spintune.__all__ if not name.startswith("__")]
    assert [name for name in names if f"heading: spintune.{name}\n" not in page] == []


def test_every_variable_that_is_read_is_in_the_reference() -> None:
    sources = "\n".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py"))
    read = set(re.findall(r"""environ(?:\.get\(|\[)["'](\w+)["']""", sources))
    assert {"XDG_CACHE_HOME", "CXX"} <= read
    assert [name for name in sorted(read) if f"`{name}`" not in PAGES["reference/environment.md"]] == []


# What is written by hand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_names_and_options_that_exist(page: str, generate: ModuleType) -> None:
    known = generate.commands()
    for block in blocks(PAGES[page]):
        for words in commands(block.text) if block.kind == "console" else ():
            assert words[0] in known, words
            options = {option for one in known[words[0]].params for option in one.opts}
            assert [word for word in words if word.startswith("--") and word not in options] == [], words


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "<!-- recipe -->" in text])
def test_recipes_are_valid(page: str) -> None:
    from spintune.recipe import parse_recipe

    for block in blocks(PAGES[page]):
        if block.mark == "recipe":
            parse_recipe({"out": "runs/x", "model": "m", **yaml.safe_load(block.text)}, page)


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_that_pages_name_exist(page: str) -> None:
    named = re.findall(r"\b((?:recipes|benchmarks|tests)/[\w/.-]+\.(?:py|yaml|jsonl?))", PAGES[page])
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


def test_the_demo_is_the_recipe_that_the_tutorial_reads() -> None:
    (recipe,) = (block for block in blocks(PAGES["tutorial/demo.md"]) if block.mark == "recipe")
    assert yaml.safe_load(recipe.text) == yaml.safe_load((REPOSITORY / "recipes/quickstart.yaml").read_text())


LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the site has them."""
    headings = re.findall(r"^#{1,6} (.+?)(?: \{ #([\w-]+) \})?$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    plain = ((re.sub(r"[`*]|<[^>]+>", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)), id) for title, id in headings)
    return {id or slugify(title, "-") for title, id in plain}


def test_links_lead_to_pages_and_headings(all_pages: dict[str, str]) -> None:
    broken = []
    for page, text in all_pages.items():
        for target in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.S)):
            path, _, anchor = target.partition("#")
            if path.startswith(("http:", "https:")):
                continue
            found = (DOCS / page).parent.joinpath(path).resolve().relative_to(DOCS).as_posix() if path else page
            there = found in all_pages or (DOCS / found).is_file()
            if not there or (anchor and anchor not in anchors(all_pages.get(found, ""))):
                broken.append(f"{page}: {target}")
    for page, text in BESIDE.items():
        broken += [
            f"{page}: {target}"
            for target in LINK.findall(text)
            if not target.startswith("http") and not (REPOSITORY / target.partition("#")[0]).exists()
        ]
    assert broken == []


def test_the_names_of_other_tools_are_printed(generate: ModuleType) -> None:
    table = generate.recipe_page().partition("names-in-other-tools")[2]
    assert "| `tokens_per_step` | `batch_size`, `per_device_train_batch_size`," in table


def test_the_readme_counts_families_as_their_table_does() -> None:
    paths: dict[str, set[str]] = {}
    for family, path in re.findall(r"^\| `(.+?)` \| [^|]* \| (.+?) \|", PAGES["reference/families.md"], re.M):
        paths.setdefault(family, set()).add(path)
    best = [next(path for path in ("packed", "one at a time", "refused") if path in found) for found in paths.values()]
    told = "{} compute many rows at once, {} one at a time".format(*map(best.count, ("packed", "one at a time")))
    readme = " ".join(BESIDE["README.md"].split())
    assert f"[{len(best)} families]" in readme
    assert f"{told} (slower), and {best.count('refused')} are refused" in readme


def test_every_page_is_in_the_navigation(all_pages: dict[str, str], generate: ModuleType) -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:")[2]
    added = [page for page in all_pages if page.startswith(generate.EXTEND)]
    assert [page for page in all_pages if page not in navigation and page not in added] == []


def test_every_drawing_has_a_title_and_both_color_schemes_and_every_image_a_text() -> None:
    for path in (DOCS / "drawings").glob("*.svg"):
        text = path.read_text()
        assert "<title" in text, path.name
        assert "prefers-color-scheme: dark" in text, path.name
        assert "http://" not in text.replace('xmlns="http://www.w3.org/2000/svg"', ""), path.name
        assert any(path.name in page for page in PAGES.values()), path.name
    assert [page for page, text in PAGES.items() if "![](" in text] == []


def test_the_architecture_names_what_exists() -> None:
    page = PAGES["architecture.md"]
    names = {name for name in re.findall(r"`([a-z_0-9]+(?:\.\w+)+)", page) if not name.endswith((".toml", ".jsonl"))}
    names -= {"spin.lambda"}
    assert len(names) > 30
    broken = []
    for name in sorted(names):
        try:
            pkgutil.resolve_name(f"spintune.{name}")
        except (ImportError, AttributeError):
            broken.append(name)
    assert broken == []


def test_the_architecture_lists_the_packages_in_the_order_of_imports() -> None:
    (contract, *_) = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    packages = PAGES["architecture.md"].partition("## The packages")[2].partition("\n## ")[0]
    listed = [name for row in re.findall(r"^\| (`.*?) \|", packages, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert listed == [layer.removeprefix("spintune.") for layer in contract["layers"]]


PRIVATE = re.compile(r"\b(agents?|sub-?agents?|worktrees?|workplace|house\.md|DESIGN\.md)\b|/work/|/tmp/", re.I)


@pytest.mark.parametrize("page", [*PAGES, *BESIDE])
def test_pages_are_about_the_program(page: str) -> None:
    assert PRIVATE.findall((PAGES | BESIDE)[page]) == []


# What runs ----------------------------------------------------------------------------------------------------------

QUICK = (
    "explanation/losses.md",
    "explanation/synthesis.md",
    "how-to/chat-template.md",
    "how-to/prepare-data.md",
    "how-to/write-data.md",
)
RUNNABLE = [
    pytest.param(page, marks=() if page in QUICK else pytest.mark.slow)
    for page, text in PAGES.items()
    if "<!-- run -->" in text
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A tiny model is fastest on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", RUNNABLE)
def test_pages_run(
    page: str,
    spintune: Callable[..., Any],
    one_thread: None,
    tiny_model: Path,
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for table in tables():
        monkeypatch.setattr(table, "_known", dict(table._known))  # what a page registers is gone after it
    namespace: dict[str, Any] = {"__name__": "__page__"}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # has spintune
    for block in blocks(PAGES[page]):
        text = block.text
        for real, tiny in (("smollm2-135m-instruct", tiny_model), ("google/flan-t5-small", tiny_t5)):
            text = text.replace(real, str(tiny))
        if block.name:
            (tmp_path / block.name).write_text(text + "\n")
        elif block.mark == "run" and block.kind == "console":
            for words in lines(text):
                if words[0] == "spintune":
                    ended = spintune(*words[1:])
                    assert ended.code == 0, (words, ended.err)
                else:
                    subprocess.run(words, check=True, env=environment)  # cp, bash
        elif block.mark == "run":
            exec(compile(text, page, "exec"), namespace)
    for recipe in (tmp_path / "runs").rglob("recipe.json"):
        assert unexplained(recipe.parent) == []


def tables() -> list[Table[Any]]:
    """Everything that users extend."""
    from spintune.data.formats import FORMATS
    from spintune.generation.build import GENERATORS
    from spintune.metrics import METRICS
    from spintune.recipe.losses import LOSSES
    from spintune.teachers.registry import TEACHERS
    from spintune.trackers import TRACKERS

    return [FORMATS, GENERATORS, LOSSES, METRICS, TEACHERS, TRACKERS]


def unexplained(run: Path) -> list[str]:
    """Files of a run folder that the reference does not name."""
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", PAGES["reference/run-folder.md"], re.M)
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert "recipe.json" in paths
    patterns = []
    for path in paths:
        pattern = re.sub(r"NAME|BENCHMARK|EVALUATION|A-vs-B", "[^/]+", re.escape(path).replace(r"A\-vs\-B", "A-vs-B"))
        pattern = pattern.replace(r"iterate\-N", r"iterate-\d+")
        patterns.append(re.compile(pattern + (".*" if path.endswith("/") else "")))
    files = [file.relative_to(run).as_posix() for file in sorted(run.rglob("*")) if file.is_file()]
    return [
        file
        for file in files
        if not file.endswith("manifest.json") and not any(pattern.fullmatch(file) for pattern in patterns)
    ]


# The site -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    fetched = re.compile(r"""<(?:script|link|img|iframe|source|video)\b[^>]* (?:src|href|srcset)=["']?(?:https?:)?//""")
    imported = re.compile(r"""(?:url\(|@import )\s*["']?(?:https?:)?//""")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [page.name for page in pages if fetched.search(page.read_text())] == []
    assert [css.name for css in (tmp_path / "site").rglob("*.css") if imported.search(css.read_text())] == []
