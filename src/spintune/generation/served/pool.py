"""The servers of a run: those at addresses, or those that are started for one model and ended when it is done."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx2
from pydantic import SecretStr
from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import ServerError
from spintune.generation.served.facts import EngineFacts
from spintune.generation.served.handshake import OtherModelError, check_vocabulary, introduce, probe_gap
from spintune.generation.served.process import ServerProcess, start_vllm, stop_all
from spintune.generation.served.replicas import Replica, ReplicaDownError, opened
from spintune.generation.served.wire import WIRES, WireError
from spintune.progress import Progress
from spintune.recipe import GenerateSection
from spintune.teachers.event_loop import event_loop
from spintune.teachers.transport import Connection, checked_url, key_in, proxy_for

_POLL_SECONDS = 0.5
_DYING_SECONDS = 5.0
"""vLLM refuses what it is asked for some seconds before it ends."""


@dataclass(frozen=True)
class ServedSource:
    """The model that is to be served.

    Attributes:
        name: of the iterate.
        digest: of its contents.
        location: its folder or hub id, and ``revision`` of the hub id.
    """

    name: str
    digest: str
    location: str
    revision: str | None = None


class EnginePool:
    """Servers that write a run's answers. It holds those of one model at a time.

    Args:
        environment: where keys, proxies and the vllm program are looked up.
        tick: is called while it waits; what it raises ends the wait.
    """

    def __init__(
        self,
        section: GenerateSection,
        environment: Mapping[str, str],
        progress: Progress,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.section, self.progress, self.tick = section, progress, tick
        self.wire = WIRES[section.engine]
        self._environment = environment
        self._processes: list[ServerProcess] = []
        self._replicas: list[Replica] = []
        self._of: str | None = None
        self._facts = EngineFacts(section.engine, urls=tuple(str(checked_url(url, "generate")) for url in section.urls))
        self._connections = [self._connection(url) for url in section.urls]  # a wrong address or key is told now

    @cached_property
    def tls(self) -> ssl.SSLContext:
        return httpx2.create_ssl_context()

    @property
    def starts(self) -> bool:
        """Whether it starts servers itself, and so can serve any model."""
        return not self.section.urls

    def replicas(
        self, source: ServedSource, engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase
    ) -> list[Replica]:
        """The servers that write for ``source``, each checked against the engine, which has it in memory.

        Raises ServerError when there is none, or when all serve another model.
        """
        if self.serves(source.digest):
            return [replica for replica in self._replicas if replica.alive]
        self.release()
        if engine.model.config.is_encoder_decoder:
            raise ServerError(
                f"generate.engine: {self.section.engine} serves decoder-only models, and {source.name} is an "
                "encoder-decoder; leave generate out"
            )
        try:
            with event_loop() as run:
                self._replicas = run(self._connected(source, engine, tokenizer))
        except BaseException:
            self.release()
            raise
        self._of = source.digest
        return self._replicas

    def serves(self, digest: str) -> bool:
        """Whether a server that is connected has the model with these contents."""
        return self._of == digest and any(replica.alive for replica in self._replicas)

    @property
    def facts(self) -> EngineFacts:
        """The engine that wrote last."""
        return self._facts

    def check_started(self) -> None:
        """Raises ServerError with what a server said that was started here, where all have ended."""
        if not any(replica.alive for replica in self._replicas):
            for process in self._processes:
                process.check(_DYING_SECONDS)

    def release(self) -> None:
        """Ends the servers that it started; they are started again when they are needed."""
        processes, self._processes = self._processes, []
        self._replicas, self._of = [], None
        stop_all(processes)

    # ---------------------------------------------------------------------------------------------------------------

    def _connection(self, url: str) -> Connection:
        section = self.section
        address = checked_url(url.rstrip("/").removesuffix("/v1"), "generate")
        key = key_in(self._environment, section.key_variable, address) if section.key_variable else SecretStr("")
        proxy = proxy_for(address, self._environment)
        return Connection(address, key, proxy, section.concurrency, section.timeout_seconds, section.max_retries)

    async def _connected(
        self, source: ServedSource, engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase
    ) -> list[Replica]:
        name = f"spintune-{source.digest[:12]}" if self.starts else self.section.model
        if self.starts:
            dtype = str(engine.autocast or engine.model.dtype).removeprefix("torch.")
            model = (source.location, source.revision)
            self._processes = start_vllm(self.section, model, str(name), dtype, self._environment)
            self._connections = [self._connection(process.url) for process in self._processes]
        replicas = [Replica(self.wire, one, self.section.concurrency) for one in self._connections]
        async with opened(replicas, self.tls):
            if self.starts:
                await self._wait(replicas, source)
            gaps: dict[int, float] = {}
            troubles: list[ServerError] = []
            for place, replica in enumerate(replicas):
                try:
                    gaps[place] = await self._check(replica, name, source, engine, tokenizer)
                except OtherModelError as error:
                    troubles.append(error)
                except (ReplicaDownError, WireError) as error:
                    troubles.append(ServerError(f"{replica.name}: {error}; check generate.url and that it runs"))
        if not gaps:
            raise troubles[0]
        for trouble in troubles:
            self.progress.note(f"left out: {trouble}")
        good = [replicas[place] for place in gaps]
        urls = () if self.starts else tuple(replica.url for replica in good)
        model_name = source.name if self.starts else good[0].model
        worst = max(gaps.values())
        self._facts = EngineFacts(self.section.engine, good[0].version, model_name, urls, worst)
        self.progress.note(
            f"{self.section.engine} {good[0].version} writes for {source.name}: {len(good)} server"
            f"{'s' * (len(good) > 1)}, log-probabilities within {worst:.2g} nats a token of those here"
        )
        return good

    async def _check(
        self,
        replica: Replica,
        name: str | None,
        source: ServedSource,
        engine: LogProbEngine,
        tokenizer: PreTrainedTokenizerBase,
    ) -> float:
        await introduce(replica, name)
        await check_vocabulary(replica, engine, tokenizer)
        gap = await probe_gap(replica, engine, tokenizer)
        if gap is None:
            raise ServerError(f"{replica.name}: it gives no log-probabilities; use a newer version")
        if not gap <= self.section.max_gap:
            raise OtherModelError(
                f"{replica.name}: it serves another model than {source.name}: log-probabilities differ by {gap:.3g} "
                f"nats a token (generate.max_gap: {self.section.max_gap:g}); serve {source.location} there, "
                "unquantized, and run again: finished work is kept"
            )
        return gap

    async def _wait(self, replicas: list[Replica], source: ServedSource) -> None:
        """Until all servers that were started answer; raises ServerError when one ends or takes too long."""
        seconds = 60 * self.section.start_minutes
        began = waited = time.monotonic()
        with self.progress.task(f"{self.section.engine} loads {source.name}", seconds, "seconds at most") as bar:
            for replica, process in zip(replicas, self._processes, strict=True):
                while not await replica.is_up():
                    await asyncio.sleep(_POLL_SECONDS)
                    process.check()
                    self.tick()
                    now = time.monotonic()
                    bar.advance(now - waited)
                    waited = now
                    if now - began > seconds:
                        raise ServerError(
                            f"{self.section.engine} did not answer in {self.section.start_minutes:g} minutes (it last "
                            f"said: {process.last_words() or 'nothing'}); raise generate.start_minutes"
                        )


def served_source(name: str, digest: str, location: tuple[str, Mapping[str, str]]) -> ServedSource:
    """The source at a place that transformers loads from. Raises ServerError for one that is no folder or hub id."""
    place, arguments = location
    if "gguf_file" in arguments:
        file = Path(place) / arguments["gguf_file"]
        raise ServerError(f"{file}: vLLM is not started on a GGUF file; give a folder, or serve it and give the url")
    return ServedSource(name, digest, place, arguments.get("revision"))
