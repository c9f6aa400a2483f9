"""Holds a GGUF file against the model that it was made of: the same tokens, the same logits, the same greedy text.

llama.cpp itself reads the file, through llama-cpp-python (extra ``gguf``).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import ModelError
from spintune.export.gguf.vocabulary import render_chat
from spintune.export.gguf.writing import stop_ids
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.models.loading import LoadedModel, load_model
from spintune.progress import Progress
from spintune.records import Message
from spintune.storage import cache_folder

MAX_DIVERGENCE = {"f32": 1e-4, "f16": 1e-3, "bf16": 1e-2, "q8_0": 5e-2}
"""Largest mean KL divergence of a file from the model, in nats a token, by type; others have none.

Ten times or more what docs/how-to/export.md measures of a small model; a tensor in a wrong order is nats away.
"""
_SAME_ANSWERS = ("f32", "f16")
"""Types whose greedy answers must be the model's, but for tokens that are nearly equally likely."""
MAX_PROMPTS = 8
_ANSWER = 32  # tokens
_LONGEST = 512  # tokens of a prompt
_HARD_TEXTS = (
    "I'm SURE they'Re 3 33 333 3333 3.3 x\n\n \n\ty = {'a': 1_000}",
    "  two  spaces   and three ",
    "日本語、한국어 ไทย é 😀👩‍👩‍👧 №7 — “quoted”…",
)
PROMPTS = tuple(
    (Message("user", text),)
    for text in ("Name a color.", "What is the capital of France?", "Write a sentence about rain.", "Count to five.")
)
"""What a model without held-out examples is asked."""


@dataclass(frozen=True)
class GgufCheck:
    """How a file differs from its model.

    Attributes:
        prompts: how many were answered; their tokens were equal.
        same_text: those whose greedy answers are equal to the end, or for the first 32 tokens.
        tokens: positions at which logits were compared.
        divergence: mean KL divergence of the file from the model. [nats a token]
        largest: at one position. [nats]
    """

    prompts: int
    same_text: int
    tokens: int
    divergence: float
    largest: float

    def __str__(self) -> str:
        return (
            f"in llama.cpp the tokens of {self.prompts} prompts are equal, {self.same_text} of {self.prompts} greedy "
            f"answers are, and probabilities differ by {self.divergence:.1g} nats a token (KL, mean of {self.tokens})"
        )


@dataclass(frozen=True)
class _Answered:
    """A prompt with the model's own greedy answer, and the log-probabilities of all tokens at its positions."""

    text: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: NDArray[np.float32]


