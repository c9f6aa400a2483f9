"""The model card says what was measured, in a form that the hub reads, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from spintune.errors import ModelError, RecipeError
from spintune.export.card import CardFields, model_card
from spintune.report.findings import finding
from spintune.report.reading import read_run

Make = Callable[..., Any]


def header(card: str) -> dict[str, Any]:
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(text)


def test_the_header_names_what_the_hub_asks_for(whole: Make) -> None:
    source = {"path": "tatsu-lab/alpaca@main", "format": "auto", "weight": 1.0, "limit": None, "split": "train"}
    local = {**source, "path": "data/mine.jsonl"}
    made = whole(model="HuggingFaceTB/SmolLM2-135M-Instruct@v1", data={"train": [source, source, local]})
    assert header(model_card(read_run(made.path), "iterate-2")) == {
        "license": "unknown",
        "library_name": "transformers",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "datasets": ["tatsu-lab/alpaca"],
        "tags": ["spintune", "instruction-tuning", "sft", "spin", "self-play"],
    }


def test_what_no_file_of_a_run_knows_is_given(whole: Make) -> None:
    card = model_card(read_run(whole().path), "sft", fields=CardFields("cc-by-4.0", ("en", "de"), ("support", "sft")))
    assert header(card) == {
        "license": "cc-by-4.0",
        "library_name": "transformers",
        "language": ["en", "de"],
        "tags": ["spintune", "instruction-tuning", "sft", "support"],
    }
    assert "The license above was named by whoever exported the model" in card
    for wrong in ({"license": "Apache 2.0"}, {"languages": ("English",)}):
        with pytest.raises(RecipeError, match=r"^--(license|language) '(Apache 2.0|English)' is no "):
            CardFields(**wrong)  # type: ignore[arg-type]


def test_names_that_are_not_on_the_hub_are_not_claimed_to_be(whole: Make) -> None:
    found = header(model_card(read_run(whole().path), "sft"))
    assert "base_model" not in found  # an alias
    assert "datasets" not in found  # built in
    assert found["tags"] == ["spintune", "instruction-tuning", "sft"]


def test_the_table_has_a_row_for_every_model(whole: Make) -> None:
    run = read_run(whole().path)
    card = model_card(run, "iterate-1")
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| iterate-1 |")]
    # losses of iterate-1 are 28 + n nats of 10 tokens, n from 0 to 11: mean 3.35
    assert rows[0][1].startswith("3.350 (")
    differences = [line.split(" | ")[0] for line in card.splitlines() if " − " in line and line.startswith("| ")]
    assert differences == [
        "| first − second",
        "| base − sft",
        "| iterate-1 − sft",
        "| iterate-2 − sft",
        "| sft-more − sft",
        "| iterate-2 − sft-more",
        "| iterate-2 − base",
        "| iterate-2 − iterate-1",
    ]
    assert finding(run).sentence in card


def test_benchmarks_stand_beside_where_the_model_starts(everything: Make) -> None:
    card = model_card(read_run(everything().path), "sft")
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    assert ["measure", "items", "base", "sft"] in rows
    (told,) = [row for row in rows if row[0] == "questions: exact match, %"]
    assert told[1] == "12"
    assert told[2].startswith("0.0 (")
    assert told[3].startswith("50.0 (")  # 6 of 12
    assert "- questions: of 12 items 4 share 8 words in a row, 3 share 13 words in a row" in card
    assert "- questions: sft is preferred to base in 70 % (40 to 90 %) of 10 contests" in card
    assert "parrot" not in card.split("## Recipe")[0]
    assert "- mt-bench: constant nonsense did not lose;" in card
    assert "Judged with ifeval, questions, mt-bench, and on nothing else" in card


def test_a_run_without_benchmarks_has_no_such_table(whole: Make) -> None:
    card = model_card(read_run(whole().path), "sft")
    assert "## Benchmarks" not in card
    assert "## Judge" not in card


def test_limits_are_told(whole: Make, folder: Make) -> None:
    card = model_card(read_run(whole().path), "sft")
    assert "Judged on 12 examples held out of its own training data, and on nothing else" in card
    assert "One seed" in card
    unfinished = model_card(read_run(folder("second").data().sft().path), "sft")
    assert "Not judged: nothing is known of how well it answers." in unfinished
    assert "The run was not finished when this was written; missing: the pairs" in unfinished


def test_a_strange_name_cannot_break_the_card(whole: Make) -> None:
    made = whole("a | <b>*x*", model="m`\n# title")
    card = model_card(read_run(made.path), "iterate-2")
    assert "# a \\| \\<b\\>\\*x\\* / iterate-2" in card
    assert "`m' # title`" in card
    assert "\n# title" not in card.split("## Recipe")[0]


def test_the_recipe_stays_in_its_fence(whole: Make) -> None:
    card = model_card(read_run(whole(model="````\nnot code").path), "sft")
    block = card[card.index("Resolved") :]
    fence = block.splitlines()[2].removesuffix("yaml")
    assert len(fence) == 5
    assert block.rstrip().endswith(fence)


def test_an_encoder_decoder_is_used_as_one(whole: Make) -> None:
    made = whole()
    made.json("sft/model/config.json", {"is_encoder_decoder": True})
    assert "AutoModelForSeq2SeqLM" in model_card(read_run(made.path), "sft")
    assert "AutoModelForSeq2SeqLM" not in model_card(read_run(made.path), "iterate-1")


@pytest.mark.parametrize("name", ["base", "iterate-3", "nonsense"])
def test_there_is_no_card_of_a_model_that_the_run_did_not_make(whole: Make, name: str) -> None:
    with pytest.raises(ModelError, match=f"has no model {name} of its own; it has sft, iterate-1, iterate-2, sft-more"):
        model_card(read_run(whole().path), name)
