"""Time from the start of ``spintune watch`` to the first curve in a browser.

::

    python benchmarks/watch.py RUN [--repeats 3]

It starts the command on a run folder, opens the page in an installed Chromium that is already running, and waits for a
curve. The parts: until the address is printed, until the page has arrived, until a curve is drawn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from spintune.report.chromium import Chromium, chromium


def first_sight(run: str, browser: Chromium) -> tuple[float, float, float]:
    """Seconds until the address is printed, until a curve is drawn, and of the command's processor."""
    began = time.monotonic()
    command = [sys.executable, "-m", "spintune", "watch", run]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = process.stdout.readline().split(" at ")[1].split()[0]
        printed = time.monotonic() - began
        browser.load(address)
        while not browser.value("document.querySelector('#curves polyline, #curves circle') !== null"):
            time.sleep(0.01)
        drawn = time.monotonic() - began
        spent = psutil.Process(process.pid).cpu_times()
        return printed, drawn, spent.user + spent.system
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", help="a run folder with at least one step of training")
    parser.add_argument("--repeats", type=int, default=3)
    told = parser.parse_args()
    command = chromium()
    if command is None:
        raise SystemExit("no Chromium or Chrome is installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(command, Path(profile))
        try:
            found = [first_sight(told.run, browser) for _ in range(told.repeats)]
        finally:
            browser.close()
    printed, drawn, spent = (statistics.median(times) for times in zip(*found, strict=True))
    print(
        f"address printed after {printed:.1f} s, first curve after {drawn:.1f} s, with {spent:.1f} s of a processor in "
        f"spintune watch (medians of {len(found)}; load {psutil.getloadavg()[0]:.0f} on {psutil.cpu_count()} cores)"
    )


if __name__ == "__main__":
    main()
