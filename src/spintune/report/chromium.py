"""Prints a page by an installed Chromium, which is told over a pipe what to do (the DevTools protocol): no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spintune.errors import MissingExtraError, RunError
from spintune.storage import atomic_file
from spintune.typed_json import JsonObject

SECONDS = 60
"""A browser that is silent for longer hangs."""
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_WIDTH = 900
_A4 = {"paperWidth": 8.27, "paperHeight": 11.69}


def chromium() -> str | None:
    """The command of an installed Chromium or a browser made of it."""
    if os.name == "nt":  # the pipes are handed over as POSIX does
        return None
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Chromium:
    """A browser without a window, with one page. Ends with the context."""

    def __init__(self, command: str, profile: Path, width: int = 1200, height: int = 900) -> None:
        self._number, self._rest = 0, b""
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()

        def hand_over() -> None:  # it reads from 3 and writes to 4; neither end may be lost on the way
            safe = os.dup(from_browser)
            os.dup2(to_browser, 3)
            os.dup2(safe, 4)
            os.set_inheritable(3, True)  # one that was 3 already is left as it was

        flags = [*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to start as root with one
        self._process = subprocess.Popen(
            [command, *flags],
            preexec_fn=hand_over,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            target = self._ask("Target.createTarget", url="about:blank")["targetId"]
            self._session: str = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            self.ask("Page.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def load(self, address: str) -> None:
        """Opens an address and waits until all of it is there."""
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=address)
        limit = time.monotonic() + SECONDS
        while not self.value("document.readyState === 'complete' && location.protocol !== 'about:'"):
            if time.monotonic() > limit:
                raise RunError(f"{address} does not load in Chromium; print it from a browser")
            time.sleep(0.02)

    def value(self, script: str) -> object:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def ask(self, method: str, **parameters: object) -> JsonObject:
        """Asks for something of the page. Raises RunError when the browser refuses or is silent."""
        return self._ask(method, self._session, **parameters)

    def event(self, event: JsonObject) -> None:
        """Called with everything that the browser tells unasked."""

    def _ask(self, method: str, session: str | None = None, **parameters: object) -> JsonObject:
        self._number += 1
        message: JsonObject = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        try:
            os.write(self._to, json.dumps(message).encode() + b"\0")
        except OSError as error:
            raise RunError("Chromium ended by itself; print the report from a browser") from error
        while True:
            answer = self._read()
            if answer.get("id") != self._number:
                self.event(answer)
            elif "error" in answer:
                raise RunError(f"Chromium refuses {method} ({answer['error']}); print the report from a browser")
            else:
                result: JsonObject = answer["result"]
                return result

    def _read(self) -> JsonObject:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], SECONDS)
            block = os.read(self._from, 1 << 20) if ready else b""
            if not block:
                raise RunError("Chromium does not answer; print the report from a browser")
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        answer: JsonObject = json.loads(message)
        return answer


@contextmanager
def _opened(page: Path) -> Iterator[Chromium]:
    command = chromium()
    if command is None:
        raise MissingExtraError(
            f"no Chromium or Chrome is installed to print with; open {page} in a browser and print it there (Ctrl-P)"
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(command, Path(profile), width=_WIDTH)
        try:
            browser.load(page.resolve().as_uri())
            yield browser
        finally:
            browser.close()


def write_pdf(page: Path, out: Path) -> None:
    """Prints a page as a PDF file. Raises MissingExtraError without Chromium, RunError, StorageError."""
    with _opened(page) as browser:
        found = browser.ask("Page.printToPDF", printBackground=True, preferCSSPageSize=True, **_A4)
    _write(out, found)


def write_png(page: Path, out: Path) -> None:
    """Draws the part for colleagues as a PNG file, or the whole page without one. Raises as :func:`write_pdf`."""
    with _opened(page) as browser:
        size = {"width": _WIDTH, "height": 900, "deviceScaleFactor": 2, "mobile": False}
        browser.ask("Emulation.setDeviceMetricsOverride", **size)
        browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        browser.value("document.querySelectorAll('.on-screen').forEach((one) => { one.hidden = true; })")
        places = ("document.getElementById('colleagues') || document.body", "getBoundingClientRect().toJSON()")
        box = browser.value(f"({places[0]}).{places[1]}")
        if not isinstance(box, dict):
            raise RunError(f"{page} has no size in Chromium; print it from a browser")
        clip = {"x": 0, "y": box["y"], "width": _WIDTH, "height": box["height"] + 24, "scale": 1}
        found = browser.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    _write(out, found)


def _write(out: Path, found: JsonObject) -> None:
    with atomic_file(out) as file:
        file.write(base64.b64decode(found["data"]))
