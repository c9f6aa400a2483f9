"""The recipe: closed, strictly typed, described; every mistake is one line that says what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from spintune.errors import RecipeError
from spintune.recipe import (
    Recipe,
    Section,
    SpinSection,
    TrainingSection,
    load_recipe,
    parse_recipe,
    read_yaml,
    recipe_schema,
)
from spintune.recipe.losses import LOSSES
from spintune.selfplay.spin import default_rate

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
LEAST: dict[str, Any] = {"out": "o", "model": "m", "data": {"train": "x.json"}}
MIXTURE: dict[str, Any] = {"tasks": ["a"], "examples": 9}


def parsed(**changes: Any) -> Recipe:
    return parse_recipe({**LEAST, **changes}, "test")


def wrong(**changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        parsed(**changes)
    return str(caught.value)


def loaded(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, list(overrides))


def sections() -> list[type[BaseModel]]:
    """Every section that is defined anywhere in the package."""
    known, new = set[type[BaseModel]](), {Section}
    while new := {kind for parent in new for kind in parent.__subclasses__()} - known:
        known |= new
    return [section for section in known if section.model_fields and section.__module__.startswith("spintune.recipe")]


def test_every_setting_is_described() -> None:
    # what sources share, source, held-out source, data, generate, recipe; evaluation, judge; budget, endpoint,
    # teacher, filters, decontaminate, synth; quadrants, weighing, group, prompting, mixture; what training shares,
    # sft, stop, spin, lora
    assert len(sections()) == 6 + 2 + 6 + 5 + 5
    for section in sections():
        for name, field in section.model_fields.items():
            if section is Recipe and name == "data":
                continue  # a section that describes itself by its settings
            if section is TrainingSection and name == "schedule":
                continue  # its default differs, so SFT and SPIN describe it
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.endswith((".", "]", "transformers.")), f"{section.__name__}.{name}"


def test_defaults_are_those_of_the_sources_named_beside_them() -> None:
    """SPIN paper (arXiv 2401.01335, appendix B): batch 64, rate 5e-7, 10 % warm-up, no weight decay; its scripts:
    λ 0.1, linear decay, 1024 tokens, 256 of them generated. Stanford Alpaca and Zephyr SFT: 2e-5, cosine."""
    spin, sft, data = (getattr(parsed(sft={}, spin={}), name) for name in ("spin", "sft", "data"))
    assert (spin.pairs_per_step, default_rate(7_000_000_000), spin.warmup, spin.weight_decay) == (64, 5e-7, 0.1, 0)
    assert (spin.in_iteration(1).lambda_, spin.loss, spin.schedule, spin.max_new_tokens) == (
        0.1,
        "logistic",
        "linear",
        256,
    )
    assert (spin.temperature, spin.top_p, spin.top_k) == (1, 1, 0)  # the theory wants the model's own distribution
    assert (sft.learning_rate, sft.schedule, data.max_length) == (2e-5, "cosine", 1024)
    assert parsed().sft is parsed().spin is None


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": True}, "seed: Input should be a valid integer (given: True)"),
        ({"seed": 1.0}, "seed: Input should be a valid integer (given: 1.0)"),
        ({"seed": "1"}, "seed: Input should be a valid integer (given: '1')"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0 (given: -1)"),
        ({"sft": {"epochs": "2"}}, "sft.epochs: Input should be a valid number (given: '2')"),
        ({"sft": {"epochs": 0}}, "sft.epochs: Input should be greater than 0 (given: 0)"),
        ({"sft": {"warmup": 1.5}}, "sft.warmup: Input should be less than or equal to 1 (given: 1.5)"),
        ({"spin": {"epochs": float("inf")}}, "spin.epochs: Input should be a finite number (given: inf)"),
        ({"spin": {"lambda": 0}}, "spin.lambda: Input should be greater than 0 (given: 0)"),
        (
            {"sft": {"learning_rate": [1e-4]}},
            "sft.learning_rate: Input should be a valid number, or 'auto' (given: [0.0001])",
        ),
        (
            {"spin": {"max_new_tokens": ["auto"]}},
            "spin.max_new_tokens: Input should be a valid integer, or 'auto' (given: ['auto'])",
        ),
        ({"spin": {"lambda": True}}, "spin.lambda: Input should be a valid number (given: True)"),
        ({"spin": {"lambda": [1.0, -1.0], "iterations": 2}}, "spin.lambda.1: Input should be greater than 0"),
        (
            {"spin": {"loss": "softmax"}},
            "spin.loss: there is no loss 'softmax'; use one of logistic, hinge, exponential, correlation, ipo, sp",
        ),
        ({"spin": {"iterations": 0}}, "spin.iterations: Input should be greater than or equal to 1"),
        ({"sft": {"schedule": "constant", "min_lr_rate": 0.1}}, "sft: min_lr_rate would do nothing with schedule: con"),
        ({"sft": {"keep": "best"}, "data": {"train": "x", "eval_fraction": 0.0}}, "sft.keep would do nothing without"),
        (
            {"evaluation": {"metric": "rouge_l"}, "eval": ["heldout"], "data": {"train": "x", "eval_fraction": 0.0}},
            "evaluation.metric needs held-out examples; set data.eval_fraction above 0, or give data.heldout",
        ),
        ({"sft": {"patience": 2, "epochs": 3.0}}, "sft: patience: 2 would do nothing with 3 evaluations, of which the"),
        ({"spin": {"iterations": 2, "stop": {"patience": 2}}}, "spin: stop.patience: 2 would do nothing with 2"),
        ({"sft": {"patience": 1}}, "sft: patience: 1 would do nothing with 1 evaluation, of which the first may be"),
        ({"spin": {"prompts": "unseen"}}, "spin.prompts: unseen needs an sft section, which sees the other prompts"),
        ({"sft": {}, "spin": {"unseen_share": 0.3}}, "spin: unseen_share would do nothing here: it needs prompts: uns"),
        ({"sft": {"decay": 0.2}}, "sft: decay would do nothing with schedule: cosine; it needs wsd"),
        ({"spin": {"schedule": "wsd", "warmup": 0.6, "decay": 0.5}}, "spin: warmup (0.6) and decay (0.5) are more"),
        ({"spin": {"schedule": "inverse_sqrt", "warmup": 0.0}}, "spin: inverse_sqrt falls from the end of the warm-up"),
        ({"spin": {"mu": 2.0}}, "spin: mu would do nothing here: it needs loss: space"),
        ({"spin": {"loss": "ipo", "shift": 2.0}}, "spin: shift would do nothing here: it needs loss: gsil_"),
        ({"spin": {"history_weight": 0.1}}, "spin: history_weight would do nothing here: it needs loss: t_spin"),
        ({"spin": {"replay_weight": 0.5}}, "spin: replay_weight would do nothing here: it needs replay above 0"),
        ({"spin": {"baseline_learning_rate": 1e-5}}, "spin: baseline_learning_rate would do nothing here"),
        ({"spin": {"stop": None}}, "spin.stop: it is empty; give a rule such as {start_loss: true}, or leave it out"),
        ({"data": {"train": []}}, "data.train: name at least one source"),
        ({"data": {"train": "x", "eval_fraction": 1}}, "data.eval_fraction: Input should be less than 1"),
        ({"data": {"train": "x", "heldout": []}}, "data.heldout: name at least one source"),
        ({"data": {"heldout": "y"}, "sft": {}}, "data: nothing to train on; give train"),
        ({"data": {"train": "x", "heldout": "synth"}}, "data.heldout.0: synth is written to train on"),
        (
            {"data": {"train": "x", "heldout": {"path": "y", "weight": 2}}},
            "unknown key data.heldout.0.weight; did you mean data.train",
        ),
        (
            {"data": {"train": "x", "heldout": "y", "eval_fraction": 0.2}},
            "data: eval_fraction would do nothing beside heldout",
        ),
        ({"data": {"train": "x", "heldout": "y", "eval_limit": 9}}, "data: eval_limit would do nothing beside heldout"),
        (
            {"data": {"mixture": MIXTURE, "heldout": "y"}},
            "data: heldout is in place of a part of train, and a mixture holds out of its own tasks",
        ),
        (
            {"data": {"mixture": MIXTURE, "eval_limit": 9}},
            "data: eval_limit would do nothing for a mixture; leave it out",
        ),
        ({"data": {"mixture": MIXTURE, "turns": "all"}}, "data: turns: all would do nothing for a mixture, whose"),
        ({"data": {"mixture": MIXTURE}, "spin": {"turns": "all"}}, "spin.turns: all would do nothing for a mixture"),
        (
            {"sft": {"learning_rate": -1}},
            "sft.learning_rate: Input should be greater than 0, or 'auto' (given: -1)",
        ),
        ({"data": {"train": [{"path": "x", "weight": 0}]}}, "data.train.0.weight: Input should be greater than 0"),
        (
            {"sft": {}, "lora": {"base": "nf4", "between": "merge"}},
            "lora: between: merge would round the merged weights",
        ),
        (
            {"sft": {}, "weights": "bfloat16", "lora": {"between": "merge"}},
            "lora.between: merge would round the merged",
        ),
        (
            {"sft": {}, "spin": {"optimizer": "muon"}, "lora": {}},
            "spin.optimizer: muon makes the update of a whole matrix orthogonal, and lora trains two factors",
        ),
        ({"sft": {}, "weights": "bfloat16", "precision": "float32"}, "weights: bfloat16 are multiplied in bfloat16"),
        ({"weights": "bfloat16"}, "weights would do nothing here: it needs sft or spin"),
        ({"offload": "optimizer"}, "offload would do nothing here: it needs sft or spin"),
        (
            {"sft": {}, "offload": "both"},
            "offload: both keeps the inputs of layers that are computed again; set recomp",
        ),
        ({"eval": [1]}, "eval.0: Input should be a valid string (given: 1)"),
        ({"eval": ["ifeval"]}, "eval names ifeval; give its file as evaluation.ifeval"),
        ({"evaluation": {"questions": "q"}}, "evaluation.questions would do nothing here"),
        ({"evaluation": {"rivals": ["q"]}}, "evaluation.rivals need the questions"),
        ({"eval": ["arc_easy"], "judge": {"model": "m"}}, "the judge has nothing to judge"),
        ({"judge": {"model": "m", "timeout_seconds": 3.0}}, "judge: timeout_seconds needs an endpoint; give url"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_key_and_what_was_given(given: dict[str, Any], words: str) -> None:
    assert wrong(**given).startswith(f"test: {words}")
    assert "\n" not in wrong(**given)


KEY = "sk-proj-0123456789abcdefghij"


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"url": f"http://user:{KEY}@host/v1"}, "url takes scheme, host and path only"),
        ({"url": f"http://host/v1?api_key={KEY}"}, "url takes scheme, host and path only"),
        ({"url": [KEY]}, "valid string"),
        ({"key_variable": KEY}, "key_variable takes the name"),
        ({"extra": {"api_key": "short"}}, "extra.api_key looks like a key"),
        ({"extra": {"headers": [{"X-Auth-Token": KEY}]}}, "extra.headers.1.X-Auth-Token looks like a key"),
        ({"extra": {"user": KEY}}, "extra.user looks like a key"),
        ({"api_key": KEY}, "unknown key synth.teacher.api_key"),
    ],
)
def test_a_key_in_a_recipe_is_refused_before_anything_is_written_and_not_repeated(
    teacher: dict[str, Any], words: str
) -> None:
    given = {"url": "https://gem.example/v1", "model": "gem", **teacher}
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        parse_recipe({"out": "o", "model": "m", "data": {"train": "synth"}, "synth": {"teacher": given}}, "r")
    assert KEY not in str(caught.value)


def test_ordinary_fields_of_a_request_are_no_keys() -> None:
    extra = {"reasoning_effort": "low", "min_tokens": 3, "stop_token_ids": [1], "token_healing": True, "user": "me"}
    teacher = {"url": "https://gem.example/v1", "model": "gem", "extra": extra, "key_variable": "GEM_API_KEY"}
    parse_recipe({"out": "o", "model": "m", "data": {"train": "synth"}, "synth": {"teacher": teacher}}, "r")


def test_every_mistake_is_told_at_once() -> None:
    lines = wrong(seed=-1, sft={"epochs": 0, "epoch": 1}, mode="m").splitlines()
    assert len(lines) == 4
    assert all(line.startswith("test: ") for line in lines)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sft": {"lerning_rate": 1}}, "unknown key sft.lerning_rate; did you mean sft.learning_rate?"),
        ({"spin": {"lamda": 1}}, "unknown key spin.lamda; did you mean spin.lambda?"),
        ({"sft": {"batch_size": 4}}, "sft.tokens_per_step? It counts tokens of a whole step, without accumulation"),
        ({"spin": {"gradient_accumulation_steps": 4}}, "did you mean spin.pairs_per_step? It counts pairs of a whole"),
        ({"sft": {"warmup_steps": 100}}, "did you mean sft.warmup? It is a share of the steps"),
        ({"modle": "m"}, "unknown key modle; did you mean model?"),
        ({"max_length": 9}, "unknown key max_length; did you mean data.max_length?"),
        ({"iterations": 9}, "unknown key iterations; did you mean spin.iterations?"),
        ({"data": {"train": "x", "epochs": 2}}, "unknown key data.epochs; did you mean sft.epochs?"),
        ({"data": {"train": [{"path": "x", "wieght": 2}]}}, "data.train.0.wieght; did you mean data.train.0.weight?"),
        ({"data": {"train": [{"path": "x", "zzz": 2}]}}, "known here: path, format, limit, split, config"),
    ],
)
def test_an_unknown_key_comes_with_a_suggestion(given: dict[str, Any], words: str) -> None:
    assert words in wrong(**given)


def test_what_is_missing_is_told_with_its_description() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"out": "o"}, "test")
    assert (
        str(caught.value)
        == "test: model is missing; add 'model: ...' (alias, local folder, GGUF file, or hub id[@revision])"
    )


def test_what_trains_or_holds_out_needs_data_and_a_benchmark_alone_does_not() -> None:
    for trained in ({}, {"eval": [], "sft": {}}, {"eval": ["arc_easy"], "spin": {}}):
        with pytest.raises(RecipeError, match=r"test: data: nothing to train on; give train"):
            parse_recipe({"out": "o", "model": "m", **trained}, "test")
    assert parse_recipe({"out": "o", "model": "m", "eval": ["arc_easy"]}, "test").data.train == []


@pytest.mark.parametrize("written", ["2e-5", "2.e-5", "2.0e-5", "0.2E-4", "+2e-05"])
def test_numbers_with_an_exponent_are_numbers(tmp_path: Path, written: str) -> None:
    """YAML 1.1, and PyYAML with it, reads 2e-5 as text."""
    text = f"out: o\nmodel: m\ndata: {{train: x}}\nsft: {{learning_rate: {written}}}\n"
    sft = loaded(tmp_path, text).sft
    assert sft is not None
    assert sft.learning_rate == 2e-5


def test_texts_that_only_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    assert loaded(tmp_path, "out: 1e5x\nmodel: '2e-5'\ndata: {train: e5}\n").identity()["model"] == "2e-5"


def test_a_source_is_a_path_or_a_mapping_or_a_list_of_both() -> None:
    paths = [
        [source.path for source in parsed(data={"train": train}).data.train]
        for train in ("a", {"path": "a"}, ["a", {"path": "b", "limit": 3}])
    ]
    assert paths == [["a"], ["a"], ["a", "b"]]
    held = parsed(data={"train": "a", "heldout": ["b", {"path": "c", "split": "dev"}]}).data.heldout
    assert held is not None
    assert [(source.path, source.split) for source in held] == [("b", "test"), ("c", "dev")]
    assert parsed(data={"train": "a", "heldout": None}).data.heldout is None
    assert parsed(data={"heldout": "b"}).data.train == []  # nothing is trained


def test_overrides_reach_every_level_and_beat_the_file(tmp_path: Path) -> None:
    text = "out: o\nmodel: m\ndata: {train: x}\nsft: {epochs: 2}\n"
    recipe = loaded(tmp_path, text, "seed=3", "sft.epochs=0.5", "spin.lambda=[0.1, 1e-1]", "spin.iterations=2")
    assert recipe.sft is not None
    assert recipe.spin is not None
    assert (recipe.seed, recipe.sft.epochs, recipe.spin.lambda_) == (3, 0.5, [0.1, 0.1])
    assert loaded(tmp_path, text, "sft=null").sft is None
    assert loaded(tmp_path, text, "out=a=b").out == "a=b"


@pytest.mark.parametrize("written", ["a.json", "[a.json]", "{path: a.json, limit: 9}", "[{path: a.json, limit: 9}]"])
def test_the_keys_of_a_source_that_is_alone_can_be_overridden(tmp_path: Path, written: str) -> None:
    text = f"out: o\nmodel: m\nsft: {{}}\ndata: {{train: {written}}}"
    data = loaded(tmp_path, text, "data.train.limit=2", "data.heldout.path=h").data
    assert [(one.path, one.limit) for one in data.train] == [("a.json", 2)]
    assert data.heldout is not None
    assert [one.path for one in data.heldout] == ["h"]


def test_of_several_sources_an_override_names_all(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.train has 2 sources; give all of them") as caught:
        loaded(tmp_path, "data: {train: [a, b]}", "data.train.limit=2")
    assert "'data.train=[{path: rows.jsonl, limit: 2}, more.jsonl]'" in str(caught.value)


def test_a_base_is_not_changed_by_overrides() -> None:
    base = {**LEAST, "spin": {}}
    load_recipe(None, ["spin.top_k=3", "data.max_length=9"], base)
    assert base == {**LEAST, "spin": {}}
    assert LEAST["data"] == {"train": "x.json"}


def test_a_schedule_gives_each_iteration_its_value() -> None:
    spin = SpinSection.model_validate({"iterations": 3, "lambda": [1.0, 2.0, 3.0], "loss": "hinge"})
    assert [spin.in_iteration(iteration).lambda_ for iteration in (1, 2, 3)] == [1, 2, 3]
    assert [spin.in_iteration(iteration).loss for iteration in (1, 2, 3)] == ["hinge"] * 3


@pytest.mark.parametrize(("key", "value"), [("lambda", 0.1), ("loss", "hinge"), ("learning_rate", 1e-6), ("epochs", 1)])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_schedule_of_another_length_is_refused(key: str, value: Any, length: int) -> None:
    message = wrong(spin={"iterations": 2, key: [value] * length})
    assert message == f"test: spin: {key} lists {length} values for 2 iterations; give one for each"


def test_a_loss_of_an_installed_package_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves behind of a package whose entry point is the record of a loss."""
    (tmp_path / "losses_of_ann.py").write_text(
        "from spintune.recipe.losses import SelfPlayLoss\n"
        "cubic = SelfPlayLoss('cubic', 'losses_of_ann:no_such_function', 'ratios', 0.25, ('shift',))\n"
    )
    info = tmp_path / "losses_of_ann-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: losses_of_ann\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spintune.losses]\ncubic = losses_of_ann:cubic\n")
    assert "there is no loss 'cubic'" in wrong(spin={"loss": "cubic"})
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        spin = parsed(spin={"loss": ["cubic", "logistic"], "iterations": 2, "shift": 1.0}).spin
        assert spin is not None
        assert [spin.in_iteration(t).lambda_ for t in (1, 2)] == [0.25, 0.1]
        assert "cubic reads no margin" in wrong(spin={"loss": "cubic", "reference_mixture": 0.5})
    finally:
        LOSSES.unregister("cubic")


