"""A generator whose answers another engine writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import ServerError
from spintune.generation.protocol import OnToken, Prompt, SequenceState, completion_of, new_sequences, tell_of_positions
from spintune.generation.sampling import Sampling, stream_keys
from spintune.generation.served.pool import EnginePool, ServedSource
from spintune.generation.served.replicas import Dealer, Replica, opened
from spintune.generation.served.wire import Order, ServedAnswer
from spintune.records import Completion
from spintune.teachers.event_loop import event_loop


class ServedGenerator:
    """Writes with the servers of a pool, which it connects when it is first asked.

    See :class:`spintune.generation.protocol.Generator`, from which it differs in this: sampling follows the server's
    random numbers (their seed is the prompt's key); what is computed beside a prompt may change last bits and so a
    draw; and ``logprob`` is the model's own at any temperature, so that it can always be compared with the engine's
    score, or None where the server does not give it.

    Args:
        source: the model, which ``engine`` has in memory.
    """

    def __init__(
        self,
        pool: EnginePool,
        source: ServedSource,
        engine: LogProbEngine,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
    ) -> None:
        self.pool, self.source, self.engine = pool, source, engine
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self._foreign_ends = 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of ``prompts``, in their order. ``on_token`` is called for each token once an answer is there."""
        if not prompts or sampling.max_new_tokens < 1:
            return [Completion((), "", "length", 0.0) for _ in prompts]
        if reason := self.pool.wire.refusal(sampling):
            raise ServerError(f"generate: {reason}, or leave generate out")
        sequences = new_sequences(self.engine.model, prompts, sampling, keys)
        keys = stream_keys(prompts, sampling.seed) if keys is None else keys
        orders = [
            Order(sequence.prompt, sampling, key, sequence.max_len, self.stop_ids)
            for sequence, key in zip(sequences, keys, strict=True)
        ]
        replicas = self.pool.replicas(self.source, self.engine, self.tokenizer)
        longest = max(len(order.prompt) + order.max_len for order in orders)
        _check_lengths(replicas, longest)
        finished: dict[int, Completion] = {}

        def written(index: int, answer: ServedAnswer) -> None:
            finished[index] = self._completion(sequences[index], answer, on_token)

        with event_loop() as run:
            run(self._write(replicas, orders, written))
        completions = [finished[index] for index in range(len(prompts))]
        tell_of_positions(sequences, completions, sampling)
        return completions

    async def _write(
        self, replicas: Sequence[Replica], orders: Sequence[Order], written: Callable[[int, ServedAnswer], None]
    ) -> None:
        async with opened(replicas, self.pool.tls):
            try:
                await Dealer(replicas, self.pool.progress.note, self.pool.tick).write(orders, written)
            except ServerError:
                self.pool.check_started()
                raise

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _completion(self, sequence: SequenceState, answer: ServedAnswer, on_token: OnToken | None) -> Completion:
        """The answer up to the first token that ends it here, or that ``on_token`` ends it with."""
        vocabulary = self.engine.model.config.get_text_config().vocab_size
        if beyond := [token for token in answer.ids if token >= vocabulary]:
            raise ServerError(f"{self.pool.section.engine} wrote token {beyond[0]} of a vocabulary of {vocabulary}")
        for token in answer.ids[: sequence.max_len]:
            sequence.ids.append(token)
            if (on_token and on_token(sequence.index, token)) or token in self.stop_ids:
                break
        count = len(sequence.ids)
        logprob = None if answer.logprobs is None else sum(answer.logprobs[:count])
        if count == len(answer.ids) < sequence.max_len and sequence.ids[-1] not in self.stop_ids:
            self._tell_of_foreign_end(sequence.ids[-1])
        completion = completion_of(sequence, self.stop_ids, self.tokenizer)
        return Completion(completion.ids, completion.text, completion.finish_reason, logprob)

    def _tell_of_foreign_end(self, token: int) -> None:
        self._foreign_ends += 1
        if self._foreign_ends == 1:
            self.pool.progress.note(
                f"{self.pool.section.engine} ends answers at token {token} ({self.tokenizer.decode([token])!r}), which "
                "ends none here; they count as cut"
            )


def _check_lengths(replicas: Sequence[Replica], longest: int) -> None:
    for replica in replicas:
        if replica.max_len is not None and replica.max_len < longest:
            raise ServerError(
                f"{replica.name}: it reads {replica.max_len} tokens, and a prompt with its answer may have {longest}; "
                "start it with a longer context (vLLM: --max-model-len, here generate.max_length; llama.cpp: -c, "
                "shared by its slots), or shorten both"
            )
