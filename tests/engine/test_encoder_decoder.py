"""Encoder-decoder models: packed = one at a time = transformers, for log-probabilities, gradients and generation."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError
from spintune.generation.batch import BatchGenerator, GenerationLimits
from spintune.generation.build import build_generator
from spintune.generation.plain import PlainGenerator
from spintune.generation.sampling import Sampling
from spintune.models.loading import is_encoder_decoder, load_model
from spintune.models.lora import dropout
from spintune.models.saving import save_folder

VOCABULARY = 97
NEW = 14
START = 0

# eight buckets up to a distance of 12: prompts and responses go through all of them and beyond
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": START,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
}
FAMILIES = {
    "t5": ("t5", T5),
    "flan-t5": ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "umt5": ("umt5", {**T5, "feed_forward_proj": "gated-gelu"}),
}
OTHERS = {"bart": ("bart", BART), "longt5": ("longt5", {**T5, "local_radius": 4})}
UNTIED = ("flan-t5", "mt5")

PROMPTS = [(5, 17, 88, 2, 60, 31, 9, 44, 71), (63,), (8, 90, 33, 12), tuple(range(20, 47)), (77, 3, 52, 40, 18, 66)]


def build(name, dtype=torch.float64, seed=3):
    """A fresh random model; equal arguments give equal weights."""
    family, values = {**FAMILIES, **OTHERS}[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **values), dtype=torch.float64).eval()
        if name in UNTIED:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    # what a token sees then changes its prediction by whole nats, and a scaled head is seen at once
                    parameter.normal_(0, 0.3)
    return model.to(dtype)


def plain(model, queries):
    """The definition: one call of the whole model a response, decoder_start_token first, scored tokens summed."""
    sums = []
    for query in queries:
        for j, response in enumerate(query.responses):
            scored = query.scored[j] if query.scored else (True,) * len(response)
            inputs = torch.tensor([[model.config.decoder_start_token_id, *response[:-1]]])
            logprobs = model(input_ids=torch.tensor([query.prompt]), decoder_input_ids=inputs).logits[0].log_softmax(-1)
            terms = [logprobs[i, token] for i, token in enumerate(response) if scored[i]]
            sums.append(torch.stack(terms).sum() if terms else logprobs.sum() * 0)
    return torch.stack(sums)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def largest_difference(mine, theirs):
    """Over all tensors, relative to each one's largest entry."""
    assert mine.keys() == theirs.keys()
    return max(float((mine[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp(min=1e-6)) for n in mine)


# T5's layer norm takes its variance in float32 whatever the weights are
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_one_response_at_a_time_in_values_and_gradients(name, dtype, near, queries):
    reference = build(name, dtype)
    expected = plain(reference, queries)
    weights = torch.linspace(-1, 1, len(expected), dtype=dtype)
    (weights * expected).sum().backward()

    engine = LogProbEngine(build(name, dtype))
    assert engine.packed
    result = engine(queries)
    (weights * result.sum_N).sum().backward()
    torch.testing.assert_close(result.sum_N, expected, rtol=near, atol=near)
    assert result.count_N.tolist() == [11, 1, 8, 1, 12, 6, 0, 6]
    assert largest_difference(gradients(engine.model), gradients(reference)) < 10 * near


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_one_transformers_computes_from_labels(name):
    model = build(name, torch.float32)
    prompt, labels = PROMPTS[3], (9, 4, 61, 33, 1)
    expected = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([labels])).loss.item()
    mean = LogProbEngine(model)([Query(prompt, (labels,))]).token_M.mean().item()
    assert -mean == pytest.approx(expected, rel=1e-5)


def test_only_t5_of_the_first_version_scales_what_the_head_reads(queries):
    """T5 multiplies the decoder's output by d_model ** -0.5 where it says so; all else equal, logits differ by that."""
    first, later = build("t5"), build("t5")
    later.config.scale_decoder_outputs = False
    hidden = [LogProbEngine(model).backbone.hidden(queries) for model in (first, later)]
    torch.testing.assert_close(hidden[0] * 32**0.5, hidden[1])
    for model in (first, later):
        engine = LogProbEngine(model)
        assert engine.packed
        packed = engine(queries).sum_N
        torch.testing.assert_close(packed, plain(model, queries), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_other_encoder_decoders_are_computed_one_at_a_time(name, queries, caplog):
    model = build(name)
    expected = plain(model, queries)
    engine = LogProbEngine(model)
    assert not engine.packed
    assert "each response is computed alone" in caplog.text
    torch.testing.assert_close(engine(queries).sum_N, expected)


def test_the_encoder_runs_once_for_all_responses_to_a_prompt(queries):
    model = build("flan-t5")
    engine = LogProbEngine(model)
    read = []
    model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    engine(queries)
    assert read == [sum(len(query.prompt) for query in queries)]


def test_the_head_runs_only_where_a_token_counts(queries):
    model = build("flan-t5")
    engine = LogProbEngine(model)
    rows = []
    model.lm_head.register_forward_hook(lambda _, args, output: rows.append(output.shape[0]))
    engine(queries)
    assert rows == [11 + 1 + 8 + 1 + 12 + 6 + 0 + 6]


def test_other_queries_in_the_row_change_nothing(queries):
    engine = LogProbEngine(build("t5"))
    together = engine(queries).sum_N
    apart = torch.cat([engine([query]).sum_N for query in queries])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_engine_and_generator_leave_the_model_as_it_was(name, queries, words):
    model = build(name)
    ids, inputs = torch.tensor([PROMPTS[0]]), torch.tensor([[START, 5, 6]])

    def plainly():
        logits = model(input_ids=ids, decoder_input_ids=inputs).logits
        return logits, *(transformers_greedy(model, prompt, frozenset()) for prompt in PROMPTS)

    before = plainly()
    engine = LogProbEngine(model)
    assert engine.packed
    for use in (
        lambda: engine(queries).sum_N.sum().backward(),
        lambda: engine.score(queries),
        lambda: BatchGenerator(engine, words, frozenset()).generate(PROMPTS, Sampling(NEW)),
    ):
        use()
        after = plainly()
        assert torch.equal(after[0], before[0])
        assert after[1:] == before[1:]


def test_inside_packing_a_model_without_a_layout_refuses_instead_of_seeing_everything():
    engine = LogProbEngine(build("t5"))
    with engine.backbone.packing(), pytest.raises(ModelError, match="needs a layout"):
        engine.model(input_ids=torch.tensor([PROMPTS[0]]), decoder_input_ids=torch.tensor([[START]]))


def test_a_model_without_a_start_token_is_one_line():
    model = build("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="no decoder_start_token_id"):
        LogProbEngine(model)


def test_dropout_is_a_stream_of_its_own_and_leaves_no_trace(queries):
    model = build("flan-t5")
    engine = LogProbEngine(model)
    exact = engine(queries).sum_N
    state = torch.get_rng_state()

    def drawn(key, rate):
        with dropout(model, key, rate):
            return engine(queries).sum_N

    assert torch.equal(drawn("a", 0.3), drawn("a", 0.3))
    assert not torch.allclose(drawn("a", 0.3), drawn("b", 0.3))
    assert not torch.allclose(drawn("a", 0.3), exact)
    assert torch.equal(drawn("a", 0.0), exact)
    assert torch.equal(engine(queries).sum_N, exact)
    assert torch.equal(torch.get_rng_state(), state)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}


def test_dropout_drops_in_every_place_that_transformers_does(queries):
    """At a rate of nearly 1 nothing but the residual stream's zeros is left: all tokens become equally likely."""
    engine = LogProbEngine(build("flan-t5"))
    with dropout(engine.model, "a", 1 - 1e-12):
        logprobs = engine(queries).token_M
    torch.testing.assert_close(logprobs, torch.full_like(logprobs, -math.log(VOCABULARY)))


def test_dropout_of_a_decoder_only_model_is_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match="only with encoder-decoder models"), dropout(model, "a", 0.1):
        pass


# Generation --------------------------------------------------------------------------------------------------------


def transformers_greedy(model, prompt, stop_ids):
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=sorted(stop_ids) or None,
        forced_eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(output[0, 1:].tolist())


@pytest.mark.parametrize(
    "name", ["t5", "flan-t5", "bart", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mt5", "umt5"))]
)
def test_greedy_equals_transformers_generate_token_for_token(name, words):
    reference = build(name)
    free = [transformers_greedy(reference, prompt, frozenset()) for prompt in PROMPTS]
    stop_ids = frozenset({free[0][2], free[4][7]})
    expected = [transformers_greedy(reference, prompt, stop_ids) for prompt in PROMPTS]
    assert any(len(ids) < NEW for ids in expected)

    built = build_generator(LogProbEngine(build(name)), words, stop_ids)
    assert isinstance(built.chosen[1], PlainGenerator if name == "bart" else BatchGenerator)
    generators = [built]
    if name != "bart":  # sequences that wait for a slot, and prompts that wait for a call
        generators += [
            BatchGenerator(built.engine, words, stop_ids, limits)
            for limits in (GenerationLimits(2), GenerationLimits(4, prefill_tokens=5))
        ]
    for generator in generators:
        completions = generator.generate(PROMPTS, Sampling(NEW, temperature=0))
        assert [completion.ids for completion in completions] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_draw_is_as_likely_as_the_engine_says(name, words):
    engine = LogProbEngine(build(name))
    generator = build_generator(engine, words, frozenset(range(0, VOCABULARY, 9)))
    completions = generator.generate(PROMPTS * 4, Sampling(NEW, seed=3))
    queries = [Query(prompt, (c.ids,)) for prompt, c in zip(PROMPTS * 4, completions, strict=True)]
    assert len({len(c.ids) for c in completions}) > 3
    for completion, (score,) in zip(completions, engine.score(queries), strict=True):
        assert completion.logprob == pytest.approx(score, abs=1e-4)  # draws are made in float32


def test_an_answer_depends_neither_on_order_nor_on_company(words):
    engine = LogProbEngine(build("flan-t5"))
    stop_ids = frozenset(range(0, VOCABULARY, 9))
    generator = build_generator(engine, words, stop_ids)
    alone = [generator.generate([prompt], Sampling(NEW, seed=3))[0] for prompt in PROMPTS]
    assert generator.generate(PROMPTS[::-1], Sampling(NEW, seed=3))[::-1] == alone
    few = BatchGenerator(engine, words, stop_ids, GenerationLimits(2, prefill_tokens=5))
    assert few.generate(PROMPTS, Sampling(NEW, seed=3)) == alone


# Folders -----------------------------------------------------------------------------------------------------------


def scores(model):
    return LogProbEngine(model)([Query(PROMPTS[0], ((5, 9, 1),))]).sum_N.item()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_comes_back_head_and_all(name, words, tmp_path):
    model = build(name, torch.float32)
    expected = plain(model, [Query(PROMPTS[0], ((5, 9, 1),))]).item()
    model.save_pretrained(tmp_path / "given")
    words.save_pretrained(tmp_path / "given")
    loaded = load_model(str(tmp_path / "given"), cache=tmp_path)
    assert loaded.encoder_decoder
    assert is_encoder_decoder(str(tmp_path / "given"), cache=tmp_path)
    assert scores(loaded.model) == pytest.approx(expected, abs=1e-4)
    save_folder(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved")
    assert plain(again, [Query(PROMPTS[0], ((5, 9, 1),))]).item() == pytest.approx(expected, abs=1e-4)
    assert ("lm_head.weight" in load_file(tmp_path / "saved" / "model.safetensors")) == (name in UNTIED)
    # other versions of transformers tie and scale by this alone
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] == (name not in UNTIED)


def test_weights_kept_in_float16_are_computed_in_float32(words, tmp_path):
    build("flan-t5", torch.float16).save_pretrained(tmp_path / "half")
    words.save_pretrained(tmp_path / "half")
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    loaded = load_model(str(tmp_path / "half"), cache=tmp_path, device=torch.device("cpu"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.autocast is None
    assert math.isfinite(scores(loaded.model))


def test_bfloat16_products_stay_near_float32(queries):
    apart = []
    for seed in range(8):  # models this wild differ in how they take rounding, by a factor of five
        exact = LogProbEngine(build("flan-t5", torch.float32, seed))(queries)
        rounded_engine = LogProbEngine(build("flan-t5", torch.float32, seed), autocast=torch.bfloat16)
        assert rounded_engine.packed
        rounded = rounded_engine(queries)
        apart.append(((exact.sum_N - rounded.sum_N).abs().sum() / exact.count_N.sum()).item())
    assert 0 < sum(apart) / len(apart) < 0.1  # nats a token


def test_a_folder_without_the_decoder_is_refused(words, tmp_path):
    folder = tmp_path / "half"
    build("t5", torch.float32).save_pretrained(folder)
    words.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: t for n, t in weights.items() if "EncDecAttention.q" not in n},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"no weights for decoder\.block\.0\.layer\.1\.EncDecAttention\.q"):
        load_model(str(folder), cache=tmp_path)
