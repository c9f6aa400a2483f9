"""The definition: what plain calls of transformers give, one row at a time, without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spintune.engine.query import Query


def logits(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Logits ``[len(response) + 1, V]`` that follow the prompt and each token of the response, by one call."""
    _forget_lengths(model)
    if model.config.is_encoder_decoder:
        written = torch.tensor([[model.config.decoder_start_token_id, *response]])
        output = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=written, use_cache=False)
        return output.logits[0].float()
    ids = torch.tensor([[*prompt, *response]])
    return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()


def _forget_lengths(model: PreTrainedModel) -> None:
    """A dynamic rotary embedding keeps the frequencies of the longest call; each call here is a model's first."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.clone()


def logprobs(model: PreTrainedModel, queries: Sequence[Query]) -> list[Tensor]:
    """The log-probabilities of the counted tokens of each response. [nats]"""
    found = []
    for query in queries:
        for response, counts in zip(query.responses, query.counted, strict=True):
            values = logits(model, query.prompt, response[:-1]).log_softmax(-1)
            found.append(values.gather(1, torch.tensor(response)[:, None])[torch.tensor(counts), 0])
    return found


def sums(model: PreTrainedModel, queries: Sequence[Query]) -> Tensor:
    """The summed log-probability of each response. [nats]"""
    return torch.stack([values.sum() for values in logprobs(model, queries)])


def train(model: PreTrainedModel, losses: Sequence[Callable[[PreTrainedModel], Tensor]], rate: float) -> list[float]:
    """AdamW with clipping at norm 1, one step for each loss. Returns the losses before each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    found = []
    for loss in losses:
        value = loss(model)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        found.append(value.item())
    return found
