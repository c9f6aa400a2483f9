"""Answers of vLLM and of llama.cpp's server, over their wire formats as another implementation speaks them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_server import EngineServer
from tiny_folders import write_llama
from watching import Watching

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ServerError, StoppedBySignal, TeacherError
from spintune.generation.sampling import Sampling
from spintune.generation.served import replicas
from spintune.generation.served.generator import ServedGenerator
from spintune.generation.served.pool import EnginePool, ServedSource
from spintune.generation.served.process import ServerProcess, start_vllm
from spintune.models.loading import load_model
from spintune.progress import Silent
from spintune.recipe import GenerateSection

ENGINES = ["vllm", "llama.cpp"]


@pytest.fixture(autouse=True, scope="module")
def no_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """To read all certificates takes longer than these tests, whose servers speak plain HTTP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(scope="module")
def servers(tiny_model: Path) -> Iterator[dict[str, EngineServer]]:
    """One of each kind, with the tiny model."""
    both = {engine: EngineServer(tiny_model, engine) for engine in ENGINES}
    yield both
    for server in both.values():
        server.stop()


@pytest.fixture
def server(servers: dict[str, EngineServer], request: pytest.FixtureRequest) -> EngineServer:
    """The server of the kind that the test names, as if it were new."""
    found = servers[getattr(request, "param", "vllm")]
    found.mend, found.status, found.die_after, found.answers, found.seconds = lambda reply: reply, 200, None, 0, 0.0
    found.asked.clear()
    found.keys.clear()
    return found


Make = Callable[..., ServedGenerator]


@pytest.fixture(scope="module")
def writer(tiny_model: Path, cache: Path) -> Make:
    """``writer(server, ...)``: a generator of the tiny model that asks these servers."""
    loaded = load_model(str(tiny_model), cache=cache)
    engine = LogProbEngine(loaded.model, loaded.autocast)
    stop_ids = loaded.renderer("tokenizer", "last").stop_ids

    def make(
        *servers: EngineServer, progress: Any = None, environment: Any = None, tick: Any = None, **section: Any
    ) -> ServedGenerator:
        urls = {"url": [server.url for server in servers]} if servers else {}
        given = GenerateSection(
            **{"engine": servers[0].engine if servers else "vllm", "max_retries": 0, **urls, **section}
        )
        pool = EnginePool(given, environment or {}, progress or Silent(), tick or (lambda: None))
        source = ServedSource("iterate-1", "d1g35t", str(tiny_model))
        return ServedGenerator(pool, source, engine, loaded.tokenizer, stop_ids)

    return make


PROMPTS = [(0, 70, 71, 72), (0, 80), tuple(range(40, 60)), (0, 70, 71, 72)]


@pytest.mark.parametrize("server", ENGINES, indirect=True)
def test_answers_and_their_log_probabilities_are_those_of_the_model(server: EngineServer, writer: Make) -> None:
    generator = writer(server)
    written = generator.generate(PROMPTS, Sampling(7, seed=3))
    assert [len(one.ids) for one in written] == [7] * 4 or any(one.finish_reason == "stop" for one in written)
    assert written[0].ids != written[3].ids  # the second answer to a prompt is another draw
    scores = generator.engine.score([Query(p, (one.ids,)) for p, one in zip(PROMPTS, written, strict=True)])
    for (score,), one in zip(scores, written, strict=True):
        assert one.logprob == pytest.approx(score, abs=1e-3)
        assert one.text == generator.decode([i for i in one.ids if i not in generator.stop_ids])
    assert [one.ids for one in generator.generate(PROMPTS, Sampling(7, seed=3))] == [one.ids for one in written]