def can_check() -> bool:
    """Whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def check_gguf(
    file: Path, folder: Path, kind: str, conversations: Sequence[Sequence[Message]], progress: Progress
) -> GgufCheck:
    """Compares a file with the model folder that it was made of.

    The model is answered by first and let go, then the file is opened, so only one of them is in memory.

    Args:
        kind: its type, which says how much it may differ.
        conversations: prompts to answer.

    Raises ModelError for a file that differs too much, or whose tokens, stops or greedy answers are others.
    """
    with progress.task("check in llama.cpp", 2 * len(conversations), "prompts") as task:
        loaded = load_model(str(folder), cache=cache_folder(), precision="float32", device=torch.device("cpu"))
        answered = _answers(loaded, conversations)
        hard = [_rendered(loaded, [Message("user", text)]) for text in _HARD_TEXTS]
        texts = [(text, _ids(loaded, text)) for text in (*hard, *(one.text for one in answered))]
        stops = stop_ids(folder, loaded.tokenizer.eos_token_id)
        del loaded
        task.advance(len(answered))
        longest = max(len(one.prompt) + len(one.answer) for one in answered)
        model = _open(file, longest)
        for text, expected in texts:
            if (found := tuple(model.tokenize(text.encode(), add_bos=False, special=True))) != expected:
                raise ModelError(
                    f"llama.cpp cuts {text!r:.200} into other tokens ({_first(found, expected)}); not exported"
                )
        if missing := [id for id in stops if not _ends(model, id)]:
            raise ModelError(f"llama.cpp does not stop at the tokens {missing} as the model does; not exported")
        divergences: list[float] = []
        swaps: list[float] = []
        same = 0
        for one in answered:
            logprobs = _logprobs(model, one)
            kl = (np.exp(one.logprobs) * (one.logprobs - logprobs)).sum(1)
            divergences.extend(float(value) for value in kl)
            swaps.append(swap_divergence(one.logprobs, one.answer, logprobs.argmax(1)))
            same += bool((logprobs.argmax(1) == np.array(one.answer)).all())
            task.advance()
        model.close()
    found_check = GgufCheck(len(answered), same, len(divergences), float(np.mean(divergences)), max(divergences))
    _refuse_difference(found_check, max(swaps), kind)
    return found_check


def _refuse_difference(found: GgufCheck, swap: float, kind: str) -> None:
    limit = MAX_DIVERGENCE.get(kind)
    if not np.isfinite(found.divergence) or (limit and found.divergence > limit):
        raise ModelError(
            f"in llama.cpp the file's probabilities are {found.divergence:.3g} nats a token away from the "
            f"model's, more than {kind} explains ({limit}); not exported (--no-check exports it all the same)"
        )
    if limit and kind in _SAME_ANSWERS and swap > limit:
        raise ModelError(
            f"in llama.cpp a greedy answer differs from the model's, by a token that comes first only {swap:.2g} nats "
            f"away, more than {kind} explains ({limit}); not exported (--no-check exports it all the same)"
        )


def swap_divergence(logprobs_TV: NDArray[np.float32], model_T: Sequence[int], file_T: NDArray[np.int64]) -> float:
    """How far a file must be from the model to choose other tokens.

    The least KL divergence after which a token of probability q is as likely as one of p is that to the distribution
    which gives both their mean m and leaves the others: p ln(p / m) + q ln(q / m). It is 0 for equal probabilities and
    p ln 2 where q is 0.

    Args:
        logprobs_TV: the model's log-probabilities, by place and token.
        model_T: the tokens that the model chose.
        file_T: those that the file finds likeliest.

    Returns the largest over all places. [nats]
    """
    places = np.arange(len(file_T))
    p_T = np.exp(logprobs_TV[places, np.array(model_T)].astype(np.float64))
    q_T = np.minimum(p_T, np.exp(logprobs_TV[places, file_T].astype(np.float64)))
    mean_T = (p_T + q_T) / 2
    return float(np.max(p_T * np.log(p_T / mean_T) + q_T * np.log(np.maximum(q_T, 1e-300) / mean_T), initial=0.0))


def _answers(loaded: LoadedModel, conversations: Sequence[Sequence[Message]]) -> list[_Answered]:
    """Greedy answers of the model itself. Prompts that are too long are left out, unless all are."""
    renderer = loaded.renderer("tokenizer")
    room = min(_LONGEST, (loaded.max_input_length or _LONGEST) - _ANSWER)
    prompts = [(_rendered(loaded, one), renderer.prompt(one)) for one in conversations]
    prompts = [one for one in prompts if len(one[1]) <= room] or [
        (_rendered(loaded, one), renderer.prompt(one)) for one in PROMPTS
    ]
    generator = build_generator(LogProbEngine(loaded.model, None), loaded.tokenizer, renderer.stop_ids)
    completions = generator.generate([ids for _, ids in prompts], Sampling(_ANSWER, temperature=0))
    found = []
    with torch.no_grad():
        for (text, prompt), completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion.ids]])
            logits = loaded.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            found.append(_Answered(text, prompt, completion.ids, logits.float().log_softmax(-1).numpy()))
    return found


def _rendered(loaded: LoadedModel, messages: Sequence[Message]) -> str:
    """The text of a prompt, as the chat template in the file writes it."""
    return render_chat(loaded.tokenizer, [{"role": one.role, "content": one.content} for one in messages], True)


def _ids(loaded: LoadedModel, text: str) -> tuple[int, ...]:
    return tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def _open(file: Path, length: int):  # type: ignore[no-untyped-def] # llama_cpp has no types
    """The file in llama.cpp. Raises ModelError where it does not load."""
    llama_cpp = _llama_cpp()
    try:
        return llama_cpp.Llama(
            str(file),
            n_ctx=length + 8,
            n_batch=length + 8,
            n_threads=torch.get_num_threads(),
            logits_all=True,
            verbose=False,
        )
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"llama.cpp does not load the file ({error}); not exported") from error


def _llama_cpp() -> ModuleType:
    return importlib.import_module("llama_cpp")


def _ends(model, id: int) -> bool:  # type: ignore[no-untyped-def]
    llama_cpp = _llama_cpp()
    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(model.model), id))


def _logprobs(model, one: _Answered) -> NDArray[np.float32]:  # type: ignore[no-untyped-def]
    model.reset()
    model.eval([*one.prompt, *one.answer[:-1]])
    logits = np.array(model.scores[len(one.prompt) - 1 : len(one.prompt) + len(one.answer) - 1])
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def _first(found: Sequence[int], expected: Sequence[int]) -> str:
    """Where two rows of ids part."""
    place = next((i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), -1)
    return f"{len(found)} instead of {len(expected)}" if place < 0 else f"{found[place]} instead of {expected[place]}"
