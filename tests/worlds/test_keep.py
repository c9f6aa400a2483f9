"""``spin.keep`` deletes iterates that nothing needs, and changes nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_server import Command
from watching import Watching

from spintune.errors import DeletedModelError, ModelError, RecipeError, RunError
from spintune.evaluation.decision import BestModel
from spintune.export.model import export_model
from spintune.progress import Silent
from spintune.run_models import final_model
from spintune.stages import decision, selfplay
from spintune.verification import verify_run

Run = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.slow


def models(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("spin/*/model")}


def comparable(tree: dict[str, Any], deleted: set[str]) -> dict[str, Any]:
    """The contents of a run without the weights that were deleted, and what says so."""
    gone = tuple(f"spin/{name}/model/" for name in deleted)
    kept = {name: value for name, value in tree.items() if not name.startswith(gone)}
    for value in kept.values():
        if isinstance(value, dict):
            value.pop("deleted", None)
            value.pop("measured", None)
    return kept


@pytest.mark.parametrize(
    "changes", [{}, {"history": 2}, {"lora": {"rank": 2}}], ids=["all weights", "history", "adapters"]
)
def test_later_iterates_are_bit_for_bit_those_of_a_run_that_keeps_all(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    everything, best = tmp_path / "all", tmp_path / "best"
    more = {"eval": [], "lora": changes.get("lora")}
    history = changes.get("history", 1)
    run(everything, spin={"iterations": 3, "history": history}, **more)
    results = run(best, spin={"iterations": 3, "history": history, "keep": "best"}, **more)
    needed = {results["best"]["name"], *["iterate-3", "iterate-2"][:history]}
    deleted = {"iterate-1", "iterate-2", "iterate-3"} - needed
    assert deleted
    assert models(best) == models(everything) - deleted
    assert set(results["models"]) == {"base", "sft", *models(best)}
    assert comparable(contents(best), deleted) == comparable(contents(everything), deleted)
    assert Path(final_model(best)).is_dir()
    assert all((best / f"spin/{name}/adapter").is_dir() for name in deleted if "lora" in changes)


def test_the_newest_alone_is_kept_and_is_then_the_runs_model(run: Run, tmp_path: Path) -> None:
    results = run(tmp_path / "run", spin={"iterations": 2, "keep": "last"}, eval=[])
    assert models(tmp_path / "run") == {"iterate-2"}
    assert (results["best"]["name"], results["best"]["why"]) == ("iterate-2", "it is the newest (spin.keep: last)")
    assert final_model(tmp_path / "run").endswith("iterate-2/model")
    with pytest.raises(RecipeError, match="keep: "):
        run(tmp_path / "other", spin={"keep": "last", "stop": {"patience": 1}})


def test_a_finished_run_frees_space_and_says_what_is_gone(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = run(out)
    (gone,) = {"iterate-1", "iterate-2"} - {first["best"]["name"], "iterate-2"}
    progress = Watching()
    again = run(out, progress, spin={"keep": "best"})
    assert f"deleted the weights of {gone} (spin.keep: best)" in progress.notes
    assert again["heldout"] == first["heldout"]  # evaluated before it was deleted
    assert json.loads((out / f"spin/{gone}/manifest.json").read_text())["deleted"] == ["model"]
    with pytest.raises(ModelError, match=f"{gone}/model: was deleted"):
        export_model(out, tmp_path / "exported", gone)
    export_model(out, tmp_path / "exported")

    quiet = Watching()
    run(out, quiet, spin={"keep": "all", "iterations": 3})  # goes on, and trains nothing again
    assert [note[:11] for note in quiet.notes if note.startswith("iteration")] == ["iteration 3"]
    run(tmp_path / "straight", spin={"iterations": 3})
    assert comparable(contents(out), {gone}) == comparable(contents(tmp_path / "straight"), {gone})


def test_a_finished_run_keeps_the_model_that_it_has_chosen(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule may choose iterate 1 of three iterates and iterate 2 of two."""
    best_of = {0: "sft", 1: "iterate-1", 2: "iterate-2", 3: "iterate-1"}

    def decide_model(context: Any, models: Any, deleted: Any) -> BestModel:
        name = best_of[sum(model.name.startswith("iterate") for model in models)]
        assert name not in deleted
        place = f"spin/{name}/model" if name != "sft" else "sft/model"
        return BestModel(name, place, "of a test", selection=0)

    for module in (decision, selfplay):
        monkeypatch.setattr(module, "decide_model", decide_model)
    spin = {"iterations": 3, "max_new_tokens": 4}
    run(tmp_path / "run", spin=spin, eval=[])
    run(tmp_path / "run", spin={**spin, "keep": "best"}, eval=[])
    assert models(tmp_path / "run") == {"iterate-1", "iterate-3"}
    assert final_model(tmp_path / "run").endswith("iterate-1/model")


