"""What is measured of a family: the tool's numbers against plain calls of transformers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from families import plain
from families.builder import VOCABULARY, auto_class, save_tiny
from torch import Tensor
from transformers import PreTrainedModel

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError
from spintune.generation.build import build_generator
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling
from spintune.models.loading import LoadedModel, load_model, save_folder
from spintune.models.lora import merge, new_adapter
from spintune.progress import Silent
from spintune.recipe import LoraSection
from spintune.records import Pair
from spintune.selfplay.opponent import check_sampler, sample_pairs, score_pairs
from spintune.selfplay.shards import Shards
from spintune.selfplay.spin import train_iteration
from spintune.tokens.rows import TokenRow
from spintune.training.batches import Batches
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood, SelfPlay
from spintune.training.optimization import Optimization

FIRST = 5
"""Smaller ids are control tokens, such as the padding that some models treat in their own way."""
NEW_TOKENS = 6
RATE = 1e-3

BOUNDS = {
    "scores": 1e-3,  # nats per token
    "gradients": 1e-2,  # share of the largest gradient's norm
    "greedy": 1e-2,  # logits below the best one
    "sampled": 1e-2,  # nats per answer
    "bfloat16": 2.0,  # times the error of a plain forward in bfloat16
    "sft": 0.05,  # share of what two steps change; so are the next two
    "spin": 0.05,
    "lora": 0.1,
    "merged": 1e-2,  # nats per answer
    "saved": 1e-3,  # logits
}
"""The largest error of each measure."""


@dataclass
class Verdict:
    """How a family fares: the path that it takes, and the error of each measure.

    ``refused`` says in a line why it is, ``no_bfloat16`` why only in bfloat16, ``limit`` beyond how many tokens it has
    no self-play.
    """

    path: str
    refused: str = ""
    no_bfloat16: str = ""
    limit: int | None = None
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def wrong(self) -> dict[str, float]:
        """The measures beyond their bounds."""
        return {name: error for name, error in self.errors.items() if not error <= BOUNDS[name]}

    def expected(self) -> dict[str, str]:
        """What ``verdicts.json`` says of it."""
        why = self.refused or (f"not in bfloat16: {self.no_bfloat16}" if self.no_bfloat16 else "")
        if self.limit is not None:
            why = f"no self-play beyond {self.limit} tokens: the rest of a row changes the scores of its beginning"
        return {"path": self.path, **({"why": why} if why else {})}


def measure(name: str, folder: Path, *, training: bool = True, adapters: bool = False) -> Verdict:
    """Loads a tiny model of a family as a user does, and measures it; training takes most of the time."""
    save_tiny(name, folder / "model")
    reference = auto_class(name).from_pretrained(folder / "model", dtype=torch.float32).eval()
    verdict = Verdict("refused")
    try:
        loaded = _load(folder / "model", "float32")
        engine = LogProbEngine(loaded.model)
        verdict.path = "packed" if engine.packed else "one at a time"
        generator = build_generator(engine, loaded.tokenizer, frozenset())
        family, errors = Family(loaded, engine, generator, reference), verdict.errors
        errors["scores"] = score_error(family)
        errors["gradients"] = gradient_error(family)
        errors["greedy"] = greedy_error(family)
        if engine.row_limit is not None and engine.row_limit < max(query.tokens for query in queries()):
            verdict.limit = engine.row_limit
        else:
            errors["sampled"] = sampled_error(family)
        if training and verdict.limit is None:
            errors["spin"] = spin_error(family, folder)
        if training:
            errors["sft"], errors["saved"] = sft_error(family, folder)
        if adapters:
            errors["lora"], errors["merged"] = lora_error(folder)
    except ModelError as error:
        verdict.path, verdict.refused = "refused", str(error).replace(str(folder / "model"), "MODEL")
        return verdict
    try:
        errors["bfloat16"] = bfloat16_error(folder / "model", family)
    except ModelError as error:
        verdict.no_bfloat16 = str(error)
    return verdict


@dataclass(frozen=True)
class Family:
    """A model as the tool has it, and the same one as transformers loads it."""

    loaded: LoadedModel
    engine: LogProbEngine
    generator: Generator
    reference: PreTrainedModel

    def fresh(self) -> PreTrainedModel:
        """Gives the tool's model the weights that it came with; returns another reference with the same ones."""
        reference = copy.deepcopy(self.reference)
        self.loaded.model.load_state_dict(reference.state_dict())
        return reference


def _load(folder: Path, precision: str) -> LoadedModel:
    return load_model(str(folder), cache=folder, precision=precision)


