"""A teacher of your own: any object that answers requests. This one plays it with a table of replies.

python examples/own_teacher.py
"""

from collections.abc import Generator, Sequence

import spintune
from spintune.teachers.protocol import Outcome, Reply, Request


class Parrot:
    """Writes the same three replies; a real one would call a model or a service."""

    name = "parrot"
    identity = {"kind": "parrot", "version": 1}  # what its replies depend on; no secrets

    def ask(self, requests: Sequence[Request]) -> Generator[tuple[int, Outcome], None, None]:
        for number, request in enumerate(requests):
            text = request.messages[-1].content
            if "classification task when" in text:
                reply = "No"
            elif "Write examples of each task" in text:
                reply = "Output: Oats, apples and walnuts."
            else:
                reply = "9. List three ingredients of a healthy breakfast."
            yield number, Reply(reply, ending="stop")


result = spintune.synthesize("builtin:seeds", Parrot(), target=1)
print(result.examples[0].task)
