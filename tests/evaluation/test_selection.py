"""Held-out examples that choose and held-out examples that report."""

from spintune.evaluation.selection import MIN_SELECTION, prompt_text, selection_of, selects, too_few
from spintune.records import Example, Message


def test_about_half_of_the_prompts_choose_whatever_the_other_examples_are() -> None:
    prompts = [f"What is {number} + {number}?" for number in range(2000)]
    chosen = [prompt for prompt in prompts if selects(prompt)]
    assert 900 < len(chosen) < 1100  # 4.5 standard deviations
    assert [prompt for prompt in prompts[::3] if selects(prompt)] == [one for one in prompts[::3] if one in chosen]


def test_the_parts_stay_as_they_are_from_version_to_version() -> None:
    assert [selects(prompt) for prompt in "abcdefgh"] == [False, True, True, False, False, False, False, False]


def test_examples_of_one_prompt_fall_together() -> None:
    prompt = (Message("system", "Be brief."), Message("user", "Why?"))
    examples = [Example((*prompt, Message("assistant", answer))) for answer in ("So.", "Because.")]
    assert len(selection_of(examples)) in (0, 2)
    assert prompt_text(examples[0]) == "Be brief.\n\nWhy?"


def test_too_few_examples_say_how_many_are_needed() -> None:
    assert too_few(MIN_SELECTION, 41) is None
    assert too_few(7, 15) == (
        "7 of 15 held-out examples are there to choose by, and 20 are needed; "
        "hold out 50 or more (data.eval_fraction, data.eval_limit, or rows of data.heldout)"
    )
    assert (too_few(0, 0) or "").startswith("no example is held out to choose by; set data.eval_fraction")
