"""Benchmarks through lm-evaluation-harness. Where the harness has a model of its own (HFLM), it is the reference."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.errors import DataError, MissingExtraError, ModelError, RecipeError
from spintune.evaluation.custom_tasks import read_custom_task
from spintune.evaluation.harness import Benchmark, benchmarks, run_benchmarks
from spintune.evaluation.harness_results import HarnessItem, HarnessReport
from spintune.progress import Silent
from spintune.typed_json import from_json, to_json

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

ANIMALS = ["fox", "dog", "quick", "lazy", "jumps"]


def written_to(folder: Path, rows: list[Any], task: dict[str, Any], name: str = "quiz") -> Path:
    """A user's task: its YAML file, beside its rows."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"task": name, "data": f"{name}.jsonl", **task}))  # JSON is YAML
    return path


# What needs no lm_eval ---------------------------------------------------------------------------------------------


def test_the_module_is_imported_without_torch_and_without_lm_eval() -> None:
    program = "import sys, spintune.evaluation.harness\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "lm_eval"} & set(done.stdout.split())


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # Python's own way to say that there is none
    with pytest.raises(MissingExtraError, match=r"pip install 'spintune\[eval\]'"):
        run_benchmarks(None, [Benchmark("gsm8k")])  # type: ignore[arg-type]


def test_the_preset_has_the_six_benchmarks_of_the_paper_with_their_shots() -> None:
    # arXiv 2401.01335, section 6.1 and table 5
    assert {known.task: known.shots for known in benchmarks(["spin-paper"])} == {
        "arc_challenge": 25,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 5,
        "hellaswag": 10,
        "mmlu": 5,
    }
    assert benchmarks(["boolq", "mine.yaml"], shots=2) == [Benchmark("boolq", 2), Benchmark("mine.yaml", 2)]


MULTIPLE_CHOICE = {
    "kind": "multiple_choice",
    "prompt": "Q: {question}\nA:",
    "choices": "options",
    "answer": "right",
}
QUIZ = [
    {"question": "Who barks?", "options": ["the fox", "the dog"], "right": 1},
    {"question": "Who jumps {{over}}?", "options": ["{% if %}", "the dog", "the quick fox"], "right": "the quick fox"},
]


def test_rows_become_prompts_and_choices_and_their_braces_stay(tmp_path: Path) -> None:
    first, second = read_custom_task(written_to(tmp_path, QUIZ, MULTIPLE_CHOICE)).items
    assert (first.prompt, first.choices, first.place) == ("Q: Who barks?\nA:", ("the fox", "the dog"), 1)
    assert (second.prompt, second.place) == ("Q: Who jumps {{over}}?\nA:", 2)
    assert second.choices == ("{% if %}", "the dog", "the quick fox")


@pytest.mark.parametrize(
    ("choices", "cell", "place"),
    [(["no", "yes"], "1", 1), (["no", "yes"], "1.0", 1), (["no", "yes"], " 0", 0), (["1", "0"], "0", 1)],
)
def test_places_in_a_csv_file_are_read_unless_they_are_choices(
    tmp_path: Path, choices: list[str], cell: str, place: int
) -> None:
    (tmp_path / "quiz.csv").write_text(f"question,right\nWho barks?,{cell}\n")
    task = {**MULTIPLE_CHOICE, "task": "quiz", "data": "quiz.csv", "choices": choices}
    (tmp_path / "quiz.yaml").write_text(json.dumps(task))
    assert read_custom_task(tmp_path / "quiz.yaml").items[0].place == place


@pytest.mark.parametrize("choices", [["3", "4", "6", "7", "8", "9"], ["1/2", "0.25", "$7", "-3", "10%", "none"]])
def test_a_number_beside_choices_that_are_numbers_is_no_place(tmp_path: Path, choices: list[str]) -> None:
    (tmp_path / "quiz.csv").write_text("question,right\nHow many?,5\n")
    task = {**MULTIPLE_CHOICE, "task": "quiz", "data": "quiz.csv", "choices": choices}
    (tmp_path / "quiz.yaml").write_text(json.dumps(task))
    with pytest.raises(DataError, match=r"quiz\.csv:2: 'right' is '5', none of"):
        read_custom_task(tmp_path / "quiz.yaml")


def test_a_place_in_a_csv_file_beyond_the_choices_is_named(tmp_path: Path) -> None:
    (tmp_path / "quiz.csv").write_text("question,right\nWho barks?,2\n")
    task = {**MULTIPLE_CHOICE, "task": "quiz", "data": "quiz.csv", "choices": ["no", "yes"]}
    (tmp_path / "quiz.yaml").write_text(json.dumps(task))
    with pytest.raises(DataError, match="'right' is 2, but places go from 0 to 1"):
        read_custom_task(tmp_path / "quiz.yaml")


