"""Generation: greedy = transformers generate, draws follow the model, and batching changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError, RecipeError
from spintune.generation import cuda_graphs as replay
from spintune.generation.batch import BatchGenerator, GenerationLimits
from spintune.generation.build import GENERATORS, build_generator, register_generator
from spintune.generation.decoder import DecoderRunner
from spintune.generation.kv_cache import GROUP
from spintune.generation.plain import PlainGenerator
from spintune.generation.protocol import shared_length
from spintune.generation.sampling import Sampling
from spintune.kernels.allocator import kept_memory, reuse_memory

NEW = 12
# ragged, one of a single token, one longer than the window of 5
PROMPTS = [(5, 17, 88, 2, 60, 31, 9, 44, 71), (63,), (8, 90, 33, 12), (21, 34), (77, 3, 52, 40, 18, 66), (50, 50, 51)]

# all begin with the same seven tokens; one ends there, and two are the same
SHARING = [(9, 4, 61, 30, 2, 88, 17, *rest) for rest in ((5, 12, 80), (), (5, 12), (33,) * 9, (70,), (70,))]


def transformers_greedy(model, prompt, stop_ids) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=0,
    )
    return tuple(output[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def generator(build, words):
    """A packed GPT-2 in float64, where rounding does not decide draws, that stops at one token in six."""
    return BatchGenerator(LogProbEngine(build("gpt2")), words, frozenset(range(0, 97, 6)))


def with_slots(generator, slots, prefill_tokens=1024):
    limits = GenerationLimits(slots, prefill_tokens)
    return BatchGenerator(generator.engine, generator.tokenizer, generator.stop_ids, limits)


@pytest.mark.parametrize("prompts", [PROMPTS, SHARING], ids=["unlike", "alike"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gemma3_text"])
def test_greedy_equals_transformers_generate_token_for_token(family, prompts, build, words):
    reference = build(family)
    free = [transformers_greedy(reference, prompt, frozenset()) for prompt in prompts]
    # tokens that are really written, early in one completion and late in another
    stop_ids = frozenset({free[0][2], free[4][7]})
    expected = [transformers_greedy(reference, prompt, stop_ids) for prompt in prompts]
    assert any(len(ids) < NEW for ids in expected)

    engine = LogProbEngine(build(family))
    assert isinstance(build_generator(engine, words, stop_ids).chosen[1], BatchGenerator)
    for slots, prefill_tokens, fixed in ((2, 1024, False), (4, 5, False), (4, 1024, True), (8, 5, True)):
        limits = GenerationLimits(slots, prefill_tokens, fixed_shapes=fixed)
        generator = BatchGenerator(engine, words, stop_ids, limits)
        completions = generator.generate(prompts, Sampling(NEW, temperature=0))
        assert [completion.ids for completion in completions] == expected


def test_fixed_shapes_reach_from_one_bucket_into_the_next(build, words, monkeypatch):
    monkeypatch.setattr(replay, "_BUCKET", 4)
    engine = LogProbEngine(build("llama"))
    buckets = []
    compute = DecoderRunner._one_more
    monkeypatch.setattr(DecoderRunner, "_one_more", lambda *a: buckets.append(a[-1]) or compute(*a))
    results = [
        BatchGenerator(engine, words, frozenset(), limits).generate(PROMPTS, Sampling(NEW, seed=3))
        for limits in (GenerationLimits(8, fixed_shapes=True), GenerationLimits(8, fixed_shapes=False))
    ]
    assert [c.ids for c in results[0]] == [c.ids for c in results[1]]
    assert [c.logprob for c in results[0]] == pytest.approx([c.logprob for c in results[1]])
    assert sorted(set(buckets)) == [12, 16, 20]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_step_writes_what_single_launches_write(build, words, caplog):
    engine = LogProbEngine(build("llama", dtype=torch.float32).to("cuda"))
    results = [
        BatchGenerator(engine, words, frozenset(), limits).generate(PROMPTS, Sampling(NEW, temperature=0))
        for limits in (GenerationLimits(4, fixed_shapes=True), GenerationLimits(4, fixed_shapes=False))
    ]
    assert [c.ids for c in results[0]] == [c.ids for c in results[1]]
    assert "cannot be recorded" not in caplog.text


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("megabytes", [0, 1], ids=["weights as they are", "weights in oneDNN's order"])
def test_in_float32_greedy_equals_transformers_in_float64(megabytes, family, build, words):
    reference = build(family)
    expected = [transformers_greedy(reference, prompt, frozenset()) for prompt in PROMPTS]
    engine = LogProbEngine(build(family, dtype=torch.float32))
    generator = BatchGenerator(engine, words, frozenset(), GenerationLimits(cache_megabytes=megabytes))
    completions = generator.generate(PROMPTS, Sampling(NEW, temperature=0))
    assert [completion.ids for completion in completions] == expected


def test_what_all_prompts_begin_with_is_read_once(generator):
    generator.generate(SHARING, Sampling(1))  # the first time, a token is read to size the cache
    read = []
    watch = generator.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    generator.generate(SHARING, Sampling(1))
    watch.remove()
    # six tokens once, and of 7 + (3, 0, 2, 9, 1, 1) tokens what comes behind them
    assert read == [6, 6 + 16]


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([(1, 2, 3)], 0),
        ([(1, 2, 3), (1, 2, 4, 5)], 2),
        ([(1, 2, 3), (1, 2, 3, 4)], 2),
        ([(1, 2, 3), (1, 2, 3)], 2),
        ([(1, 2), (1, 3), (2, 2)], 0),
        ([(7,), (7, 8)], 0),
    ],
)
def test_shared_length_stops_before_the_end_of_the_shortest_prompt(prompts, length):
    assert shared_length(prompts) == length
    assert shared_length(prompts[::-1]) == length


def test_groups_of_slots_with_unlike_lengths_write_what_one_slot_writes(generator):
    draw = torch.Generator().manual_seed(9)
    lengths = torch.randint(1, 30, (2 * GROUP + 5,), generator=draw).tolist()
    prompts = [tuple(torch.randint(97, (length,), generator=draw).tolist()) for length in lengths]
    alone = with_slots(generator, 1).generate(prompts, Sampling(NEW, seed=5))
    together = with_slots(generator, 2 * GROUP + 1).generate(prompts, Sampling(NEW, seed=5))
    assert [completion.ids for completion in together] == [completion.ids for completion in alone]


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_a_model_that_cannot_be_packed_writes_what_transformers_writes(family, build, words):
    dtype = torch.float32 if family == "mamba" else torch.float64
    reference = build(family, dtype=dtype)
    stop_ids = frozenset({transformers_greedy(reference, PROMPTS[0], frozenset())[3]})
    generator = build_generator(LogProbEngine(build(family, dtype=dtype)), words, stop_ids)
    assert isinstance(generator.chosen[1], PlainGenerator)
    completions = generator.generate(PROMPTS[:3], Sampling(NEW, temperature=0))
    assert [completion.ids for completion in completions] == [
        transformers_greedy(reference, prompt, stop_ids) for prompt in PROMPTS[:3]
    ]


def test_plain_and_batch_generators_draw_the_same_tokens(generator):
    plain = PlainGenerator(generator.engine, generator.tokenizer, generator.stop_ids)
    batched = generator.generate(PROMPTS, Sampling(NEW, seed=3))
    alone = plain.generate(PROMPTS, Sampling(NEW, seed=3))
    assert [c.ids for c in alone] == [c.ids for c in batched]
    assert [c.logprob for c in alone] == pytest.approx([c.logprob for c in batched], abs=1e-5)


def test_completions_do_not_depend_on_slots_prefill_or_the_order_of_prompts(generator):
    sampling = Sampling(NEW, seed=7)
    expected = [completion.ids for completion in generator.generate(PROMPTS, sampling)]
    for slots, prefill_tokens in ((1, 1024), (2, 1), (3, 7)):
        completions = with_slots(generator, slots, prefill_tokens).generate(PROMPTS, sampling)
        assert [completion.ids for completion in completions] == expected
    order = [4, 0, 5, 2, 1, 3]
    shuffled = with_slots(generator, 2).generate([PROMPTS[i] for i in order], sampling)
    assert [completion.ids for completion in shuffled] == [expected[i] for i in order]


def test_a_small_cache_runs_fewer_slots_and_writes_the_same(generator):
    limits = GenerationLimits(cache_megabytes=0)
    small = BatchGenerator(generator.engine, generator.tokenizer, generator.stop_ids, limits)
    assert small.generate(PROMPTS, Sampling(NEW, seed=7)) == with_slots(generator, 1).generate(
        PROMPTS, Sampling(NEW, seed=7)
    )


def test_little_memory_runs_fewer_slots_and_writes_the_same(generator, caplog):
    """Of 80 KB that are free, half are taken."""
    expected = generator.generate(PROMPTS, Sampling(NEW, seed=7))
    assert "memory is short" not in caplog.text
    limits = GenerationLimits(free=lambda device: 80_000)
    poor = BatchGenerator(generator.engine, generator.tokenizer, generator.stop_ids, limits)
    for _ in range(2):
        found = poor.generate(PROMPTS, Sampling(NEW, seed=7))
        assert [(one.ids, one.text) for one in found] == [(one.ids, one.text) for one in expected]
    assert caplog.text.count("memory is short: 0 MB are left for keys and values, so ") == 1
    assert (
        GenerationLimits(cache_megabytes=5, free=lambda device: 0).affordable_bytes(torch.device("cpu")) == 5 * 2**20
    )  # asked for


def test_memory_that_the_heap_keeps_counts_as_free():
    """A block that was freed is not given back to the system, and serves the next cache."""
    reuse_memory()
    block = torch.ones(50_000_000)
    before = kept_memory()
    del block
    assert kept_memory() - before > 150_000_000


def test_repeated_prompts_get_different_streams(generator):
    completions = generator.generate([PROMPTS[0]] * 8, Sampling(NEW, seed=1))
    assert len({completion.ids for completion in completions}) == 8


def test_finish_reasons_say_how_a_completion_ended(generator, words):
    completions = generator.generate(PROMPTS * 5, Sampling(NEW, seed=2))
    reasons = Counter(completion.finish_reason for completion in completions)
    assert reasons["stop"] > 0
    assert reasons["length"] > 0
    for completion in completions:
        *written, last = completion.ids
        assert not set(written) & generator.stop_ids
        if completion.finish_reason == "stop":
            assert last in generator.stop_ids
            assert completion.text == words.decode(written)
        else:
            assert last not in generator.stop_ids
            assert len(completion.ids) == NEW
            assert completion.text == words.decode(completion.ids)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral"])
def test_the_samplers_log_probability_is_the_engines_at_temperature_1(family, build, words):
    engine = LogProbEngine(build(family))
    completions = build_generator(engine, words, frozenset({4, 5, 6})).generate(PROMPTS, Sampling(NEW, seed=2))
    queries = [Query(prompt, (c.ids,)) for prompt, c in zip(PROMPTS, completions, strict=True)]
    with torch.no_grad():
        scores = engine(queries).sum_N.tolist()
    assert [c.logprob for c in completions] == pytest.approx(scores, abs=1e-4)


def test_drawn_pairs_of_tokens_follow_the_models_exact_joint_distribution(build, words):
    vocabulary, draws = 7, 4000
    model = build("gpt2", vocab_size=vocabulary)
    prompt = (1, 5, 2)
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
        continued = torch.tensor([[*prompt, token] for token in range(vocabulary)])
        joint = (first[:, None] * model(continued).logits[:, -1].softmax(-1)).flatten()
    generator = build_generator(LogProbEngine(model), words, frozenset())
    completions = generator.generate([prompt] * draws, Sampling(2, seed=11))
    counts = torch.zeros(vocabulary**2, dtype=torch.float64)
    for completion in completions:
        counts[completion.ids[0] * vocabulary + completion.ids[1]] += 1
    # cells with fewer than 5 expected draws count as one; 110 is exceeded once in a million at 48 degrees of freedom
    rare = joint * draws < 5
    expected = torch.cat([joint[~rare], joint[rare].sum()[None]]) * draws
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    assert len(expected) > 15
    assert ((observed - expected) ** 2 / expected.clamp(min=1)).sum() < 110


def test_on_token_reports_exactly_the_ids(generator):
    heard: dict[int, list[int]] = {i: [] for i in range(len(PROMPTS))}
    for writer in (with_slots(generator, 2),):
        completions = writer.generate(PROMPTS, Sampling(NEW), on_token=lambda index, token: heard[index].append(token))
    assert [tuple(heard[i]) for i in range(len(PROMPTS))] == [completion.ids for completion in completions]


def test_nothing_to_write_gives_empty_completions(generator):
    assert generator.generate([], Sampling(NEW)) == []
    assert [c.ids for c in generator.generate(PROMPTS[:2], Sampling(0))] == [(), ()]


def test_a_prompt_without_any_token_is_refused(generator):
    with pytest.raises(ValueError, match="at least one token"):
        generator.generate([PROMPTS[0], ()], Sampling(NEW))


# Which generator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_generators_leave_the_model_as_it_was(family, build, words):
    model = build(family)
    ids = torch.tensor([PROMPTS[0]])
    logits, written = model(ids).logits, [transformers_greedy(model, prompt, frozenset()) for prompt in PROMPTS]
    generator = BatchGenerator(LogProbEngine(model), words, frozenset())
    for _ in range(2):
        assert [c.ids for c in generator.generate(PROMPTS, Sampling(NEW, temperature=0))] == written
        assert torch.equal(model(ids).logits, logits)
        assert [transformers_greedy(model, prompt, frozenset()) for prompt in PROMPTS] == written


def test_a_model_that_cannot_be_packed_is_refused_and_gets_the_plain_generator(build, words):
    engine = LogProbEngine(build("bloom"))
    with pytest.raises(ModelError, match="BloomForCausalLM cannot be packed"):
        BatchGenerator(engine, words, frozenset())
    assert isinstance(build_generator(engine, words, frozenset()).chosen[1], PlainGenerator)


def test_a_registered_generator_is_built_by_name(generator, words):
    made = []

    def factory(engine, tokenizer, stop_ids):
        made.append((engine, tokenizer, stop_ids))
        return generator

    register_generator("mine", factory)
    try:
        assert build_generator(generator.engine, words, frozenset({1}), "mine") is generator
        assert made == [(generator.engine, words, frozenset({1}))]
        with pytest.raises(RecipeError, match="already"):
            register_generator("mine", PlainGenerator)
    finally:
        GENERATORS.unregister("mine")
    with pytest.raises(RecipeError, match="there is no generator 'mine'; use one of batch, plain"):
        build_generator(generator.engine, words, frozenset(), "mine")
