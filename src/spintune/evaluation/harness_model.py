"""A model in memory as lm-evaluation-harness sees it. Imports lm_eval, so import it only when a benchmark runs.

The harness's own rules (its ``TemplateLM``) turn texts into tokens, so numbers equal those of its ``hf`` model. One of
the rules: control tokens spelled out in a text are control tokens, which is how rendered chat templates reach the
model. spintune computes: requests with a common beginning together (:func:`share`), and without padding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError, NonFiniteError
from spintune.evaluation.plain_texts import PlainTexts
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling
from spintune.generation.stopping import StopTexts
from spintune.progress import Progress
from spintune.tokens.limits import limited_template
from spintune.tokens.template_options import TemplateOptions
from spintune.tokens.templates import template_source, with_fixed_date
from spintune.typed_json import JsonObject

Ids = tuple[int, ...]

_ANSWER_TOKENS = 256  # the harness's default
_REMEMBERED = 64  # texts whose tokens are cached: all choices of a question have one context


@dataclass(frozen=True)
class InMemory:
    """A loaded model: engine, generator, tokenizer.

    ``template`` is the chat template's name as in recipes, with its options; benchmarks use it only with ``chat``.
    """

    engine: LogProbEngine
    generator: Generator
    tokenizer: PreTrainedTokenizerBase
    template: str = "tokenizer"
    template_options: TemplateOptions = field(default_factory=dict)

    @property
    def encoder_decoder(self) -> bool:
        return bool(self.engine.model.config.is_encoder_decoder)


@dataclass(frozen=True)
class TokenRequest:
    """The tokens of a request for the likelihood of a continuation after a context."""

    context: Ids
    continuation: Ids


class HarnessModel(TemplateLM):
    """Answers the harness's three kinds of requests with the engine and the generator.

    Args:
        model: what is evaluated.
        title: of the task in ``progress``.
        seed: of sampled answers.
    """

    def __init__(self, model: InMemory, progress: Progress, title: str, seed: int = 0) -> None:
        super().__init__()
        self.model, self.tokenizer = model, model.tokenizer
        self.progress, self.title, self.seed = progress, title, seed
        self.backend = "seq2seq" if model.encoder_decoder else "causal"
        self.config = model.engine.model.config
        self.max_length = resolve_max_length(self.config, self.tokenizer)
        if self.prefix_token_id is None:
            raise ModelError(
                f"{self.tokenizer_name}: the tokenizer has neither a token for the beginning nor one for the end of a "
                "text, and benchmarks need one of them to begin with; set bos_token or eos_token"
            )
        self._begin = self.tokenizer.decode([self.prefix_token_id])
        self._end = self.tokenizer.decode([self.eot_token_id]) if self.eot_token_id is not None else None
        self.plain_texts = PlainTexts(self.tokenizer, self.model.template)
        self._ids = lru_cache(_REMEMBERED)(self._encode)

    # Texts and tokens ------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path or "this tokenizer"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """The tokens of a text; cached, because a context recurs for every choice. The caller must not change them."""
        return self._ids(string, add_special_tokens)

    def _encode(self, text: str, special: bool | None) -> list[int]:
        if special is None:  # as the tokenizer does, but without a second token for the beginning
            special = not has_bos_prefix(text, self._begin)
        if self.plain_texts.is_guarded(text):
            return self.plain_texts.encode(text, special)
        return self.tokenizer.encode(text, add_special_tokens=special, verbose=False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text, ready for the answer or within it."""
        with limited_template():
            return self.tokenizer.apply_chat_template(
                chat_history,
                chat_template=with_fixed_date(template_source(self.tokenizer, self.model.template)),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.model.template_options,
            )

    # Likelihood ------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-probability (nats) of each continuation, and whether greedy decoding would write it."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-probability (nats) of whole texts, in windows of the longest input; later ones follow one token."""
        windows: list[tuple[tuple[str, str], list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += logprob
        return sums

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: object
    ) -> list[tuple[float, bool]]:
        contexts: dict[Ids, Ids] = {}
        asked = []
        for _, context, continuation in requests:
            request = self._fit(tuple(context), tuple(continuation))
            # one copy of each context
            asked.append(TokenRequest(contexts.setdefault(request.context, request.context), request.continuation))
        width = self.config.get_text_config().hidden_size
        groups = share(asked, width, self.model.engine.tokens_per_forward, whole=self.model.encoder_decoder)
        queries = [group.query(asked) for group in groups]
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        with self.progress.task(self.title, len(queries), "questions") as task:
            found = self.model.engine.score_greedy(queries, task.advance)
        for group, values in zip(groups, found, strict=True):
            for member, value in zip(group.members, values, strict=True):
                if math.isnan(value[0]):
                    raise NonFiniteError(f"{self.title}: the model's scores are not numbers; it is damaged or diverged")
                scores[member] = value
        return scores

    def _fit(self, context: Ids, continuation: Ids) -> TokenRequest:
        """The request, cut on the left to the longest input; a decoder-only model does not read the last token."""
        if not continuation:
            raise ModelError(f"{self.title}: a continuation has no tokens; nothing can be scored")
        if len(continuation) > self.max_length:
            raise ModelError(
                f"{self.title}: a continuation of {len(continuation)} tokens is more than the model reads "
                f"({self.max_length})"
            )
        if not context:  # only white space, which belongs to the continuation; the harness's own model fails here
            context = (self.prefix_token_id,)
        if self.model.encoder_decoder:
            return TokenRequest(context[-self.max_length :], continuation)
        return TokenRequest((context + continuation)[-(self.max_length + 1) : -len(continuation)], continuation)

    # Generation ------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The model's answer to each context, up to its end or the first stop text."""
        orders = [self._order(*request.args) for request in requests]
        by_sampling: dict[Sampling, list[int]] = defaultdict(list)
        for number, order in enumerate(orders):
            by_sampling[order.sampling].append(number)
        texts = [""] * len(orders)
        for sampling, numbers in by_sampling.items():
            for number, text in zip(numbers, self._write([orders[n] for n in numbers], sampling), strict=True):
                texts[number] = text
        return texts

    def _order(self, context: str, options: JsonObject) -> GenerationRequest:
        options = normalize_gen_kwargs(options, _ANSWER_TOKENS)
        until = handle_stop_sequences(options.pop("until"), eos=self._end)
        max_new_tokens = options.pop("max_gen_toks")
        sampled = options.pop("do_sample")
        temperature = options.pop("temperature", 1.0)
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature if sampled else 0.0,
            top_p=options.pop("top_p", 1.0) if sampled else 1.0,
            top_k=options.pop("top_k", 0) if sampled else 0,
            seed=self.seed,
        )
        if unknown := options.keys() - ({"top_p", "top_k"} if not sampled else set()):
            raise ModelError(f"{self.title}: generation with {', '.join(sorted(unknown))} is not supported")
        max_prompt = self.max_length if self.model.encoder_decoder else self.max_length - max_new_tokens
        if max_prompt < 1:
            raise ModelError(
                f"{self.title}: answers of {max_new_tokens} tokens leave no room for a prompt in the {self.max_length} "
                "tokens that the model reads; lower max_gen_toks"
            )
        # like the harness, which looks only for bos_token here, although likelihoods may begin with end-of-text
        special = self.model.encoder_decoder or not has_bos_prefix(context, self.tokenizer.bos_token)
        return GenerationRequest(
            tuple(self._ids(context, special)[-max_prompt:]), sampling, tuple(text for text in until if text)
        )

    def _write(self, orders: Sequence[GenerationRequest], sampling: Sampling) -> list[str]:
        stops = [StopTexts(self.tokenizer.decode, order.until) for order in orders]
        with self.progress.task(self.title, len(orders) * sampling.max_new_tokens, "tokens at most") as task:

            def after(place: int, token: int) -> bool:
                task.advance()
                return stops[place].after(token)

            completions = self.model.generator.generate([o.prompt for o in orders], sampling, on_token=after)
        return [
            postprocess_generated_text(completion.text, list(order.until), None)
            for order, completion in zip(orders, completions, strict=True)
        ]