def test_choices_can_be_listed_and_answered_by_letter_and_named_by_labels(tmp_path: Path) -> None:
    row = {"stem": "Who barks?", "choices": {"text": ["fox", "dog"], "label": ["1", "2"]}, "key": "2"}
    task = {
        "kind": "multiple_choice",
        "prompt": "{stem}\n{choices}\nAnswer:",
        "choices": "choices.text",
        "labels": "choices.label",
        "answer": "key",
        "say": "letter",
    }
    (item,) = read_custom_task(written_to(tmp_path, [row], task)).items
    assert item.prompt == "Who barks?\nA. fox\nB. dog\nAnswer:"
    assert (item.choices, item.place, item.answers) == (("A", "B"), 1, ("B",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "choice"}, r"quiz\.yaml: kind: .*multiple_choice"),
        ({"promt": "x"}, r"quiz\.yaml: unknown key promt; did you mean prompt\?"),
        ({"answer": None}, r"quiz\.yaml: answer"),
        ({"choices": None}, r"quiz\.yaml: kind: multiple_choice needs choices"),
        ({"until": ["\n"]}, r"quiz\.yaml: until belongs to kind: generate"),
        ({"prompt": "Q: {question"}, r"quiz\.yaml: prompt: a lone {"),
        ({"shots": 2}, r"quiz\.yaml: 2 shots are more than the rows of quiz\.jsonl, the row itself left out"),
        ({"shots_data": "quiz.jsonl"}, r"quiz\.yaml: shots_data needs shots"),
    ],
)
def test_a_task_file_that_is_wrong_is_named_with_its_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    task = {key: value for key, value in {**MULTIPLE_CHOICE, **change}.items() if value is not None}
    with pytest.raises(RecipeError, match=message):
        read_custom_task(written_to(tmp_path, QUIZ, task))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["a", "b"], "right": 0}, r"quiz\.jsonl:3: no 'question'; the row has: "),
        ({"question": None, "options": ["a", "b"], "right": 0}, r"quiz\.jsonl:3: 'question' is null"),
        ({"question": ["x"], "options": ["a", "b"], "right": 0}, r"quiz\.jsonl:3: 'question' is a list, not a text"),
        ({"question": "x", "options": "a", "right": 0}, r"quiz\.jsonl:3: 'options' is a text, not the choices"),
        ({"question": "x", "options": ["a"], "right": 0}, r"quiz\.jsonl:3: 1 choices; there must be 2 to 26"),
        ({"question": "x", "options": ["a", ""], "right": 0}, r"quiz\.jsonl:3: 'options' holds an empty text"),
        ({"question": "x", "options": ["a", "b"], "right": 2}, r"quiz\.jsonl:3: 'right' is 2, but places go from 0 to"),
        ({"question": "x", "options": ["a", "b"], "right": "c"}, r"quiz\.jsonl:3: 'right' is 'c', none of 'a, b'"),
        ({"question": "x", "options": ["a", "a"], "right": "a"}, r"quiz\.jsonl:3: 'right' is 'a', several of"),
        ({"question": "x", "options": ["a", "b"], "right": True}, r"quiz\.jsonl:3: 'right' is a boolean, not a text"),
        (["no", "object"], r"quiz\.jsonl:3: the row is a list"),
    ],
)
def test_a_broken_row_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_custom_task(written_to(tmp_path, [*QUIZ, row], MULTIPLE_CHOICE))


def test_an_answer_whose_likelihood_is_measured_is_not_empty(tmp_path: Path) -> None:
    task = {"kind": "loglikelihood", "prompt": "{ask}", "answer": "gold"}
    with pytest.raises(DataError, match=r"quiz\.jsonl:2: 'gold' is an empty text, which has no likelihood"):
        read_custom_task(written_to(tmp_path, [{"ask": "x", "gold": "y"}, {"ask": "x", "gold": ""}], task))
    read_custom_task(written_to(tmp_path, [{"ask": "x", "gold": ""}], {**task, "kind": "generate"}))


@pytest.mark.parametrize(("delimiter", "size"), [(" ", 4), ("", 3), ("→", 6)])
def test_bytes_are_those_of_what_is_scored(tmp_path: Path, delimiter: str, size: int) -> None:
    task = {"kind": "loglikelihood", "prompt": "{ask}", "answer": "gold", "delimiter": delimiter}
    config = read_custom_task(written_to(tmp_path, [{"ask": "x", "gold": "sky"}], task)).config()
    measured = config["process_results"]({"answers": ["sky"]}, [(-2.0, True)])
    assert measured == {"acc": 1.0, "bits_per_byte": (-2.0, size)}