def ids(count: int, seed: int) -> tuple[int, ...]:
    """Random tokens without control tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(FIRST, VOCABULARY, (count,), generator=generator).tolist())


def queries() -> list[Query]:
    """Prompts with one to three responses, on both sides of every window and rope threshold of the variants."""
    holes = tuple(i % 3 != 1 for i in range(9))
    return [
        Query(ids(28, 1), (ids(17, 2), ids(1, 3), ids(8, 4))),
        Query(ids(5, 5), (ids(3, 6), ids(12, 7))),
        Query(ids(2, 8), (ids(9, 9),), (holes,)),
    ]


@torch.no_grad()
def score_error(family: Family) -> float:
    """Largest difference of a response's score from plain forwards. [nats per token]"""
    asked = queries()
    scores = torch.tensor([score for scores in family.engine.score(asked) for score in scores])
    counts = torch.tensor([sum(counts) for query in asked for counts in query.counted])
    return _largest((scores - plain.sums(family.reference, asked)) / counts)


def gradient_error(family: Family) -> float:
    """Largest difference of a parameter's gradient, as a share of the norm of the largest gradient."""
    asked, tool, reference = queries(), family.engine.model, family.reference
    family.engine(asked).sum_N.sum().backward()
    plain.sums(reference, asked).sum().backward()
    others = dict(reference.named_parameters())
    norms, gaps = [], []
    for name, parameter in tool.named_parameters():
        mine, right = _gradient(parameter), _gradient(others[name])
        norms.append(right.norm().item())
        gaps.append((mine - right).norm().item())
    tool.zero_grad()
    reference.zero_grad()
    return max(gaps, key=_or_infinite) / max(norms)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _largest(values: Tensor) -> float:
    return max(map(_or_infinite, values.abs().flatten().tolist()))


@torch.no_grad()
def greedy_error(family: Family) -> float:
    """By how much a greedy token's logit is below the largest one of a plain forward, at worst."""
    prompts = [query.prompt for query in queries()]
    worst, greedy = 0.0, Sampling(NEW_TOKENS, temperature=0)
    for prompt, written in zip(prompts, family.generator.generate(prompts, greedy), strict=True):
        for place, token in enumerate(written.ids):
            logits = plain.logits(family.reference, prompt, written.ids[:place])[-1]
            worst = max(worst, _or_infinite((logits.max() - logits[token]).item()))
    return worst


@torch.no_grad()
def sampled_error(family: Family) -> float:
    """Largest difference of the log-probability that a text was drawn with from its score. [nats]"""
    prompts = [query.prompt for query in queries()] * 2
    written = family.generator.generate(prompts, Sampling(NEW_TOKENS))
    usable = [
        (prompt, one)
        for prompt, one in zip(prompts, written, strict=True)
        if min(one.ids) >= FIRST and family.engine.scores_as_drawn(len(prompt), len(one.ids))
    ]
    scores = plain.sums(family.reference, [Query(prompt, (one.ids,)) for prompt, one in usable])
    return _largest(scores - torch.tensor([one.logprob for _, one in usable]))


@torch.no_grad()
def bfloat16_error(folder: Path, family: Family) -> float:
    """Error of the scores in bfloat16, as a multiple of that of a plain forward in bfloat16.

    Of a token at the median, because rounding sends single tokens to other experts. Infinite for another path than in
    float32. Raises ModelError where the tool cannot compute in bfloat16; then transformers must fail as well.
    """
    asked, loaded = queries(), _load(folder, "bfloat16")
    engine = LogProbEngine(loaded.model, loaded.autocast)
    if engine.packed != family.engine.packed:
        return math.inf
    mine = engine(asked).token_M
    right = torch.cat(plain.logprobs(family.reference, asked))
    with torch.autocast("cpu", torch.bfloat16):
        known = torch.cat(plain.logprobs(family.reference, asked))
    return (mine - right).abs().median().item() / ((known - right).abs().median().item() + 0.01)


# Training ------------------------------------------------------------------------------------------------------------

ROWS = [TokenRow(f"row{i}", ids(9 + 9 * i, 20 + i), ids(4 + 7 * i, 30 + i), None, True) for i in range(3)]
STEPS = [[0, 1], [2]]
SETTINGS = Optimization(RATE, schedule="constant", warmup=0.0)


def probes() -> list[Query]:
    """What a trained model is asked: two of its training rows, and a response that it never saw."""
    return [Query(row.prompt_ids, (row.response_ids,)) for row in ROWS[1:]] + queries()[1:2]


Losses = Sequence[float]


@torch.no_grad()
def _scores(model: PreTrainedModel) -> Tensor:
    return plain.sums(model, probes())


def _negative_log_likelihood(rows: Sequence[TokenRow]) -> Callable[[PreTrainedModel], Tensor]:
    asked = [Query(row.prompt_ids, (row.response_ids,)) for row in rows]
    return lambda model: -plain.sums(model, asked).sum() / sum(len(row.response_ids) for row in rows)


