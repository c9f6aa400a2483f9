"""What is sent to vLLM and to llama.cpp's server, and what comes back: token ids, and the log-probability of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from spintune.generation.protocol import Prompt
from spintune.generation.sampling import Sampling
from spintune.typed_json import JsonObject

VLLM, LLAMA_CPP = "vllm", "llama.cpp"

_ALMOST_ZERO = 1e-3
"""Nats above 0 that rounding may give a log-probability."""


class WireError(Exception):
    """A response that is not what the protocol says; the text says what is wrong with it."""


@dataclass(frozen=True)
class Order:
    """One answer to write.

    Attributes:
        key: its random stream, from which the server's seed is made.
        max_len: tokens that it may get.
        stop_ids: tokens that end it.
    """

    prompt: Prompt
    sampling: Sampling
    key: bytes
    max_len: int
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class ServedAnswer:
    """What a server wrote.

    Attributes:
        ids: as it says, a stop token included.
        logprobs: the model's own log-probability of each, at temperature 1 and over the whole vocabulary; None where
            the server does not give all.
        full: whether it ended because it has as many tokens as were asked for.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    full: bool


@dataclass(frozen=True)
class ServedModel:
    """A model that a server offers.

    Attributes:
        max_len: tokens of prompt and answer together; None where the server does not say.
        vocabulary: number of tokens; None where the server does not say.
    """

    name: str
    max_len: int | None = None
    vocabulary: int | None = None


class EngineWire(Protocol):
    """How one kind of server is asked."""

    engine: str
    version_path: str
    """Where it says what it is."""
    answer_path: str
    """Where it writes answers."""

    def version(self, document: object) -> str:
        """What it calls itself, from the document at ``version_path``."""

    def slots(self, document: object) -> int | None:
        """How many answers it writes at once, from the same document; None where it does not say."""

    def models(self, document: object) -> list[ServedModel]:
        """The models in the document at ``/v1/models``."""

    def text_request(self, ids: Sequence[int], model: str) -> JsonObject:
        """What asks at ``/detokenize`` for the text of tokens."""

    def text(self, document: object) -> str:
        """The text in the reply to :meth:`text_request`."""

    def refusal(self, sampling: Sampling) -> str | None:
        """Why it cannot sample so; None where it can."""

    def request(self, order: Order, model: str) -> JsonObject:
        """What asks for an answer. Every setting is sent, since servers have defaults of their own."""

    def answer(self, document: object, order: Order) -> ServedAnswer:
        """The answer in the reply to :meth:`request`. Raises WireError for a reply of another form."""


class VllmWire:
    """vLLM's ``/v1/completions`` with token ids. Its log-probabilities are of the raw logits (``raw_logprobs``)."""

    engine = VLLM
    version_path = "/version"
    answer_path = "/v1/completions"

    def version(self, document: object) -> str:
        """See :class:`EngineWire`; raises WireError for another server."""
        match document:
            case {"version": str(version)}:
                return version
        raise WireError("it does not say its version as vLLM does")

    def slots(self, document: object) -> int | None:
        return None

    def models(self, document: object) -> list[ServedModel]:
        return [ServedModel(name, _count(one.get("max_model_len"))) for name, one in _models(document)]

    def text_request(self, ids: Sequence[int], model: str) -> JsonObject:
        return {"model": model, "tokens": list(ids)}

    def text(self, document: object) -> str:
        match document:
            case {"prompt": str(text)}:
                return text
        raise WireError("no text of tokens")

    def refusal(self, sampling: Sampling) -> str | None:
        return None

    def request(self, order: Order, model: str) -> JsonObject:
        sampling = order.sampling
        return {
            "model": model,
            "prompt": list(order.prompt),
            "max_tokens": order.max_len,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": 1.0,
            "seed": int.from_bytes(order.key[:8], "big") >> 1,
            "logprobs": 0,
            # its own end-of-sequence tokens need not be those that end an answer here
            "ignore_eos": True,
            "stop_token_ids": sorted(order.stop_ids),
            "return_token_ids": True,
            "stream": False,
        }

    def answer(self, document: object, order: Order) -> ServedAnswer:
        match document:
            case {"choices": [{"token_ids": list(ids), **choice}]}:
                pass
            case {"choices": [{}]}:
                raise WireError("no token ids in its answer; vLLM gives them since 0.10.2")
            case _:
                raise WireError("no answer in its reply")
        asked = choice.get("prompt_token_ids")
        if asked is not None and asked != list(order.prompt):
            raise WireError("it answered a prompt of other tokens than it was sent")
        logprobs = choice.get("logprobs")
        numbers = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        answer = ServedAnswer(_ids(ids), _numbers(numbers, len(ids)), choice.get("finish_reason") == "length")
        ended = choice.get("finish_reason") == "stop" and answer.ids[-1:] and answer.ids[-1] in order.stop_ids
        _check_length(answer, order.max_len, bool(ended), choice.get("finish_reason"))
        return answer


