"""What each checker says of hand-made answers, and that none can hang or break a run without a line."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune import checkers
from spintune.checkers import CHECKERS, Checker, build_checker, check_setting, register_checker
from spintune.errors import DataError, RecipeError
from spintune.recipe import parse_recipe
from spintune.text import expressions

GSM8K = "She sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72"


def right(setting: checkers.CheckerSetting, answer: str, reference: str, prompt: str = "") -> bool:
    verdict = build_checker(check_setting(setting)).verdict(answer, reference, prompt, "here")
    assert verdict in (0, 1)
    return verdict == 1


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("#### 72", GSM8K, True),
        ("48 + 24 = 72", GSM8K, True),
        ("The answer is 72 clips. She had 2 helpers.", GSM8K, True),
        ("She sold 72, that is 24 more than 48.", GSM8K, False),  # the last number is 48
        ("#### 24", GSM8K, False),
        ("I do not know.", GSM8K, False),
        ("", GSM8K, False),
        ("It costs $1,234.50.", "#### 1234.5", True),
        ("1,234.5", "#### $1,234.50", True),
        ("0.5", "1/2", True),
        (r"So it is \boxed{\frac{1}{2}}, which is 3 of 6.", "0.5", True),
        (r"$\boxed{1{,}080}$ of 2", "#### 1,080", True),
        ("about 25 %", "#### 25%", True),
        ("25", "25%", True),
        ("-3", "#### \u22123", True),
        ("3", "#### -3", False),
        ("72", "no number", False),
        (r"\boxed{-\frac{1}{2}}", r"\boxed{\frac{1}{2}}", False),
        (r"$-\dfrac{3}{4}$", "-0.75", True),
        (r"The answer is - \frac34.", "-0.75", True),
        (r"-\frac{-1}{2}", "0.5", True),
        (r"-1\frac{1}{2}", "-1.5", True),
        (r"3 - \frac{1}{2}", "0.5", True),  # a subtraction: the last number, as in 3 - 1/2
        (r"3-\frac{1}{2}", "-0.5", False),
        (r"\boxed{\frac{\pi}{2}}", "2", False),
        (r"\boxed{\frac{\sqrt{3}}{2}}", "2", False),
        (r"\boxed{2\pi}", "2", False),
        (r"\boxed{\left(3, 4\right)}", "4", False),
        (r"\boxed{90^\circ}", "90", True),
        (r"\boxed{90^{\circ}}", "90", True),
        (r"\boxed{5\text{ m}^2}", "5", True),
        (r"\boxed{\textbf{5}}", "5", True),
        (r"\boxed{10,\!000}", "10000", True),
        (r"\boxed{12\,500}", "12500", True),
        (r"\boxed{5\,\mathrm{cm}}", "5", True),
        (r"\boxed{10^5}", "100000", True),
        (r"\boxed{2^{10}}", "1024", True),
        (r"\boxed{3 \times 10^{-5}}", "3e-5", True),
        (r"\boxed{3 \times 5}", "5", False),
        ("#### Step 1: Add\n3 + 4 = 7\n\nSo she has 7 apples.", "7", True),
        ("### Solution\n#### Step 2: total\nThe total is 3 + 4 = **7**.", "7", True),
        ("#### Final Answer\n\n7", "7", True),
        ("The answer is 7.\n\n#### 2. Why?\nBecause.", "7", True),
        ("The answer is 7.\n##### 3\nBecause.", "7", True),
        ("3 + 4 = 7\n#### 7 apples\n", "7", True),
        ("#### **$1,234**\nShe had 2 before.", "1234", True),
        ("#### 72 dollars\n\nQuestion: 8 men", "72", True),
        ("#### 72 more apples.\nHope that helps with 3 things", "72", True),
        ("#### x = 72\nbye 3", "72", True),
        ("#### 5e3\nok 7", "5000", True),
        ("x\n#### 72 ####", "72", True),
        ("x\n#### 72 ####\nbye 3", "72", True),
        ("#### **72** km/h\nbye 3", "72", True),
        ("#### 2nd step\n3 + 4 = 7", "7", True),
        ("#### 2 Results\n3 + 4 = 7", "7", True),
        ("The final answer is - 72.", "72", True),  # a dash
        ("Answer: - 72 apples", "72", True),
        ("ratio 3:- 4", "4", True),
        ("**Answer:** - 72", "72", True),
        ("x =- 5", "-5", True),
        ("Answer: \u2212 $5 and 3", "-5", True),
        ("x = - 5", "-5", True),
        ("10 - 5", "5", True),
        ("Answer:\n- 5 apples", "5", True),  # a list
    ],
)
def test_number(answer: str, reference: str, expected: bool) -> None:
    assert right("number", answer, reference) is expected


@given(value=st.integers(-(10**9), 10**9), cents=st.integers(0, 99), other=st.integers(1, 10**6))
def test_how_a_number_is_written_does_not_matter(value: int, cents: int, other: int) -> None:
    sign, size = "-" if value < 0 else "", abs(value)
    reference = f"Work.\n#### {sign}{size}.{cents:02d}"
    spellings = [
        f"{sign}{size:,}.{cents:02d}",
        f"{sign}${size:,}.{cents:02d}",
        f"{sign}{size}.{cents:02d}0",
        f"{sign}{size * 100 + cents}/100",
        f"{sign}{size:,}.{cents:02d}%",
    ]
    for spelling in spellings:
        assert right("number", f"First {other}. The answer is {spelling}.", reference)
        assert right("number", f"{other} and then {spelling}", reference)
    assert not right("number", f"The answer is {sign}{size + 1}.{cents:02d}.", reference)


LETTERED = "What falls from clouds?\nA) rain\nB) bricks\nC) no rain at all\nAnswer:"


@pytest.mark.parametrize(
    ("answer", "reference", "prompt", "expected"),
    [
        ("A", "A", LETTERED, True),
        ("(A)", "A", LETTERED, True),
        ("The answer is A.", "A", LETTERED, True),
        ("rain", "A", LETTERED, True),
        ("Rain, of course.", "A", LETTERED, True),
        ("A) rain", "rain", LETTERED, True),
        ("a", "A", LETTERED, True),
        ("B", "A", LETTERED, False),
        ("no rain at all", "A", LETTERED, False),
        ("It is rain or bricks.", "A", LETTERED, False),
        ("D", "A", LETTERED, False),
        ("", "A", LETTERED, False),
        ("snow", "(B) snow", "Which is cold? (A) fire (B) snow (C) tea", True),
        ("2", "snow", "Which is cold?\n1. fire\n2. snow", True),
        ("yes", "Yes", "Is it wet?\nOPTIONS:\n- yes\n- no\n", True),
        ("no", "Yes", "Is it wet?\nOPTIONS:\n- yes\n- no\n", False),
        ("B", "A", "A) one\nB) two\n\nWhat then?\nA) three\nB) four", False),
        ("four", "B", "A) one\nB) two\n\nWhat then?\nA) three\nB) four", True),  # the last options are asked about
        ("B. Paris", "B", "No options here.", True),
        ("Paris", "B", "No options here.", False),
        ("The answer is **B**.", "B", "No options here.", True),
        ("The answer is B, C.", "B", "No options here.", False),
        ("Answer: C major", "Answer: C minor", "No options here.", False),
        ("Positive.", "positive", "How is the mood?", True),
        ("negative", "positive", "How is the mood?", False),
        ("", "", "How is the mood?", False),
    ],
)
def test_choice(answer: str, reference: str, prompt: str, expected: bool) -> None:
    assert right("choice", answer, reference, prompt) is expected


@pytest.mark.parametrize(
    "answer",
    [
        *("**B**", "The answer is **B**.", "**Answer:** **B**", "**Answer: B**", "Answer: `B`", 'Answer: "B"', "_B_"),
        *("$B$", r"\boxed{B}", r"The answer is $\boxed{\text{B}}$.", r"\(B\)", "“B”", "#### B\nSure.", "(**B**) it is"),
        *("The answer is B!", "The answer is B; no other.", "The answer is B because it snows.", "Answer: B is right"),
        *("The answer is **B** because it falls", "The answer is **B** is right", "#### B ####", "(B) C is none"),
    ],
)
def test_a_letter_counts_whatever_it_is_marked_with(answer: str) -> None:
    assert right("choice", answer, "B", "Which is cold?\nA) fire\nB) winter\nC) tea\nD) a dog")


@pytest.mark.parametrize(
    "answer",
    [
        *("The answer is B or C.", "The answer is C and D.", "Answer: B / C", "Answer: B, C", "(B) or (C)", "B, and C"),
        *("The answer is **B** or **C**.", "The answer is B is wrong", "Answer: B but maybe C", "Answer: B isn't hot"),
    ],
)
@pytest.mark.parametrize("reference", ["B", "winter", "C"])
def test_letters_that_are_hedged_choose_none(answer: str, reference: str) -> None:
    assert not right("choice", answer, reference, "Which is cold?\nA) fire\nB) winter\nC) tea\nD) a dog")


@pytest.mark.parametrize("answer", ["A dog", "The answer is A dog.", "$1", "B vitamins"])
def test_a_word_and_a_price_are_no_label(answer: str) -> None:
    assert not right("choice", answer, "A", "Which barks?\nA) cat\nB) hound\nC) tea\nD) fox")
    assert not right("choice", answer, "B", "Which barks?\nA) cat\nB) hound\nC) tea\nD) fox")


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ('{"b": [1, 2], "a": null}', '{"a": null, "b": [1.0, 2]}', True),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}', True),
        ('{"a": 1, "c": 2}', '{"a": 1}', False),
        ('{"a": true}', '{"a": 1}', False),
        ("[1, 2]", "[2, 1]", False),
        ('{"a": 1', '{"a": 1}', False),
        ("{'a': 1}", '{"a": 1}', False),
        ("[" * 100_000, "[]", False),
        ("NaN", "NaN", False),
        ('{"a": "```"}', '{"a": "```"}', True),
        ('{"a": "x```json\\n1```y"}', '{"a": "x```json\\n1```y"}', True),
        ('```json\n{"a": "use ```"}\n```', '{"a": "use ```"}', True),
        ('Run\n```bash\nls\n```\nand get\n```json\n{"a": 1}\n```', '{"a": 1}', True),
        ('```json\n{"a": 1}\n```\nwhich is\n```\n[2]\n```', '{"a": 1}', True),
        ('```json\n{"a": 0}\n```\nNo:\n```json\n{"a": 1}\n```', '{"a": 1}', True),
        ('```json {"a": 1}```', '{"a": 1}', True),
        ("```true```", "true", True),
        ('\ufeff{"a": 1}', '{"a": 1}', True),
        ('```json\n{"a": 1}', '{"a": 1}', False),
    ],
)
def test_json(answer: str, reference: str, expected: bool) -> None:
    assert right("json", answer, reference) is expected


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(one=values, other=values)
def test_json_is_equal_as_values_are_however_it_is_laid_out(one: object, other: object) -> None:
    laid_out = json.dumps(one, indent=2, sort_keys=True)
    assert right("json", f"```\n{laid_out}\n```" if "```" not in laid_out else laid_out, json.dumps(one))
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert right("json", json.dumps(one), json.dumps(other)) == same


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("I think it is  PARIS, in France.", "Paris.", True),
        ("It is called New\nYork today", "new york", True),
        ("I know it", "no", False),
        ("It has 15 legs", "5", False),
        ("", "x", False),
        ("anything", "...", True),
        ("The answer is -5.", "-5", True),
        ("\u22125 degrees", "-5", True),
        ("5 degrees", "-5", False),
        ("10-5", "-5", False),
        ("It is C.", "C++", False),
        ("In C++, of course", "C++", True),
        ("grade A", "A+", False),
        ("about .5 litres", ".5", True),
        ("It grew by 10%.", '"10%".', True),
        ("It grew by 10 km.", "10%", False),
        ("It grew by 10 %.", "10%", True),
        ("5%", "5 %", True),
        ("At 20 °C", "20°C", True),
        ("it costs 5 dollars", "$5", True),
        ("it costs $ 5", "$5", True),
        ("it costs 5 €", "5€", True),
        ("it costs €5", "$5", False),
        ("it costs $15", "$5", False),
        ("a loss of -$5", "$5", False),
        ("x is 5", "+5", True),
        ("x is -5", "+5", False),
    ],
)
def test_contains(answer: str, reference: str, expected: bool) -> None:
    assert right("contains", answer, reference) is (expected if reference != "..." else False)


def test_an_expression_compares_what_it_finds_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = {"regex": r"<answer>(.*?)</answer>"}
    assert right(setting, "<answer>no</answer> <answer> 4   2</answer>", "x <answer>4 2</answer>")
    assert not right(setting, "4 2", "<answer>4 2</answer>")
    assert not right(setting, "<answer>4</answer>", "4")
    monkeypatch.setattr(expressions, "_SECONDS", 0.05)
    slow = build_checker({"regex": "(a|aa)+$"})
    with pytest.raises(
        DataError, match=r"^f\.jsonl:3: evaluation\.checker: the expression '\(a\|aa\)\+\$' takes more than"
    ):
        slow.verdict("a" * 40 + "b", "a", "", "f.jsonl:3")


def test_a_schema_says_what_json_must_be_like(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}')
    setting = {"json": str(schema)}
    assert right(setting, '{"name": "Ada", "age": 3}', "any reference")
    assert not right(setting, '{"name": 3}', "any reference")
    assert not right(setting, "Ada", "any reference")
    schema.write_text('{"type": "nothing"}')
    with pytest.raises(RecipeError, match=r"schema\.json is no JSON Schema \('nothing' is not valid"):
        build_checker(setting)
    with pytest.raises(RecipeError, match=r"none\.json: No such file or directory; check the path"):
        build_checker({"json": str(tmp_path / "none.json")})


# Functions of users --------------------------------------------------------------------------------------------------


@pytest.fixture
def half() -> Iterator[None]:
    register_checker("half", lambda answer, reference, prompt: 0.5)
    yield
    CHECKERS.unregister("half")


def test_a_users_function_may_give_shares_and_a_typo_gets_a_suggestion(half: None) -> None:
    assert build_checker("half").verdict("a", "b", "c", "here") == 0.5
    values = {"out": "o", "model": "m", "data": {"train": "builtin:seeds"}}
    for setting, message in {
        "halve": "there is no checker 'halve'; did you mean half?",
        "regex": "regex needs an expression; write {regex: PATTERN}",
        "{}": "there is no checker '{}'; use one of number, choice, json, contains, half",
    }.items():
        with pytest.raises(RecipeError) as error:
            parse_recipe({**values, "evaluation": {"checker": setting}}, "r.yaml")
        assert str(error.value) == f"r.yaml: evaluation.checker: {message}"
    wrong = (({"regex": "("}, "not a regular expression"), ({"number": "3"}, "only regex and json"), (3, "give a name"))
    for bad, part in wrong:
        with pytest.raises(RecipeError, match=f"evaluation.checker: {part}"):
            parse_recipe({**values, "evaluation": {"checker": bad}}, "r.yaml")


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "None"), ("yes", "'yes'"), (float("nan"), "nan"), (2, "2"), (-0.1, "-0.1")],
)
def test_what_is_no_verdict_is_an_error_of_one_line(value: object, told: str) -> None:
    odd = Checker("odd", lambda *_: value, "", False)  # type: ignore[arg-type, return-value]
    with pytest.raises(
        DataError, match=rf"^f:3: the checker odd gives {told}, not true, false or a number from 0 to 1"
    ):
        odd.verdict("a", "b", "c", "f:3")


def test_a_checker_that_raises_is_named_with_the_example() -> None:
    def broken(answer: str, reference: str, prompt: str) -> bool:
        return bool(int(answer))

    with pytest.raises(DataError) as error:
        Checker("broken", broken, "", False).verdict("a", "b", "c", "data.jsonl:3")
    assert str(error.value) == (
        "data.jsonl:3: the checker broken fails (ValueError: invalid literal for int() with base 10: 'a'); fix it"
    )


def loops(answer: str, reference: str, prompt: str) -> bool:
    while True:
        pass


def swallows(answer: str, reference: str, prompt: str) -> bool:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def backtracks(answer: str, reference: str, prompt: str) -> bool:
    import re

    return re.match("(a+)+$", "a" * 60 + "b") is not None


@pytest.mark.parametrize("function", [loops, swallows, backtracks])
def test_a_checker_that_hangs_ends_in_a_line(function: checkers.CheckFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "SECONDS", 0.05)
    line = r"^data\.jsonl:3: the checker slow takes more than 0\.05 s on an answer of 1 characters; make it faster$"
    with pytest.raises(DataError, match=line):
        Checker("slow", function, "", False).verdict("a", "b", "c", "data.jsonl:3")


def test_a_hang_ends_in_a_line_outside_of_the_main_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "SECONDS", 0.05)
    found: list[str] = []
    wait = threading.Event()

    def judge() -> None:
        try:
            Checker("slow", lambda *_: wait.wait(), "", False).verdict("a", "b", "c", "here")
        except DataError as error:
            found.append(str(error))
        found.append(str(Checker("quick", lambda *_: True, "", False).verdict("a", "b", "c", "here")))

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    wait.set()
    assert found == [
        "here: the checker slow takes more than 0.05 s on an answer of 1 characters; make it faster",
        "1.0",
    ]


WORDS = st.lists(st.text("abcdefgh", min_size=2, max_size=6), min_size=2, max_size=5, unique=True)
LABELS = {"A)": "ABCDE", "(a)": "abcde", "1.": "12345", "A:": "ABCDE"}


@given(options=WORDS, style=st.sampled_from(sorted(LABELS)), one_line=st.booleans(), data=st.data())
def test_how_options_are_labeled_and_named_does_not_matter(
    options: list[str], style: str, one_line: bool, data: st.DataObject
) -> None:
    marks = [style.replace(LABELS[style][0], LABELS[style][place]) for place in range(len(options))]
    lines = [f"{mark} {option}" for mark, option in zip(marks, options, strict=True)]
    prompt = "Which one is meant?" + (" " if one_line else "\n") + (" " if one_line else "\n").join(lines)
    right_place, given_place = (data.draw(st.integers(0, len(options) - 1)) for _ in range(2))
    reference = data.draw(st.sampled_from([marks[right_place], options[right_place], lines[right_place]]))
    answer = data.draw(st.sampled_from([marks[given_place], options[given_place].upper(), lines[given_place]]))
    assert right("choice", f"The answer is {answer}", reference, prompt) == (right_place == given_place)


@pytest.mark.parametrize(
    "answer",
    [
        "He has 3*4=<<3*4=12>>12 apples.\nHe eats 2: 12-2=<<12-2=10>>10.\n#### 10",
        "That is $<<1500*12=18000>>18,000 a year.\n#### 18,000",
        "Each pays 7/2=$<<7/2=3.5>>3.50.\n#### 3.5",
        "It falls 5-12=<<5-12=-7>>-7 degrees.\n#### -7",
        "1/4*100=<<1/4*100=25>>25% are red.\n#### 25",
        "#### 1234567",
    ],
)
def test_references_of_gsm8ks_form_are_right_for_themselves_alone(answer: str) -> None:
    final = answer.rpartition("#### ")[2]
    assert right("number", answer, answer)
    assert right("number", f"Let me see. So the result is {final}", answer)
    assert not right("number", answer.replace(f"#### {final}", f"#### {final}1"), answer)