def _logistic(pairs: Sequence[Pair], opponent: Tensor) -> Callable[[PreTrainedModel], Tensor]:
    asked = [Query(pair.prompt_ids, (pair.real.ids, pair.generated[0].ids)) for pair in pairs]

    def loss(model: PreTrainedModel) -> Tensor:
        ratios = (plain.sums(model, asked) - opponent).view(-1, 2)
        return torch.nn.functional.softplus(-0.1 * (ratios[:, 0] - ratios[:, 1])).mean()

    return loss


def sft_error(family: Family, folder: Path) -> tuple[float, float]:
    """Two steps of SFT against plain ones. [nats per answer], and the saved model against the one that was saved."""
    reference, player, engine = family.fresh(), family.loaded, family.engine
    reports: list[StepReport] = []
    hooks = TrainingHooks(on_step=reports.append)
    train(engine, Batches(ROWS, STEPS), NegativeLogLikelihood(), SETTINGS, Checkpoints(folder / "sft", 1e9), hooks)
    before = _scores(reference)
    known = plain.train(reference, [_negative_log_likelihood([ROWS[i] for i in step]) for step in STEPS], RATE)
    error = _trained_error(player.model, reference, before, reports, known)
    save_folder(player.model, player.tokenizer, folder / "saved")
    kind = type(player.model)
    with torch.no_grad():
        prompt, response = ROWS[2].prompt_ids, ROWS[2].response_ids
        again = kind.from_pretrained(folder / "saved", dtype=torch.float32).eval()
        saved = plain.logits(again, prompt, response) - plain.logits(player.model, prompt, response)
    return error, _largest(saved)


@torch.no_grad()
def _trained_error(
    mine: PreTrainedModel, reference: PreTrainedModel, before: Tensor, reports: Sequence[StepReport], known: Losses
) -> float:
    """Largest difference of losses, and of scores after training as a share of how far training moved them.

    AdamW turns the rounding of a gradient near 0 into a whole step, so scores of some families agree only to a percent.
    """
    losses = torch.tensor([report.loss for report in reports]) - torch.tensor(known)
    right = plain.sums(reference, probes())
    gaps = (plain.sums(mine, probes()) - right) / (right - before).abs().max()
    return _largest(torch.cat([losses / torch.tensor(known).abs(), gaps]))


def spin_error(family: Family, folder: Path) -> float:
    """Two steps of SPIN, on answers that the model itself wrote, against plain ones. [nats per answer]"""
    reference, player, engine = family.fresh(), family.loaded, family.engine
    shards = Shards(folder / "shards", "families", Silent())
    sampled = sample_pairs(family.generator, ROWS, Sampling(NEW_TOKENS), 4, 100, "base", shards, "answers")
    pairs = score_pairs(engine, list(map(_with_words, sampled)), "opponent", shards, "scores")
    drawn = [p for p in pairs if all(engine.scores_as_drawn(len(p.prompt_ids), len(a.ids)) for a in p.generated)]
    check_sampler(drawn, "base", 0.05)  # as in a run: an answer that crosses a rotary length is drawn with two rules
    reports: list[StepReport] = []
    hooks = TrainingHooks(on_step=reports.append)
    checkpoints = Checkpoints(folder / "spin", 1e9)
    with Silent().task("SPIN", 2, "steps") as task:
        train_iteration(engine, Batches(pairs, STEPS), SelfPlay(), SETTINGS, checkpoints, task, hooks)
    before = _scores(reference)
    losses = []
    for step in STEPS:
        chosen = [pairs[i] for i in step]
        asked = [Query(pair.prompt_ids, (pair.real.ids, pair.generated[0].ids)) for pair in chosen]
        with torch.no_grad():
            losses.append(_logistic(chosen, plain.sums(reference, asked)))
    return _trained_error(player.model, reference, before, reports, plain.train(reference, losses, RATE))


def _with_words(pair: Pair) -> Pair:
    """The pair with the first of its answers that has no control token, if there is one."""
    found = (answer for answer in pair.generated if min(answer.ids) >= FIRST)
    return replace(pair, generated=(next(found, pair.generated[0]),))


def lora_error(folder: Path) -> tuple[float, float]:
    """Two steps of SFT of an adapter against plain ones, and the merged model against the adapted. [nats per answer]"""
    players = [_load(folder / "model", "float32") for _ in range(2)]
    adapted = [new_adapter(player.model, LoraSection(rank=4, alpha=8), "lora") for player in players]
    engine = LogProbEngine(players[0].model)
    reports: list[StepReport] = []
    hooks = TrainingHooks(on_step=reports.append)
    train(engine, Batches(ROWS, STEPS), NegativeLogLikelihood(), SETTINGS, Checkpoints(folder / "lora", 1e9), hooks)
    losses = [_negative_log_likelihood([ROWS[i] for i in step]) for step in STEPS]
    mine, reference = (player.model for player in players)
    before = _scores(reference)
    error = _trained_error(mine, reference, before, reports, plain.train(reference, losses, RATE))
    with torch.no_grad():
        before = plain.sums(mine, probes())
        return error, _largest(plain.sums(merge(adapted[0]), probes()) - before)
