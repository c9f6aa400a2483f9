from __future__ import annotations

from dataclasses import dataclass

import pytest

from spintune.errors import RunError
from spintune.results import BestModel, ContaminationFacts, DataFacts, OverlapFacts, RunResults
from spintune.typed_json import from_json, to_json


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
    best = BestModel("sft", "sft/model", "it is where self-play starts")
    assert list(to_json(RunResults(spin=[], best=best))) == ["spin", "best", "stopped"]
    assert from_json(RunResults, {"spin": [], "stopped": "why"}, "here") == RunResults(spin=[], stopped="why")


def test_counts_by_length_keep_their_keys() -> None:
    facts = ContaminationFacts(9, {"quiz": OverlapFacts(4, ["a"], 2, 1)})
    assert to_json(facts)["sets"] == {"quiz": {"items": 4, "unclean": ["a"], "8": 2, "13": 1}}
    assert from_json(ContaminationFacts, to_json(facts), "here") == facts
