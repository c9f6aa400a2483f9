"""Which engine writes answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from spintune.recipe.section import Count, Positive, PositiveShare, Section, WholeNumber

_GPU_MEMORY, _CPU_MEMORY = 0.9, 0.3
_OWN_SERVER = ("devices", "tensor_parallel", "gpu_memory", "max_length", "start_minutes")
_MET_SERVER = ("url", "model", "key_variable")


class GenerateSection(Section):
    """The engine that writes answers in self-play and evaluation, and as a teacher or judge on this machine."""

    engine: Literal["builtin", "vllm", "llama.cpp"] = "builtin"
    """builtin, or a server of vllm or llama.cpp: at url, or (vllm) started on devices."""
    url: str | list[str] | None = None
    """Address of a server that has the model, or of several, over which prompts are dealt. Default: servers are started
    on devices for each model, and ended."""
    model: str | None = None
    """The model's name at the server. Default: the only one that it serves."""
    devices: list[WholeNumber] | Literal["cpu"] | None = None
    """GPUs that vLLM is started on, by number, or cpu. [devices]"""
    tensor_parallel: Count = 1
    """Devices that hold one copy of the model; there are as many servers as devices hold copies. [devices]"""
    gpu_memory: PositiveShare | None = None
    """Share of each GPU's memory that a started server takes, or with cpu of the machine's. [share] Default: 0.9 of a
    GPU, and 0.3 of a machine, where the run itself needs the rest."""
    max_length: Count | None = None
    """Longest prompt with its answer that a started server takes. [tokens] Default: what the model reads."""
    start_minutes: Positive = 15.0
    """Maximum time until a started server answers. [minutes]"""
    key_variable: str | None = None
    """Environment variable that holds the key of the server, such as VLLM_API_KEY. Default: no key."""
    concurrency: Count = 256
    """Answers under way at a time at each server, which may say that it takes fewer. [answers]"""
    timeout_seconds: Positive = 600.0
    """Maximum time of one attempt. [seconds]"""
    max_retries: WholeNumber = 5
    """Retries after timeouts, lost connections, and refusals that may pass; then a server counts as dead. [attempts]"""
    max_gap: Positive = 0.02
    """How far log-probabilities of the server and of the run's own engine may differ, as a mean over answers. [nats a
    token] Beyond it the server computes another model, and the run stops."""

    @property
    def urls(self) -> list[str]:
        """The addresses; none where servers are started."""
        return [self.url] if isinstance(self.url, str) else self.url or []

    @property
    def memory_share(self) -> float:
        """``gpu_memory``, or its default."""
        return self.gpu_memory or (_CPU_MEMORY if self.devices == "cpu" else _GPU_MEMORY)

    @property
    def is_served(self) -> bool:
        """Whether another engine writes."""
        return self.engine != "builtin"

    def _problems(self) -> Iterator[str]:
        given = self.model_fields_set - {"engine"}
        if not self.is_served and given:
            yield f"{min(given)} would do nothing with engine: builtin; set engine to vllm or llama.cpp"
        if self.is_served:
            yield from self._server_problems()

    def _server_problems(self) -> Iterator[str]:
        if self.engine == "llama.cpp" and not self.url:
            yield "llama.cpp's server is not started here, since it takes GGUF files; start it and give its url"
        if not self.url and not self.devices:
            yield "give the url of a server, or the devices to start one on (GPU numbers, or cpu)"
        others = _OWN_SERVER if self.url else _MET_SERVER
        if unused := [key for key in others if key in self.model_fields_set and getattr(self, key)]:
            yield f"{unused[0]} would do nothing {'beside url' if self.url else 'without url'}; leave it out"
        yield from self._device_problems()
        if any(re.search(r"[?#]|//[^/]*@", url) for url in self.urls):
            yield "url takes scheme, host and path only; export a key in a variable and give its name as key_variable"
        if repeated := [url for url in self.urls if self.urls.count(url) > 1]:
            yield f"url names {repeated[0]} twice"
        if self.key_variable and not re.fullmatch(r"\w*API_KEY", self.key_variable, re.ASCII):
            yield "key_variable takes the name of an environment variable that ends with API_KEY; export the key there"

    def _device_problems(self) -> Iterator[str]:
        if not isinstance(self.devices, list):
            if self.devices == "cpu" and self.tensor_parallel > 1:
                yield "tensor_parallel needs GPUs"
            return
        if len(set(self.devices)) < len(self.devices):
            yield "devices names one twice"
        if len(self.devices) % self.tensor_parallel:
            yield f"devices ({len(self.devices)}) are no multiple of tensor_parallel ({self.tensor_parallel})"

    def decides(self) -> dict[str, object]:
        """What stages depend on: which engine writes, not where it is or how it is asked."""
        return {"engine": self.engine}
