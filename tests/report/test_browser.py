"""The page in a real browser: nothing complains, a reader finds and chooses, with a keyboard and on a phone too."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spintune.report.page import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") or shutil.which("google-chrome")), reason="chromium is not installed"
    ),
]

Make = Callable[..., Any]

CARDS = "document.querySelectorAll('.example').length"
NAMES = "[...document.querySelectorAll('.example:first-child .answers h3')].map(h => h.textContent)"
COUNT = "document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    # tests are no package, so that a module beside this one is found by its file
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the report of runs; at the end nothing may have complained."""

    def go(*made: Any, state: str = "", width: int = 1200, dark: bool = False) -> Any:
        path = write_report([one.path for one in made])
        browser.look(width, dark)
        browser.open(path, state)
        return browser

    browser.complaints.clear()
    yield go
    browser.run("1")
    assert browser.complaints == []


def test_the_page_is_styled_and_shows_its_examples(opened: Make, whole: Make) -> None:
    page = opened(whole(heldout=25))
    assert page.run(CARDS) == 10
    assert page.run(COUNT) == "25 prompts, 10 shown"
    assert page.run("getComputedStyle(document.querySelector('nav')).position") == "sticky"
    assert page.run(NAMES) == ["reference", "base", "sft", "iterate-1", "iterate-2", "sft-more"]


def test_search_finds_what_was_typed_and_marks_it(opened: Make, whole: Make) -> None:
    page = opened(whole(heldout=25))
    page.run("document.getElementById('search').focus()")
    page.type("WORD 7")
    page.wait(f"{CARDS} === 1")
    assert page.run(COUNT) == "1 of 25 prompts"
    assert page.run("[...document.querySelectorAll('mark')].map(m => m.textContent)")[0] == "word 7"
    assert page.run("location.hash") == "#q=WORD+7"
    page.type(" and nothing")
    page.wait(f"{CARDS} === 0")
    assert page.run(COUNT) == "No prompt matches."


def test_search_takes_signs_as_they_are(opened: Make, folder: Make) -> None:
    texts = [("What is a.c (x|y)?", "abc"), ("Ask abc", "xy"), ("[1] + $2 \\ {3}", "İstanbul")]
    page = opened(folder(spin=None).data(texts).sft().judged("base", 1.0).judged("sft", 1.0))
    for words, found in (
        ("a.c (x|y)?", 1),
        ("[1] + $2 \\ {3}", 1),
        ("abc", 2),
        (".*", 0),
        ("istanbul", 0),
        ("İSTANBUL", 1),
    ):
        page.run(f"location.hash = 'q=' + encodeURIComponent({words!r})")
        page.wait(f"document.getElementById('search').value === {words!r}")
        assert page.run(CARDS) == found, words


def test_a_reader_chooses_the_models(opened: Make, whole: Make) -> None:
    page = opened(whole())
    page.run("document.querySelectorAll('#models input')[0].click()")
    page.run("document.querySelectorAll('#models input')[2].click()")
    assert page.run(NAMES) == ["reference", "sft", "iterate-2", "sft-more"]
    state = page.run("location.hash")
    page = opened(whole("second"), state=state)  # an address shows the same to someone else
    assert page.run(NAMES) == ["reference", "sft", "iterate-2", "sft-more"]
    assert page.run("[...document.querySelectorAll('#models input')].map(box => box.checked)") == [
        False,
        True,
        False,
        True,
        True,
    ]


def test_models_that_answer_alike_share_a_block(opened: Make, whole: Make) -> None:
    made = whole(heldout=[("One?", "1"), ("Two?", "2")])
    for name in ("sft", "iterate-1"):
        made.judged(name, 1.0, ["the same", f"{name} differs"])
    page = opened(made, state="#show=sft&show=iterate-1")
    assert page.run(NAMES) == ["reference", "sft, iterate-1"]
    page.run("document.getElementById('differ').click()")
    assert page.run(COUNT) == "1 of 2 prompts"
    assert page.run(NAMES) == ["reference", "sft", "iterate-1"]


