"""A chat endpoint on the loopback address that writes tasks and judges answers; what it says depends on the prompt."""

from __future__ import annotations

import http.server
import json
import re
import threading

WORDS = [f"w{number}" for number in range(97)]


class Teacher(http.server.ThreadingHTTPServer):
    """Listens from the start on; ``url`` is what a recipe names."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that was killed says so on its own side."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        message = {"role": "assistant", "content": verdict(prompt) or written(prompt)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        answer = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def written(prompt: str) -> str:
    """A teacher that invents tasks."""
    if "classification task when" in prompt:
        return " No"
    if "Write examples of each task" in prompt:
        return "Input: a text\nOutput: an answer\nExample 2\nInput: another\nOutput: "
    draw = sum(map(ord, prompt))
    tasks = [" ".join(WORDS[(draw * (k + 3) + j * j + k) % 97] for j in range(7)) for k in range(4)]
    return "\n".join(f"{number}. {task}" for number, task in enumerate(tasks, 9))


def verdict(prompt: str) -> str | None:
    """A judge that knows nonsense and else prefers the longer answer; None for what is no question to a judge."""
    found = re.search(r"\[(\w+): (?:task|question(?: 1)?) begins\]", prompt)
    if not found:
        return None
    code = found[1]
    blocks = dict(re.findall(rf"\[{code}: ([^\]]*) begins\]\n(.*?)\n?\[{code}: \1 ends\]", prompt, re.DOTALL))
    if "answer B" not in blocks:
        return f"[[{code}:{1 if _nonsense(list(blocks.values())[-1]) else 7}]]"
    a, b = (-1 if _nonsense(blocks[f"answer {letter}"]) else len(blocks[f"answer {letter}"]) for letter in "AB")
    return f"Thus: [[{code}:{'A' if a > b else 'B' if b > a else 'tie'}]]"


def _nonsense(text: str) -> bool:
    return "committee of lamps" in text or "this comparison is over" in text
