"""Against the real servers, where they run: vLLM (SPINTUNE_VLLM, or vllm on the PATH) and llama.cpp's (llama-server).

Q4_1 weights are the packaged model's own, so both sides compute with the same numbers up to how they round activations.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from real_vllm import vllm_or_skip

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ServerError
from spintune.generation.sampling import Sampling
from spintune.generation.served.generator import ServedGenerator
from spintune.generation.served.pool import EnginePool, ServedSource
from spintune.generation.served.process import ServerProcess, free_port
from spintune.models.loading import load_model
from spintune.models.packaged import ALIASES, fetch_packaged
from spintune.progress import Silent
from spintune.recipe import GenerateSection
from spintune.records import Message

pytestmark = pytest.mark.slow
QUESTIONS = ["Name a color.", "What is the capital of France?", "Write a short poem about the sea.", "日本の首都は?"]


@contextmanager
def llama_server(gguf: Path) -> Iterator[str]:
    """llama.cpp's server on the loopback address, until the block ends."""
    program = shutil.which("llama-server") or pytest.skip("llama-server is not installed")
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "-np", "4", "-c", "4096", "-t", "1", "-ngl", "0"]
    process = ServerProcess([program, "-m", str(gguf), *options], os.environ, port)
    try:
        while True:
            process.check()
            try:
                with urllib.request.urlopen(f"{process.url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield process.url
    finally:
        process.stop()


def generator_of(folder: Path, cache: Path, section: GenerateSection) -> tuple[ServedGenerator, list[tuple[int, ...]]]:
    loaded = load_model(str(folder), cache=cache)
    renderer = loaded.renderer("tokenizer", "last")
    prompts = [renderer.prompt([Message("user", question)]) for question in QUESTIONS]
    pool = EnginePool(section, os.environ, Silent())
    source = ServedSource("base", "d1g35t", str(folder))
    engine = LogProbEngine(loaded.model, loaded.autocast)
    return ServedGenerator(pool, source, engine, loaded.tokenizer, renderer.stop_ids), prompts


def check_answers(generator: ServedGenerator, prompts: list[tuple[int, ...]], bound: float) -> None:
    """Answers end as they say, are scored as they were sampled, and come again for the same seed."""
    ways = [Sampling(40, seed=1), Sampling(40, temperature=0), Sampling(24, temperature=0.7, top_p=0.9, top_k=20)]
    for sampling in ways:
        written = generator.generate(prompts, sampling)
        for prompt, one in zip(prompts, written, strict=True):
            assert (one.ids[-1] in generator.stop_ids) == (one.finish_reason == "stop")
            assert one.finish_reason == "stop" or len(one.ids) == sampling.max_new_tokens
            score = generator.engine.score([Query(prompt, (one.ids,))])[0][0]
            assert one.logprob is None or abs(one.logprob - score) / len(one.ids) < bound
        assert sum(one.logprob is not None for one in written) >= 2


def test_llama_cpp_answers_as_its_protocol_says(smollm2: Path, cache: Path, tmp_path: Path) -> None:
    if not shutil.which("llama-server"):
        pytest.skip("llama-server is not installed")
    gguf = fetch_packaged(ALIASES["smollm2-135m-instruct"], tmp_path)
    with llama_server(gguf) as url:
        section = GenerateSection(engine="llama.cpp", url=url, max_gap=0.05)
        generator, prompts = generator_of(smollm2, cache, section)
        check_answers(generator, prompts, 0.1)
        assert generator.pool.facts.version


def test_vllm_answers_as_its_protocol_says(smollm2: Path, cache: Path) -> None:
    generator, prompts = generator_of(smollm2, cache, GenerateSection(**vllm_or_skip()))
    try:
        check_answers(generator, prompts, 0.05)
        check_draws(generator, prompts[1])
        # it takes the longest prompt and answer that it says it takes
        length = 512 - len(prompts[0])
        generator.stop_ids = frozenset()
        (longest,) = generator.generate(prompts[:1], Sampling(length, temperature=0))
        assert len(longest.ids) == length
        (process,) = generator.pool._processes
        check_meeting(process.url, smollm2, cache, longest.ids[:8])
    finally:
        generator.pool.release()
    assert not process.running


def check_draws(generator: ServedGenerator, prompt: tuple[int, ...]) -> None:
    """First tokens come as often as top-k and top-p say; together the prompts are more than a server reads at once."""
    sampling, draws = Sampling(1, temperature=2.0, top_k=6, top_p=0.8), 160
    with torch.no_grad():
        logits = generator.engine.model(torch.tensor([prompt])).logits[0, -1].double() / sampling.temperature
    likely, tokens = logits.topk(sampling.top_k)
    share = likely.softmax(0)
    kept = share.cumsum(0) - share < sampling.top_p
    share = share[kept] / share[kept].sum()
    written = Counter(one.ids[0] for one in generator.generate([prompt] * draws, sampling))
    assert set(written) <= set(tokens[kept].tolist())
    assert len(share) > 1
    for token, chance in zip(tokens[kept].tolist(), share.tolist(), strict=True):
        assert abs(written[token] - draws * chance) < 4.5 * math.sqrt(draws * chance * (1 - chance))


def check_meeting(url: str, folder: Path, cache: Path, greedy: tuple[int, ...]) -> None:
    """The server writes for whoever meets it with its own model, and refuses others in one line."""
    generator, prompts = generator_of(folder, cache, GenerateSection(engine="vllm", url=url))
    assert generator.generate(prompts[:1], Sampling(8, temperature=0))[0].ids == greedy
    model = generator.engine.model
    expected = model.generate(torch.tensor(prompts[:1]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tuple(expected[0, len(prompts[0]) :].tolist()) == greedy
    with pytest.raises(ServerError, match="it reads 512 tokens, and a prompt with its answer may have"):
        generator.generate(prompts[:1], Sampling(512))
    with pytest.raises(ServerError, match="and not mine"):
        generator_of(folder, cache, GenerateSection(engine="vllm", url=url, model="mine"))[0].generate(
            prompts[:1], Sampling(2)
        )
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.05
    generator.pool.release()
    with pytest.raises(ServerError, match=r"it serves another model than base: .* nats a token"):
        generator.generate(prompts[:1], Sampling(2))