def test_a_reader_switches_between_evaluations(opened: Make, everything: Make) -> None:
    page = opened(everything())
    assert page.run("[...document.getElementById('set').options].map(o => o.textContent)") == [
        "ifeval",
        "questions",
        "mt-bench",
    ]
    assert page.run(COUNT) == "2 prompts"
    assert page.run(NAMES) == ["base", "sft"]  # ifeval has no references
    assert page.run("document.querySelector('.facts-line').textContent") == (
        "follows 0 of 2 instructions · 3 tokens · cut for length · not rule:0, rule:1"
    )
    page.run("document.querySelectorAll('#models input')[0].click()")
    choose = "const box = document.getElementById('set'); box.value = '%d'; box.dispatchEvent(new Event('change'))"
    page.run("{" + choose % 1 + "}")
    # base stays hidden, and the rival, of whom nobody said anything, is shown
    assert page.run(NAMES) == ["reference", "sft", "parrot (stored answers)"]
    page.run("document.getElementById('search').focus()")
    page.type("question 3")
    page.wait(f"{CARDS} === 1")
    assert page.run(COUNT) == "1 of 12 prompts"
    page.run("{" + choose % 2 + "}")
    assert page.run(COUNT) == "No prompt matches."  # the search holds for all
    page.run("location.hash = 'set=mt-bench&show=sft'")
    page.wait(f"{CARDS} === 2")
    assert page.run("document.getElementById('search').value") == ""
    assert page.run(NAMES) == ["sft"]
    assert page.run("[...document.querySelectorAll('.example:first-child .text')].map(t => t.textContent)") == [
        "Write 0.",
        "Again?",
        "sft writes",
        "sft again",
    ]
    state = page.run("location.hash")
    page = opened(everything("other"), state=state)  # an address shows the same to someone else
    assert (
        page.run("document.querySelector('#answers .about:not([hidden])').textContent.trim().slice(0, 20)")
        == "Prompts of mt-bench "
    )
    assert page.run(NAMES) == ["sft"]
    page.run("document.getElementById('order').value = 'gains'")
    assert page.run("document.getElementById('order').selectedOptions[0].textContent").startswith("rating gained most")


def test_one_evaluation_needs_no_switch(opened: Make, whole: Make) -> None:
    assert opened(whole()).run("document.getElementById('sets').offsetParent === null")


def test_the_order_follows_what_was_gained(opened: Make, folder: Make) -> None:
    texts = [("Worse?", "a b"), ("Better?", "c d"), ("Same?", "e f")]
    made = folder(spin=None).data(texts).sft()
    made.judged("base", 1.0, ["a b", "no", "e f"]).judged("sft", 1.0, ["no", "c d", "e f"])
    page = opened(made)
    prompts = "[...document.querySelectorAll('.turn .text')].map(text => text.textContent)"
    for order, expected in (("gains", ["Better?", "Same?", "Worse?"]), ("losses", ["Worse?", "Same?", "Better?"])):
        page.run(f"order.value = '{order}'; order.dispatchEvent(new Event('change'))")
        assert page.run(prompts) == expected


def test_a_keyboard_reaches_everything(opened: Make, whole: Make) -> None:
    page = opened(whole(heldout=25))
    reached = []
    for _ in range(60):
        page.press("Tab", 9)
        reached.append(page.run("document.activeElement.id || document.activeElement.textContent.trim().slice(0, 20)"))
        if reached[-1] == "more":
            break
    assert reached[:2] == ["Skip to the content", "For colleagues"]
    for wanted in ("search", "order", "differ", "more"):
        assert wanted in reached
    page.press("Enter", 13, "\r")
    page.wait(f"{CARDS} === 20")
    assert page.run("[...list.children].indexOf(document.activeElement)") == 10


def test_a_phone_scrolls_in_one_direction(opened: Make, whole: Make, everything: Make) -> None:
    for make, name in ((whole, "a-run-with-quite-a-long-name-that-has-no-spaces-in-it"), (everything, "judged")):
        page = opened(make(name), width=360)
        assert page.run("document.documentElement.scrollWidth") == 360
        assert page.run("innerWidth") == 360
        # every table that is wider scrolls by itself
        assert page.run("[...document.querySelectorAll('table')].every(t => t.closest('.scroll, .forest'))")


