"""The front door in Python, with tiny real models: what is written and scored is what transformers computes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import spintune
from spintune import Completion, Message, Model
from spintune.errors import DataError, ModelError, RecipeError
from spintune.generation.build import GENERATORS

NAMES = {
    *(
        "Completion",
        "Example",
        "Format",
        "Message",
        "Metric",
        "Model",
        "NoveltyIndex",
        "Recipe",
        "RunResults",
        "Score",
        "SelfPlayLoss",
        "TrackedRun",
    ),
    *(
        "SpintuneError",
        "__version__",
        "load",
        "losses",
        "mix",
        "read",
        "register_checker",
        "register_format",
        "register_generator",
    ),
    *("register_loss", "register_metric", "register_teacher", "register_tracker", "run", "statistics", "sweep"),
    "synthesize",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return spintune.load(tiny_model)


def test_the_names_are_these() -> None:
    """They are a promise: who removes or renames one breaks a user's program."""
    assert set(spintune.__all__) == NAMES == set(dir(spintune))
    for name in NAMES:
        assert getattr(spintune, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'spintune' has no attribute 'nonsense'"):
        spintune.nonsense  # noqa: B018


def test_importing_loads_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, spintune\nspintune.read; spintune.Recipe; spintune.register_loss; spintune.Example\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_types_are_shipped() -> None:
    assert (Path(spintune.__file__).parent / "py.typed").is_file()


def test_greedy_text_is_that_of_transformers(model: Model, tiny_model: Path) -> None:
    reference, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    questions = ["Name a color.", "What is two and two?"]
    found = model.generate(questions, max_new_tokens=8)
    for question, completion in zip(questions, found, strict=True):
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        expected = reference.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert list(completion.ids) == expected.tolist()


def test_a_text_a_conversation_and_its_ids_are_one_prompt(model: Model) -> None:
    text = "Name a color."
    turns = [{"role": "user", "content": text}]
    ids = model.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    same = [model.generate(one, max_new_tokens=6, temperature=1.0, seed=5) for one in (text, [text], [turns], [ids])]
    same.append(model.generate([[Message("user", text)]], max_new_tokens=6, temperature=1.0, seed=5))
    assert all(one == same[0] for one in same)
    assert all(isinstance(one, Completion) for one in same[0])


def test_the_text_that_is_told_on_the_way_is_the_answer(model: Model) -> None:
    pieces: dict[int, str] = {0: "", 1: ""}

    def hear(prompt: int, text: str) -> None:
        pieces[prompt] += text

    found = model.generate(["Hello", "Name a color."], max_new_tokens=12, temperature=1.0, on_text=hear)
    for place, completion in enumerate(found):
        assert completion.text.startswith(pieces[place])
        assert completion.text.removeprefix(pieces[place]).strip("\ufffd") == ""


def test_scores_are_log_probabilities_of_the_rendered_answer(model: Model, tiny_model: Path) -> None:
    reference, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    answers = ["Blue.", "Seven and a half."]
    for answer, score in zip(answers, model.score("Name a color.", answers), strict=True):
        turns = [{"role": "user", "content": "Name a color."}, {"role": "assistant", "content": answer}]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        end = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + end])).logits[0].double()
        rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        expected = rows.gather(1, torch.tensor(end)[:, None]).sum().item()
        assert score.tokens == len(end)
        assert score.logprob == pytest.approx(expected, abs=1e-3)
        assert score.per_token == pytest.approx(expected / len(end), abs=1e-3)


def test_answers_of_ids_are_scored_as_they_are(model: Model) -> None:
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    (completion,) = model.generate([prompt], max_new_tokens=5, temperature=1.0)
    (score,) = model.score(prompt, [completion.ids])
    assert score.tokens == len(completion.ids)
    assert score.logprob == pytest.approx(completion.logprob, abs=1e-3)


