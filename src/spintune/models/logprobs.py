"""The engine: log-probabilities of responses given their prompts.

Supervised fine-tuning, self-play, opponent scoring and likelihood evaluation all ask this one question. Rows are
packed without padding, a prompt is computed once for all of its responses, and the language-model head runs only on
the positions that predict a scored token.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from spintune.models.attention import Branch, PackedLayout, disable_layouts, enable_layouts
from spintune.models.fused import replaced
from spintune.models.memory import keep_freed_memory
from spintune.models.products import fast_training
from spintune.models.recompute import recomputed
from spintune.models.seq2seq import EncoderDecoder
from spintune.models.varlen import VarlenLayout, flash_kernel

log = logging.getLogger(__name__)

T = TypeVar("T")
Reading = Callable[[Tensor, Tensor], Tensor]
"""What is kept of logits ``[M, V]`` and of the tokens ``[M]`` that stand there: values ``[M, ...]``."""


@dataclass(frozen=True)
class Query:
    """One prompt and the responses to score. ``scored[j][i]`` says whether token i of response j counts (None: all).

    The last token of a response predicts nothing. With ``whole=False`` a decoder-only model does not read it, nor twice
    what responses have before it: choices of one token cost nothing. A response may then end a token behind the last
    position that the model has.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    scored: tuple[tuple[bool, ...], ...] | None = None
    whole: bool = True

    @property
    def branches(self) -> tuple[tuple[int, ...], ...]:
        """What a decoder-only model reads behind the prompt."""
        if self.whole:
            return self.responses
        return tuple(dict.fromkeys(response[:-1] for response in self.responses if len(response) > 1))

    @property
    def tokens(self) -> int:
        """Tokens the model reads for it: the prompt once, and every response."""
        return len(self.prompt) + sum(map(len, self.branches))

    @property
    def counted(self) -> tuple[tuple[bool, ...], ...]:
        """For each response, whether each of its tokens counts."""
        return self.scored or tuple((True,) * len(response) for response in self.responses)


class LogProbs(NamedTuple):
    """Of N responses, in the order of the queries and of the responses within each."""

    sum_N: Tensor
    """Summed log-probability of each response's scored tokens, in nats, differentiable; at least float32."""
    count_N: Tensor
    """Number of scored tokens of each response."""
    token_M: Tensor
    """Log-probability of every scored token, responses one after the other."""


