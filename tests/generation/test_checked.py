"""What a generator writes is what plain forwards without a cache say, or a slower one takes over."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from tiny_models import LONGROPE
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError
from spintune.generation.batch import BatchGenerator
from spintune.generation.build import build_generator, find_paths
from spintune.generation.checked import DEFINITION
from spintune.generation.plain import PlainGenerator
from spintune.generation.sampling import Sampling
from spintune.recipe import Recipe
from spintune.stages.run_engine import RunEngines

NEW = 8
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
FAMILIES = {
    # two attention calls of a layer
    "diffllama": ({}, "batch"),
    # heads of two widths
    "gemma4_text": (
        {"head_dim": 8, "global_head_dim": 16, "sliding_window": 7, "vocab_size_per_layer_input": 97},
        "batch",
    ),
    # views the output of attention
    "afmoe": (
        {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
        "batch",
    ),
    # a score that takes its share of attention
    "gpt_oss": ({"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 7}, "batch"),
    # counts positions from 0 again without position_ids
    "minimax": ({"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 4}, "plain"),
    # frequencies by the longest position of a call
    "llama": ({"rope_parameters": LONGROPE}, "batch"),
    "qwen2": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, "max_position_embeddings": 20},
        "batch",
    ),
}
# short, long, and one whose answer passes 20 tokens
PROMPTS = [tuple((7 * i * i + i) % 97 for i in range(n)) for n in (3, 30, 16, 12, 27, 4)]


def wide(family, **changes):
    """Wide weights: what a token sees changes its prediction by whole nats."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **changes}), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model.eval()