def test_the_callers_model_computes_as_before(tiny_model: Path) -> None:
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    before, written = plain(ids).logits, plain.generate(ids, max_new_tokens=5, do_sample=False)
    model = Model("mine", plain, tokenizer)
    model.generate(["Hello"], max_new_tokens=3)
    model.score("Hello", ["there"])
    assert torch.equal(plain(ids).logits, before)
    assert torch.equal(plain.generate(ids, max_new_tokens=5, do_sample=False), written)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([{"role": "user", "content": "Hi"}], "put it into a list"),
        ([1, 2, 3], "put it into a list"),
        ([""], "prompt 1 is empty"),
        ([[]], "prompt 1 has no tokens"),
        (["a", [{"role": "person", "content": "Hi"}]], "prompt 2: unknown role 'person'"),
        ([[{"role": "user"}]], "is no message; give role and content"),
        ([[10**9]], "outside of the model's vocabulary"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(model: Model, prompts: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        model.generate(prompts)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_prompt_without_room_for_an_answer_is_refused(model: Model) -> None:
    with pytest.raises(ModelError, match="shorten one of them"):
        model.generate(["Hello"], max_new_tokens=10**6)


def test_a_single_text_is_no_list_of_answers(model: Model) -> None:
    with pytest.raises(DataError, match="give a list of answers"):
        model.score("Hello", "there")
    assert model.score("Hello", []) == []
    with pytest.raises(DataError, match="answer 2 is empty"):
        model.score("Hello", ["a", ""])


def test_examples_are_read(alpaca_file: Path) -> None:
    examples = spintune.read(alpaca_file, limit=3)
    assert len(examples) == 3
    assert examples[0].prompt[-1].role == "user"
    assert len(spintune.read("builtin:seeds")) >= 175


def test_a_mixture_is_made_of_tasks(tmp_path: Path) -> None:
    task = tmp_path / "sums.yaml"
    rows = [{"question": f"What follows {n}?", "sum": n + 1} for n in range(9)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task.write_text(
        "name: sums\nfile: sums.jsonl\nfields: {question: question, answer: sum}\n"
        "direct:\n  - {input: '{question}', target: '{answer}'}\n"
    )
    examples = spintune.mix([str(task)], 5, seed=1)
    assert len(examples) == 5
    for one in examples:
        last_number = re.findall(r"What follows (\d+)", one.prompt[-1].content)[-1]
        assert one.answer == str(int(last_number) + 1)
    assert examples == spintune.mix([str(task)], 5, seed=1)
    with pytest.raises(RecipeError, match="nonsense"):
        spintune.mix([str(task)], 5, nonsense=1)


def test_a_recipe_runs_from_values_and_is_resumed(tiny_model: Path, alpaca_file: Path, tmp_path: Path) -> None:
    recipe = {
        "out": str(tmp_path / "run"),
        "model": str(tiny_model),
        "data": {"train": str(alpaca_file), "eval_fraction": 0.0, "max_length": 128},
        "sft": {"max_steps": 1, "tokens_per_step": 64},
        "eval": [],
    }
    results = spintune.run(recipe, seed=3, sft={"max_steps": 2})
    assert results.sft is not None
    assert results.sft.steps == 2
    assert spintune.run(recipe, **{"sft.max_steps": 2, "seed": 3}) == results  # type: ignore[arg-type]
    tuned = spintune.load(tmp_path / "run")
    assert Path(tuned.name) == tmp_path / "run" / "sft" / "model"
    assert len(tuned.generate(["Hello"], max_new_tokens=3)) == 1
    with pytest.raises(RecipeError, match="epoch"):
        spintune.run(recipe, sft={"epoch": 2})


def test_a_registered_generator_writes_the_answers_of_a_run(
    tiny_model: Path, alpaca_file: Path, tmp_path: Path
) -> None:
    """It answers everything with the same two tokens."""

    class Monotonous:
        def __init__(self, engine: object, tokenizer: object, stop_ids: frozenset[int]) -> None:
            self.stop = min(stop_ids)

        def generate(
            self, prompts: Sequence[Sequence[int]], sampling: object, keys: object = None, on_token: object = None
        ) -> list[Completion]:
            return [Completion((7, self.stop), "seven", "stop", -1.0) for _ in prompts]

        def decode(self, ids: Sequence[int]) -> str:
            return "seven"

    recipe = {
        "out": str(tmp_path / "run"),
        "model": str(tiny_model),
        "data": {"train": str(alpaca_file), "eval_fraction": 0.2, "max_length": 128},
    }
    spintune.register_generator("monotonous", Monotonous)  # type: ignore[arg-type]
    try:
        results = spintune.run(recipe, generator="monotonous")
    finally:
        GENERATORS.unregister("monotonous")
    assert results.heldout is not None
    assert results.heldout["base"]["answer_tokens"].mean == 2
    with pytest.raises(RecipeError, match=r"generator: there is no generator 'bach'; did you mean batch\?"):
        spintune.run({**recipe, "out": str(tmp_path / "other")}, generator="bach")
    assert not (tmp_path / "other").exists()


def test_a_model_is_named_of_a_run_folder_only(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="is no run folder, so it has no model sft"):
        spintune.load(tiny_model, model="sft")
