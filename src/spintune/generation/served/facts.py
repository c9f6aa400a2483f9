"""Which engine wrote answers, as manifests say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineFacts:
    """Which engine wrote answers.

    Attributes:
        version: what it calls itself; empty where an earlier attempt of the run had all answers already.
        model: the served model's name at the server; the iterate's where the run started the server.
        urls: where it was, without secrets; empty for servers that the run started.
        probe_gap: mean distance of its log-probabilities of a few tokens from those of the run's engine. [nats a token]
    """

    engine: str
    version: str = ""
    model: str = ""
    urls: tuple[str, ...] = ()
    probe_gap: float | None = None

    def __str__(self) -> str:
        return " ".join(
            [*filter(None, (self.engine, self.version)), *([f"at {', '.join(self.urls)}"] if self.urls else [])]
        )
