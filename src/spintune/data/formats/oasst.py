"""OpenAssistant's message trees: the path of the best-ranked replies is the conversation."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from spintune.data.file_rows import FileRow
from spintune.data.formats.beside import BESIDE, complete
from spintune.data.formats.format import Format, RowConversation
from spintune.data.formats.turns import read_turns


def _tree(row: FileRow) -> Iterator[RowConversation]:
    path: list[object] = []
    node = row.values.get("prompt")
    while isinstance(node, dict):
        path.append({key: node.get(key) for key in ("role", "text")})
        replies = node.get("replies")
        usable = [reply for reply in replies if _is_usable(reply)] if isinstance(replies, list) else []
        node = min(usable, key=_rank, default=None)
    yield complete(row, read_turns(FileRow({"prompt": path}, row.where), "prompt", []))


def _is_usable(reply: object) -> bool:
    return isinstance(reply, dict) and not reply.get("deleted")


def _rank(reply: dict[str, object]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else inf


OASST = Format("oasst", (("message_tree_id", "prompt"),), _tree, BESIDE | {"tree_state"})