def test_a_task_without_data_is_told_of(tmp_path: Path) -> None:
    path = written_to(tmp_path, QUIZ, MULTIPLE_CHOICE)
    (tmp_path / "quiz.jsonl").unlink()
    with pytest.raises(DataError, match=r"quiz\.jsonl"):
        read_custom_task(path)


# Requests that begin alike -----------------------------------------------------------------------------------------


@pytest.fixture
def share() -> Callable[..., Any]:
    pytest.importorskip("lm_eval")
    from spintune.evaluation.harness_model import TokenRequest, share

    def grouped(
        requests: list[tuple[list[int], list[int]]], width: int = 1000, most: int = 1000, whole: bool = False
    ) -> list[tuple[int, tuple[int, ...], int]]:
        """Of each group the tokens that all begin with, the requests, and the tokens that are read."""
        asked = [TokenRequest(tuple(context), tuple(continuation)) for context, continuation in requests]
        return [(len(group.shared), group.members, group.tokens) for group in share(asked, width, most, whole)]

    return grouped


def test_choices_read_their_question_once(share: Callable[..., Any]) -> None:
    question = list(range(90))
    assert share([(question, [1, 2]), (question, [3, 4]), (question, [5, 6])]) == [(90, (0, 1, 2), 93)]


def test_letters_cost_nothing_behind_their_question(share: Callable[..., Any]) -> None:
    question = list(range(90))
    assert share([(question, [letter]) for letter in range(4)]) == [(90, (0, 1, 2, 3), 90)]


def test_contexts_that_begin_alike_read_their_beginning_once(share: Callable[..., Any]) -> None:
    shots = list(range(50))
    requests = [([*shots, 7, 7], [1, 2]), ([*shots, 8], [1, 2])]
    assert share(requests) == [(50, (0, 1), 50 + 3 + 2)]
    assert len(share(requests, whole=True)) == 2  # an encoder reads whole contexts


def test_exemplars_of_many_questions_are_read_once_for_as_many_as_fit(share: Callable[..., Any]) -> None:
    shots = list(range(600))
    requests = [([*shots, *[number] * 100], [letter]) for number in range(6) for letter in range(4)]
    assert share(requests) == [(600, tuple(range(16)), 1000), (600, tuple(range(16, 24)), 800)]


def test_questions_with_many_choices_are_not_torn_apart_for_a_short_common_beginning(
    share: Callable[..., Any],
) -> None:
    # 10 tokens saved once, and 40 read again for each of three more choices
    questions = [[*range(10), *range(100 * i, 100 * i + 40)] for i in (1, 2)]
    groups = share([(question, [choice, 1]) for question in questions for choice in range(4)])
    assert [shared for shared, _, _ in groups] == [50, 50]


def test_long_texts_behind_one_token_stay_apart_because_they_would_attend_to_each_other(
    share: Callable[..., Any],
) -> None:
    assert len(share([([0], [1] * 500), ([0], [2] * 500)], width=100)) == 2


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(requests=st.lists(st.tuples(TOKENS, TOKENS), max_size=8), width=st.sampled_from([1, 10, 1000]))
def test_every_request_is_read_whole_exactly_once(requests: list[tuple[list[int], list[int]]], width: int) -> None:
    pytest.importorskip("lm_eval")
    from spintune.evaluation.harness_model import TokenRequest, share

    asked = [TokenRequest(tuple(context), tuple(continuation)) for context, continuation in requests]
    groups = share(asked, width, max_tokens=20)
    assert sorted(member for group in groups for member in group.members) == list(range(len(asked)))
    for group in groups:
        query = group.query(asked)
        assert query.tokens <= group.tokens  # less where texts are split at different places into the same tokens
        for member, response, scored in zip(group.members, query.responses, query.counted, strict=True):
            context, continuation = asked[member].context, asked[member].continuation
            assert query.prompt + response == context + continuation
            assert sum(scored) == len(continuation)
            assert all(scored[len(scored) - len(continuation) :])


# The harness's own model as the reference --------------------------------------------------------------------------


