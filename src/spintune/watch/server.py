"""Serves live pages on this machine alone: plain GET requests, and a stream of events for each open page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from spintune.errors import SpintuneError
from spintune.report.page import asset, render
from spintune.report.reading import read_run
from spintune.watch import parts
from spintune.watch.run import Watched, WatchedRun
from spintune.watch.sweep import WatchedSweep, is_sweep, run_folders

HOST = "127.0.0.1"
SECONDS = 1.0
"""Between two looks at a folder."""
SHARE = 0.1
"""Looking takes at most this share of a processor: after a look that took long comes a longer pause."""
_KEEP_ALIVE = 15.0
"""A stream without news sends a comment so often, so that a browser that has gone is noticed. [s]"""


@dataclass
class LivePage:
    """A watched folder with the pages that are open on it. Nobody looks at the folder while none is."""

    watched: Watched
    ending: Callable[[], bool]
    seconds: float = SECONDS
    _readers: int = 0
    _looking: asyncio.Task[None] | None = None
    _looked: float = -1e9
    _failure: str = ""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self) -> None:
        """Looks at the folder, unless that was done just now."""
        async with self._lock:
            if time.monotonic() - self._looked >= self.seconds / 2:
                try:
                    await asyncio.to_thread(self.watched.look)
                    if self._failure and self.watched.shown.get("line") == self._failure:
                        self.watched.shown["line"] = ""
                    self._failure = ""
                except Exception as error:  # a file in the middle of a change; the page goes on with the next look
                    self._failure = self.watched.shown["line"] = f"{type(error).__name__}: {error}"
                self._looked = time.monotonic()

    async def _keep_looking(self) -> None:
        while True:
            began = time.monotonic()
            await self.look()
            took = time.monotonic() - began
            await asyncio.sleep(max(self.seconds, took * (1 - SHARE) / SHARE))

    async def events(self) -> AsyncIterator[bytes]:
        """What changes, for one page: first everything, then each part that became another one."""
        self._readers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._keep_looking())
        sent: dict[str, str] = {}
        told = time.monotonic()
        try:
            yield b"retry: 2000\n\n"
            await self.look()
            while not self.ending():
                for name, html in dict(self.watched.shown).items():
                    if sent.get(name) != html:
                        sent[name], told = html, time.monotonic()
                        yield b"event: part\ndata: " + orjson.dumps({"name": name, "html": html}) + b"\n\n"
                if time.monotonic() - told > _KEEP_ALIVE:
                    told = time.monotonic()
                    yield b": still here\n\n"
                await asyncio.sleep(0.1)
        finally:
            self._readers -= 1
            if not self._readers:
                self._looking.cancel()
                self._looking = None


@dataclass
class Site:
    """The pages of a folder: of one run, or of a sweep and each of its runs."""

    folder: Path
    seconds: float = SECONDS
    ending: Callable[[], bool] = lambda: False
    _pages: dict[str, LivePage] = field(default_factory=dict)

    def app(self) -> Starlette:
        """The site as an ASGI application."""
        routes = [
            Route("/", self._page),
            Route("/events", self._events),
            Route("/report", self._report),
            Route("/run/{name}", lambda request: RedirectResponse(f"{request.url.path}/")),
            Route("/run/{name}/", self._page),
            Route("/run/{name}/events", self._events),
            Route("/run/{name}/report", self._report),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
        return Starlette(routes=routes, middleware=[hosts])

    def _folder(self, request: Request) -> Path | None:
        """The folder that a request asks for: the watched one, or a run right inside of it."""
        name = request.path_params.get("name")
        return self.folder if name is None else run_folders(self.folder).get(name)

    def _live(self, folder: Path) -> LivePage:
        name = folder.resolve().name
        known = self._pages.get(str(folder))
        sweep = folder == self.folder and is_sweep(folder)
        if known is None or isinstance(known.watched, WatchedSweep) != sweep:
            watched: Watched = WatchedSweep(folder, name) if sweep else WatchedRun(folder, name)
            known = self._pages[str(folder)] = LivePage(watched, self.ending, self.seconds)
        return known

    async def _page(self, request: Request) -> Response:
        if (folder := self._folder(request)) is None:
            return _no_run()
        live = self._live(folder)
        await live.look()
        shown = live.watched.shown
        page = await asyncio.to_thread(parts.whole_page, shown.get("title") or folder.name, shown)
        script = asset("script.js") + asset("watch.js")
        return HTMLResponse(page, headers=_headers(script))

    async def _events(self, request: Request) -> Response:
        if (folder := self._folder(request)) is None:
            return _no_run()
        stream = self._live(folder).events()
        return StreamingResponse(stream, media_type="text/event-stream", headers=_headers(""))

    async def _report(self, request: Request) -> Response:
        if (folder := self._folder(request)) is None:
            return _no_run()
        try:
            page = await asyncio.to_thread(_report_page, folder)
        except (SpintuneError, OSError) as error:
            return PlainTextResponse(f"{error}\n", 404, headers=_headers(""))
        return HTMLResponse(page, headers=_headers(asset("script.js")))


def _report_page(folder: Path) -> str:
    """The report of a run as it is now, or the page that a sweep wrote."""
    if is_sweep(folder):
        return (folder / "report.html").read_text("utf-8")
    return render([read_run(folder)], None)


def _no_run() -> Response:
    return PlainTextResponse("no such run\n", 404, headers=_headers(""))


def _headers(script: str) -> dict[str, str]:
    """What a browser may do with an answer: run this script, use this style, and ask this server; nothing else."""
    told = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    if script:
        told += [f"style-src '{_hash(asset('style.css'))}'", f"script-src '{_hash(script)}'", "connect-src 'self'"]
    return {
        "Content-Security-Policy": "; ".join(told),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# The server ---------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """Ends at once when it is asked to, also with open streams."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = self.force_exit = True


def listen(port: int | None) -> socket.socket:
    """A socket on this machine's loopback. Raises OSError when the port is taken.

    Args:
        port: None for the usual one, or any other where that is taken.
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, USUAL_PORT if port is None else port))
    except OSError:
        if port is not None:
            made.close()
            raise
        made.bind((HOST, 0))
    made.listen(64)  # a browser that is opened now waits for the first answer
    return made


USUAL_PORT = 8321


def build_server(folder: Path, seconds: float = SECONDS) -> uvicorn.Server:
    """A server of a folder's pages, which ends when its ``should_exit`` is set.

    Args:
        seconds: between two looks at the folder.
    """
    site = Site(folder, seconds)
    config = uvicorn.Config(
        site.app(), log_level="critical", lifespan="off", server_header=False, timeout_graceful_shutdown=1
    )
    server = _Server(config)
    site.ending = lambda: server.should_exit
    return server


def serve(folder: Path, listening: socket.socket) -> None:
    """Serves a folder's pages until Ctrl-C or SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.suppress(KeyboardInterrupt):
        build_server(folder).run(sockets=[listening])
    for number, handler in before.items():
        signal.signal(number, handler)