def test_dark_and_light_are_readable(opened: Make, whole: Make) -> None:
    made = whole()
    for dark in (False, True):
        page = opened(made, dark=dark)
        # WCAG 2.2: contrast of at least 4.5 for text, 3 for graphics
        for foreground, least in (("--ink", 7), ("--quiet", 4.5), ("--link", 4.5), ("--good", 4.5), ("--bad", 4.5)):
            assert page.run(CONTRAST % (foreground, "--page")) >= least, (foreground, dark)
        for series in ("--s0", "--s1", "--s2"):
            assert page.run(CONTRAST % (series, "--page")) >= 3, (series, dark)
        for surface in ("--raised", "--warn"):
            assert page.run(CONTRAST % ("--quiet", surface)) >= 4.5, (surface, dark)


CONTRAST = """(() => {
  const light = (name) => {
    const [r, g, b] = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1)
      .replace(/^(.)(.)(.)$/, '$1$1$2$2$3$3').match(/../g).map((two) => parseInt(two, 16) / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [light('%s'), light('%s')].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
})()"""


def test_print_hides_what_paper_cannot_do(opened: Make, whole: Make) -> None:
    page = opened(whole())
    page.look(1200, media="print")
    hidden = "['nav', '#controls'].map(name => getComputedStyle(document.querySelector(name)).display)"
    assert page.run(hidden) == ["none", "none"]
    assert page.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert len(page.ask("Page.printToPDF")["data"]) > 10_000


def test_no_text_of_a_model_runs(opened: Make, folder: Make) -> None:
    evil = [
        "</script><script>window.harm = 1</script>",
        "<img src=x onerror='window.harm = 1'>",
        "<!--<script>window.harm = 1",
        "]]>\u2028\u2029\u202e\u200f",
        "<svg/onload=window.harm=1>",
    ]
    made = folder("<img src=x onerror=harm>", spin=None).data([(text, text + "!") for text in evil]).sft()
    page = opened(made.judged("base", 1.0, evil).judged("sft", 1.0, evil[::-1]))
    assert page.run("[...document.querySelectorAll('.turn .text')].map(text => text.textContent)") == evil
    assert page.run("typeof window.harm") == "undefined"
    assert page.run("document.images.length") == 0
    assert page.run("document.scripts.length") == 2
    # a text that turns the direction of writing ends with its own block
    assert page.run("getComputedStyle(document.querySelector('.text')).unicodeBidi") in ("isolate", "plaintext")


def test_a_script_that_is_not_the_page_s_own_is_refused(browser: Any, whole: Make, tmp_path: Path) -> None:
    path = write_report([whole().path])
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(path.read_text().replace("</main>", "</main><script>window.harm = 1</script>"))
    browser.complaints.clear()
    browser.open(spoiled)
    assert browser.run("typeof window.harm") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)
    assert browser.run(CARDS) == 10


def test_a_long_answer_is_cut_where_readers_see_it(opened: Make, folder: Make) -> None:
    made = folder(spin=None).data(1).sft().judged("base", 1.0).judged("sft", 1.0, ["x" * 1_000_000])
    page = opened(made)
    assert page.run("document.querySelector('.rest').textContent") == (
        "… cut here: 996,000 more characters in run/eval/heldout/sft/answers.jsonl"
    )


def test_five_hundred_examples_are_searched_at_once(opened: Make, folder: Make) -> None:
    made = folder(spin=None).data(10_000).sft().judged("base", 1.0).judged("sft", 1.0)
    page = opened(made, state="#q=word+499")
    assert page.run(COUNT) == "1 of 500 prompts"


def test_a_link_to_one_of_several_runs_opens_it(opened: Make, whole: Make) -> None:
    page = opened(whole("one"), whole("other"))
    assert page.run("document.querySelectorAll('details.run[open]').length") == 0
    page.run("document.querySelector('nav a[href=\"#run2-run\"]').click()")
    page.wait("document.getElementById('run2-run').open")
    assert page.run("document.querySelectorAll('details.run[open]').length") == 1


def test_several_runs_and_unfinished_ones_open_too(opened: Make, whole: Make, folder: Make) -> None:
    assert opened(whole("one"), whole("other")).run(CARDS) == 10
    assert opened(folder("empty")).run("document.querySelectorAll('.banner').length") == 1
