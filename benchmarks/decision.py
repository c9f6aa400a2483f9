"""How good is the model that a rule chooses, where the truth is known?

    python benchmarks/decision.py [--repeats 200] [--seed 1] [--report FILE]

Six models (base, sft, sft-more, three iterates) answer the examples that choose. Each world says how good they truly
are: the share of right answers in points, and the loss in nats a token. Whether an answer is right depends on the
example, which all models share, and on chance. The rules see a sample; the truth judges what they choose:

    regret   by how much the chosen model is truly worse than the best one, in points of right answers
    harm     how often it is truly worse than a simpler model, by a point or more
    in vain  how often it is more complex than a model that is truly no worse
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from spintune.evaluation.decision import Candidate, decide, within_one_error
from spintune.streams import numpy_stream, stream_key

NAMES = ("base", "sft", "sft-more", "iterate-1", "iterate-2", "iterate-3")
WORLDS = {
    "self-play does nothing": (0, 10, 10, 10, 10, 10),
    "self-play helps a little": (0, 10, 11, 11, 12, 13),
    "self-play helps": (0, 10, 11, 13, 15, 16),
    "self-play harms": (0, 10, 10, 9, 7, 5),
    "further SFT helps": (0, 10, 14, 11, 11, 11),
    "SFT overfits": (0, -3, -6, -4, -5, -5),
    "nothing does anything": (0, 0, 0, 0, 0, 0),
}
"""Points of right answers above base's 40 %. The loss falls by 0.01 nats a token for each point."""

OVERSHOOT = "self-play helps, and its loss rises"
WORLDS[OVERSHOOT] = WORLDS["self-play helps"]
LOSSES = {OVERSHOOT: (0, 10, 11, 9, 7, 5)}
"""Where the loss says something else than the answers. It is no world for a choice by loss."""

EXAMPLES = (25, 50, 100, 250)
"""That choose: half of 50, 100, 200 and 500 held-out ones."""

SHARED = 0.8
"""Of the variance of a latent ability: how far examples, not models, decide what is right. About a fifth differ."""

POINT_IN_NATS = 0.01
NORMAL = NormalDist()

Rule = Callable[[list[Candidate]], str]


def highest_mean(found: list[Candidate]) -> str:
    return max(found, key=lambda one: sum(one.scores.values())).name


def one_error(found: list[Candidate]) -> str:
    """The rule of spintune."""
    return decide(found, "metric").name


def one_error_of_scores(found: list[Candidate]) -> str:
    """Without the loss that chooses among equals."""
    return found[within_one_error(_matrix(found), range(len(found)))[0]].name


def two_errors(found: list[Candidate]) -> str:
    """Simplest of those that the 95 % interval cannot tell from the best."""
    score_CN = _matrix(found)
    best = int(score_CN.mean(1).argmax())
    return next(one.name for one in found if _lead(found[best], one) <= 0)


def significant(found: list[Candidate]) -> str:
    """A later model replaces the best one so far only where the 95 % interval says so, from base on."""
    best = found[0]
    for one in found[1:]:
        best = one if _lead(one, best) > 0 else best
    return best.name


def significant_iterates(found: list[Candidate]) -> str:
    """The same over sft and the iterates alone."""
    return significant([one for one in found if one.name not in ("base", "sft-more")])


OURS, OF_SCORES = "**one standard error**", "one standard error, without the loss"
RULES: dict[str, Rule] = {
    "highest mean": highest_mean,
    OURS: one_error,
    OF_SCORES: one_error_of_scores,
    "95 % interval, simplest": two_errors,
    "95 % interval, one by one": significant,
    "the same, iterates only": significant_iterates,
}


def _matrix(found: list[Candidate]) -> NDArray[np.float64]:
    return np.array([list(one.scores.values()) for one in found])


def _lead(one: Candidate, other: Candidate) -> float:
    """The lower end of the paired interval; the normal one, as thousands of bootstraps would take an hour."""
    gap_N = np.array([one.scores[id] - other.scores[id] for id in one.scores])
    return float(gap_N.mean() - NORMAL.inv_cdf(0.975) * gap_N.std(ddof=1) / len(gap_N) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    lines = [f"| chosen by | rule | {' | '.join(f'{count} examples' for count in EXAMPLES)} |", "|---|---" * 3 + "|"]
    largest = []
    for metric in ("right answers", "loss"):
        by_examples = [simulate(metric == "loss", count, arguments.repeats, arguments.seed) for count in EXAMPLES]
        rules = [rule for rule in RULES if metric != "loss" or rule != OF_SCORES]
        lines += [f"| {metric} | {rule} | {' | '.join(_summary(one[rule]) for one in by_examples)} |" for rule in rules]
        worst = ", ".join(_largest_regret(one[OURS]) for one in by_examples)
        largest.append(f"By {metric}, the largest regret of one standard error: {worst}.")
    lines += ["", *largest]
    print("\n".join(lines))
    if arguments.report:
        arguments.report.write_text("\n".join(lines) + "\n")


def simulate(by_loss: bool, examples: int, repeats: int, seed: int) -> dict[str, dict[str, list[int]]]:
    """The places of the models that each rule chooses, by rule, then by world."""
    chosen: dict[str, dict[str, list[int]]] = {rule: {world: [] for world in WORLDS} for rule in RULES}
    for world in WORLDS:
        if by_loss and world in LOSSES:
            continue
        for repeat in range(repeats):
            found = candidates(world, examples, by_loss, numpy_stream(stream_key(f"{seed}/{world}/{repeat}")))
            for rule, choose in RULES.items():
                chosen[rule][world].append(NAMES.index(choose(found)))
    return chosen


def candidates(world: str, examples: int, by_loss: bool, random: np.random.Generator) -> list[Candidate]:
    """Models whose true values are those of a world, measured on a sample of examples."""
    shared_N = random.standard_normal(examples)
    found = []
    for name, point, likely in zip(NAMES, WORLDS[world], LOSSES.get(world, WORLDS[world]), strict=True):
        ability = NORMAL.inv_cdf(0.4 + point / 100)
        latent_N = SHARED**0.5 * shared_N + (1 - SHARED) ** 0.5 * random.standard_normal(examples) + ability
        # a loss of 2 nats a token that varies with the example, and by 0.1 with the model
        noise_N = random.standard_t(5, examples) * 0.1
        loss_N = 2 - 0.4 * shared_N + noise_N - POINT_IN_NATS * likely
        scores = -loss_N if by_loss else (latent_N > 0).astype(float)
        found.append(Candidate(name, dict(enumerate(scores)), dict(enumerate(loss_N))))
    return found


def _summary(by_world: Mapping[str, Sequence[int]]) -> str:
    """Regret in points, and the shares of harm and of choices in vain; every world counts the same."""
    regret, harm, vain = [], [], []
    for world, places in by_world.items():
        points = WORLDS[world]
        for place in places:
            simpler = max(points[:place], default=-math.inf)
            regret.append(max(points) - points[place])
            harm.append(simpler >= points[place] + 1)
            vain.append(simpler >= points[place])
    return f"{np.mean(regret):.2f} · {100 * np.mean(harm):.0f} % · {100 * np.mean(vain):.0f} %"


def _largest_regret(by_world: Mapping[str, Sequence[int]]) -> str:
    """Of a world on average, in points."""
    regret = {
        world: float(np.mean([max(WORLDS[world]) - WORLDS[world][place] for place in places]))
        for world, places in by_world.items()
        if places
    }
    worst = max(regret, key=lambda world: regret[world])
    return f"{regret[worst]:.2f} ({worst})"


if __name__ == "__main__":
    main()
