"""Readers of foreign files and replies, on anything: they answer, or raise one of spintune's own errors.

``SPINTUNE_FUZZ=5000 pytest tests/fuzz/test_readers.py`` tries so many examples of each instead of a few.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from spintune.data.formats import BUILTIN_FORMATS
from spintune.data.sources import Source, read_source
from spintune.errors import SpintuneError
from spintune.evaluation.answers import read_answers
from spintune.evaluation.custom_tasks import CustomTaskFile, read_custom_task
from spintune.evaluation.ifeval.prompts import read_prompts
from spintune.evaluation.verdicts import read_verdict
from spintune.mixtures.declarations import TaskFile
from spintune.mixtures.tasks import load_tasks
from spintune.recipe import Recipe
from spintune.recipe.reading import parse_recipe
from spintune.recipe.yaml_files import parse_yaml
from spintune.run_folder import read_manifest, read_recipe
from spintune.synthesis import parsers
from spintune.synthesis.examples import SeedTask
from spintune.teachers.protocol import Reply
from spintune.teachers.wire import hidden_error, parse_answer
from spintune.tokens.chat import ChatRenderer

fuzz = settings(
    max_examples=int(os.environ.get("SPINTUNE_FUZZ", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

ROW_KEYS = sorted(
    {
        *(
            "prompt",
            "completion",
            "instruction",
            "input",
            "output",
            "messages",
            "conversations",
            "from",
            "value",
            "role",
        ),
        *("content", "chosen", "rejected", "tools", "tool_calls", "system", "history", "id", "instances", "answer"),
        *(key for one in BUILTIN_FORMATS for key in one.all_keys or ()),
    }
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "user", "assistant", "tool", "system", "gpt", "<|im_end|>", "\0", "\x1b[31m", "[]"]),
    st.text(alphabet="-1.9e:{}[]\"'\n, ", max_size=8),
)
ATOMS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), TEXTS)


def values(keys: list[str]) -> st.SearchStrategy[Any]:
    names = st.one_of(st.sampled_from(keys), st.text(max_size=4))
    return st.recursive(
        ATOMS,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)),
        max_leaves=12,
    )


def rows(keys: list[str]) -> st.SearchStrategy[list[Any]]:
    row = st.dictionaries(st.sampled_from(keys), values(keys), max_size=5)
    return st.lists(st.one_of(row, row, values(keys)), min_size=1, max_size=4)


def answers_or_refuses(work: Callable[[], object]) -> None:
    """The property. An error has words, and no line break where it is about one thing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            work()
        except SpintuneError as error:
            assert str(error).strip()


def read_all(path: Path) -> None:
    for policy in ("stop", "drop"):
        with contextlib.suppress(SpintuneError):
            list(read_source(Source(str(path), on_bad_row=policy)).examples)  # type: ignore[arg-type]
    for read in (read_answers, read_prompts):
        answers_or_refuses(lambda read=read: read(path))


@fuzz
@given(rows=rows(ROW_KEYS))
def test_json_rows(rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "rows.json").write_text(json.dumps(rows))
    for path in folder.iterdir():
        answers_or_refuses(lambda path=path: read_all(path))


ROWS = [{"prompt": "Name a colour.", "completion": "red", "n": 3, "at": None, "l": ["a", "b"]}] * 5


def _files() -> dict[str, bytes]:
    table, buffers = pyarrow.Table.from_pylist(ROWS), {name: io.BytesIO() for name in ("parquet", "arrow", "feather")}
    pyarrow.parquet.write_table(table, buffers["parquet"])
    with pyarrow.ipc.new_stream(buffers["arrow"], table.schema) as stream:
        stream.write_table(table)
    pyarrow.feather.write_feather(table, buffers["feather"])
    book, sheet = openpyxl.Workbook(), io.BytesIO()
    book.active.append(["prompt", "completion"])
    book.active.append(["Name a colour.", "red"])
    book.save(sheet)
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    cells = b'prompt,completion\n"Name a, colour.",red\nb,"c\nd"\n'
    return {
        **{f"rows.{name}": buffer.getvalue() for name, buffer in buffers.items()},
        "rows.xlsx": sheet.getvalue(),
        "rows.jsonl": lines,
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": cells,
        "rows.tsv": cells.replace(b",", b"\t"),
        "rows.jsonl.gz": gzip.compress(lines),
    }


FILES = _files()


@fuzz
@given(
    name=st.sampled_from(sorted(FILES)),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    tail=st.binary(max_size=8),
)
def test_damaged_files(
    name: str, cut: float, changes: list[tuple[float, int]], tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(FILES[name])
    for place, byte in changes:
        data[int(place * len(data))] = byte
    path = tmp_path_factory.mktemp("files") / name
    path.write_bytes(bytes(data[: int(len(data) * (cut if cut < 0.9 else 1))]) + tail)
    answers_or_refuses(lambda: read_all(path))


REPLY = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *("1. ", "2) ", "Task 3:", "Instruction:", "Input:", "Output:", "Example 1", "Class label:", "```"),
                *("\n", "\n\n", "###", "**", "<think>", "</think>", "[[0123abcd:A]]", "\0"),
                "Let me know if you want more tasks",
            ]
        ),
        st.text(max_size=6),
    ),
    max_size=14,
).map("".join)
TASK = SeedTask("id", "Name a colour.")


