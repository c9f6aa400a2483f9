"""Checks a generator against plain forwards before it writes, and takes a slower one where they differ.

A cache can go wrong where scores are right: two attention calls that share an entry, positions that begin again at 0,
a sparse choice of keys. So a generator first writes a few tokens after prompts of several lengths, and the
log-probability that it gives them must be that of plain forwards without a cache.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spintune.engine.float32 import in_float32
from spintune.engine.head import at_least_float32, precision
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.positions import position_limit
from spintune.engine.probing import evaluating
from spintune.engine.thresholds import lowered, thresholds
from spintune.errors import ModelError
from spintune.generation.protocol import Generator, OnToken, Prompt
from spintune.generation.sampling import Sampling
from spintune.kernels.allocator import give_back_memory
from spintune.memory import is_out_of_memory
from spintune.records import Completion

log = logging.getLogger(__name__)

GeneratorFactory = Callable[[LogProbEngine, PreTrainedTokenizerBase, frozenset[int]], Generator]
"""Makes a generator of an engine (its model, precision and settings), a tokenizer and the ids that end an answer."""

DEFINITION = "plain without a cache"

TOLERANCE = 2e-3
"""Nats that the log-probability of a few tokens may be off in float32."""

_ROUNDING = 0.05
"""Nats that they may be off in half precision, beside twice what plain forwards are."""

_NEW = 4
_LONGEST = 64


class CheckedGenerator:
    """The first of some generators that agrees with plain forwards, found out when it is first asked.

    Args:
        candidates: by name, the fastest first.

    See :class:`spintune.generation.protocol.Generator`. Raises ModelError when none agrees.
    """

    def __init__(
        self,
        engine: LogProbEngine,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        candidates: Mapping[str, GeneratorFactory],
    ) -> None:
        self.engine, self.tokenizer, self.stop_ids, self.candidates = engine, tokenizer, stop_ids, candidates

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of ``prompts``, in their order."""
        return self.chosen[1].generate(prompts, sampling, keys, on_token)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def decide(self) -> None:
        """Finds out now which generator writes, while the model, or its stand-in, can be probed."""
        log.debug("%s writes", self.chosen[0])

    @cached_property
    def chosen(self) -> tuple[str, Generator, str]:
        """The generator that writes: its name, itself, and in a phrase why."""
        refused: list[str] = []
        for name, factory in self.candidates.items():
            generator = factory(self.engine, self.tokenizer, self.stop_ids)
            reason = "" if name == DEFINITION else self._known_wrong(factory)
            if not reason:
                if name == DEFINITION:
                    log.warning(
                        "%s: %s; every token reads the whole text again, as many times slower as an answer has tokens",
                        type(self.engine.model).__name__,
                        "; ".join(refused),
                    )
                return name, generator, "; ".join(refused) or "its texts have the scores of plain forwards"
            refused.append(f"{name} {reason}")
        raise ModelError(f"{type(self.engine.model).__name__} cannot generate: {'; '.join(refused)}")

    def _known_wrong(self, factory: GeneratorFactory) -> str:
        """Why a generator is wrong for the model: found out once for all engines of its weights."""
        known = self.engine.wrong_generators
        if factory not in known:
            known[factory] = self._why_wrong(factory)
        return known[factory]

    def _why_wrong(self, factory: GeneratorFactory) -> str:
        probed = self.engine.standin or self.engine
        model, narrow = probed.model, probed.model.dtype.itemsize < 4
        engine = copy.copy(probed)
        engine.autocast = None  # in float32 an error has nowhere to hide
        prompts = probe_prompts(model)
        with evaluating(model), self._short_windows():
            try:
                written = factory(engine, self.tokenizer, frozenset()).generate(prompts, Sampling(_NEW))
            except Exception as error:  # whatever a foreign cache raises, a slower generator may be right
                if is_out_of_memory(error):
                    raise
                log.debug("generation probe failed", exc_info=error)
                return f"ends in {type(error).__name__}"
            texts = [completion.ids for completion in written]
            with precision(model, None):
                plain = _logprobs(engine, prompts, texts)
            with in_float32(model) if narrow else contextlib.nullcontext():
                exact = _logprobs(engine, prompts, texts) if narrow else plain
        give_back_memory()  # of a copy of the weights
        found = torch.tensor([completion.logprob for completion in written], dtype=exact.dtype)
        allowed = 2 * (plain - exact).abs().max() + (_ROUNDING if narrow else TOLERANCE)
        worst = float((found - exact).abs().max())
        return "" if worst <= allowed else f"is {worst:.2g} nats off plain forwards"

    @contextlib.contextmanager
    def _short_windows(self) -> Iterator[None]:
        """Packed rows and their cache take the windows of the modules; transformers' own caches know others."""
        if not self.engine.packed:
            yield
            return
        with lowered((self.engine.standin or self.engine).model, above=_LONGEST):
            yield


def probe_prompts(model: PreTrainedModel) -> list[Prompt]:
    """Prompts of several lengths that begin alike, on both sides of each threshold that is near."""
    near = [length for length in thresholds(model) if length <= _LONGEST]
    lengths = {3, 9, *(n + extra for n in near for extra in (-4, 2) if n + extra > 0)}
    limit = position_limit(model)
    fitting = sorted(n for n in lengths if limit is None or n + _NEW <= limit)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (max(fitting, default=1),), generator=torch.Generator().manual_seed(1)).tolist()
    return [(*ids[:1], *(ids[1:n][::-1] if i % 2 else ids[1:n])) for i, n in enumerate(fitting or [1])]


@torch.no_grad()
def _logprobs(engine: LogProbEngine, prompts: Sequence[Prompt], texts: Sequence[tuple[int, ...]]) -> Tensor:
    """The log-probability of each text after its prompt: every token by a forward of all before it, without a cache."""
    sums = []
    for prompt, text in zip(prompts, texts, strict=True):
        if engine.scores_as_drawn(len(prompt), len(text)):
            logprobs = at_least_float32(engine.backbone.logits(prompt, text)).log_softmax(-1)
        else:
            steps = [engine.backbone.logits(prompt, text[: i + 1])[-1:] for i in range(len(text))]
            logprobs = at_least_float32(torch.cat(steps)).log_softmax(-1)
        sums.append(logprobs.gather(1, torch.tensor(text, device=logprobs.device)[:, None]).sum())
    return torch.stack(sums).cpu()
