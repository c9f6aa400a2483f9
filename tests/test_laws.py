"""The laws of the house: sizes, names and imports of the source. An exception has its reason in ``EXCEPTIONS``."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import spintune

ROOT = Path(spintune.__file__).parent
MODULES = {
    ".".join(("spintune", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_DEPTH = 4
MAX_PARAMETERS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)

# law -> name -> why it is broken there
EXCEPTIONS: dict[str, dict[str, str]] = {
    "file": {},
    "function": {},
    "depth": {},
    "parameters": {
        "spintune.cli.chat.chat": "one for each option of the command",
        "spintune.cli.init.init": "one for each option of the command",
        "spintune.cli.plan.plan": "one for each option of the command",
        "spintune.cli.export.export": "one for each option of the command",
        "spintune.engine.attention._layout_attention": "the signature of transformers' attention interface",
        "spintune.engine.varlen.VarlenKernel.__call__": "the signature of torch's varlen_attn",
    },
    "docstring": {},
    "any": {
        "spintune.engine.head": "the context of a torch.autograd.Function has no type",
        "spintune.engine.varlen": "the context of a torch.autograd.Function has no type",
        "spintune.evaluation.harness": "lm_eval has no types",
        "spintune.evaluation.harness_results": "results of lm_eval, which has no types",
        "spintune.evaluation.ifeval.language": "langdetect has no types",
        "spintune.kernels.linear": "the context of a torch.autograd.Function has no type",
        "spintune.kernels.native.attention": "the context of a torch.autograd.Function has no type",
        "spintune.kernels.native.layers": "the context of a torch.autograd.Function has no type",
        "spintune.models.quantized": "bitsandbytes has no types",
        "spintune.recipe.endpoint": "extra fields of a request: any JSON, and what pydantic's serializer returns",
        "spintune.teachers.event_loop": "coroutines of any type on a loop of its own",
        "spintune.trackers.mlflow": "objects of MLflow, which has no types",
        "spintune.trackers.tensorboard": "objects of TensorBoard, which has no types",
        "spintune.trackers.trackio": "objects of trackio, which has no types",
        "spintune.trackers.wandb": "objects of W&B, which has no types",
        "spintune.training.rounding": "torch's parameter groups and states are of any type",
        "spintune.typed_json": "pydantic's adapters of any type",
    },
}


def functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield f"{prefix}.{node.name}", node
            yield from functions(node, f"{prefix}.{node.name}")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}.{node.name}")
        else:
            yield from functions(node, prefix)


FUNCTIONS = {name: node for module, tree in TREES.items() for name, node in functions(tree, module)}


def body_lines(function: Function) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    doc = ast.get_docstring(function, clean=False) is not None
    return (function.end_lineno or 0) - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if doc else 0)


def depth(node: ast.AST, at: int = 0) -> int:
    """Blocks that stand in each other. ``elif`` goes no deeper, and neither do functions inside."""
    deepest = at
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        goes_on = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child, at + (isinstance(child, BLOCKS) and not goes_on)))
    return deepest


def parameters(function: Function) -> int:
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def broken(law: str, found: dict[str, object]) -> dict[str, object]:
    unused = set(EXCEPTIONS[law]) - set(found)
    assert not unused, f"exceptions that are no longer needed: {sorted(unused)}"
    return {name: value for name, value in found.items() if name not in EXCEPTIONS[law]}


def test_files_are_short() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert not broken("file", {name: count for name, count in lines.items() if count > MAX_FILE_LINES})


def test_functions_are_short() -> None:
    found = {name: lines for name, node in FUNCTIONS.items() if (lines := body_lines(node)) > MAX_FUNCTION_LINES}
    assert not broken("function", found)


def test_blocks_are_not_deep() -> None:
    found = {name: levels for name, node in FUNCTIONS.items() if (levels := depth(node)) > MAX_DEPTH}
    assert not broken("depth", found)


def test_functions_take_few_parameters() -> None:
    found = {name: count for name, node in FUNCTIONS.items() if (count := parameters(node)) > MAX_PARAMETERS}
    assert not broken("parameters", found)


def test_no_public_class_name_means_two_things() -> None:
    owners = defaultdict(list)
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners[node.name].append(module)
    assert not {name: modules for name, modules in owners.items() if len(modules) > 1}


def test_public_functions_have_docstrings() -> None:
    """Methods of public classes as well; not what is nested in a function, and no property that a name explains."""
    found: dict[str, object] = {}
    for module, tree in TREES.items():
        for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
            prefix = module if owner is tree else f"{module}.{owner.name}"  # type: ignore[attr-defined]
            if any(part.startswith("_") for part in prefix.split(".")):
                continue
            for node in owner.body:  # type: ignore[attr-defined]
                if not isinstance(node, Function) or node.name.startswith("_") or ast.get_docstring(node):
                    continue
                if owner is tree or not (node.decorator_list or _explained_by_protocol(node.name)):
                    found[f"{prefix}.{node.name}"] = node.lineno
    assert not broken("docstring", found)


def _explained_by_protocol(method: str) -> bool:
    """Does some class document a method of that name? A protocol says once what all that follow it do."""
    return any(name.endswith(f".{method}") and ast.get_docstring(node) for name, node in FUNCTIONS.items())


def imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spintune"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {module}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checkers count."""
    left = {module: imports(module) for module in MODULES}
    while free := [module for module, needed in left.items() if not needed & set(left)]:
        for module in free:
            del left[module]
    assert not left, "these files stand in circles, or lead to one"


def test_what_other_programs_print_need_not_be_text() -> None:
    """``text=True`` raises UnicodeDecodeError at the first byte that is none, and loses what the program did."""
    calls = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    strict = [
        f"{name}:{call.lineno}"
        for name, call in calls
        if ast.unparse(call.func).startswith("subprocess.")
        and {one.arg for one in call.keywords} & {"text", "encoding", "universal_newlines"}
        and "errors" not in {one.arg for one in call.keywords}
    ]
    assert strict == []


def test_any_stands_at_borders_alone() -> None:
    """``Any`` is for JSON, YAML and the objects of libraries without types; a module that needs it has a reason."""
    found = {
        module: count
        for module, tree in TREES.items()
        if (count := sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree)))
    }
    assert not broken("any", found)


@pytest.mark.parametrize("law", EXCEPTIONS)
def test_every_exception_has_a_reason(law: str) -> None:
    assert all(reason.strip() for reason in EXCEPTIONS[law].values())
