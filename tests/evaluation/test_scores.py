"""How measures of several models are read together."""

from __future__ import annotations

from spintune.evaluation.scores import ScoreScale, common_scales


def test_a_measure_is_right_or_wrong_where_it_is_so_for_all_models() -> None:
    zeros, scores, lower = ScoreScale(right_or_wrong=True), ScoreScale(), ScoreScale("lower")
    for tables in ([{"f1": zeros}, {"f1": scores}], [{"f1": scores}, {"f1": zeros}]):
        assert common_scales(tables) == {"f1": scores}
    found = common_scales([{"acc": zeros, "f1": zeros}, {"bits": lower, "acc": zeros}])
    assert found == {"acc": zeros, "f1": zeros, "bits": lower}