@pytest.mark.parametrize("server", ENGINES, indirect=True)
def test_greedy_answers_are_those_of_transformers(server: EngineServer, writer: Make) -> None:
    generator = writer(server)
    (written,) = generator.generate([PROMPTS[0]], Sampling(6, temperature=0))
    ids = torch.tensor([PROMPTS[0]])
    expected = generator.engine.model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert written.ids == tuple(expected[0, ids.shape[1] :].tolist())
    # of another temperature, the log-probability is still the model's own
    (drawn,) = generator.generate([PROMPTS[0]], Sampling(5, temperature=0.3, top_p=0.9, top_k=5))
    assert drawn.logprob == pytest.approx(generator.engine.score([Query(PROMPTS[0], (drawn.ids,))])[0][0], abs=1e-3)


@pytest.mark.parametrize("server", ENGINES, indirect=True)
def test_everything_about_sampling_is_sent(server: EngineServer, writer: Make) -> None:
    writer(server).generate([PROMPTS[1]], Sampling(4, temperature=0.5, top_p=0.8, top_k=9))
    path, body = server.asked[-1]
    assert (body["prompt"], body["temperature"], body["top_p"], body["top_k"]) == ([0, 80], 0.5, 0.8, 9)
    assert body["n_predict" if server.engine == "llama.cpp" else "max_tokens"] == 4
    assert path == {"vllm": "/v1/completions", "llama.cpp": "/completion"}[server.engine]


def test_stop_tokens_and_on_token_end_answers(server: EngineServer, writer: Make) -> None:
    generator = writer(server)
    (whole,) = generator.generate([PROMPTS[0]], Sampling(8, temperature=0))
    generator.stop_ids = frozenset({whole.ids[2]})
    (ended,) = generator.generate([PROMPTS[0]], Sampling(8, temperature=0))
    at = whole.ids.index(whole.ids[2]) + 1
    assert (ended.ids, ended.finish_reason) == (whole.ids[:at], "stop")
    generator.stop_ids = frozenset()
    (cut,) = generator.generate([PROMPTS[0]], Sampling(8, temperature=0), on_token=lambda _, token: True)
    assert (cut.ids, cut.finish_reason) == (whole.ids[:1], "length")
    score = generator.engine.score([Query(PROMPTS[0], (cut.ids,))])[0][0]
    assert cut.logprob == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("server", ["llama.cpp"], indirect=True)
def test_llama_cpp_without_all_log_probabilities_gives_none(server: EngineServer, writer: Make) -> None:
    """It leaves out those of tokens that are part of a character."""
    generator = writer(server)
    generator.generate([PROMPTS[0]], Sampling(3))
    server.mend = lambda reply: {**reply, "completion_probabilities": reply["completion_probabilities"][1:]}
    (written,) = generator.generate([PROMPTS[0]], Sampling(3))
    assert written.logprob is None
    with pytest.raises(ServerError, match="counts the prompt's tokens"):
        generator.generate([PROMPTS[0]], Sampling(3, presence_penalty=1.0))