class Pair:
    """One model twice, in float64: as spintune computes it, and as the harness's own HFLM does."""

    def __init__(self, model: Any, tokenizer: Any, stop_ids: frozenset[int], packed: bool = True) -> None:
        from lm_eval.models.huggingface import HFLM

        from spintune.engine.logprobs import LogProbEngine
        from spintune.evaluation.harness_model import HarnessModel, InMemory
        from spintune.generation.build import build_generator
        from spintune.progress import Silent

        model = model.double().eval()
        # lm_eval 0.4.13 keeps logits of texts that are equal up to their last token, and of those that are split at
        # different places it reads the wrong ones; without that, it computes each request by itself
        self.theirs = HFLM(pretrained=copy.deepcopy(model), tokenizer=tokenizer, batch_size=1, logits_cache=False)
        engine = LogProbEngine(model, tokens_per_forward=64)
        assert engine.packed
        if not packed:
            engine.packed = False
        self.memory = InMemory(engine, build_generator(engine, tokenizer, stop_ids), tokenizer)
        self.ours = HarnessModel(self.memory, Silent(), "test")

    def ask(self, kind: str, requests: list[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
        """What both say to requests of a kind."""
        ours, theirs = (self.instances(kind, requests) for _ in range(2))
        return getattr(self.ours, kind)(ours), getattr(self.theirs, kind)(theirs)

    @staticmethod
    def instances(kind: str, requests: list[tuple[Any, ...]]) -> list[Any]:
        from lm_eval.api.instance import Instance

        return [Instance(kind, {}, copy.deepcopy(request), 0) for request in requests]

    def greedy(self, context: str) -> str:
        """What the reference finds likeliest after a context."""
        return self.ask("generate_until", [(context, {"until": [], "max_gen_toks": 1, "do_sample": False})])[1][0]


def loaded(folder: Path, **options: Any) -> Pair:
    """A model folder as both see it."""
    from spintune.models.loading import load_model

    found = load_model(str(folder), cache=folder)
    if folder.name == "tiny":  # as initialised, it writes the same after every prompt
        for parameter in found.model.parameters():
            parameter.data *= 8 if parameter.dim() > 1 else 1
    return Pair(found.model, found.tokenizer, frozenset({found.tokenizer.eos_token_id}), **options)


@pytest.fixture(scope="module", params=["packed", "one at a time", "with a beginning token"])
def pair(request: pytest.FixtureRequest, tiny_model: Path) -> Pair:
    """Three ways to meet the tiny Llama; the last one's tokenizer puts a token before every text, as Llama's does."""
    pytest.importorskip("lm_eval")
    from tokenizers.processors import TemplateProcessing

    pair = loaded(tiny_model, packed=request.param != "one at a time")
    if request.param == "with a beginning token":
        backend = pair.ours.tokenizer.backend_tokenizer  # one object for both sides
        backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)])
        assert pair.ours.tokenizer.encode("fox")[0] == 0
    return pair


AWKWARD = [
    ("the quick", " brown fox"),
    ("the quick ", "brown fox"),
    ("the quick  \n", "brown fox"),
    ("the quick", "brown"),
    ("the quick", "  brown "),
    ("the quick", "\n\nfox"),
    ("", "the quick brown fox"),
    ("", " the"),
    ("", "<|im_start|>user"),
    ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello<|im_end|>"),
    ("Ünïcödé ☃ 漢字", " 🦊 jumps"),
    ("e\u0301", "\u0301e"),
    ("the lazy dog", " fox"),
    ("the lazy dog", " jumps over"),
    ("the lazy dog", " jumps over"),
    ("the lazy dog is", " quick"),
    ("over " * 400, "the lazy dog"),
    ("over " * 400 + "the", " lazy dog"),
    ("over", " the" * 300),
]


def test_likelihoods_and_greedy_flags_are_those_of_the_harness(pair: Pair) -> None:
    contexts = ["the", "the quick brown", "over the lazy dog ☃", "", "user assistant"]
    requests = AWKWARD + [(context, pair.greedy(context)) for context in contexts if context]
    ours, theirs = pair.ask("loglikelihood", requests)
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-9)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in theirs} == {True, False}


