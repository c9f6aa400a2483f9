"""The command line by itself: help, exit codes, the schema. The commands at work are in tests/worlds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune import errors
from spintune.cli import main
from spintune.cli.options import stage_recipe
from spintune.cli.start import HOMES
from spintune.recipe import SftSection, every_key, recipe_schema
from spintune.recipe.other_names import OTHER_NAMES
from spintune.recipe.packaged_recipes import about_recipe, packaged_recipes
from spintune.version import __version__

Spintune = Callable[..., Any]
REPOSITORY = Path(__file__).parents[1]


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    kinds = errors.SpintuneError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(kinds) == 14
    assert not set(codes) & {0, 1, 130}  # success, a bug, Ctrl-C


@pytest.mark.parametrize("command", ["run", "sft", "spin", "inspect", "chat", "doctor", "schema"])
def test_every_command_explains_itself(spintune: Spintune, command: str) -> None:
    result = spintune(command, "--help")
    assert result.code == 0
    assert f"spintune {command}" in result.out
    assert command in spintune("--help").out


def test_schema_prints_the_schema(spintune: Spintune) -> None:
    result = spintune("schema")
    assert result.code == 0
    assert json.loads(result.out) == recipe_schema()


def test_a_bug_is_one_line_and_its_traceback_is_kept(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spintune.recipe.recipe_schema", lambda: 1 // 0)
    result = spintune("schema")
    assert result.code == errors.InternalError.exit_code
    told = re.fullmatch(
        r"spintune: an error that spintune does not foresee: ZeroDivisionError: .*; its traceback is in (\S+), .*\n",
        result.err,
    )
    assert told
    assert Path(told[1]).read_text().endswith("ZeroDivisionError: integer division or modulo by zero\n")
    monkeypatch.setenv("SPINTUNE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        spintune("schema")


def test_a_panic_of_rust_is_one_line(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def fail() -> None:
        raise panic("\x1b[31mretry-limit-in-match over")

    monkeypatch.setattr("spintune.recipe.recipe_schema", fail)
    result = spintune("schema")
    assert result.code == errors.InternalError.exit_code
    assert result.err.count("\n") == 1
    assert "PanicException: \\x1b[31mretry-limit-in-match over; its traceback is in" in result.err


def test_ctrl_c_is_130_and_one_line(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spintune.recipe.recipe_schema", interrupted)
    result = spintune("schema")
    assert result.code == 130
    assert result.err == "spintune: stopped\n"  # there is nothing to continue


def test_version_and_the_short_help_are_no_errors(spintune: Spintune) -> None:
    assert spintune("--version").out == f"spintune {__version__}\n"
    bare = spintune()
    assert (bare.code, bare.err) == (0, "")
    assert max(map(len, bare.out.splitlines())) < 80
    for command in HOMES:
        assert f"spintune {command} " in bare.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train", "there is no command 'train'; did you mean spintune run, spintune sft or spintune spin?"),
        ("chta", "there is no command 'chta'; did you mean spintune chat?"),
        ("r.yaml", "'r.yaml' is no command; a recipe is run by: spintune run r.yaml"),
        ("--versoin", "spintune has no option --versoin; did you mean --version?"),
        ("sft --modle m", "spintune sft has no option --modle; did you mean --model?"),
        (
            "sft --learning-rate 1e-4",
            "spintune sft has no option --learning-rate; write sft.learning_rate=VALUE (or spin.learning_rate)",
        ),
        (
            "sft --batch-size 4",
            "write sft.tokens_per_step=VALUE (or spin.pairs_per_step). It counts tokens of a whole step",
        ),
        ("spin --beta 1", "spintune spin has no option --beta; write spin.lambda=VALUE"),
        ("run r.yaml --sft.lr=1", "spintune run has no option --sft.lr; write sft.learning_rate=VALUE"),
        ("sft --model m --data d sft.lr=1", "command line: unknown key sft.lr; did you mean sft.learning_rate?"),
        (
            "eval --model m --on heldout",
            "--on heldout needs held-out examples; give --heldout FILE, or --data FILE to hold",
        ),
        ("spin --model m --data d spin.loss=sigmoid", "spin.loss: there is no loss 'sigmoid'; did you mean logistic?"),
    ],
)
def test_what_was_meant_is_one_line(spintune: Spintune, words: str, told: str) -> None:
    result = spintune(*words.split())
    assert result.code == errors.RecipeError.exit_code
    assert told in result.err
    assert result.err.count("\n") == 1


def test_every_word_of_another_tool_stands_for_a_key_that_there_is() -> None:
    last = {key.rpartition(".")[2] for key in every_key()}
    assert set(OTHER_NAMES) <= last


def test_a_shell_completes_commands_and_keys(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def completed(words: str) -> list[str]:
        monkeypatch.setenv("_SPINTUNE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        capfd.readouterr()
        with pytest.raises(SystemExit):
            main()
        return capfd.readouterr().out.split()

    assert completed("spintune ch") == ["chat"]
    assert completed("spintune run r.yaml sft.learn") == ["sft.learning_rate="]


def test_a_misspelled_run_or_file_is_not_asked_of_the_hub(
    spintune: Spintune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spintune.hub.unreachable", lambda: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    told = {"runs/first": "there is no folder runs", "./x": "no such folder or file", "a/m.bin": "no such file"}
    for name, words in told.items():
        result = spintune("chat", name, "--prompt", "hi")
        assert result.code == errors.ModelError.exit_code
        assert re.fullmatch(rf"spintune: no model '{re.escape(name)}': [^\n]*{words}[^\n]*\n", result.err)
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "data/train").mkdir(parents=True)
    result = spintune("chat", "runs/frist")
    assert "the folder runs has no frist; did you mean runs/first? (from the hub: runs/frist@main)" in result.err
    result = spintune("sft", "--model", "runs/first@main", "--data", "data/trian")
    assert (result.code, result.err.count("\n")) == (errors.DataError.exit_code, 2)
    assert "data data/trian does not exist: the folder data has no trian; did you mean data/train?" in result.err


def test_what_a_command_does_fits_into_its_line_of_the_list(spintune: Spintune, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = spintune("--help").out.partition("Commands:")[2].strip().splitlines()
    assert [line.split()[0] for line in listed] == list(HOMES)
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


def test_a_dry_run_lists_the_stages_and_writes_nothing(spintune: Spintune, tmp_path: Path) -> None:
    recipe, data = tmp_path / "r.yaml", "builtin:seeds"
    recipe.write_text(
        f"{{out: {tmp_path}/out, model: m/n, data: {{train: {data}}}, sft: {{}}, spin: {{baseline: sft}}}}"
    )
    result = spintune("run", recipe, "--dry-run", "--json")
    assert result.code == 0, result.err
    names = ["data", "measure base", "SFT", "iteration 1: answers", "iteration 1: training", "more SFT, the baseline"]
    assert [stage["name"] for stage in json.loads(result.out)["stages"]] == [*names, "evaluation"]
    assert {stage["state"] for stage in json.loads(result.out)["stages"]} == {"to do"}
    assert list(tmp_path.iterdir()) == [recipe]
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/manifest.json").write_text("{}")
    (tmp_path / "out/sft/checkpoints/0123/step").mkdir(parents=True)
    (tmp_path / "out/sft/checkpoints/0123/step/checkpoint.json").write_text('{"step": 12}')
    told = spintune("run", recipe, "--dry-run").out.splitlines()
    assert told[1].split() == ["1", "data", "finished"]
    assert told[3].split() == ["3", "SFT", "begun,", "checkpoint", "of", "step", "12"]
    assert told[4].endswith("to do")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--model m/n --data x.jsonl", errors.DataError.exit_code, "data file x.jsonl does not exist; check the path"),
        ("--model m.gguf --data builtin:seeds", errors.ModelError.exit_code, "model file m.gguf does not exist"),
        ("--model ./m --data builtin:seeds", errors.ModelError.exit_code, "no model './m': there is no such folder"),
        ("--model smollm --data builtin:seeds", errors.ModelError.exit_code, "no model 'smollm': it is no alias"),
    ],
)
def test_a_dry_run_looks_whether_model_and_data_are_there(
    spintune: Spintune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, code: int, told: str
) -> None:
    monkeypatch.setattr("spintune.hub.unreachable", lambda: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    result = spintune("sft", *words.split(), "--dry-run")
    assert (result.code, result.err.count("\n")) == (code, 1)
    assert told in result.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"lambda_": 1.0, "gamma": 3.0, "learning_rate": "auto", "baseline_learning_rate": "auto"}),
        ([], {"max_new_tokens": "auto"}),
        (["spin.max_new_tokens=64"], {"max_new_tokens": 64}),
        (["spin.lambda=0.1", "spin.gamma=0", "spin.learning_rate=1e-5"], {"lambda_": 0.1, "gamma": 0.0}),
        (["spin.loss=space"], {"lambda_": None, "gamma": 0.0, "learning_rate": "auto"}),
        (["spin.baseline=none"], {"baseline": "none", "baseline_learning_rate": None}),
        (["data.eval_fraction=0"], {"learning_rate": None, "baseline_learning_rate": None, "baseline": "sft"}),
        (["spin.refresh=step"], {"learning_rate": None, "baseline_learning_rate": "auto"}),
    ],
)
def test_a_recipe_made_of_flags_finds_its_rates_and_keeps_what_is_said(
    words: list[str], expected: dict[str, Any]
) -> None:
    recipe, until = stage_recipe("spin", words, "m/n", "x.json", None)
    assert until == "eval"
    assert recipe.spin is not None
    assert {key: getattr(recipe.spin, key) for key in expected} == expected


@pytest.mark.parametrize("stage", ["sft", "spin"])
def test_held_out_examples_are_a_flag_and_their_columns_may_follow(stage: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"out: o\nmodel: m\ndata: {{train: x.json}}\n{stage}: {{}}\n")
    for words in ([], [str(path)]):
        keys = [*words, "data.heldout.columns.prompt=q"]
        recipe, _ = stage_recipe(stage, keys, "m/n", "x.json", None, "my file.csv")
        assert recipe.data.heldout is not None
        assert [(one.path, one.columns) for one in recipe.data.heldout] == [("my file.csv", {"prompt": "q"})]


def test_columns_may_follow_the_files_that_eval_is_given(spintune: Spintune, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"q": "What?", "a": "That."}\n')
    words = ["eval", "--model", "m/n", "--on", "heldout", "--heldout", str(tmp_path / "mine.jsonl"), "--dry-run"]
    ended = spintune(*words, "data.heldout.columns={prompt: q, response: a}", "data.heldout.limit=1")
    assert ended.code == 0, ended.err


def test_sft_made_of_flags_finds_its_rate() -> None:
    found = [stage_recipe("sft", words, "m/n", "x.json", None)[0].sft for words in ([], ["data.eval_fraction=0"])]
    assert [section and section.learning_rate for section in found] == ["auto", SftSection().learning_rate]


def test_recipes_of_the_package_run_by_their_names(spintune: Spintune, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    listed = spintune("recipes")
    assert (listed.code, "quickstart" in listed.out) == (0, True)
    printed = spintune("recipes", "quickstart")
    assert printed.out.encode() == (REPOSITORY / "recipes/quickstart.yaml").read_bytes()
    for name in ("quickstart", "quickstart.yaml", "recipes/quickstart.yaml"):
        done = spintune("run", name, "--dry-run", "model=nosuch/model")
        assert (done.code, done.out.splitlines()[0]) == (0, "runs/quickstart: 6 stages"), done.err
    (tmp_path / "quickstart.yaml").write_text("out: [")
    assert "quickstart.yaml" in spintune("run", "quickstart.yaml", "--dry-run").err  # a file of the user's comes first
    wrong = spintune("recipes", "quickstrat")
    assert (wrong.code, "use one of" in wrong.err) == (errors.RecipeError.exit_code, True)


def test_every_recipe_says_what_it_is_for() -> None:
    about = {name: about_recipe(path.read_text()) for name, path in packaged_recipes().items()}
    assert len(about) > 10
    assert [name for name, text in about.items() if not 20 < len(text) < 300] == []