def broken(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A reply of vLLM with another choice."""
    return lambda reply: {**reply, "choices": [{**reply["choices"][0], **changes}]}


@pytest.mark.parametrize(
    ("mend", "says"),
    [
        (broken(token_ids=[5, 6]), "an answer of 2 tokens where 5 were asked for"),
        (broken(token_ids=[5] * 5, finish_reason="abort"), "status 503"),
        (broken(token_ids=None), "no token ids"),
        (lambda reply: float("nan"), "no JSON"),
        (broken(token_ids=[5, 5, 5, 5, 4000]), "token 4000 of a vocabulary"),
        (broken(token_ids=["5"] * 5), "no ids"),
        (broken(prompt_token_ids=[1, 2]), "prompt of other tokens"),
        (broken(logprobs={"token_logprobs": [1.0] * 5}), "log-probabilities that are none"),
        (lambda reply: {}, "no answer"),
    ],
)
def test_a_wrong_answer_is_one_line(server: EngineServer, writer: Make, mend: Any, says: str) -> None:
    generator = writer(server)
    generator.generate([PROMPTS[0]], Sampling(5))
    server.mend = mend
    with pytest.raises(ServerError, match=says) as error:
        generator.generate([PROMPTS[0]], Sampling(5))
    assert server.url in str(error.value) or "vocabulary" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_model_tokenizer_or_name_is_one_line(
    server: EngineServer, writer: Make, tmp_path: Path, cache: Path
) -> None:
    other = EngineServer(write_llama(tmp_path / "other", hidden_size=48), name="other")
    words = EngineServer(write_llama(tmp_path / "words", corpus=["zebra yak xylophone"] * 3), name="words")
    try:
        with pytest.raises(ServerError, match=r"another model than iterate-1: .* nats a token"):
            writer(other).generate([PROMPTS[0]], Sampling(2))
        with pytest.raises(ServerError, match="another tokenizer"):
            writer(words).generate([PROMPTS[0]], Sampling(2))
        with pytest.raises(ServerError, match="it serves other, and not mine"):
            writer(other, model="mine").generate([PROMPTS[0]], Sampling(2))
        with pytest.raises(ServerError, match=r"status 404|does not say its build"):
            writer(other, engine="llama.cpp").generate([PROMPTS[0]], Sampling(2))
        # of several, those with the right model write, and the others are told
        watching = Watching()
        generator = writer(other, server, progress=watching)
        generator.generate([PROMPTS[0]], Sampling(2))
        assert any(note.startswith("left out: vllm at") and "another model" in note for note in watching.notes)
        assert generator.pool.facts.urls == (server.url,)
        assert (generator.pool.facts.engine, generator.pool.facts.version) == ("vllm", "0.32.0")
    finally:
        other.stop()
        words.stop()


def test_a_context_that_is_too_short_is_told_before_anything_is_asked(server: EngineServer, writer: Make) -> None:
    generator = writer(server)
    with pytest.raises(ServerError, match="it reads 512 tokens, and a prompt with its answer may have 520"):
        _replicas_without_limit(generator, server)


def _replicas_without_limit(generator: ServedGenerator, server: EngineServer) -> None:
    from spintune.generation.served.generator import _check_lengths

    found = generator.pool.replicas(generator.source, generator.engine, generator.tokenizer)
    _check_lengths(found, 520)


def test_prompts_are_dealt_over_servers_and_those_of_a_dead_one_go_on(
    server: EngineServer, writer: Make, tiny_model: Path
) -> None:
    second, watching = EngineServer(tiny_model), Watching()
    try:
        generator = writer(server, second, progress=watching, concurrency=2)
        alone = writer(server).generate(PROMPTS * 4, Sampling(5, seed=1))
        server.asked.clear(), second.asked.clear()
        assert generator.generate(PROMPTS * 4, Sampling(5, seed=1)) == alone
        asked = [sum(path == "/v1/completions" for path, _ in one.asked) for one in (server, second)]
        assert min(asked) > 2 + 4  # both wrote, beside the probe
        second.die_after = second.answers + 2
        assert generator.generate(PROMPTS * 4, Sampling(5, seed=1)) == alone
        assert [note for note in watching.notes if "died" in note and second.url in note]
        server.die_after = server.answers + 1
        with pytest.raises(ServerError, match=r"start it again and run again"):
            generator.generate(PROMPTS * 4, Sampling(5, seed=2))
    finally:
        second.stop()


def test_what_a_server_leaves_open_when_it_stops_goes_to_the_others(
    server: EngineServer, writer: Make, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM 0.32.0 closes its port on SIGTERM, answers no request that it has, and waits for the client to go away."""
    monkeypatch.setattr(replicas, "_WATCH_SECONDS", 0.05)
    second, watching = EngineServer(tiny_model), Watching()

    def stop() -> None:
        if second.seconds and len(second.asked) > before and not stopped:
            stopped.append(True)
            second.stop()

    generator = writer(server, second, progress=watching, concurrency=2, tick=stop)
    alone = writer(server).generate(PROMPTS * 2, Sampling(5, seed=1))
    stopped: list[bool] = []
    assert generator.generate(PROMPTS * 2, Sampling(5, seed=1)) == alone
    before, second.seconds = len(second.asked), 60.0
    assert generator.generate(PROMPTS * 2, Sampling(5, seed=1)) == alone
    assert [note for note in watching.notes if "nobody listens there any more; its prompts go to 1 other" in note]


def test_timeouts_are_tried_again_and_a_stop_request_ends_the_wait(server: EngineServer, writer: Make) -> None:
    generator = writer(server)
    (replica,) = generator.pool.replicas(generator.source, generator.engine, generator.tokenizer)
    replica.connection = replace(replica.connection, timeout_seconds=2.0)  # a busy machine needs more to get here
    server.seconds = 60.0
    with pytest.raises(ServerError, match=r"no answer in 2 s"):
        generator.generate([PROMPTS[0]], Sampling(2))

    def stop() -> None:
        raise StoppedBySignal("stopped")

    server.seconds = 0.0
    generator = writer(server, tick=stop)
    generator.pool.replicas(generator.source, generator.engine, generator.tokenizer)
    server.seconds = 60.0
    with pytest.raises(StoppedBySignal):
        generator.generate([PROMPTS[0]], Sampling(2))


def test_a_refusal_that_passes_is_tried_again(server: EngineServer, writer: Make) -> None:
    generator = writer(server, max_retries=2)
    expected = generator.generate([PROMPTS[0]], Sampling(2))
    server.status, before = 503, server.answers

    def recover(reply: dict[str, Any]) -> dict[str, Any]:
        if server.answers > before + 1:
            server.status = 200
        return reply

    server.mend = recover
    assert generator.generate([PROMPTS[0]], Sampling(2)) == expected


def test_the_key_goes_to_the_server_and_into_no_error(server: EngineServer, writer: Make) -> None:
    key = "very-secret-key-of-a-server"
    generator = writer(server, key_variable="VLLM_API_KEY", environment={"VLLM_API_KEY": key})
    generator.generate([PROMPTS[0]], Sampling(2))
    assert server.keys == {f"Bearer {key}"}
    server.status, server.mend = 401, lambda _: {"error": {"message": f"wrong key {key}"}}
    with pytest.raises(ServerError, match="wants a key") as error:
        generator.generate([PROMPTS[0]], Sampling(2))
    assert key not in str(error.value)
    with pytest.raises(TeacherError, match="no key; export VLLM_API_KEY"):
        writer(server, key_variable="VLLM_API_KEY")


def test_what_the_section_refuses() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"engine": "vllm"}, "give the url"),
        ({"engine": "llama.cpp", "devices": [0]}, "takes GGUF files"),
        ({"engine": "vllm", "url": "http://h", "devices": [0]}, "devices would do nothing beside url"),
        ({"engine": "vllm", "devices": [0], "model": "m"}, "model would do nothing without url"),
        ({"engine": "vllm", "devices": [0, 0]}, "one twice"),
        ({"engine": "vllm", "devices": [0, 1, 2], "tensor_parallel": 2}, "no multiple"),
        ({"engine": "vllm", "url": "http://user:key@h"}, "scheme, host and path only"),
        ({"url": "http://h"}, "would do nothing with engine: builtin"),
        ({"engine": "vllm", "url": "http://h", "key_variable": "HOME"}, "ends with API_KEY"),
    ]
    for values, says in wrong:
        with pytest.raises(ValueError, match=says):
            GenerateSection(**values)


