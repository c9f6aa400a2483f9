"""Pairs of a better and a worse answer, read from the SPIN authors' data and from preference data.

===========  =============================================  =========================================================
spin         ``real``, ``generated``: lists of messages     UCLA-AGI/SPIN_iter0 to SPIN_iter3
preference   ``prompt``, ``chosen``, ``rejected``: texts    TRL, LLaMA-Factory; written by ``spintune pairs``
             or lists of turns, which may hold the prompt
===========  =============================================  =========================================================
"""

from __future__ import annotations

from spintune.data.formats import preferred
from spintune.data.formats.builtin import conversation_under
from spintune.data.tables import rows_of
from spintune.errors import DataError
from spintune.records import Example


def read_answers(path: str) -> dict[str, list[Example]]:
    """Reads the worse answers of a file of pairs, by the id of the example that ends with the better answer.

    Each is an example that ends with the worse answer. Raises DataError for a file without pairs, and for the first
    damaged row.
    """
    answers: dict[str, list[Example]] = {}
    for row in rows_of(path):
        if "real" in row.values:
            better, worse = conversation_under(row, "real"), conversation_under(row, "generated")
        elif "chosen" in row.values:
            better, worse = preferred(row, "chosen"), preferred(row, "rejected")
        else:
            raise DataError(f"{row.where}: no real and generated, nor chosen and rejected; give a file of pairs")
        key = Example(better.messages, tools=better.tools).id
        answers.setdefault(key, []).append(Example(worse.messages, row.where, worse.tools))
    return answers


def turns_of_example(example: Example) -> list[Example]:
    """One example per assistant turn that is trained: the conversation up to it."""
    return [Example(example.messages[: place + 1], example.source, example.tools) for place in example.answer_places]
