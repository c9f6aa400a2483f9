"""The pages over HTTP: this machine alone may ask, nothing is written, no text of a run can act."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_stream import Stream

from spintune.report.reading import read_run as module_read
from spintune.watch.server import listen

Make = Callable[..., Any]

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def test_a_run_is_shown_as_its_files_grow(tmp_path: Path, folder: Make, serve: Make) -> None:
    site = serve(tmp_path / "run")
    stream = Stream(site.get("/events"))
    assert stream.response.getheader("Content-Type", "").startswith("text/event-stream")
    stream.wait("head", "no run has begun here yet")
    made = folder()
    made.metrics("sft", [{"loss": 3.0, "tokens": 1, "seconds": 1.0}, {"loss": 2.5, "tokens": 1, "seconds": 1.0}])
    assert "<polyline" in stream.wait("curves", "Supervised fine-tuning")
    sample = {"stage": "sft", "step": 5, "prompt": "Why?", "reference": "So.", "answer": "No idea."}
    made.lines("sft/samples.jsonl", [sample])
    shown = stream.wait("samples", "No idea.")
    assert "Why?" in shown
    assert "SFT, step 5" in shown
    made.data(12).sft().judged("base", 12.0).judged("sft", [10.0, 11.0] * 6)
    assert "sft is the best model" in stream.wait("head", "best model")
    assert "base says word 3" in stream.wait("rest", "base says")
    shutil.rmtree(made.path)
    assert stream.wait("line", "deleted") == f"{made.path} was deleted."
    folder()  # begins anew
    assert "not running" in stream.wait("head", "not running")


def test_the_end_shows_the_report(whole: Make, serve: Make) -> None:
    made = whole()
    page = serve(made.path).text()
    assert "finished" in page
    for title in ("Self-play, iterate by iterate", "Comparison", "Answers", "Cost", "Recipe and versions"):
        assert title in page, title


def test_several_browsers_see_the_same(whole: Make, serve: Make) -> None:
    site = serve(whole().path)
    first, second = Stream(site.get("/events")), Stream(site.get("/events"))
    assert first.wait("curves", "<svg") == second.wait("curves", "<svg")


def test_nothing_is_written_and_no_lock_is_taken(whole: Make, serve: Make) -> None:
    made = whole()
    before = tree(made.path)
    site = serve(made.path)
    site.text()
    Stream(site.get("/events")).wait("curves", "<svg")
    site.text("/report")
    assert tree(made.path) == before


def test_only_the_names_of_this_machine_are_answered(whole: Make, serve: Make) -> None:
    site = serve(whole().path)
    for host, status in (
        ("127.0.0.1", 200),
        ("localhost:1", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:80", 400),
    ):
        assert site.get("/", host).status == status, host
        assert site.get("/events" if status == 400 else "/report", host).status == status, host


def test_requests_that_change_something_are_refused(whole: Make, serve: Make) -> None:
    site = serve(whole().path)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert site.get("/", method=method).status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/recipe.json",
        "/../recipe.json",
        "/run/../",
        "/run/..%2F..%2Fetc/",
        "/run/%2e%2e/",
        "/run/other/",
        "/run/a%00b/",
    ],
)
def test_no_path_leads_out_of_the_pages(whole: Make, serve: Make, path: str) -> None:
    assert serve(whole().path.parent).get(path).status == 404


def test_a_page_may_run_its_own_script_and_ask_this_server_and_nothing_else(whole: Make, serve: Make) -> None:
    site = serve(whole().path)
    for path in ("/", "/report", "/events"):
        answer = site.get(path)
        policy = str(answer.getheader("Content-Security-Policy"))
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.getheader("Cache-Control") == "no-store"
    page = site.text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "src=" not in page


def test_text_of_a_run_is_text(folder: Make, serve: Make) -> None:
    made = folder(name="<b>run", spin=None).data([(EVIL, EVIL), ("b", "c")]).sft()
    made.judged("base", 1.0, [EVIL, EVIL]).judged("sft", 1.0, [EVIL, EVIL])
    made.lines("sft/samples.jsonl", [{"stage": EVIL, "step": 5, "prompt": EVIL, "reference": EVIL, "answer": EVIL}])
    site = serve(made.path)
    page = site.text()
    stream = Stream(site.get("/events"))
    for name in ("samples", "rest", "head"):
        stream.wait(name, "<")
    seen = stream.parts
    for html in (page, *seen.values()):
        assert "<img" not in html
        assert "<script>alert" not in html
        assert "<b>run" not in html
    assert "&lt;img src=x" in seen["samples"]


def test_a_damaged_run_is_one_line_and_the_page_goes_on(whole: Make, serve: Make) -> None:
    made = whole()
    site = serve(made.path)
    stream = Stream(site.get("/events"))
    stream.wait("curves", "<svg")
    good = (made.path / "best.json").read_text() if (made.path / "best.json").exists() else None
    (made.path / "best.json").write_text("{")
    assert "best.json" in stream.wait("line", "best.json")
    (made.path / "best.json").unlink()
    if good:
        (made.path / "best.json").write_text(good)
    stream.parts.pop("line")
    assert stream.wait("line", "") == ""


def test_a_sweep_is_an_index_of_its_runs(folder: Make, whole: Make, serve: Make, tmp_path: Path) -> None:
    made = whole("seed=1")
    runs = [{"name": "seed=1", "state": "finished"}, {"name": "seed=2", "state": "failed", "reason": f"no {EVIL}"}]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs, "conclusion": "Seeds do not matter"}))
    site = serve(tmp_path)
    page = site.text()
    assert "Seeds do not matter" in page
    assert 'href="run/seed%3D1/"' in page
    assert "failed: no &lt;/script&gt;" in page
    assert "1 of 2 runs finished" in page
    assert site.get("/run/seed%3D1").status == 307
    assert "Comparison" in site.text("/run/seed%3D1/")
    Stream(site.get("/run/seed%3D1/events")).wait("curves", "<svg")
    assert site.get("/run/seed%3D2/").status == 404
    assert made.path.name == "seed=1"


def test_a_port_that_is_taken_is_refused_and_the_usual_one_has_others() -> None:
    with listen(0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen(port)
    with listen(None) as one, listen(None) as other:
        assert one.getsockname()[1] != other.getsockname()[1]
        assert other.getsockname()[0] == "127.0.0.1"


def test_looks_at_a_run_that_stands_still_read_it_once(whole: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from spintune.watch import run as module

    made, reads = whole(), []
    monkeypatch.setattr(module, "read_run", lambda folder: (reads.append(folder), module_read(folder))[1])
    watched = module.WatchedRun(made.path, "x")
    for _ in range(5):
        watched.look()
    assert len(reads) == 1
    time.sleep(0.01)
    made.json("best.json", {"name": "sft", "model": "sft/model", "why": "x"})
    watched.look()
    assert len(reads) == 2
