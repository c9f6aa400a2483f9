"""A hub on the loopback address, with what an upload needs: it keeps commits and large files, and what it was asked."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"


@dataclass
class Hub:
    """What the server holds.

    Attributes:
        files: of the last commit, by path; large ones with their uploaded content.
        created: bodies of the requests that made repositories.
        asked: methods and paths, in order.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    public: bool = False  # a repository that is there already


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serves until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Nothing on the screen."""

        def do_GET(self) -> None:
            """What the repository is."""
            self.read()
            private = not hub.public and bool(hub.created) and "private" in json.dumps(hub.created[-1])
            self.answer(200, {"id": "me/mine", "private": private, "sha": "abc", "siblings": []})

        def do_POST(self) -> None:
            """The endpoints of a commit."""
            body = self.read()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid credentials"})
            if hub.status != 200:
                return self.answer(hub.status, {"error": "no"})
            name = self.path.partition("?")[0]
            if name == "/api/repos/create":
                hub.created.append(json.loads(body))
                return self.answer(200, {"url": f"{hub.url}/me/mine"})
            if name == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if name == "/api/models/me/mine/preupload/main":
                return self.answer(200, {"files": [self.mode(one) for one in json.loads(body)["files"]]})
            if name == "/me/mine.git/info/lfs/objects/batch":
                objects = [self.place(one) for one in json.loads(body)["objects"]]
                return self.answer(200, {"transfer": "basic", "objects": objects})
            assert name == "/api/models/me/mine/commit/main", name
            self.commit(body)
            return self.answer(200, {"commitUrl": f"{hub.url}/me/mine/commit/abc", "commitOid": "abc"})

        def do_PUT(self) -> None:
            """A large file."""
            hub.uploaded[self.path.rpartition("/")[2]] = self.read()
            self.answer(200, {})

        def read(self) -> bytes:
            hub.asked.append(f"{self.command} {self.path}")
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        @staticmethod
        def mode(file: dict[str, Any]) -> dict[str, Any]:
            large = file["path"].endswith(".safetensors")
            return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

        @staticmethod
        def place(one: dict[str, Any]) -> dict[str, Any]:
            return {**one, "actions": {"upload": {"href": f"{hub.url}/storage/{one['oid']}"}}}

        @staticmethod
        def commit(body: bytes) -> None:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.uploaded[value["oid"]]

        def answer(self, status: int, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