SPAWNS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_server_ends_with_all_that_it_started() -> None:
    process = ServerProcess([sys.executable, "-c", SPAWNS], os.environ, 1)
    while not (said := process.log.read_text()).endswith("\n"):
        process.check()
        time.sleep(0.02)
    assert is_there(int(said))
    process.stop()
    assert not is_there(int(said))
    assert not process.log.exists()


def test_a_server_that_dies_says_why() -> None:
    process = ServerProcess([sys.executable, "-c", "print('loading'); raise MemoryError('no room')"], os.environ, 1)
    try:
        while process.running:
            time.sleep(0.02)
        with pytest.raises(ServerError, match=r"status 1 .*MemoryError: no room.*printed is in"):
            process.check()
    finally:
        process.stop()
        process.log.unlink()


# what vLLM 0.32.0 printed when its worker died: the cause, and then lines that only point to it
WORKER_DIED = """
(APIServer pid=1) WARNING 11-30 03:19:55 [system_utils.py:255] This can cause errors like `OSError: [Errno 24]`.
(Worker pid=3) ERROR 11-30 03:30:39 [multiproc_executor.py:1063]     raise ValueError(
(Worker pid=3) ERROR 11-30 03:30:39 [multiproc_executor.py:1063] RuntimeError: CPU Generator does not use offset
(EngineCore pid=2) ERROR 11-30 03:30:39 [core.py:1512] RuntimeError: Worker failed, see above for the root cause
(APIServer pid=1) ERROR 11-30 03:30:39 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: See the root cause.
INFO:     127.0.0.1:35708 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error
UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects
"""


