"""The engine: log-probabilities of responses given their prompts.

Supervised fine-tuning, self-play, opponent scoring and likelihood evaluation all ask this one question. The engine
packs rows without padding, computes a prompt once for all of its responses, and runs the language-model head only on
the positions that predict a scored token.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from spintune.engine.decoder import DecoderBackbone
from spintune.engine.encoder_decoder import EncoderDecoderBackbone
from spintune.engine.head import (
    LogitReader,
    TokenLogProb,
    at_least_float32,
    head_logits,
    logprob,
    logprob_and_greedy,
    precision,
)
from spintune.engine.prefixes import check_causal, row_limit
from spintune.engine.probe import PackingError, check_packing, check_precision
from spintune.engine.query import Backbone, LogProbs, Query, pack
from spintune.engine.recompute import recomputed
from spintune.engine.rotary import LengthDependentRotary
from spintune.engine.sharing import score_runs
from spintune.errors import ModelError
from spintune.kernels.allocator import reuse_memory
from spintune.kernels.fused import patched_forwards
from spintune.kernels.linear import training_kernels

log = logging.getLogger(__name__)


Inside = Callable[[Callable[[], Tensor]], Tensor]


def compute_here(compute: Callable[[], Tensor]) -> Tensor:
    """Calls ``compute`` with the weights as they are."""
    return compute()


@dataclass(frozen=True)
class Findings:
    """What the checks of a model found out, for other engines of the same weights with the same settings.

    Attributes:
        packed, why, row_limit: see :class:`LogProbEngine`.
        wrong: by factory, why a generator is wrong for the model, or nothing where it is right.
    """

    packed: bool = True
    why: str = ""
    row_limit: int | None = None
    wrong: dict[object, str] = field(default_factory=dict)


class LogProbEngine:
    """Scores responses with a stock transformers language model, decoder-only or encoder-decoder.

    Args:
        model: a causal or a sequence-to-sequence language model of transformers.
        autocast: type of matrix products (bfloat16), or None for the weights' own.
        head_megabytes: scored logits beyond this size are computed in chunks, which backward recomputes.
        recompute: share of the layers that backward computes again, to save memory.
        offload: keep the inputs of those layers in the memory of the CPU until then.
        compiled: GPU only: compile norms and activations with dynamic shapes.
        tokens_per_forward: tokens that :meth:`score`, :meth:`score_greedy` and training compute at once. It changes
            speed and memory, not results.
        findings: of an earlier engine of the same weights and settings, whose checks are then not made again.

    Attributes:
        packed: whether packed rows are exact for this model; False computes each response alone.
        why: the reason, a phrase.
        inside: calls what computes log-probabilities; over shards, with the weights of all ranks.
        by_layer: whether weights of layers are there only while a layer computes, so that nobody may look at them.
        standin: an engine of the same model with fewer layers, for probes; None where the model itself can be probed.
        row_limit: tokens of the longest row that is computed alike when it begins a longer one; None where every row
            is. Beyond it, in transformers itself, the rest of a row changes the scores of its beginning.

    The constructor compares the packed path with plain one-at-a-time forwards on a small probe
    (:mod:`spintune.engine.probe`). A model that fails it (recurrent layers, attention outside transformers' attention
    interface, encoder-decoders that are not of the T5 kind) is scored one response at a time, with a warning: slower,
    never wrong. One whose tokens see those that follow, or depend on the length of every row, raises ModelError.

    The model attends in packed rows only during the engine's own calls. Between them it works as its owner loaded it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        autocast: torch.dtype | None = None,
        head_megabytes: int = 512,
        recompute: float = 0.0,
        compiled: bool = False,
        tokens_per_forward: int = 1024,
        offload: bool = False,
        findings: Findings | None = None,
    ) -> None:
        self._set_up(model, autocast, head_megabytes, recompute, compiled, tokens_per_forward)
        self.offload = offload
        if findings is not None:
            self._take(findings)
            return
        check_precision(model, self._plain_tokens, autocast)
        check_causal(model, self._plain_tokens)
        self.row_limit = row_limit(model, self._plain_tokens)
        try:
            self.why = check_packing(model, self._packed_tokens, self._plain_tokens, autocast)
        except PackingError as reason:
            self.packed, self.why = False, str(reason)
            log.warning(
                "%s cannot be packed: %s; each response is computed alone, where packed calls hold about %d tokens",
                type(model).__name__,
                reason,
                tokens_per_forward,
            )

    @classmethod
    def unprobed(cls, model: PreTrainedModel, autocast: torch.dtype | None, recompute: float) -> LogProbEngine:
        """An engine of a model whose tensors have sizes and no numbers. It is taken to be one that can be packed."""
        engine = cls.__new__(cls)
        engine._set_up(model, autocast, recompute=recompute)
        engine._take(Findings(why="not probed"))
        return engine

    def over(self, model: PreTrainedModel) -> LogProbEngine:
        """An engine of a model that differs from this one's in its number of layers, with what was found out here."""
        engine = type(self).unprobed(model, self.autocast, self.recompute)
        engine.head_bytes, engine.compiled, engine.offload = self.head_bytes, self.compiled, self.offload
        engine.tokens_per_forward = self.tokens_per_forward
        engine._take(self.findings)
        engine.standin = self
        return engine

    @property
    def findings(self) -> Findings:
        """What is known of the model; generators add to it."""
        return Findings(self.packed, self.why, self.row_limit, self.wrong_generators)

    def _take(self, findings: Findings) -> None:
        self.packed, self.why, self.row_limit = findings.packed, findings.why, findings.row_limit
        self.wrong_generators = findings.wrong

    def _set_up(
        self,
        model: PreTrainedModel,
        autocast: torch.dtype | None,
        head_megabytes: int = 512,
        recompute: float = 0.0,
        compiled: bool = False,
        tokens_per_forward: int = 1024,
    ) -> None:
        self.model = model
        self.autocast = autocast
        self.recompute, self.compiled, self.offload = recompute, compiled, False
        self.tokens_per_forward = tokens_per_forward
        self.head_bytes = head_megabytes * 2**20
        self.inside: Inside = compute_here
        self.by_layer = False
        self.standin: LogProbEngine | None = None
        self._take(Findings())
        self.backbone: Backbone = (
            EncoderDecoderBackbone(model) if model.config.is_encoder_decoder else DecoderBackbone(model)
        )
        self._rotary = LengthDependentRotary(model)
        recomputed(model, recompute, self._layer_context)  # refuses an architecture now, not at the first step

    @property
    def is_sharded(self) -> bool:
        """Whether this process has a part of the weights."""
        return self.inside is not compute_here

    def __call__(self, queries: Sequence[Query]) -> LogProbs:
        """Log-probabilities of all responses of ``queries``, computed in one call of the model.

        Raises ModelError when the model would checkpoint its own layers, which packed rows do not survive.
        """
        token_M = self.tokens(queries)
        sum_N, count_N = _sums(token_M, queries)
        return LogProbs(sum_N, count_N, token_M)

    def tokens(self, queries: Sequence[Query]) -> Tensor:
        """Log-probabilities ``[M]`` of every scored token, as :meth:`__call__` sums them."""
        if not all(query.prompt for query in queries):
            raise ValueError("a prompt needs at least one token to predict from")
        if self.packed and torch.is_grad_enabled() and _checkpoints_itself(self.model):
            raise ModelError(
                "the model's own gradient checkpointing would compute layers again outside of packed rows; turn it off "
                "and give the engine recompute"
            )
        share = self.recompute if torch.is_grad_enabled() else 0.0
        with self._fast(), patched_forwards(recomputed(self.model, share, self._layer_context, self.offload)):
            if self.packed:
                return self.inside(lambda: self._packed_tokens(queries, TokenLogProb.apply))
            return self.inside(lambda: self._plain_tokens(queries, logprob))

    @torch.no_grad()
    def score(self, queries: Sequence[Query], done: Callable[[int], None] = lambda _: None) -> list[list[float]]:
        """Log-probabilities without gradients: a list for each query, with one number for each of its responses.

        ``done`` receives the number of queries that each forward has answered.
        """
        return self.score_parts([queries], done)[0]

    @torch.no_grad()
    def score_parts(
        self, parts: Sequence[Sequence[Query]], done: Callable[[int], None] = lambda _: None
    ) -> list[list[list[float]]]:
        """Like :meth:`score` for several sequences, none of which changes a bit of another's scores."""
        reuse_memory()
        runs = [run for part in parts for run in pack(part, lambda q: q.tokens, self.tokens_per_forward)]
        scores = iter(score_runs(self, runs, _sums_of, done))
        return [[next(scores) for _ in part] for part in parts]

    @torch.no_grad()
    def score_greedy(
        self, queries: Sequence[Query], done: Callable[[int], None] = lambda _: None
    ) -> list[list[tuple[float, bool]]]:
        """Like :meth:`score`; with each log-probability, whether greedy decoding would choose the scored tokens."""
        reuse_memory()
        runs = pack(queries, lambda q: q.tokens, self.tokens_per_forward)
        return score_runs(self, runs, _greedy_sums_of, done)

    def greedy_sums(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Sums ``[N, 2]`` of :func:`logprob_and_greedy` over each response, and its scored tokens; one call."""
        with self._fast():
            tokens = self._packed_tokens if self.packed else self._plain_tokens
            return _sums(self.inside(lambda: tokens(queries, logprob_and_greedy)), queries)

    def scores_as_drawn(self, prompt: int, answer: int) -> bool:
        """Whether all tokens of an answer are drawn as they are scored.

        A row is scored with its whole length, and each token is drawn from the text before it. They differ where rotary
        frequencies change between the two lengths, and beyond :attr:`row_limit`.
        """
        read = prompt + max(answer, 1) - 1
        alike = self._rotary.side(prompt) == self._rotary.side(read)
        written = answer if self.model.config.is_encoder_decoder else read
        return alike and (self.row_limit is None or written <= self.row_limit)

    @contextlib.contextmanager
    def _fast(self) -> Iterator[None]:
        with precision(self.model, self.autocast), self._kernels(self.model):
            yield

    def _kernels(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Faster layers; none over shards, whose weights are other tensors before a layer is called."""
        if self.is_sharded:
            return contextlib.nullcontext()
        # a model with autocast is also computed in float32, to be compared with
        rounded = self.autocast is not None and torch.is_autocast_enabled(self.model.device.type)
        return training_kernels(module, self.autocast if rounded else None, self.compiled)

    @contextlib.contextmanager
    def _layer_context(self, layer: nn.Module) -> Iterator[None]:
        """The context of a layer that backward computes again, after :meth:`__call__` has returned."""
        packing = self.backbone.packing() if self.packed else contextlib.nullcontext()
        with self._kernels(layer), packing:
            yield

    def _packed_tokens(self, queries: Sequence[Query], read: LogitReader) -> Tensor:
        counted = [
            token
            for query in queries
            for response, scored in zip(query.responses, query.counted, strict=True)
            for token, counts in zip(response, scored, strict=True)
            if counts
        ]
        hidden_MD = self.backbone.hidden(queries)
        return self._head(hidden_MD, torch.tensor(counted, dtype=torch.long, device=hidden_MD.device), read)

    def _head(self, hidden_MD: Tensor, target_M: Tensor, read: LogitReader) -> Tensor:
        count = math.ceil(len(target_M) * self.model.config.get_text_config().vocab_size * 4 / self.head_bytes)
        chunks = _chunks(hidden_MD, target_M, count)
        if count <= 1 or not torch.is_grad_enabled():
            return torch.cat([self._head_chunk(h, t, read) for h, t in chunks])
        return torch.cat([checkpoint(self._head_chunk, h, t, read, use_reentrant=False) for h, t in chunks])

    def _head_chunk(self, hidden_MD: Tensor, target_M: Tensor, read: LogitReader) -> Tensor:
        with self._kernels(self.model.get_output_embeddings()):  # backward may compute it again
            return read(at_least_float32(head_logits(self.model, hidden_MD)), target_M)

    def _plain_tokens(self, queries: Sequence[Query], read: LogitReader) -> Tensor:
        """The definition: one forward per response, with the model's own attention and head."""
        values = []
        for query in queries:
            for response, scored in zip(query.responses, query.counted, strict=True):
                if not any(scored):
                    continue
                logits = self.backbone.logits(query.prompt, response)
                ids = torch.tensor(response, device=logits.device)
                value = read(at_least_float32(logits), ids)
                values.append(value[torch.tensor(scored, device=value.device)])
        nothing = torch.zeros(0, device=self.model.device)
        return torch.cat(values) if values else read(nothing[:, None], nothing.long())


def _sums_of(engine: LogProbEngine, queries: Sequence[Query]) -> list[list[float]]:
    sums = iter(engine(queries).sum_N.tolist())
    return [[next(sums) for _ in query.responses] for query in queries]


def _greedy_sums_of(engine: LogProbEngine, queries: Sequence[Query]) -> list[list[tuple[float, bool]]]:
    sum_N2, count_N = engine.greedy_sums(queries)
    pairs = zip(*sum_N2.T.tolist(), count_N.tolist(), strict=True)
    answers = iter([(logprob, greedy == count) for logprob, greedy, count in pairs])
    return [[next(answers) for _ in query.responses] for query in queries]


def _checkpoints_itself(model: PreTrainedModel) -> bool:
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _sums(value_M: Tensor, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
    """Sums ``[N, ...]`` of the scored tokens' values over each of N responses, and how many tokens those are."""
    count_N = torch.tensor([sum(scored) for q in queries for scored in q.counted], device=value_M.device)
    owner_M = torch.repeat_interleave(count_N)
    return value_M.new_zeros(len(count_N), *value_M.shape[1:]).index_add(0, owner_M, value_M), count_N


def _chunks(hidden_MD: Tensor, target_M: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    size = max(1, math.ceil(len(target_M) / max(1, count)))
    return list(zip(hidden_MD.split(size), target_M.split(size), strict=True))