@dataclass(frozen=True)
class GenerationRequest:
    """A request for an answer: its prompt, sampling, and stop texts."""

    prompt: Ids
    sampling: Sampling
    until: tuple[str, ...]


# Requests with a common beginning -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestGroup:
    """Requests that are computed together: their common beginning once, then the rest of each.

    Attributes:
        shared: the common beginning; at most a context.
        members: the requests, by number.
        branches: number of different rests, without their last tokens.
        tokens: number of tokens that the model reads.
    """

    shared: Ids
    members: tuple[int, ...]
    branches: int
    tokens: int

    def query(self, asked: Sequence[TokenRequest]) -> Query:
        """The question for the engine; ``asked`` holds all requests."""
        rests = [asked[member].context[len(self.shared) :] for member in self.members]
        answers = [asked[member].continuation for member in self.members]
        pairs = list(zip(rests, answers, strict=True))
        scored = tuple((False,) * len(rest) + (True,) * len(answer) for rest, answer in pairs)
        return Query(self.shared, tuple(rest + answer for rest, answer in pairs), scored, whole=False)


def share(asked: Sequence[TokenRequest], width: int, max_tokens: int, whole: bool = False) -> list[RequestGroup]:
    """Groups requests with a common beginning, where that saves work.

    First those of one context (a question's choices), then neighbors whose contexts have a common beginning: the two
    sentences of a Winogrande item after their exemplars, MMLU's questions of one subject, which share exemplars.

    Three choices of 2 tokens after a context of 90 take 93 tokens instead of 273, since last tokens predict nothing.
    Four letters after questions of 100 tokens after the same 600 take 700, 800, ... tokens for one, two, ... questions.

    Args:
        width: the model's hidden size.
        max_tokens: of a group of several contexts.
        whole: share contexts whole or not at all, because an encoder reads them.
    """
    by_context: dict[Ids, dict[Ids, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, request in enumerate(asked):
        by_context[request.context][request.continuation[:-1]].append(number)
    groups: list[RequestGroup] = []
    for context, branches in by_context.items():
        alone = [RequestGroup(context, tuple(ms), 1, len(context) + len(branch)) for branch, ms in branches.items()]
        groups += _joined(alone, lambda group: _work(group, width))
    if whole:
        return groups

    def cost(group: RequestGroup) -> float:
        return _work(group, width) if group.tokens <= max_tokens else math.inf

    return _joined(sorted(groups, key=lambda group: group.shared), cost)


def _joined(groups: Sequence[RequestGroup], cost: Callable[[RequestGroup], float]) -> list[RequestGroup]:
    """Joins each group to the one before it where that saves a tenth of its cost, since masked attention is slower."""
    joined: list[RequestGroup] = []
    for group in groups:
        together = _join(joined[-1], group) if joined else None
        if together and cost(together) - cost(joined[-1]) < 0.9 * cost(group):
            joined[-1] = together
        else:
            joined.append(group)
    return joined


def _join(left: RequestGroup, right: RequestGroup) -> RequestGroup | None:
    common = _common(left.shared, right.shared)
    if not common:
        return None
    # after the common beginning, every branch reads the rest of its context separately
    again = sum((len(group.shared) - common) * (group.branches - 1) for group in (left, right))
    return RequestGroup(
        shared=left.shared[:common],
        members=left.members + right.members,
        branches=left.branches + right.branches,
        tokens=left.tokens + right.tokens + again - common,
    )


def _work(group: RequestGroup, width: int) -> float:
    """Operations of a group, in units of a token without attention.

    A layer of width d has about 12 d² weights, so 24 d² operations per token, and 4 d for each token attended to; a
    group attends densely.
    """
    return group.tokens * (1 + group.tokens / (6 * width))


def _common(left: Ids, right: Ids) -> int:
    """Length of the common beginning of two sequences."""
    if left == right:
        return len(left)
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