def test_a_server_of_its_own_that_dies_while_it_writes_says_its_first_cause(server: EngineServer, writer: Make) -> None:
    generator = writer(server)
    generator.generate([PROMPTS[0]], Sampling(2))
    script = f"import sys; print({WORKER_DIED!r}); sys.exit(1)"
    process = ServerProcess([sys.executable, "-c", script], os.environ, 1)
    generator.pool._processes.append(process)
    server.die_after = 0
    try:
        with pytest.raises(ServerError, match=r"status 1 .*\(RuntimeError: CPU Generator does not use offset\)"):
            generator.generate([PROMPTS[0]], Sampling(2))
    finally:
        generator.pool.release()
        process.log.unlink()


def test_without_vllm_a_line_says_what_to_do(tmp_path: Path) -> None:
    section = GenerateSection(engine="vllm", devices=[0])
    with pytest.raises(ServerError, match="no vllm on the PATH; install vLLM"):
        start_vllm(section, (str(tmp_path), None), "m", "float32", {"PATH": str(tmp_path)})
    with pytest.raises(ServerError, match="is no program"):
        start_vllm(section, (str(tmp_path), None), "m", "float32", {"SPINTUNE_VLLM": "/nowhere/vllm"})


@pytest.mark.parametrize("devices", [[0, 1, 2, 3], "cpu"])
def test_each_server_sees_its_own_devices_and_neither_keys_nor_launcher(tmp_path: Path, devices: Any) -> None:
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "$@"; env; echo that is all; sleep 600\n')
    program.chmod(0o755)
    environment = {**os.environ, "SPINTUNE_VLLM": str(program), "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    environment |= {"OPENAI_API_KEY": "secret", "RANK": "3", "MASTER_ADDR": "node0"}
    tensor_parallel = 1 if devices == "cpu" else 2
    section = GenerateSection(engine="vllm", devices=devices, tensor_parallel=tensor_parallel, max_length=99)
    servers = start_vllm(section, (str(tmp_path), None), "name", "bfloat16", environment)
    try:
        for server, visible in zip(servers, ("",) if devices == "cpu" else ("4,5", "6,7"), strict=True):
            while "that is all" not in (said := server.log.read_text()):
                server.check()
                time.sleep(0.02)
            options = f"serve {tmp_path} --host 127.0.0.1 --port {server.port} --served-model-name name "
            options += "--dtype bfloat16 --generation-config vllm --max-model-len 99 --gpu-memory-utilization "
            options += "0.3 --no-enable-chunked-prefill" if devices == "cpu" else "0.9 --tensor-parallel-size 2"
            assert said.startswith(f"{options}\n")
            assert f"\nCUDA_VISIBLE_DEVICES={visible}\n" in said
            assert not {"OPENAI_API_KEY", "RANK", "MASTER_ADDR"} & {line.split("=")[0] for line in said.splitlines()}
    finally:
        for server in servers:
            server.stop()