def test_whole_texts_of_any_length_have_the_likelihood_that_the_harness_gives_them(pair: Pair) -> None:
    # the tiny Llama reads 512 tokens; a window may also end exactly there
    token = len(pair.ours.tokenizer.encode(" fox fox")) - len(pair.ours.tokenizer.encode(" fox"))
    texts = ["fox", "", "Ünï ☃", *(" fox" * (count // token) for count in (511, 512, 513, 1100))]
    ours, theirs = pair.ask("loglikelihood_rolling", [(text,) for text in texts])
    assert ours == pytest.approx(theirs, abs=1e-8)


@pytest.mark.parametrize(
    "until",
    [
        [],
        ["the", "ox "],
        ["<|im_start|>"],
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (["\n"], ["a"], ["never written, I hope"], ["e", "<|im_end|>"])
        ),
    ],
    ids=repr,
)
def test_greedy_answers_are_those_of_the_harness(pair: Pair, until: list[str]) -> None:
    long = " ".join(f"{i} over" for i in range(300))
    contexts = ["the quick", "over the lazy dog ", "<|im_start|>user\nHi<|im_end|>\n", "☃ 漢", long]
    options = {"until": until, "max_gen_toks": 24, "do_sample": False}
    ours, theirs = pair.ask("generate_until", [(context, options) for context in contexts])
    assert ours == theirs


def test_the_chat_template_gives_what_the_harness_gives(pair: Pair) -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for messages, generation in ((history[:1], True), (history, False)):
        assert pair.ours.apply_chat_template(messages, generation) == pair.theirs.apply_chat_template(
            messages, generation
        )


def test_the_chat_template_gets_its_options(pair: Pair) -> None:
    history = [{"role": "user", "content": "Hi"}]
    tokenizer = copy.deepcopy(pair.memory.tokenizer)
    tokenizer.chat_template = "{{ mood }}" + tokenizer.chat_template
    options = {"mood": "quick"}
    from spintune.evaluation.harness_model import HarnessModel

    ours = HarnessModel(replace(pair.memory, tokenizer=tokenizer, template_options=options), Silent(), "test")
    assert ours.apply_chat_template(history) == "quick" + pair.ours.apply_chat_template(history)


@pytest.mark.slow
def test_an_encoder_decoder_scores_and_writes_as_in_the_harness(tiny_t5: Path) -> None:
    pytest.importorskip("lm_eval")
    pair = loaded(tiny_t5)
    requests = [(context, text) for context, text in AWKWARD if "\u0301" not in text and context]
    ours, theirs = pair.ask("loglikelihood", requests)
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-9)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    # HFLM lets an encoder-decoder write as many tokens more as its prompt has, unless max_length is given
    options = {"until": ["7"], "max_gen_toks": 12, "do_sample": False}
    contexts = ["the quick", "over the lazy dog"]
    ours, _ = pair.ask("generate_until", [(context, options) for context in contexts])
    theirs = pair.theirs.generate_until(
        pair.instances("generate_until", [(c, options | {"max_length": 13}) for c in contexts])
    )
    assert ours == theirs
    assert all(ours)


def test_a_model_with_learned_positions_is_used_to_its_last_one(tiny_model: Path) -> None:
    pytest.importorskip("lm_eval")
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=2, n_head=2))
    pair = Pair(model, tokenizer, frozenset({1}))
    ours, theirs = pair.ask("loglikelihood_rolling", [("the quick brown fox jumps over the lazy dog " * 4,)])
    assert ours == pytest.approx(theirs, abs=1e-9)
    ours, theirs = pair.ask("loglikelihood", [("the quick brown fox " * 5, "jumps over"), ("the", " quick" * 3)])
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=1e-9)


def test_options_of_generation_that_would_be_ignored_are_refused(tiny_model: Path) -> None:
    pytest.importorskip("lm_eval")
    pair = loaded(tiny_model)
    with pytest.raises(ModelError, match="generation with num_beams is not supported"):
        pair.ask("generate_until", [("the", {"until": [], "num_beams": 4})])
    with pytest.raises(ModelError, match="answers of 512 tokens leave no room for a prompt in the 512 tokens"):
        pair.ask("generate_until", [("the", {"until": [], "max_gen_toks": 512})])


def test_a_text_that_ends_answers_ends_the_writing(tiny_model: Path) -> None:
    pytest.importorskip("lm_eval")
    from spintune.evaluation.harness_model import HarnessModel

    pair, notes = loaded(tiny_model), Notes()
    lm = HarnessModel(pair.memory, notes, "test")

    def answer(context: str, until: list[str]) -> str:
        options = {"until": until, "max_gen_toks": 24, "do_sample": False}
        return lm.generate_until(pair.instances("generate_until", [(context, options)]))[0]

    contexts = ["the", "fox", "over the lazy", "user assistant", "quick brown"]
    ends = {context: re.search(r"\w\w\w\w\w\w", answer(context, []), re.ASCII) for context in contexts}
    context, end = next((c, e) for c, e in ends.items() if e and len(lm.tokenizer.encode(e[0])) > 1)
    notes.done = 0
    assert answer(context, [end[0]]) == end.string[: end.start()]
    assert 2 <= notes.done < 24


def test_sampled_answers_depend_on_their_seed_alone(tiny_model: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from spintune.evaluation.harness_model import HarnessModel
    from spintune.progress import Silent

    memory = loaded(tiny_model).memory
    options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}

    def answers(seed: int, contexts: list[str]) -> list[str]:
        lm = HarnessModel(memory, Silent(), "test", seed)
        return lm.generate_until([Instance("generate_until", {}, (text, options), 0) for text in contexts])

    first = answers(0, ["the quick", "over the"])
    assert answers(0, ["over the", "the quick"]) == first[::-1]
    assert answers(1, ["the quick", "over the"]) != first