@fuzz
@given(
    text=REPLY, ending=st.sampled_from(["stop", "length", "refused"]), begin=st.sampled_from(["", "4. Instruction:"])
)
def test_replies(text: str, ending: Any, begin: str) -> None:
    reply = Reply(text, ending)
    parsers.instructions(reply, begin)
    parsers.classification(reply, begin)
    parsers.instances_input_first(reply, begin, TASK)
    parsers.instances_output_first(reply, begin, TASK)
    parsers.triples(reply, begin, 5)
    read_verdict(reply, "0123abcd", ["A", "B"])


WIRE_KEYS = [
    "choices",
    "message",
    "content",
    "text",
    "thinking",
    "finish_reason",
    "usage",
    "error",
    "code",
    "reasoning",
]


@fuzz
@given(body=st.one_of(values([*WIRE_KEYS, "prompt_tokens"]).map(json.dumps).map(str.encode), st.binary(max_size=40)))
def test_bodies_of_responses(body: bytes) -> None:
    choice = b'{"choices": [{"finish_reason": "stop", "message": {"content": ' + body + b'}}], "usage": ' + body + b"}"
    for content in (body, choice):
        hidden_error(content)
        for style in ("chat", "completions"):
            parse_answer(content, style, ("\n",))  # type: ignore[arg-type]


def test_a_thought_in_a_thought_in_a_thought() -> None:
    nested = b'[{"thinking": ' * 400 + b'"x"' + b"}]" * 400
    parse_answer(b'{"choices": [{"finish_reason": "stop", "message": {"content": ' + nested + b"}}]}", "chat")


YAML = st.lists(st.sampled_from([*"-:?[]{}&*!|>%@`#,'\"\n ", "  ", "<<: ", "1:59", "1e5", "!!python/none", "a: "]))


@fuzz
@given(text=st.one_of(YAML.map("".join), st.text(max_size=30)))
def test_yaml(text: str) -> None:
    answers_or_refuses(lambda: parse_yaml(text, "recipe"))


def _keys(kind: Any) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]


@fuzz
@given(recipe=st.dictionaries(st.sampled_from(_keys(Recipe)), values([*_keys(Recipe), "train", "path", "model"])))
def test_recipes(recipe: dict[str, Any]) -> None:
    answers_or_refuses(lambda: parse_recipe(recipe, "recipe"))


@fuzz
@given(
    task=st.dictionaries(st.sampled_from(_keys(TaskFile)), values(["from", "pattern", "input", "target", "answer"])),
    own=st.dictionaries(st.sampled_from(_keys(CustomTaskFile)), values(["prompt", "a.b"])),
    whole=st.booleans(),
)
def test_task_files(
    task: dict[str, Any], own: dict[str, Any], whole: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_bytes(FILES["rows.jsonl"])
    if whole:  # else chance finds hardly any task that gets as far as its rows
        phrasing = {"input": "{q}", "target": "{answer}"}
        fields = {"q": "prompt", "answer": "completion"}
        task = {"name": "t", "file": "rows.jsonl", "fields": fields, "direct": [phrasing], **task}
        keys = {"task": "t", "kind": "generate", "data": "rows.jsonl"}
        own = {**keys, "prompt": "{prompt}", "answer": "completion", **own}
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    answers_or_refuses(lambda: [list(one.items) for one in load_tasks([str(folder / "task.yaml")], folder).tasks])
    answers_or_refuses(lambda: read_custom_task(folder / "own.yaml").config())


@fuzz
@given(value=values(["stages", "recipe", "files", "seal", "version", "digest"]), raw=st.binary(max_size=20))
def test_manifests(value: Any, raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    for content in (json.dumps(value).encode(), raw):
        for name in ("manifest.json", "recipe.json"):
            (folder / name).write_bytes(content)
        answers_or_refuses(lambda: read_manifest(folder))
        answers_or_refuses(lambda: read_recipe(folder))


TEMPLATE = st.lists(
    st.sampled_from(
        [
            *("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if m %}", "#"),
            *("{{ messages[0] }}", "{{ 1/0 }}", "{{ raise_exception('no') }}", "{{ x.y.z }}", "{% set x = 3 %}", "{{"),
            *("<|im_start|>", "<|im_end|>", "{{ messages | tojson }}", "{{ eos_token }}", "{{ range(9**9) }}", "\n"),
            "{% endif %}",
        ]
    ),
    max_size=10,
).map("".join)


@fuzz
@given(source=TEMPLATE)
def test_chat_templates(source: str, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = source
    answers_or_refuses(lambda: ChatRenderer(tokenizer, "tokenizer"))