class LlamaCppWire:
    """``/completion`` of llama.cpp's server, with token ids.

    Its log-probabilities are of the raw logits, and are missing where a token is part of a character. It ends answers
    at the end-of-generation tokens of its GGUF file; who reads an answer cuts it at the tokens that end one here.
    """

    engine = LLAMA_CPP
    version_path = "/props"
    answer_path = "/completion"

    def version(self, document: object) -> str:
        """See :class:`EngineWire`; raises WireError for another server."""
        match document:
            case {"build_info": str(build)}:
                return build
        raise WireError("it does not say its build as llama.cpp's server does")

    def slots(self, document: object) -> int | None:
        return _count(document.get("total_slots")) if isinstance(document, dict) else None

    def models(self, document: object) -> list[ServedModel]:
        found = []
        for name, one in _models(document):
            meta = one.get("meta")
            values = meta if isinstance(meta, dict) else {}
            found.append(ServedModel(name, _count(values.get("n_ctx")), _count(values.get("n_vocab"))))
        return found

    def text_request(self, ids: Sequence[int], model: str) -> JsonObject:
        return {"tokens": list(ids)}

    def text(self, document: object) -> str:
        match document:
            case {"content": str(text)}:
                return text
        raise WireError("no text of tokens")

    def refusal(self, sampling: Sampling) -> str | None:
        if sampling.presence_penalty or sampling.frequency_penalty:
            return "llama.cpp's server counts the prompt's tokens for presence and frequency penalties; set them to 0"
        return None

    def request(self, order: Order, model: str) -> JsonObject:
        sampling = order.sampling
        return {
            "model": model,
            "prompt": list(order.prompt),
            "n_predict": order.max_len,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            # the order of spintune.generation.sampling, and nothing else: no min_p, no penalties
            "samplers": ["temperature", "top_k", "top_p"],
            "seed": int.from_bytes(order.key[:4], "big") % (2**32 - 1),  # the last one means any
            "n_probs": 1,
            "return_tokens": True,
            "response_fields": ["tokens", "stop_type", "truncated", "tokens_evaluated", "completion_probabilities"],
            "stream": False,
        }

    def answer(self, document: object, order: Order) -> ServedAnswer:
        match document:
            case {"tokens": list(ids), "stop_type": str(ended), **rest}:
                pass
            case _:
                raise WireError("no token ids in its answer")
        if rest.get("tokens_evaluated") not in (None, len(order.prompt)):
            raise WireError("it answered a prompt of another length than it was sent")
        probabilities = rest.get("completion_probabilities")
        numbers = None
        if isinstance(probabilities, list) and [_inside(one, "id") for one in probabilities] == ids:
            numbers = [_inside(one, "logprob") for one in probabilities]
        # the last token may complete a character beyond the limit
        answer = ServedAnswer(_ids(ids), _numbers(numbers, len(ids)), ended == "limit")
        if rest.get("truncated"):
            raise WireError(
                f"its context ended an answer at {len(ids)} of {order.max_len} tokens; give it a larger one"
            )
        short = ServedAnswer(answer.ids[: order.max_len], None, answer.full)
        _check_length(short, order.max_len, ended == "eos" and bool(ids), ended)
        return answer


WIRES: Mapping[str, EngineWire] = {VLLM: VllmWire(), LLAMA_CPP: LlamaCppWire()}


def _check_length(answer: ServedAnswer, max_len: int, ended: bool, reason: object) -> None:
    """Raises WireError for an answer that neither ended nor has as many tokens as were asked for."""
    count = len(answer.ids)
    if not (ended and 1 <= count <= max_len) and not (answer.full and count == max_len):
        raise WireError(f"an answer of {count} tokens where {max_len} were asked for (it says: {reason!r:.40})")


def _models(document: object) -> list[tuple[str, Mapping[str, object]]]:
    match document:
        case {"data": list(models)}:
            return [(one["id"], one) for one in models if isinstance(one, dict) and isinstance(one.get("id"), str)]
    raise WireError("no list of models")


def _ids(values: Sequence[object]) -> tuple[int, ...]:
    ids = tuple(value for value in values if type(value) is int and value >= 0)
    if len(ids) != len(values):
        raise WireError("tokens that are no ids")
    return ids


def _numbers(values: object, count: int) -> tuple[float, ...] | None:
    """The log-probabilities of so many tokens; None where some are missing. Raises WireError where they are none."""
    if not isinstance(values, list) or len(values) != count or None in values:
        return None
    if not all(isinstance(one, float | int) and math.isfinite(one) and one <= _ALMOST_ZERO for one in values):
        raise WireError("log-probabilities that are none")
    return tuple(min(float(one), 0.0) for one in values)


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _inside(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None
