"""benchmarks/self_play_map.py: worlds judge rightly, a stopped study goes on, and verdicts follow from intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from self_play.experiments import EXPERIMENTS, Experiment, key, spin
from self_play.figure import figure
from self_play.ledger import Ledger, Unit
from self_play.tables import Results, panels, tables
from self_play.trials import Bench, Method, Setting
from self_play.worlds import WORLDS, Lists, Paths, Problem, Sums, distinct


@pytest.mark.parametrize("name", WORLDS)
def test_what_people_answer_is_right_and_a_changed_word_is_wrong(name: str) -> None:
    world = WORLDS[name]()
    problems = distinct(world, 1, 200)
    assert len({problem.prompt for problem in problems}) == 200
    for problem in problems:
        assert set(problem.prompt) | set(problem.answer) <= set(world.words)
        assert len(problem.answer) <= world.longest
        assert world.is_right(problem, problem.answer)
        assert not world.is_right(problem, problem.answer[:-1])
        assert not world.is_right(problem, ())


def test_answers_by_hand() -> None:
    random = np.random.default_rng(0)
    problem = Sums(6).draw(random)
    digits = [int(word) for word in problem.prompt[1:]]
    assert [int(word) for word in problem.answer] == [sum(digits[: end + 1]) for end in range(6)]
    orders = {problem.prompt[:-6]: problem for problem in distinct(Lists(), 1, 300)}
    twice = orders["reverse", "then", "shift"]
    assert twice.answer == tuple("bcdefghijklmnopqrsta"["abcdefghijklmnopqrst".index(x)] for x in twice.prompt[:2:-1])


def test_a_path_may_be_another_one_than_the_given_one() -> None:
    world = Paths()
    middle = world.next["n0"][0]
    ends = next(node for node in world.next[middle] if node != "n0")
    problem = Problem(("from", "n0", "to", ends), ("n0", "n1", ends))
    assert world.is_right(problem, ["n0", middle, ends])
    assert not world.is_right(problem, ["n0", ends, middle])
    beyond = next(node for node in world.nodes if node not in world.next["n0"] and node != "n0")
    assert not world.is_right(Problem(("from", "n0", "to", beyond), ()), ["n0", beyond])


def test_a_stopped_study_goes_on_from_its_last_whole_line(tmp_path: Path) -> None:
    path, asked = tmp_path / "study.jsonl", list[str]()

    def unit(name: str) -> Unit:
        return Unit(name, lambda: asked.append(name) or {"value": len(name)})

    Ledger(path, {"rates": (1, 2)}).run([unit("a"), unit("bb")])
    path.write_text(path.read_text()[:-4])  # killed while it wrote
    found = Ledger(path, {"rates": [1, 2]}).run([unit("a"), unit("bb"), unit("ccc")])
    assert asked == ["a", "bb", "bb", "ccc"]
    assert found == {"a": {"value": 1}, "bb": {"value": 2}, "ccc": {"value": 3}}
    with pytest.raises(SystemExit, match="other settings"):
        Ledger(path, {"rates": [3]})


SETTING = Setting("paths", 10, 0, 1, rounds=2)


def facts(selection: float, fresh: float) -> dict[str, float]:
    return {f"{side} {t}": value for side, value in (("selection", selection), ("fresh", fresh)) for t in ("0", "1")}


def results(gain: float) -> Results:
    """Self-play ends ``gain`` above its start and SFT, with a little noise; the selection set prefers round 2."""
    experiment = Experiment("", (SETTING,), (Method("more SFT", "sft"), spin("SPIN")), rates=(1e-4, 1e-3))
    found = {}
    for seed, noise in ((1, 0.0), (2, 0.002), (3, -0.002)):
        cooler = {f"fresh {t}": 0.5 for t in ("0.3", "0.5", "0.7")}
        found[key(SETTING, seed, "start")] = facts(0.5, 0.5) | cooler
        for rate, chosen in ((1e-4, True), (1e-3, False)):
            better = facts(0.7 if chosen else 0.6, (0.5 + gain + noise) if chosen else 0.9)
            found[key(SETTING, seed, "SPIN", rate)] = {"rounds": [facts(0.1, 0.99), better]}
            found[key(SETTING, seed, "more SFT", rate)] = {"rounds": [facts(0.6, 0.5)]}
    return Results(experiment, SETTING, (1, 2, 3), found)


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "helps"), (-0.1, "hurts"), (0.001, "cannot be told")])
def test_a_verdict_is_of_the_models_that_the_selection_set_chose(gain: float, verdict: str) -> None:
    found = results(gain)
    assert found.values("SPIN", "0") == pytest.approx([0.5 + gain, 0.502 + gain, 0.498 + gain])
    # by hand: t(2) = 4.302653, standard deviation 0.2 points, three seeds
    interval = found.difference("SPIN", "start", "0")
    assert interval.high - interval.mean == pytest.approx(4.302653 * 0.2 / 3**0.5, rel=1e-6)
    assert found.verdict("SPIN", "0") == verdict
    assert any(line.startswith("| SPIN | 0.0001, 2 (3) |") and line.endswith(f"{verdict} |") for line in tables(found))
    assert figure(list(panels(found))).startswith("<svg")


def test_methods_are_ones_that_a_recipe_allows_and_slices_are_disjoint() -> None:
    for experiment in EXPERIMENTS.values():
        assert len({unit.key for unit in experiment.units([1, 2])}) == len(experiment.units([1, 2]))
    bench = Bench(Setting("paths", 30, 20, 1), 1)
    slices = list(bench.problems.values())
    assert len({problem.prompt for part in slices for problem in part}) == sum(map(len, slices))


@pytest.mark.slow
def test_self_play_with_repeated_pairs_has_the_steps_of_sft() -> None:
    bench = Bench(Setting("sums", 96, 0, 1, rounds=1), 1)
    played = bench.trial(spin("", fill=True, **{"lambda": 1.0}), 1e-4)["rounds"][0]
    trained = bench.trial(Method("", "sft"), 1e-4)["rounds"][0]
    assert played["steps"] == trained["steps"] == 3
    assert played["kept"] > 64