def test_the_identity_leaves_out_what_cannot_change_a_result() -> None:
    one = parsed(sft={}, spin={})
    neutral = {"checkpoint_minutes": 0.0, "checkpoint_write": "async"}
    assert one.identity() == parsed(sft=neutral, spin=neutral, out="p", tracking=["tensorboard"]).identity()
    for changes in ({"seed": 1}, {"spin": {"lambda": 0.2}}, {"sft": {"epochs": 2.0}}, {"spin": None}):
        assert one.identity() != parsed(**{"sft": {}, "spin": {}, **changes}).identity()


def test_too_large_a_file_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="larger than"):
        loaded(tmp_path, "#" * 1_000_001)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "bytes.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


# Files of the repository ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["[1]", ".inf", "null", "{a: 1}"])
def test_an_option_of_a_template_is_a_plain_value(value: str) -> None:
    with pytest.raises(
        RecipeError, match=r"^command line: data.template_options.effort: give true, false, a number or a"
    ):
        load_recipe(None, [f"data.template_options.effort={value}"], {"out": "o", "model": "m", "eval": []})


def test_the_schema_file_is_current() -> None:
    """Written by ``spintune schema > recipes/recipe.schema.json``."""
    assert json.loads((RECIPES / "recipe.schema.json").read_text()) == recipe_schema()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_loads_and_the_schema_accepts_it(path: Path) -> None:
    load_recipe(path)
    values = read_yaml(path, "recipe")
    jsonschema.validate(values, recipe_schema())
    assert path.read_text().startswith("# yaml-language-server: $schema=recipe.schema.json\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"train": "x"}},
        {"data": {"train": {"path": "x"}}},
        {"data": {"train": ["x", {"path": "y", "weight": 2}]}},
        {"spin": {"lambda": [0.1, 0.2], "iterations": 2}},
        {"data": {"train": 3}},
        {"data": {"train": {"path": "x", "wieght": 2}}},
        {"data": {}},
        {"data": {"mixture": {"tasks": ["builtin:gsm8k"], "examples": 10}}},
        {"data": {"mixture": {"tasks": ["builtin:gsm8k"]}}},
        {"data": {"train": "x", "heldout": ["y", {"path": "z", "split": "dev"}]}},
        {"data": {"train": "x", "heldout": {"path": "y", "weight": 2}}},
        {"data": {"heldout": "y"}},
        {"data": {"heldout": "y"}, "spin": {}},
        {"seed": -1},
        {"seed": 1.5},
        {"sft": {"lerning_rate": 1}},
        {"spin": {"lambda": 0}},
        {"eval": ["ifeval"]},
    ],
)
def test_the_schema_accepts_exactly_what_the_recipe_does(changes: dict[str, Any]) -> None:
    values = {**LEAST, **changes}
    try:
        parse_recipe(values, "test")
    except RecipeError:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values, recipe_schema())
    else:
        jsonschema.validate(values, recipe_schema())


@pytest.mark.parametrize(("longest", "limit"), [(4, 16), (13, 17), (100, 125), (205, 256), (300, 256)])
def test_auto_answers_are_a_quarter_longer_than_the_longest_real_one(longest: int, limit: int) -> None:
    auto = SpinSection.model_validate({"max_new_tokens": "auto"})
    assert auto.longest_answer == 256
    assert auto.settled(longest).longest_answer == limit
    assert SpinSection.model_validate({"max_new_tokens": 40}).settled(longest).longest_answer == 40


@pytest.mark.parametrize("name", ["rows.jsonl", "Umsatz.CSV", "train.parquet", "rows.jsonl.gz"])
def test_data_in_place_of_a_recipe_are_named_as_that(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    with pytest.raises(RecipeError, match=rf"{name}: is data, and a recipe is wanted here; spintune init writes one"):
        load_recipe(path)
