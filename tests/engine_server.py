"""A server that speaks vLLM's or llama.cpp's protocol, as their documents say, with a model that transformers computes.

An independent implementation of the wire format: it shares nothing with the package under test. As a program it takes
the arguments of ``vllm serve``, so a run can start it in vLLM's place.
"""

from __future__ import annotations

import argparse
import http.server
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Mend = Callable[[dict[str, Any]], dict[str, Any]]


class EngineServer(http.server.ThreadingHTTPServer):
    """Serves from the start on.

    Attributes:
        asked: bodies of requests by path, in the order in which they came, and ``keys`` what came as authorization.
        mend: changes a reply before it is sent; ``status`` is sent with it.
        die_after: answers after which it breaks every connection; None for never.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self, folder: Path, engine: str = "vllm", *, name: str | None = None, port: int = 0, max_len: int = 512
    ) -> None:
        self.engine, self.name, self.max_len = engine, name or str(folder), max_len
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        self.mend: Mend = lambda reply: reply
        self.status, self.die_after, self.answers, self.seconds = 200, None, 0, 0.0
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Answers)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that went away says so on its own side."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def write(
        self, prompt: list[int], count: int, temperature: float, top_k: int, top_p: float, seed: int, ends: set[int]
    ) -> tuple[list[int], list[float]]:
        """Tokens after a prompt, and the log-probability of each under the raw logits. One forward for each token."""
        draw = torch.Generator().manual_seed(seed)
        ids: list[int] = []
        logprobs: list[float] = []
        with self._lock, torch.no_grad():
            while len(ids) < count and not (ids and ids[-1] in ends):
                logits = self.model(torch.tensor([prompt + ids])).logits[0, -1].double()
                if temperature == 0:
                    token = int(logits.argmax())
                else:
                    share, order = (logits / temperature).softmax(-1).sort(descending=True)
                    before = share.cumsum(-1) - share
                    share[before >= top_p] = 0
                    if top_k:
                        share[top_k:] = 0
                    token = int(order[torch.multinomial(share, 1, generator=draw)])
                ids.append(token)
                logprobs.append(float(logits.log_softmax(-1)[token]))
        return ids, logprobs


class _Answers(http.server.BaseHTTPRequestHandler):
    server: EngineServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        server = self.server
        card = {"id": server.name, "object": "model"}
        pages: dict[str, Any] = {
            ("vllm", "/health"): None,
            ("vllm", "/version"): {"version": "0.32.0"},
            ("vllm", "/v1/models"): {"object": "list", "data": [{**card, "max_model_len": server.max_len}]},
            ("llama.cpp", "/props"): {"build_info": "b6000-abcdef", "total_slots": 4, "model_path": "model.gguf"},
            ("llama.cpp", "/v1/models"): {
                "data": [{**card, "meta": {"n_vocab": server.model.config.vocab_size, "n_ctx": server.max_len}}]
            },
        }
        found = (server.engine, self.path) in pages
        self._send(200 if found else 404, pages.get((server.engine, self.path), {"error": "no such page"}))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body))
        server.keys.add(self.headers.get("Authorization"))
        time.sleep(server.seconds)
        if self.path == "/detokenize":
            text = server.tokenizer.decode(body["tokens"])
            self._send(200, {"prompt": text} if server.engine == "vllm" else {"content": text})
            return
        server.answers += 1
        if server.die_after is not None and server.answers > server.die_after:
            self.close_connection = True
            return
        pages = {("vllm", "/v1/completions"): self._vllm, ("llama.cpp", "/completion"): self._llama_cpp}
        answer = pages.get((server.engine, self.path))
        self._send(404 if answer is None else server.status, {} if answer is None else server.mend(answer(body)))

    def _vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["ignore_eos"]
        assert body["return_token_ids"]
        assert body["repetition_penalty"] == 1.0
        ends = set(body["stop_token_ids"])
        ids, logprobs = self.server.write(
            body["prompt"],
            body["max_tokens"],
            body["temperature"],
            body["top_k"],
            body["top_p"],
            body["seed"],
            ends,
        )
        ended = ids[-1] in ends
        choice = {
            "index": 0,
            "text": self.server.tokenizer.decode(ids),
            "logprobs": {"token_logprobs": logprobs, "tokens": [str(one) for one in ids]},
            "finish_reason": "stop" if ended else "length",
            "stop_reason": ids[-1] if ended else None,
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
        }
        return {"id": "cmpl-1", "object": "text_completion", "model": self.server.name, "choices": [choice]}

    def _llama_cpp(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["samplers"] == ["temperature", "top_k", "top_p"]
        assert body["n_probs"] == 1
        assert body["return_tokens"]
        ends = {self.server.tokenizer.eos_token_id}
        ids, logprobs = self.server.write(
            body["prompt"],
            body["n_predict"],
            body["temperature"],
            body["top_k"],
            body["top_p"],
            body["seed"],
            ends,
        )
        return {
            "tokens": ids,
            "stop_type": "eos" if ids[-1] in ends else "limit",
            "truncated": False,
            "tokens_evaluated": len(body["prompt"]),
            "completion_probabilities": [
                {"id": one, "token": str(one), "logprob": logprob} for one, logprob in zip(ids, logprobs, strict=True)
            ],
        }

    def _send(self, status: int, document: Any) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """``serve FOLDER --port N --served-model-name NAME``, and what else vLLM takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", required=True, choices=["127.0.0.1"])
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--generation-config", required=True, choices=["vllm"])
    parser.add_argument("--tensor-parallel-size", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--no-enable-chunked-prefill", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    server = EngineServer(given.folder, name=given.served_model_name, port=given.port, max_len=given.max_model_len)
    print(f"listening on {server.url}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