def test_lost_sampled_answers_of_a_deleted_iterate_are_named(run: Run, tmp_path: Path) -> None:
    out, changes = tmp_path / "run", {"spin": {"keep": "best", "learning_rate": 1e-7}, "evaluation": {"samples": 1}}
    run(out, **changes)
    assert models(out) == {"iterate-2"}
    lost = out / "eval/heldout-sampled/iterate-1/answers.jsonl"
    lost.unlink()
    with pytest.raises(RunError, match=f"{lost}: is gone or damaged, and iterate-1, .* was deleted"):
        run(out, **changes)


def test_what_a_deleted_iterate_was_needed_for_is_made_again_as_the_line_says(
    values: Callable[..., dict[str, Any]], contents: Callable[[Path], Any], cache: Path, tmp_path: Path
) -> None:
    """Every start is a process of its own. Two iterates are deleted, and the second starts from the first."""
    out, recipe = tmp_path / "run", tmp_path / "recipe.json"
    changes: dict[str, Any] = {"iterations": 3, "keep": "best", "epochs": 0.5, "learning_rate": 1e-7}
    recipe.write_text(json.dumps(values(out, sft={"max_steps": 2}, spin=changes)))

    def start(code: int = 0) -> str:
        ended = Command("run", recipe, "--json", environment={**os.environ, "XDG_CACHE_HOME": str(cache)})
        assert ended.wait() == code, ended.err
        return ended.err.splitlines()[-1]

    def results() -> dict[str, Any]:
        tree = contents(out)
        tree["metrics.jsonl"].sort(key=lambda row: (row["stage"], row["step"]))  # a stage that runs again comes last
        return tree

    start()
    whole = results()
    assert models(out) == {"iterate-3"}, "iterates 1 and 2 are neither the best nor needed again"
    lost = out / "eval/heldout/iterate-2/manifest.json"
    lost.unlink()
    (problem,) = verify_run(out, Silent()).problems
    assert (problem.path, problem.state) == ("eval/heldout/iterate-2/manifest.json", "missing")
    line = start(5)
    manifests = [str(out / f"spin/iterate-{number}/manifest.json") for number in (1, 2)]
    assert line.startswith(f"spintune: {lost}: is gone or damaged, and iterate-2")
    assert line.endswith(f"or delete {' and '.join(manifests)}, and the same command trains iterate-2 again")
    for name in manifests:
        Path(name).unlink()
    start()
    assert results() == whole
    (out / "likelihood/iterate-1/likelihood.jsonl").write_text("")
    assert f"delete {manifests[0]}, and" in start(5)
    Path(manifests[0]).unlink()
    start()
    assert results() == whole


def test_what_follows_from_a_deleted_iterate_names_what_to_delete(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = {"keep": "best", "learning_rate": 1e-7}
    run(out, spin=changes, eval=[])
    assert models(out) == {"iterate-2"}
    notes = Watching()
    assert set(run(out, notes, spin=changes)["heldout"]) == {"base", "sft", "iterate-2"}
    assert "iterate-1 was deleted (spin.keep) before it was evaluated; left out" in notes.notes  # nothing was lost
    (out / "spin/iterate-2/pairs/answers.jsonl").unlink()
    with pytest.raises(DeletedModelError, match=r"needed again; delete .*iterate-1/manifest\.json, and"):
        run(out, spin=changes)
    (out / "spin/iterate-1/manifest.json").unlink()
    assert "iterate-1" in run(out, spin=changes)["heldout"]
