"""Chromium without a window, with what tests need: errors of a page, keys, sizes, pictures."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from spintune.report.chromium import SECONDS, Chromium, chromium


class Browser(Chromium):
    """One page at a time. ``complaints`` are errors of scripts, refused loads, and whatever else the console shows."""

    def __init__(self, profile: Path, width: int = 1200, height: int = 900) -> None:
        self.complaints: list[str] = []
        command = chromium()
        assert command
        super().__init__(command, profile, width, height)
        for domain in ("Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, page: Path, state: str = "") -> None:
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=page.as_uri() + state)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def go(self, address: str) -> None:
        """Opens a page of a server of this machine."""
        self.ask("Page.navigate", url=address)
        self.wait("document.readyState !== 'loading' && location.protocol === 'http:'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        limit = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < limit, f"never true: {condition}"
            time.sleep(0.02)

    def type(self, text: str) -> None:
        self.ask("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def look(self, width: int, dark: bool = False, media: str = "") -> None:
        """The size of the window, the colours that the user prefers, and the medium."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def screenshot(self, path: Path, height: int, scale: float = 1) -> None:
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": scale}
        found = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def event(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(told["args"]))
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                if not told["request"]["url"].startswith(("file:", "about:")):
                    self.complaints.append(f"asked for {told['request']['url']}")
