"""Finds out whether a server has the model that it is to write for: its name, its vocabulary, its log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ServerError
from spintune.generation.sampling import Sampling, stream_keys
from spintune.generation.served.replicas import Replica
from spintune.generation.served.wire import Order, ServedModel

PROBE_TEXTS = (
    "The capital of France is",
    "Once upon a time, there was a little fox who lived near the river.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "1, 2, 3, 4, 5, 6, 7,",
)
_TOKENS = 12


class OtherModelError(ServerError):
    """A server that serves another model than the one that is to write."""


async def introduce(replica: Replica, wanted: str | None) -> None:
    """Asks a server what it is, and takes the model that it is asked for.

    Args:
        wanted: the model's name there; None takes the only one.

    Raises OtherModelError when it has no model of that name, or several without one.
    """
    about = await replica.ask(replica.wire.version_path)
    replica.version = replica.wire.version(about)
    replica.slots = replica.wire.slots(about) or replica.slots
    models = replica.wire.models(await replica.ask("/v1/models"))
    model = _chosen(replica, models, wanted)
    replica.model, replica.max_len = model.name, model.max_len
    replica.vocabulary = model.vocabulary


def _chosen(replica: Replica, models: Sequence[ServedModel], wanted: str | None) -> ServedModel:
    names = ", ".join(model.name for model in models) or "no model"
    if wanted is None and len(models) != 1:
        raise OtherModelError(f"{replica.name}: it serves {names}; name one as generate.model")
    found = next((model for model in models if wanted in (None, model.name)), None)
    if found is None:
        raise OtherModelError(f"{replica.name}: it serves {names}, and not {wanted} (generate.model)")
    return found


async def check_vocabulary(replica: Replica, engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises OtherModelError when tokens mean something else to the server than to the tokenizer here."""
    ours = engine.model.config.get_text_config().vocab_size
    if replica.vocabulary not in (None, ours, len(tokenizer)):
        raise OtherModelError(f"{replica.name}: another vocabulary, of {replica.vocabulary} tokens and not {ours}")
    for text in PROBE_TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        reply = await replica.ask("/detokenize", replica.wire.text_request(ids, replica.model), optional=True)
        if reply is None:  # a gateway that lets answers through alone
            return
        found = replica.wire.text(reply)
        if "".join(found.split()) != "".join(tokenizer.decode(ids).split()):
            raise OtherModelError(
                f"{replica.name}: another tokenizer: the tokens of {text!r:.40} are {found!r:.40} there; "
                "serve the model's own"
            )


async def probe_gap(replica: Replica, engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """How far the server's log-probabilities of a few greedy tokens are from those computed here. [nats a token]

    None where it gives no log-probabilities.
    """
    prompts = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in PROBE_TEXTS]
    sampling = Sampling(_TOKENS, temperature=0)
    keys = stream_keys(prompts, 0)
    queries, given = [], []
    vocabulary = engine.model.config.get_text_config().vocab_size
    for prompt, key in zip(prompts, keys, strict=True):
        answer = await replica.write(Order(prompt, sampling, key, _TOKENS, frozenset()))
        if answer.logprobs is not None and answer.ids and max(answer.ids) < vocabulary:
            queries.append(Query(prompt, (answer.ids,)))
            given.append(sum(answer.logprobs))
    if not queries:
        return None
    scores = [score for (score,) in engine.score(queries)]
    tokens = sum(len(query.responses[0]) for query in queries)
    return sum(abs(a - b) for a, b in zip(scores, given, strict=True)) / tokens