# Benchmarks --------------------------------------------------------------------------------------------------------


class Notes:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done = 0.0

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Notes]:
        yield self

    def advance(self, amount: float = 1, **facts: Any) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def reference(pair: Pair, task: Any, shots: int = 0, chat: bool = False) -> Any:
    """What the harness itself computes with its own model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_defaults=False).load([task])
    for each in tasks["tasks"].values():
        each.set_config(key="num_fewshot", value=shots)
        each.set_fewshot_seed(seed=1234)
    return lm_eval.evaluate(
        lm=pair.theirs, task_dict=tasks, bootstrap_iters=0, apply_chat_template=chat, fewshot_as_multiturn=chat
    )


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"Who {ANIMALS[i % 5]} {i}?", "options": ANIMALS[: 2 + i % 4], "right": i % (2 + i % 4)}
        for i in range(count)
    ]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_multiple_choice_gives_the_harness_numbers_for_every_document(
    tiny_model: Path, tmp_path: Path, chat: bool
) -> None:
    pytest.importorskip("lm_eval")
    pair = loaded(tiny_model)
    path = written_to(tmp_path, questions(20), {**MULTIPLE_CHOICE, "shots": 2})
    report = run_benchmarks(pair.memory, [Benchmark(str(path))], chat=chat)
    (result,) = report.results
    expected = reference(pair, read_custom_task(path).config(), shots=2, chat=chat)
    for metric in ("acc,none", "acc_norm,none"):
        assert result.metrics[metric].value == expected["results"]["quiz"][metric]
    samples = expected["samples"]["quiz"]
    assert [row.doc_hash for row in result.rows] == [sample["doc_hash"] for sample in samples]
    assert [row.prompt_hash for row in result.rows] == [sample["prompt_hash"] for sample in samples]
    assert [row.scores["acc,none"] for row in result.rows] == [sample["acc"] for sample in samples]
    for row, sample in zip(result.rows, samples, strict=True):
        assert [logprob for logprob, _ in row.responses] == pytest.approx([r[0][0] for r in sample["resps"]], abs=1e-9)
    assert 0 < result.metrics["acc,none"].value < 1
    assert (result.task, result.metric, result.shots) == ("quiz", "acc,none", 2)


def test_the_interval_of_an_accuracy_is_the_bootstrap_of_its_documents(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from spintune.evaluation.statistics import bootstrap

    path = written_to(tmp_path, questions(12), MULTIPLE_CHOICE)
    (result,) = run_benchmarks(loaded(tiny_model).memory, [Benchmark(str(path))]).results
    accuracy = result.metrics["acc,none"]
    expected = bootstrap([row.scores["acc,none"] for row in result.rows])
    assert (accuracy.value, accuracy.low, accuracy.high) == (expected.mean, expected.low, expected.high)
    assert expected.low < accuracy.value < expected.high


def test_generated_answers_are_measured_against_all_references(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pair = loaded(tiny_model)
    prompts = ["the quick", "over the"]
    options = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    written = pair.ask("generate_until", [(f"{prompt}:", options) for prompt in prompts])[1]
    rows = [{"ask": prompts[0], "gold": ["something else", written[0]]}, {"ask": prompts[1], "gold": "no such answer"}]
    task = {"kind": "generate", "prompt": "{ask}:", "answer": "gold", "max_new_tokens": 6}
    (result,) = run_benchmarks(pair.memory, [Benchmark(str(written_to(tmp_path, rows, task)))]).results
    assert [row.scores["exact_match,none"] for row in result.rows] == [1.0, 0.0]
    assert [row.responses for row in result.rows] == [[text] for text in written]
    assert (result.metric, result.metrics["exact_match,none"].value) == ("exact_match,none", 0.5)


@pytest.mark.parametrize(
    ("extract", "check", "text", "reference_", "right"),
    [
        (None, "text", " the  fox\n", "the fox", 1.0),
        (None, "text", "a fox", "the fox", 0.0),
        (r"#### (\S+)", "text", "#### 3, no: #### 4 eggs", "4", 1.0),
        (r"#### (\S+)", "text", "4", "4", 0.0),
        (r"\d+", "text", "3 and 4", "4", 1.0),
        (None, "number", "So it is $1,000.00.", "#### 1000", 1.0),
        (None, "number", "So it is 999.", "#### 1000", 0.0),
        (None, "number", "nothing", "no number either", 0.0),
    ],
)
def test_what_counts_as_the_right_answer(
    tmp_path: Path, extract: str | None, check: str, text: str, reference_: str, right: float
) -> None:
    task = {"kind": "generate", "prompt": "{ask}", "answer": "gold", "check": check}
    path = written_to(tmp_path, [{"ask": "x", "gold": reference_}], task | ({"extract": extract} if extract else {}))
    measure = read_custom_task(path).config()["process_results"]
    assert measure({"answers": [reference_]}, [text])["exact_match"] == right


def test_likelihood_of_answers_in_bits_a_byte(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pair = loaded(tiny_model)
    rows = [{"ask": "the quick", "gold": "brown fox"}, {"ask": "over the", "gold": "lazy ☃ dog"}]
    task = {"kind": "loglikelihood", "prompt": "{ask}", "answer": "gold"}
    (result,) = run_benchmarks(pair.memory, [Benchmark(str(written_to(tmp_path, rows, task)))]).results
    scores = pair.ask("loglikelihood", [("the quick", " brown fox"), ("over the", " lazy ☃ dog")])[1]
    bits = -sum(logprob for logprob, _ in scores) / math.log(2) / (10 + 13)  # a snowman is 3 bytes
    metric = result.metrics["bits_per_byte,none"]
    assert metric.value == pytest.approx(bits, abs=1e-9)
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low <= bits <= metric.high
    assert not metric.higher_is_better
    assert result.metric == "bits_per_byte,none"


def test_first_documents_only_and_other_shots(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    path = written_to(tmp_path, questions(9), MULTIPLE_CHOICE)
    memory = loaded(tiny_model).memory
    (plain,) = run_benchmarks(memory, [Benchmark(str(path))], limit=4).results
    (shots,) = run_benchmarks(memory, [Benchmark(str(path), shots=3)], limit=4).results
    assert len(plain.rows) == len(shots.rows) == 4
    assert (plain.shots, shots.shots) == (0, 3)
    assert [row.doc_hash for row in plain.rows] == [row.doc_hash for row in shots.rows]
    assert all(a.prompt_hash != b.prompt_hash for a, b in zip(plain.rows, shots.rows, strict=True))


def test_exemplars_from_a_file_are_its_first_rows(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    written_to(tmp_path, questions(6)[::-1], MULTIPLE_CHOICE, name="other")
    path = written_to(tmp_path, questions(3), {**MULTIPLE_CHOICE, "shots": 1, "shots_data": "other.jsonl"})
    task = TaskManager(include_defaults=False).load([read_custom_task(path).config()])["tasks"]["quiz"]
    task.set_fewshot_seed(seed=1234)
    prompt = task.fewshot_context(task.eval_docs[0], 1)
    assert prompt == "Q: Who fox 5?\nA: quick\n\nQ: Who fox 0?\nA:"


def test_a_task_that_fails_is_left_out_with_one_line_and_the_others_go_on(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    good = written_to(tmp_path, questions(2), MULTIPLE_CHOICE, name="good")
    task = {"kind": "generate", "prompt": "{question}", "answer": "right", "max_new_tokens": 600}
    bad = written_to(tmp_path, questions(2), task, name="bad")
    notes = Notes()
    report = run_benchmarks(
        loaded(tiny_model).memory, benchmarks([str(bad), str(good)]), progress=notes, name="iterate-1"
    )
    assert [result.task for result in report.results] == ["good"]
    assert list(report.failed) == ["bad"]
    assert "answers of 600 tokens leave no room" in report.failed["bad"]
    assert notes.notes == [f"bad skipped: {report.failed['bad']}"]


def test_rows_and_report_are_json_and_rows_come_back(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import orjson

    path = written_to(tmp_path, questions(3), MULTIPLE_CHOICE)
    report = run_benchmarks(loaded(tiny_model).memory, [Benchmark(str(path))])
    for row in report.results[0].rows:
        assert from_json(HarnessItem, orjson.loads(orjson.dumps(to_json(row))), "here") == row
    document = orjson.loads(orjson.dumps(to_json(report)))
    assert document["results"][0]["documents"] == 3
    assert document["results"][0]["metrics"]["acc,none"]["value"] == report.results[0].metrics["acc,none"].value


def test_the_generators_of_torch_and_numpy_are_not_touched(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import numpy as np
    import torch

    path = written_to(tmp_path, questions(3), {**MULTIPLE_CHOICE, "shots": 1})
    memory = loaded(tiny_model).memory
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_benchmarks(memory, [Benchmark(str(path))])
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


# The harness's own tasks; reading its index takes ten seconds ------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and no waiting for it."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def standard_data(folder: Path, task: str, **splits: list[dict[str, Any]]) -> None:
    (folder / task).mkdir(parents=True)
    for split, rows in splits.items():
        (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k(count: int, first: int = 0) -> list[dict[str, Any]]:
    numbers = range(first, first + count)
    return [{"question": f"{i} foxes and {i} dogs?", "answer": f"{i} + {i} = {2 * i}.\n#### {2 * i}"} for i in numbers]


@pytest.mark.slow
def test_gsm8k_runs_on_local_files_with_the_harness_own_definition(
    tiny_model: Path, tmp_path: Path, offline: None
) -> None:
    pytest.importorskip("lm_eval")
    standard_data(tmp_path, "gsm8k", train=gsm8k(9), test=gsm8k(4, 10))
    pair = loaded(tiny_model)
    notes = Notes()
    # the tiny model reads 512 tokens and the task asks for 256, so its five exemplars are two here
    report = run_benchmarks(
        pair.memory, benchmarks(["gsm8k", "hellaswag"], shots=2), data_dir=tmp_path, progress=notes, limit=3
    )
    (result,) = report.results
    assert (result.task, result.shots, len(result.rows)) == ("gsm8k", 2, 3)
    assert set(result.metrics) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert set(result.rows[0].scores) == set(result.metrics)
    assert notes.notes == [f"hellaswag skipped: {report.failed['hellaswag']}"]
    assert "connect, or give its data" in report.failed["hellaswag"]


@pytest.mark.slow
def test_a_group_is_the_mean_over_the_documents_of_its_parts(tiny_model: Path, tmp_path: Path, offline: None) -> None:
    pytest.importorskip("lm_eval")
    from spintune.evaluation.harness import _all_tasks

    parts = [
        name
        for name, entry in _all_tasks().task_index.items()
        if "mmlu_stem_tasks" in entry.tags
        if name != "mmlu_stem_tasks"
    ]
    rows = [{"question": f"Who {word}?", "choices": ANIMALS[:4], "answer": i % 4} for i, word in enumerate(ANIMALS)]
    for number, part in enumerate(parts):
        standard_data(tmp_path, part, test=rows[: 1 + number % 3], dev=rows)
    report: HarnessReport = run_benchmarks(loaded(tiny_model).memory, benchmarks(["mmlu_stem"]), data_dir=tmp_path)
    (result,) = report.results
    assert {row.task for row in result.rows} == set(parts)
    assert len(parts) > 10
    accuracy = result.metrics["acc,none"]
    assert accuracy.value == pytest.approx(sum(row.scores["acc,none"] for row in result.rows) / len(result.rows))
    assert accuracy.low is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "folder", "message"),
    [
        (["helaswag"], None, "no benchmark is called 'helaswag'; did you mean hellaswag"),
        (["gsm8k"], "gsm9k", "no task is called 'gsm9k'; did you mean gsm8k"),
        (["gsm8k"], "mmlu", "no task is called 'mmlu'"),
    ],
)
def test_a_name_that_no_task_has_is_an_error_before_anything_runs(
    tiny_model: Path, tmp_path: Path, names: list[str], folder: str | None, message: str
) -> None:
    pytest.importorskip("lm_eval")
    if folder:
        standard_data(tmp_path, folder, test=gsm8k(1))
    with pytest.raises(RecipeError, match=message):
        run_benchmarks(loaded(tiny_model).memory, benchmarks(names), data_dir=tmp_path if folder else None)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the repository")
def test_gsm8k_of_the_real_model_is_what_the_harness_computes_with_its_own(
    smollm2: Path, tmp_path: Path, offline: None
) -> None:
    pytest.importorskip("lm_eval")
    import lm_eval

    from spintune.evaluation.harness import _all_tasks, _with_local_data

    data, yamls = tmp_path / "data", tmp_path / "yaml"
    (data / "gsm8k").mkdir(parents=True)
    yamls.mkdir()
    for split in ("train", "test"):
        (data / "gsm8k" / f"{split}.jsonl").symlink_to(SHARED / f"gsm8k_{split}.jsonl")
    pair = loaded(smollm2)
    (result,) = run_benchmarks(pair.memory, benchmarks(["gsm8k"], shots=1), data_dir=data, limit=2).results
    tasks = _with_local_data(_all_tasks(), data, yamls).load(["gsm8k"])
    tasks["tasks"]["gsm8k"].set_config(key="num_fewshot", value=1)
    tasks["tasks"]["gsm8k"].set_fewshot_seed(seed=1234)
    expected = lm_eval.evaluate(lm=pair.theirs, task_dict=tasks, limit=2, bootstrap_iters=0)
    texts = {sample["doc_id"]: sample["resps"][0] for sample in expected["samples"]["gsm8k"]}
    assert [row.responses for row in result.rows] == [texts[row.doc_id] for row in result.rows]
    for metric, value in result.metrics.items():
        assert value.value == expected["results"]["gsm8k"][metric]