class Backbone(Protocol):
    """A stock transformers model below its head, as the engine sees it: :class:`Decoder` or ``EncoderDecoder``."""

    def enable_packing(self) -> None:
        """From here on :meth:`hidden` works, and :meth:`logits` need not."""

    def disable_packing(self) -> None:
        """From here on :meth:`logits` works, and :meth:`hidden` need not."""

    def hidden(self, queries: Sequence[Query]) -> Tensor:
        """What the head reads, ``[M, D]``, to predict each counted token of all responses; one packed call."""

    def logits(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        """Logits ``[len(response), V]`` of each token of a response, from an ordinary call of the whole model."""

    def passes_windows(self) -> bool:
        """Did the last call of :meth:`hidden` attend with every sliding window that the config asks for?"""


def pack(items: Sequence[T], tokens: Callable[[T], int], budget: int) -> list[list[T]]:
    """Cuts a sequence, in order, into runs of about equal token counts that stay near ``budget``.

    A run overhangs the budget by at most half its first and half its last item. Equal runs beat full ones: a short last
    run would waste a call.
    """
    if not items:
        return []
    total = sum(map(tokens, items))
    target = total / max(1, math.ceil(total / budget))
    runs: list[list[T]] = [[]]
    filled = 0.0
    for item in items:
        # an item goes where its middle falls
        middle = filled + tokens(item) / 2
        if runs[-1] and middle > target * len(runs):
            runs.append([])
        runs[-1].append(item)
        filled += tokens(item)
    return runs


class LogProbEngine:
    """Scores responses with a stock transformers language model, decoder-only or encoder-decoder.

    Args:
        model: a causal or a sequence-to-sequence language model of transformers.
        autocast: type of matrix products (bfloat16), or None for the weights' own.
        head_megabytes: above this size of the scored logits, the head runs in pieces that backward recomputes.
        recompute: share of the layers that backward computes once more, for less memory.
        compiled: layers between the products go through torch.compile, for GPUs.

    At construction the packed path is compared with plain one-at-a-time forwards on a small probe. A model for which
    it does not hold (recurrent layers, attention outside the attention interface, encoder-decoders that are not of the
    T5 kind) is scored one response at a time, with a warning: slower, never wrong.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        autocast: torch.dtype | None = None,
        head_megabytes: int = 512,
        recompute: float = 0.0,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.autocast = autocast
        self.recompute, self.compiled = recompute, compiled
        self.head_bytes = head_megabytes * 2**20
        self.backbone: Backbone = EncoderDecoder(model) if model.config.is_encoder_decoder else Decoder(model)
        recomputed(model, recompute, autocast)  # an architecture that cannot is refused here, not at the first step
        self.packed = self._packing_is_exact()
        if not self.packed:
            log.warning("%s cannot be packed; each response is computed alone", type(model).__name__)

    def __call__(self, queries: Sequence[Query]) -> LogProbs:
        """Log-probabilities of all responses of ``queries``, which are computed in one call of the model."""
        if not all(query.prompt for query in queries):
            raise ValueError("a prompt needs at least one token to predict from")
        share = self.recompute if torch.is_grad_enabled() else 0.0
        with self._fast(), replaced(recomputed(self.model, share, self.autocast, self.compiled)):
            if self.packed:
                token_M = self._packed_tokens(queries, _TokenLogProb.apply)
            else:
                token_M = self._plain_tokens(queries, _logprob)
        sum_N, count_N = _sums(token_M, queries)
        return LogProbs(sum_N, count_N, token_M)

    @torch.no_grad()
    def score(
        self, queries: Sequence[Query], budget: int, done: Callable[[int], None] = lambda _: None
    ) -> list[list[float]]:
        """Log-probabilities without gradients: a list for each query, with one number for each of its responses.

        ``budget`` is the number of tokens computed at once; ``done`` is told how many queries are finished.
        """
        keep_freed_memory()
        scores: list[list[float]] = []
        for run in pack(queries, lambda q: q.tokens, budget):
            sums = iter(self(run).sum_N.tolist())
            scores.extend([next(sums) for _ in query.responses] for query in run)
            done(len(run))
        return scores

    @torch.no_grad()
    def score_greedy(
        self, queries: Sequence[Query], budget: int, done: Callable[[int], None] = lambda _: None
    ) -> list[list[tuple[float, bool]]]:
        """Like :meth:`score`, with each number whether every scored token is the likeliest one where it stands."""
        keep_freed_memory()
        scores: list[list[tuple[float, bool]]] = []
        for run in pack(queries, lambda q: q.tokens, budget):
            with self._fast():
                tokens = self._packed_tokens if self.packed else self._plain_tokens
                sum_N2, count_N = _sums(tokens(run, _logprob_and_greedy), run)
            pairs = zip(*sum_N2.T.tolist(), count_N.tolist(), strict=True)
            answers = iter([(logprob, greedy == count) for logprob, greedy, count in pairs])
            scores.extend([next(answers) for _ in query.responses] for query in run)
            done(len(run))
        return scores

    @contextlib.contextmanager
    def _fast(self) -> Iterator[None]:
        with precision(self.model, self.autocast), fast_training(self.model, self.autocast, self.compiled):
            yield

    def _packed_tokens(self, queries: Sequence[Query], read: Reading) -> Tensor:
        counted = [
            token
            for query in queries
            for response, scored in zip(query.responses, query.counted, strict=True)
            for token, counts in zip(response, scored, strict=True)
            if counts
        ]
        hidden_MD = self.backbone.hidden(queries)
        return self._head(hidden_MD, torch.tensor(counted, dtype=torch.long, device=hidden_MD.device), read)

    def _head(self, hidden_MD: Tensor, target_M: Tensor, read: Reading) -> Tensor:
        pieces = math.ceil(len(target_M) * self.model.config.get_text_config().vocab_size * 4 / self.head_bytes)
        if pieces <= 1 or not torch.is_grad_enabled():
            return torch.cat([self._head_piece(h, t, read) for h, t in _chunks(hidden_MD, target_M, pieces)])
        return torch.cat(
            [
                checkpoint(self._head_piece, h, t, read, use_reentrant=False)
                for h, t in _chunks(hidden_MD, target_M, pieces)
            ]
        )

    def _head_piece(self, hidden_MD: Tensor, target_M: Tensor, read: Reading) -> Tensor:
        with fast_training(self.model.get_output_embeddings(), self.autocast):  # backward may compute it once more
            return read(_at_least_float32(head_logits(self.model, hidden_MD)), target_M)

    def _plain_tokens(self, queries: Sequence[Query], read: Reading) -> Tensor:
        """The definition: one forward a response, with the model's own attention and head."""
        values = []
        for query in queries:
            for response, scored in zip(query.responses, query.counted, strict=True):
                if not any(scored):
                    continue
                logits = self.backbone.logits(query.prompt, response)
                ids = torch.tensor(response, device=logits.device)
                value = read(_at_least_float32(logits), ids)
                values.append(value[torch.tensor(scored, device=value.device)])
        nothing = torch.zeros(0, device=self.model.device)
        return torch.cat(values) if values else read(nothing[:, None], nothing.long())

    @torch.no_grad()
    def _packing_is_exact(self) -> bool:
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = tuple((7 * i * i + 3 * i + 1) % vocabulary for i in range(16))
        probe = [Query(ids[:5], (ids[5:9], ids[9:12])), Query(ids[12:14], (ids[14:16],))]
        self.backbone.disable_packing()
        with precision(self.model, self.autocast):
            plain = self._plain_tokens(probe, _logprob)
            try:
                self.backbone.enable_packing()
                packed = self._packed_tokens(probe, _TokenLogProb.apply)
            except Exception as error:  # whatever a foreign architecture raises, the plain path still works
                log.debug("packed probe failed", exc_info=error)
                packed = torch.full_like(plain, math.nan)
        tolerance = 1e-3 if self.autocast is None and self.model.dtype.itemsize >= 4 else 0.1
        exact = bool(torch.allclose(plain, packed, rtol=tolerance, atol=tolerance)) and self.backbone.passes_windows()
        if not exact:
            self.backbone.disable_packing()
        return exact


class Decoder:
    """What the engine asks of a decoder-only model. See :class:`Backbone`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._windows: dict[int, int | None] = {}

    def enable_packing(self) -> None:
        enable_layouts(self.model)

    def disable_packing(self) -> None:
        disable_layouts(self.model)

    def hidden(self, queries: Sequence[Query]) -> Tensor:
        """A prompt is computed once for all of its responses."""
        device = self.model.device
        branches = [Branch(len(q.prompt), tuple(map(len, q.branches))) for q in queries]
        kernel = flash_kernel(device)
        layout = VarlenLayout(branches, device, kernel) if kernel else PackedLayout(branches, device)
        ids = [token for q in queries for part in (q.prompt, *q.branches) for token in part]
        hidden_1TD = self.model.base_model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=layout.positions(),
            layout=layout,
            use_cache=False,
        ).last_hidden_state
        self._windows = layout.windows
        return hidden_1TD[0].index_select(0, torch.tensor(_predicting(queries), dtype=torch.long, device=device))

    def logits(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*prompt, *response[:-1]]], device=self.model.device)
        return self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]

    def passes_windows(self) -> bool:
        """Some models put them into masks only (Qwen2-MoE)."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            wanted = getattr(config, "sliding_window", None) is not None
            return not wanted or any(window is not None for window in self._windows.values())
        if "chunked_attention" in kinds:
            return False
        return all(self._windows.get(i) is not None for i, kind in enumerate(kinds) if kind == "sliding_attention")


def head_logits(model: PreTrainedModel, hidden_MD: Tensor) -> Tensor:
    """Logits ``[M, V]`` of hidden states ``[M, D]``, with the scalings that some architectures put behind the head."""
    config = model.config.get_text_config()
    logits_MV = model.get_output_embeddings()(hidden_MD)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits_MV = logits_MV * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits_MV = logits_MV / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits_MV = cap * torch.tanh(logits_MV / cap)
    return logits_MV


def precision(model: PreTrainedModel, autocast: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Context in which matrix products run in ``autocast``, or as the weights are when it is None."""
    return contextlib.nullcontext() if autocast is None else torch.autocast(model.device.type, autocast)


class _TokenLogProb(torch.autograd.Function):
    """``log softmax(logits)[target]``, whose gradient overwrites the logits instead of taking a second buffer.

    Some rows at a time, so that what is between stays in a processor's cache: a third of the time of ``logsumexp`` over
    all of them, and of its derivative.
    """

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, target_M: Tensor) -> Tensor:
        # saved the ordinary way, so that checkpoint() can drop the logits of a piece until backward
        ctx.save_for_backward(logits_MV, target_M)
        return torch.cat([_logprob(logits, target) for logits, target in _rows(logits_MV, target_M)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits_MV, target_M = ctx.saved_tensors
        for logits, grad in _rows(logits_MV, grads[0]):
            torch.mul(logits.softmax(-1), -grad[:, None], out=logits)
        return logits_MV.scatter_add_(1, target_M[:, None], grads[0][:, None]), None


def _rows(logits_MV: Tensor, other_M: Tensor) -> zip[tuple[Tensor, Tensor]]:
    """Runs of rows of about 4 MB of float32 on a processor, of 1 GB on a GPU, where few large calls are best."""
    rows = max(1, 2 ** (20 if logits_MV.device.type == "cpu" else 28) // logits_MV.shape[1])
    return zip(logits_MV.split(rows), other_M.split(rows), strict=True)


def _logprob(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    return logits_MV.log_softmax(-1).gather(1, target_M[:, None])[:, 0]


def _logprob_and_greedy(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Values ``[M, 2]``: the log-probability, and 1 where the token is the likeliest."""
    logprob_M = _TokenLogProb.apply(logits_MV, target_M)
    return torch.stack([logprob_M, (logits_MV.argmax(-1) == target_M).to(logprob_M)], -1)


def _sums(value_M: Tensor, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
    """Values of scored tokens added up for each of N responses, ``[N, ...]``, and how many tokens those are."""
    count_N = torch.tensor([sum(scored) for q in queries for scored in q.counted], device=value_M.device)
    owner_M = torch.repeat_interleave(count_N)
    return value_M.new_zeros(len(count_N), *value_M.shape[1:]).index_add(0, owner_M, value_M), count_N


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits


def _predicting(queries: Sequence[Query]) -> list[int]:
    """For every counted token, the packed position that predicts it."""
    rows: list[int] = []
    start = 0
    for query in queries:
        last_of_prompt = start + len(query.prompt) - 1
        *begins, start = itertools.accumulate(map(len, query.branches), initial=last_of_prompt + 1)
        if not query.whole:
            place = dict(zip(query.branches, begins, strict=True))
            begins = [place.get(response[:-1], 0) for response in query.responses]
        for begin, scored in zip(begins, query.counted, strict=True):
            rows.extend(begin + i - 1 if i else last_of_prompt for i, counts in enumerate(scored) if counts)
    return rows


def _chunks(hidden_MD: Tensor, target_M: Tensor, pieces: int) -> list[tuple[Tensor, Tensor]]:
    size = max(1, math.ceil(len(target_M) / max(1, pieces)))
    return list(zip(hidden_MD.split(size), target_M.split(size), strict=True))
