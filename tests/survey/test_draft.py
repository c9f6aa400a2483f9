"""What a survey proposes, against numbers worked out by hand, and the file that it becomes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.data.sources import Source, SourceResult
from spintune.progress import Silent
from spintune.recipe import Recipe, parse_recipe
from spintune.recipe.reading import every_key, meaning_of
from spintune.recipe.yaml_files import parse_yaml
from spintune.records import Example, Message
from spintune.survey.commented import commented_yaml, yaml_value
from spintune.survey.data import DataSurvey, RowLengths, guess_checker, likely_columns, near_copies, survey
from spintune.survey.draft import Choices, draft, heldout_fraction, max_length_for, sft_for, with_limit, with_lora
from spintune.survey.told import heldout_line, reasons_for, survey_lines
from spintune.tokens.rows import TokenRow
from spintune.typed_json import JsonObject

CHOSEN = Choices("runs/x", "m", {"path": "x.csv"}, False, None, False, None, False, 8192, False)


def found(rows: int = 1000, prompt: int = 40, answer: int = 60, **more: object) -> DataSurvey:
    """``rows`` distinct examples of one length."""
    lengths = RowLengths((prompt,) * rows, (answer,) * rows)
    none = Counter[str]()
    counts = dict.fromkeys(("near", "system", "multi_turn", "tools"), 0)
    texts = {"ignored": none, "dropped": none, "languages": none, "checker": None}
    sizes = {"read": rows, "kept": rows, "prompts": rows, "looked_at": rows, "lengths": lengths}
    facts = {"path": "x.csv", "format": "qa", "keys": ("question", "answer"), **counts, **texts, **sizes, **more}
    return DataSurvey(**facts)  # type: ignore[arg-type]


def said(prompt: str, answer: str) -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)))


@pytest.mark.parametrize(
    ("answers", "checker"),
    [
        (['{"a": 1}', "[1, 2]"], "json"),
        (["12", "-3.5", "1,200"], "number"),
        (["She has 2 and 3, so 5.\n#### 5", "#### 7"], "number"),
        (["There are 12 of them.", "It was 1999."], None),
        (["Blue.", "Red."], None),
        (["12"] * 8 + ["many"] * 2, None),
    ],
)
def test_a_checker_is_proposed_where_answers_have_its_form(answers: list[str], checker: str | None) -> None:
    assert guess_checker([said(f"Question {n}?", answer) for n, answer in enumerate(answers)]) == checker


def test_a_choice_is_proposed_where_prompts_offer_it() -> None:
    asked = "Which is a color?\n(A) blue\n(B) dog"
    assert guess_checker([said(asked, "(A)"), said(asked, "blue")]) == "choice"
    assert guess_checker([said("Which is a color?", "blue")]) is None
    assert guess_checker([]) is None


def test_copies_are_examples_with_nearly_the_same_words() -> None:
    """Of 12 words, 11 are the same in order: 2·11 / 24 = 0.917, above 0.9; of 8, 7 are: 0.875."""
    long, other = "a b c d e f g h i j k", said("z", "y")
    assert near_copies([said(long, "l"), said(long, "m"), said(long, "n"), other]) == 2
    assert near_copies([said("a b c d e f g", "l"), said("a b c d e f g", "m"), other]) == 0


def test_instructions_that_all_examples_share_make_no_copies() -> None:
    rules = "Answer in French. " * 60
    asked = [("the sea", "la mer"), ("a dog", "un chien"), ("a dog!", "un chien")]
    in_turns = [said(f"{rules}{question}", answer) for question, answer in asked]
    apart = [Example((Message("system", rules), *said(question, answer).messages)) for question, answer in asked]
    assert near_copies(in_turns) == near_copies(apart) == 1
    assert near_copies(apart[:1]) == near_copies([]) == 0


def test_identical_examples_are_copies() -> None:
    """Of five alike, four repeat the first, whether answers have words or not. A prompt may have several answers."""
    assert near_copies([said("Is an owl a bird?", "Yes, it is.")] * 5) == 4
    assert near_copies([said("Is an owl a bird?", "!")] * 5) == 4
    assert near_copies([said("Name a bird.", bird) for bird in ("An owl.", "A heron.", "The red kite")]) == 0
    assert near_copies([said("Name a bird.", bird) for bird in ("owl", "heron", "kite", "heron")]) == 1


def test_copies_are_found_in_every_script() -> None:
    """Of 12 Russian words, 11 are the same. Two Chinese texts share a number alone, two others 200 first words."""
    russian = "а б в г д е ж з и к л"
    assert near_copies([said(russian, "м"), said(russian, "н"), said("да", "нет")]) == 1
    assert near_copies([said("北京有2个人", "对"), said("他买了2本书", "好")]) == 0
    ideographs = [chr(code) for code in range(0x4E00, 0x4E00 + 600)]
    same, *others = ("".join(ideographs[n : n + 200]) for n in (0, 200, 400))
    assert near_copies([*[said(same, other) for other in others], said("a", "b")]) == 1


def test_conversations_are_also_written_with_all_turns_as_the_drafted_recipe_trains_them() -> None:
    """One of two examples has an earlier answer; the renderer of all turns makes two rows of it, and sees no other."""
    long = Example((*said("a", "b").messages, *said("c", "d").messages))
    examples = [said("a", "b"), long]
    result = SourceResult(Source("x.jsonl"), "chat", examples, 2, Counter())
    all_turns = Writing()
    survey(result, ("messages",), Writing(), Silent(), all_turns)
    assert all_turns.written == [long, long]


class Writing:
    """A renderer of rows of one token each, that keeps what it wrote. Each example has two units."""

    def __init__(self) -> None:
        self.written: list[Example] = []

    def units(self, example: Example) -> list[Example]:
        return [example, example]

    def rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        self.written += examples
        return [TokenRow(example.id, (1,), (2,), None, True) for example in examples]


def test_the_longest_columns_are_the_likely_ones() -> None:
    rows = [{"id": "1", "reply": "no " * 50, "date": "2024-01-01", "message": "why " * 9, "topic": None}] * 3
    assert likely_columns(rows) == ("reply", "message")
    assert likely_columns([{"id": "1"}]) is None


def test_enough_is_held_out_to_choose_by_where_the_data_allows() -> None:
    """50 must be held out: of 2,000 prompts a tenth is enough, of 400 a quarter gives 100, 0.3 of 140 would be 42."""
    shares = {prompts: heldout_fraction(prompts) for prompts in (2000, 400, 140, 60)}
    assert shares == {2000: 0.1, 400: 0.25, 140: 0.36, 60: 0.3}
    assert draft(found(5000), CHOSEN)["data"]["eval_limit"] == 200
    assert "eval_limit" not in draft(found(5000), replace(CHOSEN, on_gpu=True))["data"]


def test_rows_fit_into_what_the_model_reads() -> None:
    """100 tokens round up to 128, a multiple of 32; a model that reads 96 gets 96, and all rows are cut."""
    assert max_length_for(found(), 8192) == 128
    assert max_length_for(found(), 96) == 96
    assert max_length_for(found(1, 4000, 4000), None) == 2048
    assert found(3, 100, 50).lengths.beyond(120) == (3, 0)
    assert found(3, 100, 50).lengths.beyond(100) == (0, 3)


def test_small_data_is_read_more_often_in_smaller_steps() -> None:
    """900 rows of 100 tokens twice in 60 steps: 3,000 tokens, to the next 256. 90 rows three times would be 450."""
    assert sft_for(found(1000), 128, 0.1) == {"epochs": 2, "learning_rate": "auto", "tokens_per_step": 3072}
    assert sft_for(found(100), 128, 0.1) == {"epochs": 3, "learning_rate": "auto", "tokens_per_step": 512}
    assert sft_for(found(100_000), 128, 0.1) == {"epochs": 1, "learning_rate": "auto", "tokens_per_step": 4096}


def every_draft() -> list[JsonObject]:
    rich = found(multi_turn=5, dropped=Counter({"wrong_type": 2, "duplicate": 1}), checker="json")
    source = {"path": "ä: b.csv", "columns": {"prompt": "the question", "response": "2024"}}
    chosen = replace(
        CHOSEN, source=source, unreadable=True, template="plain", all_turns=True, checker="json", self_play=True
    )
    values = draft(rich, chosen)
    return [draft(found(), CHOSEN), values, with_lora(values), with_limit(values, 300, rich)]


@pytest.mark.parametrize("values", every_draft())
def test_a_drafted_recipe_is_valid_and_every_setting_is_commented(values: JsonObject) -> None:
    data = found(multi_turn=5, dropped=Counter({"wrong_type": 2}))
    text = commented_yaml(values, reasons_for(values, data), ["Written by a test."])
    assert parse_yaml(text, "text") == values
    assert isinstance(parse_recipe(values, "text"), Recipe)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 or "columns" in text
    for before, line in itertools.pairwise(lines):
        if line and not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), line
    words = " ".join(line.lstrip(" #") for line in lines)
    for key in ("out", "data.eval_fraction", "sft.tokens_per_step"):
        assert meaning_of(key) in words


def test_every_key_has_a_meaning() -> None:
    """A sentence for nearly all; a few keys of the schema have no text, as their section says what they are."""
    texts = {key: meaning_of(key) for key in every_key()}
    assert meaning_of("data.max_length") == "Maximum length of prompt and response together."
    assert sum(map(bool, texts.values())) > 0.9 * len(texts)
    assert all("[" not in text.partition("|")[0][-8:] for text in texts.values())


@given(st.one_of(st.text(), st.integers(-(2**60), 2**60), st.booleans(), st.lists(st.text(), max_size=3)))
def test_a_value_reads_back_as_it_is(value: object) -> None:
    try:
        written = yaml_value(value)
    except UnicodeEncodeError:  # a lone surrogate is no text of a file
        return
    assert parse_yaml(f"key: {written}", "text") == {"key": value}


def test_what_is_told_of_data() -> None:
    data = found(
        3, near=1, system=2, tools=1, languages=Counter(en=3, de=1), ignored=Counter(id=3), checker="json",
        dropped=Counter(duplicate=2), read=5,
    )  # fmt: skip
    assert list(survey_lines(data, 128, 8192, None)) == [
        "format     qa; columns: question, answer (without a use: id (3))",
        "rows       5 read, 3 kept, 3 distinct prompts; not kept: duplicate 2",
        "copies     1 of 3 examples nearly repeat an earlier one (ROUGE-L above 0.9)",
        "tokens     prompts 40 (at most 40), answers 60 (at most 60), together 100 (at most 100); all fit max_length "
        "128, the model reads 8,192",
        "language   en 75 %, de 25 % of 4 examples looked at",
        "chat       the model's template fits: system messages in 2, tools in 1",
        "answers    have the form that evaluation.checker: json checks",
    ]
    assert heldout_line(data, 4) == (
        "held out   5 rows read, 3 kept, 3 distinct prompts; not kept: duplicate 2; 4 rows above have their prompts "
        "and are not trained on"
    )
    assert "at max_length 64 (the model reads 64) 3 answers are cut and 0 rows left out" in "\n".join(
        survey_lines(found(3), 64, 64, "plain")
    )


def test_a_limit_holds_out_enough_and_keeps_the_number_of_steps() -> None:
    """Of 400 rows a quarter leaves 100 to judge by; 300 rows of 100 tokens, once, in 60 steps are 500 a step: 512."""
    large = found(50_000)
    values = with_limit(draft(large, CHOSEN), 400, large)
    assert values["data"]["eval_fraction"] == 0.25
    given = with_limit(draft(large, replace(CHOSEN, heldout={"path": "held.csv"})), 400, large)
    assert "eval_fraction" not in given["data"]
    assert (given["data"]["heldout"], given["data"]["train"]["limit"]) == ({"path": "held.csv"}, 400)
    assert values["sft"] == {"epochs": 1, "learning_rate": "auto", "tokens_per_step": 512}