def logits_by_definition(model, prompt, written):
    """The next token's logits by a model that has read nothing else."""
    with torch.no_grad():
        return copy.deepcopy(model)(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_plain_forwards_without_a_cache(family, words):
    changes, path = FAMILIES[family]
    reference = wide(family, **changes)
    generator = build_generator(LogProbEngine(wide(family, **changes)), words, frozenset())
    assert generator.chosen[0] == path
    for completions in (generator.generate(PROMPTS, Sampling(NEW, temperature=0)) for _ in range(2)):
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            assert len(completion.ids) == NEW
            logprob = 0.0
            for i, token in enumerate(completion.ids):
                logprobs = logits_by_definition(reference, prompt, completion.ids[:i]).log_softmax(-1)
                assert logprobs[token] >= logprobs.max() - 1e-3
                logprob += float(logprobs[token])
            assert completion.logprob == pytest.approx(logprob, abs=1e-3)


def test_an_answer_does_not_depend_on_a_long_prompt_beside_it(words, caplog):
    engine = LogProbEngine(wide("llama", rope_parameters=LONGROPE))
    generator = BatchGenerator(engine, words, frozenset())
    with caplog.at_level(logging.WARNING, "spintune"):
        together = generator.generate(PROMPTS, Sampling(NEW, temperature=0))
        generator.generate(PROMPTS, Sampling(NEW, temperature=0))
    (told,) = [record.getMessage() for record in caplog.records if "is written alone" in record.getMessage()]
    assert told.startswith("1 of 6 answers may cross 20 tokens")
    apart = [generator.generate([prompt], Sampling(NEW, temperature=0))[0] for prompt in PROMPTS]
    assert [c.ids for c in together] == [c.ids for c in apart]
    assert engine.scores_as_drawn(3, NEW)
    assert not engine.scores_as_drawn(16, NEW)
    assert engine.scores_as_drawn(30, NEW)


def test_a_wrong_cache_is_found_out_and_told_with_its_price(words, monkeypatch, caplog):
    own = PlainGenerator._more

    def forgets(self, ids, cache, read):
        return own(self, ids, None, 0)

    monkeypatch.setattr(PlainGenerator, "_more", forgets)
    engine = LogProbEngine(wide("bloom"))
    generator = build_generator(engine, words, frozenset())
    with caplog.at_level(logging.WARNING, "spintune"):
        (completion,) = generator.generate([PROMPTS[2]], Sampling(NEW, temperature=0))
    assert generator.chosen[0] == DEFINITION
    assert "every token reads the whole text again" in caplog.text
    expected = []
    for _ in range(NEW):
        expected.append(int(logits_by_definition(engine.model, PROMPTS[2], expected).argmax()))
    assert completion.ids == tuple(expected)
    with pytest.raises(ModelError, match=r"cannot generate: plain is .* nats off plain forwards"):
        build_generator(engine, words, frozenset(), "plain").generate([PROMPTS[2]], Sampling(NEW))


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_models_own_sampling_settings_are_never_applied(family, words):
    written = []
    for own in ({}, {"do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.1, "repetition_penalty": 9.0}):
        model = wide(family)
        model.generation_config = GenerationConfig(**own)
        generator = build_generator(LogProbEngine(model), words, frozenset())
        written.append([generator.generate(PROMPTS, sampling) for sampling in (Sampling(NEW), Sampling(NEW, 0))])
    assert written[0] == written[1]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_ids_beyond_the_tokenizer_are_drawn_kept_and_scored(family, words):
    """Embeddings are often padded beyond the vocabulary."""
    engine = LogProbEngine(wide(family, vocab_size=200))
    written = build_generator(engine, words, frozenset()).generate(PROMPTS, Sampling(NEW))
    assert max(id for completion in written for id in completion.ids) >= len(words) == 97
    scores = engine.score([Query(prompt, (one.ids,)) for prompt, one in zip(PROMPTS, written, strict=True)])
    assert [one.logprob for one in written] == pytest.approx([score for (score,) in scores], abs=1e-3)
    for completion in written:
        known = [id for id in completion.ids if id < len(words)]
        assert completion.text.split() == words.decode(known).split()


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj"])
@pytest.mark.parametrize("name", ["batch", "plain"])
def test_an_answer_ends_at_the_last_position(family, name, words, caplog):
    changes = {"max_position_embeddings": 20, "n_positions": 20, "n_embd": 32, "n_layer": 2, "n_head": 4, "ffn_dim": 48}
    changes |= {"word_embed_proj_dim": 32, "rotary_dim": 4}
    engine = LogProbEngine(wide(family, **changes))
    if name == "batch" and not engine.packed:
        pytest.skip("it cannot be packed")
    generator = build_generator(engine, words, frozenset(), name)
    with caplog.at_level(logging.WARNING, "spintune"):
        written = generator.generate([PROMPTS[0], PROMPTS[2]], Sampling(NEW, temperature=0))
    assert [len(completion.ids) for completion in written] == [NEW, 4]
    assert written[1].finish_reason == "length"
    assert "1 of 2 answers end at the model's last position" in caplog.text
    with pytest.raises(ModelError, match="30 tokens leaves no position"):
        generator.generate([PROMPTS[1]], Sampling(NEW))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_paths_say_which_way_and_why(dtype, words):
    packed = find_paths(LogProbEngine(wide("llama").to(dtype)), words)
    assert packed.lines() == [
        "scores: packed (equal to plain forwards)",
        "generation: batch (its texts have the scores of plain forwards)",
    ]
    alone = find_paths(LogProbEngine(wide("bloom").to(dtype)), words)
    assert (alone.scores, alone.generation) == ("one row at a time", "plain")


def test_what_was_found_out_holds_for_the_same_weights_and_for_no_others(words, caplog):
    """bloom is scored alone and takes the plain generator, also when its engine is told so and computes nothing."""
    engines, recipe = RunEngines(), Recipe(out="x", model="x", data={"train": "x"})

    def found(model, weights):
        """What an engine of it knows, which generator it takes and why, and how often the model was called for that."""
        calls, model = [], copy.deepcopy(model)
        model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
        engine = engines.engine(recipe, model, None, weights)
        name, generator, why = build_generator(engine, words, frozenset()).chosen
        assert engine.model is model
        return (engine.packed, engine.why, engine.row_limit, name, type(generator), why), len(calls)

    bloom = wide("bloom")
    first, calls = found(bloom, "bloom")
    assert first[0] is False
    assert first[4] is PlainGenerator
    assert calls
    caplog.clear()
    assert found(bloom, "bloom") == (first, 0)
    assert not caplog.records
    other, calls = found(wide("llama"), "llama")
    assert (other[0], other[4]) == (True, BatchGenerator)
    assert calls
