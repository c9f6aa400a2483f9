"""What an open page is sent."""

from __future__ import annotations

import json
import time
from http.client import HTTPResponse

LIMIT = 120  # seconds, of a busy machine


class Stream:
    """The newest version of each part that the server has sent."""

    def __init__(self, response: HTTPResponse) -> None:
        self.response, self.parts = response, dict[str, str]()

    def wait(self, name: str, text: str) -> str:
        """A part, once it holds a text."""
        limit = time.monotonic() + LIMIT
        while not (name in self.parts and text in self.parts[name]):
            line = self.response.readline()
            assert line, "the stream ended"
            if line.startswith(b"data: "):
                told = json.loads(line[6:])
                self.parts[told["name"]] = told["html"]
            assert time.monotonic() < limit, f"{name} never had {text!r}: {self.parts.get(name)}"
        return self.parts[name]
