"""Draws the pictures of pages in docs/images from a run folder, such as that of the demo, by an installed Chromium.

::

    python docs/page_screens.py runs/quickstart
    python docs/page_screens.py report.html NAME    # the top of one page, as NAME.png; those of the walks are made so
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from spintune.report.chromium import Chromium, chromium
from spintune.report.page import write_report

IMAGES = Path(__file__).resolve().parent / "images"


def look(browser: Chromium, width: int, dark: bool) -> None:
    """Sets the size of the window and the colors that its user prefers."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.ask("Emulation.setDeviceMetricsOverride", **size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.ask("Emulation.setEmulatedMedia", features=[scheme])


def shoot(browser: Chromium, width: int, height: int, path: Path) -> None:
    """Writes the top of the page as a PNG of 64 colors, which is small."""
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1.25}
    found = browser.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    picture = Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")
    picture.quantize(64).save(path, optimize=True)


def main() -> None:
    """Draws one page, or the report of a run on a desktop and on a phone, and the live page."""
    command = chromium()
    if command is None:
        raise SystemExit("no Chromium or Chrome is installed")
    if sys.argv[2:]:
        draw_page(command, Path(sys.argv[1]), sys.argv[2])
    else:
        draw_run(command, Path(sys.argv[1]))


def draw_page(command: str, page: Path, name: str) -> None:
    """Draws the top of a page as wide as a desktop's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Chromium(command, Path(folder) / "profile")
        try:
            look(browser, 1120, False)
            browser.load(page.resolve().as_uri())
            shoot(browser, 1120, 1200, IMAGES / f"{name}.png")
        finally:
            browser.close()


def draw_run(command: str, run: Path) -> None:
    """Draws the report of a run on a desktop and on a phone, and the live page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        page = write_report([run], Path(name) / "report.html")
        watch = [sys.executable, "-m", "spintune", "watch", str(run)]
        process = subprocess.Popen(watch, stdout=subprocess.PIPE, text=True)
        browser = Chromium(command, Path(name) / "profile")
        try:
            for width, height, dark, image in ((1120, 1500, False, "desktop"), (390, 1560, True, "phone-dark")):
                look(browser, width, dark)
                browser.load(page.as_uri())
                shoot(browser, width, height, IMAGES / f"report-{image}.png")
            look(browser, 1120, False)
            told = process.stdout.readline() if process.stdout else ""
            browser.load(told.split(" at ")[1].split()[0])
            time.sleep(2)
            browser.value("document.getElementById('stages').scrollIntoView()")
            top = browser.value("document.getElementById('stages').getBoundingClientRect().top + scrollY")
            clip = {"x": 0, "y": top, "width": 1120, "height": 1300, "scale": 1}
            found = browser.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
            picture = Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")
            picture.quantize(64).save(IMAGES / "watch.png", optimize=True)
        finally:
            browser.close()
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
