"""A chat endpoint on the loopback address, and what it may say: a teacher that invents tasks, and a judge.

What they say depends on the prompt alone, so that a question that is repeated has the same answer.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable

WORDS = [f"w{number}" for number in range(97)]
Worth = Callable[[str, set[str]], int]


def invented(prompt: str) -> str:
    """A teacher that invents tasks."""
    if "classification task when" in prompt:
        return " No"
    if "Write examples of each task" in prompt:
        return "Input: a text\nOutput: an answer\nExample 2\nInput: another\nOutput: "
    draw = sum(map(ord, prompt))
    tasks = [" ".join(WORDS[(draw * (k + 3) + j * j + k) % 97] for j in range(7)) for k in range(4)]
    return "\n".join(f"{number}. {task}" for number, task in enumerate(tasks, 9))


def words_of_reference(answer: str, reference: set[str]) -> int:
    """How many different words an answer shares with the reference."""
    return len(reference & set(answer.split()))


def verdict(prompt: str, worth: Worth = words_of_reference) -> str:
    """A judge that knows nonsense, and else prefers the answer of more worth; all its ratings are 7."""
    found = re.search(r"\[(\w+): (?:task|question(?: 1)?) begins\]", prompt)
    assert found, "no question to a judge"
    code = found[1]
    blocks = dict(re.findall(rf"\[{code}: ([^\]]*) begins\]\n(.*?)\n?\[{code}: \1 ends\]", prompt, re.DOTALL))
    if "answer B" not in blocks:
        return f"[[{code}:{1 if is_nonsense(list(blocks.values())[-1]) else 7}]]"
    reference = set(blocks.get("reference answer", "").split())
    shown = [blocks[f"answer {letter}"] for letter in "AB"]
    a, b = (-1 if is_nonsense(text) else worth(text, reference) for text in shown)
    return f"Thus: [[{code}:{'A' if a > b else 'B' if b > a else 'tie'}]]"


def is_nonsense(text: str) -> bool:
    """Whether an answer is one that the canary shows to a judge."""
    return "committee of lamps" in text or "this comparison is over" in text


class ChatServer(http.server.ThreadingHTTPServer):
    """Listens from the start on; ``url`` is what a recipe names.

    Attributes:
        says: the answer to the last message of a request.
        asked: how often each request came.
        seconds: how long an answer takes.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, says: Callable[[str], str] = invented, port: int = 0) -> None:
        self.says, self.asked, self.seconds, self.status = says, Counter[str](), 0.0, 200
        self.usage = {"prompt_tokens": 10, "completion_tokens": 5}
        super().__init__(("127.0.0.1", port), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that went away says so on its own side."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked[json.dumps(body, sort_keys=True)] += 1
        time.sleep(self.server.seconds)
        message = {"role": "assistant", "content": self.server.says(body["messages"][-1]["content"])}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "x", "object": "chat.completion", "choices": [choice], "usage": self.server.usage}
        answer = json.dumps(reply).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass
