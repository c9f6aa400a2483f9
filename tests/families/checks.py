"""What is checked of a family: the tool's numbers against plain calls of transformers, one row at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from builder import VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling

NEW_TOKENS = 10
FIRST = 5
"""Smaller ids are control tokens, such as the padding that some models treat in their own way."""


def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the word "wi"."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def queries() -> list[Query]:
    """Prompts with one to three responses, on both sides of every window and rope threshold of the variants."""
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(FIRST, VOCABULARY, (count,), generator=generator).tolist())

    holes = tuple(i % 3 != 1 for i in range(9))
    return [
        Query(ids(28), (ids(17), ids(1), ids(8))),
        Query(ids(5), (ids(3), ids(12))),
        Query(ids(2), (ids(9),), (holes,)),
    ]


def plain_logits(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Logits ``[len(response) + 1, V]`` that follow the prompt and each token of the response, by one call."""
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        return model(
            input_ids=torch.tensor([list(prompt)]), decoder_input_ids=torch.tensor([[start, *response]]), use_cache=False
        ).logits[0].float()
    ids = torch.tensor([[*prompt, *response]])
    return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()


def plain_sums(model: PreTrainedModel, asked: Sequence[Query]) -> Tensor:
    """Summed log-probability of the counted tokens of each response."""
    return torch.stack(list(_plain_sums(model, asked)))


def _plain_sums(model: PreTrainedModel, asked: Sequence[Query]) -> Iterator[Tensor]:
    for query in asked:
        for response, counts in zip(query.responses, query.counted, strict=True):
            logprobs = plain_logits(model, query.prompt, response[:-1]).log_softmax(-1)
            yield logprobs.gather(1, torch.tensor(response)[:, None])[torch.tensor(counts), 0].sum()


def tokens_of(asked: Sequence[Query]) -> Tensor:
    """How many tokens of each response count."""
    return torch.tensor([sum(counts) for query in asked for counts in query.counted])


@torch.no_grad()
def score_error(engine: LogProbEngine) -> float:
    """Largest difference of the engine's scores from plain forwards. [nats per token]"""
    asked = queries()
    scores = torch.tensor([score for of_query in engine.score(asked) for score in of_query])
    return ((scores - plain_sums(engine.model, asked)).abs() / tokens_of(asked)).max().item()


@torch.no_grad()
def greedy_error(engine: LogProbEngine) -> tuple[float, float]:
    """How the generator's text differs from plain forwards without a cache.

    The first number is by how much a written token's logit is below the largest one, at worst; 0 for equal text. The
    second is the largest difference of the log-probability that a sampled text was drawn with from its score. [nats]
    """
    model, worst = engine.model, 0.0
    generator = build_generator(engine, words(), frozenset())
    prompts = [query.prompt for query in queries()]
    written = generator.generate(prompts, Sampling(NEW_TOKENS, temperature=0))
    for prompt, completion in zip(prompts, written, strict=True):
        for place, token in enumerate(completion.ids):
            logits = plain_logits(model, prompt, completion.ids[:place])[-1]
            worst = max(worst, (logits.max() - logits[token]).item())
    drawn = generator.generate(prompts, Sampling(NEW_TOKENS))
    sums = plain_sums(model, [Query(p, (c.ids,)) for p, c in zip(prompts, drawn, strict=True)])
    return worst, (sums - torch.tensor([completion.logprob for completion in drawn])).abs().max().item()
