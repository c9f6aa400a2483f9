from __future__ import annotations

from dataclasses import dataclass

import pytest

from spintune.errors import RunError
from spintune.results import ContaminationFacts, DataFacts, OverlapFacts, RunResults
from spintune.typed_json import from_json, to_json

TRAIN = {"prompts": 4, "played": 4, "kept": 3, "answers": 3, "dropped": {"identical": 1}, "replayed": 0}
TRAIN |= {"real_cut": 0, "generated_cut": 1}


@dataclass(frozen=True)
class Inner:
    share: float


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...]
    later: int | None = None


def test_records_come_back_as_they_were() -> None:
    record = Outer("a", (Inner(0.1), Inner(1)))
    assert to_json(record) == {"name": "a", "parts": [{"share": 0.1}, {"share": 1.0}], "later": None}
    assert from_json(Outer, to_json(record), "here") == record


def test_unknown_keys_are_ignored_and_new_fields_have_their_defaults() -> None:
    assert from_json(Outer, {"name": "a", "parts": [], "gone": 1}, "here") == Outer("a", ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "a"}, "here: parts: field required"),
        ({"name": "a", "parts": [{"share": "much"}]}, r"here: parts\.0\.share: .*number"),
        ([], "here: Outer: .*dict"),
    ],
)
def test_a_value_that_does_not_fit_names_the_place_and_the_field(value: object, message: str) -> None:
    with pytest.raises(RunError, match=message):
        from_json(Outer, value, "here")


def test_parts_that_a_run_lacks_are_not_in_its_results() -> None:
    data = DataFacts(read=3, repeated=0, dropped={}, train=2, heldout=1)
    assert to_json(RunResults(data=data)) == {
        "data": {"read": 3, "repeated": 0, "dropped": {}, "train": 2, "heldout": 1}
    }
    assert list(to_json(RunResults(data=data, heldout={"base": {}}))) == ["data", "heldout", "differences"]
    assert from_json(RunResults, {"models": {"base": "m"}}, "here") == RunResults(models={"base": "m"})


def test_the_reason_to_stop_is_told_whenever_there_was_self_play() -> None:
    results = {"best": {"name": "sft", "model": "sft/model", "why": "it is where self-play starts", "selection": 0}}
    assert to_json(from_json(RunResults, results, "here")) == results
    pairs = {"train": TRAIN, "heldout": {"kept": 1, "dropped": {}, "real_cut": 0, "generated_cut": 0}}
    pairs |= {"separability": None, "warnings": [], "data": "0", "seconds": {}, "answers": "1"}
    pairs |= {"engine": None, "gap": None, "max_new_tokens": None}
    iteration = {"iteration": 1, "learning_rate": 0.1, "steps": 2, "pairs_seen": 3, "tokens": 4}
    iteration |= {"later": {"kept": 0, "dropped": {}}, "heldout": None, "seconds": {"train": 1.0}}
    hardware = {"share_of_peak": None, "best_gflops": None, "joules": 2.5}
    spin = {"spin": [{**iteration, "hardware": hardware, "pairs": pairs, "diagnosis": None}], **results}
    assert to_json(from_json(RunResults, spin, "here")) == {**spin, "stopped": None}


def test_counts_by_length_keep_their_keys() -> None:
    facts = ContaminationFacts(9, {"quiz": OverlapFacts(4, ["a"], 2, 1)})
    assert to_json(facts)["sets"] == {"quiz": {"items": 4, "unclean": ["a"], "8": 2, "13": 1}}
    assert from_json(ContaminationFacts, to_json(facts), "here") == facts
