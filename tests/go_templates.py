"""Renders the part of Go's text/template that Modelfiles here use, and reads a Modelfile as Ollama's grammar says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

ACTION = re.compile(r"\{\{(-?)(.*?)(-?)\}\}", re.S)
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|:=|[^\s()]+')


@dataclass
class Node:
    """A block: "if" or "range" with what it asks, or a list of texts and actions."""

    kind: str
    words: list[str] = field(default_factory=list)
    body: list[Any] = field(default_factory=list)
    other: list[Any] = field(default_factory=list)


def render_go(source: str, messages: list[dict[str, str]]) -> str:
    """What a template writes for a conversation."""
    tree, end = parse(pieces(source), 0)
    assert end == len(pieces(source)), "an end too many"
    written: list[str] = []
    execute(tree, {"$": {"Messages": messages}}, {"Messages": messages}, written)
    return "".join(written)


def pieces(source: str) -> list[str | list[str]]:
    """Texts, and actions as lists of words."""
    found: list[str | list[str]] = []
    place = 0
    for action in ACTION.finditer(source):
        text = source[place : action.start()]
        found.append(text.rstrip() if action[1] else text)
        found.append(TOKEN.findall(action[2].strip()))
        place = action.end()
        if action[3]:
            place += len(source[place:]) - len(source[place:].lstrip())
    return [*found, source[place:]]


def parse(items: list[Any], place: int) -> tuple[list[Any], int]:
    """A list of nodes, up to an else, an end, or the end of the template."""
    nodes: list[Any] = []
    while place < len(items):
        item = items[place]
        if isinstance(item, list) and item[0] in ("else", "end"):
            break
        if isinstance(item, list) and item[0] in ("if", "range"):
            item, place = parse_block(item[0], item[1:], items, place + 1)
        else:
            place += 1
        nodes.append(item)
    return nodes, place


def parse_block(kind: str, words: list[str], items: list[Any], place: int) -> tuple[Node, int]:
    """A block with its else; "else if" is a block inside the else, which shares its end."""
    node = Node(kind, words)
    node.body, place = parse(items, place)
    assert place < len(items), "a block without its end"
    if items[place][:2] == ["else", "if"]:
        inner, place = parse_block("if", items[place][2:], items, place + 1)
        node.other = [inner]
        return node, place
    if items[place] == ["else"]:
        node.other, place = parse(items, place + 1)
    assert items[place] == ["end"], "a block without its end"
    return node, place + 1


def execute(nodes: list[Any], variables: dict[str, Any], dot: Any, written: list[str]) -> None:
    """Writes a list of nodes. A variable that is set inside a block is the outer one."""
    for node in nodes:
        if isinstance(node, str):
            written.append(node)
        elif isinstance(node, Node) and node.kind == "if":
            execute(node.body if truth(value(node.words, variables, dot)) else node.other, variables, dot, written)
        elif isinstance(node, Node):
            number, item, sign, *rest = [word for word in node.words if word != ","]
            assert sign == ":="
            for index, one in enumerate(value(rest, variables, dot)):
                variables[number.rstrip(",")], variables[item] = index, one
                execute(node.body, variables, one, written)
        elif len(node) > 1 and node[1] in (":=", "="):
            assert node[1] == ":=" or node[0] in variables, f"{node[0]} was not declared"
            variables[node[0]] = value(node[2:], variables, dot)
        else:
            written.append(str(value(node, variables, dot)))


def truth(found: Any) -> bool:
    return bool(found)


def value(words: list[str], variables: dict[str, Any], dot: Any) -> Any:
    """What a pipeline of one command gives."""
    arguments: list[Any] = []
    place = 0
    while place < len(words):
        if words[place] == "(":
            depth, end = 1, place + 1
            while depth:
                depth += {"(": 1, ")": -1}.get(words[end], 0)
                end += 1
            arguments.append(value(words[place + 1 : end - 1], variables, dot))
            place = end
        else:
            arguments.append(operand(words[place], variables, dot))
            place += 1
    head, rest = arguments[0], arguments[1:]
    return head(*rest) if callable(head) else head


FUNCTIONS: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda *all: next((one for one in all if not one), all[-1]),
    "or": lambda *all: next((one for one in all if one), all[-1]),
    "not": lambda a: not a,
    "len": len,
    "slice": lambda a, begin: a[begin:],
}


def operand(word: str, variables: dict[str, Any], dot: Any) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.isdigit():
        return int(word)
    if word in FUNCTIONS:
        return FUNCTIONS[word]
    name, *keys = word.split(".")
    found = variables[name] if name else dot
    for key in keys:
        found = found[key] if key in found else found[key.lower()]
    return found


_WHOLE, _REAL = r"-?\d+", r"\d+(\.\d+)?"
_PARAMETERS = {
    **dict.fromkeys(("top_k", "repeat_last_n", "num_ctx"), _WHOLE),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repeat_penalty"), _REAL),
    "stop": '".+"',
}


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Instructions and values. Fails on what Ollama's grammar does not have."""
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        line = re.compile(
            r'(FROM|TEMPLATE|PARAMETER|SYSTEM|LICENSE) (?:"""(.*?)"""|([^\n]+))\n|(#[^\n]*)?\n', re.S
        ).match(text, place)
        assert line, f"no instruction: {text[place : place + 60]!r}"
        if line[1]:
            assert line[3] is None or '"""' not in line[3]
            found.append((line[1], line[2] if line[2] is not None else line[3].strip()))
        place = line.end()
    names = [name for name, _ in found]
    assert names[0] == "FROM"
    assert all(names.count(name) <= 1 for name in ("FROM", "TEMPLATE", "SYSTEM"))
    for name, content in found:
        if name == "PARAMETER":
            key, _, given = content.partition(" ")
            assert re.fullmatch(_PARAMETERS[key], given), content
    return found
