"""Tables of an experiment: every method at the rate and round that its selection set chose, paired over seeds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from seeds import Interval

from self_play.experiments import SCRATCH, START, Experiment, key
from self_play.figure import Panel
from self_play.ledger import Facts
from self_play.trials import COOLER, Method, Setting

Found = Mapping[str, Facts]
VARIETY = "variety 0.7"
COOL = f"start at T = {COOLER[-1]:g}"


class Results:
    """What was found from one setting."""

    def __init__(self, experiment: Experiment, setting: Setting, seeds: Sequence[int], found: Found) -> None:
        self.experiment, self.setting, self.seeds, self.found = experiment, setting, seeds, found

    def rounds(self, method: Method, seed: int, rate: float) -> Sequence[Facts]:
        """What each round of a trial measured; rounds that diverged are missing."""
        rounds: Sequence[Facts] = self.found[key(self.setting, seed, method.name, rate)]["rounds"]
        return rounds

    def chosen(self, method: Method, seed: int, temperature: str) -> tuple[float, int, Facts]:
        """Rate, round and facts with the best accuracy on the selection set."""
        candidates = [
            (facts[f"selection {temperature}"], -rate, -number, facts)
            for rate in self.experiment.rates
            for number, facts in enumerate(self.rounds(method, seed, rate), 1)
        ]
        if not candidates:
            raise SystemExit(f"{self.setting.name}, seed {seed}, {method.name}: every rate diverged; lower --rates")
        _, rate, number, facts = max(candidates, key=lambda one: one[:3])
        return -rate, -number, facts

    def values(self, name: str, temperature: str) -> list[float]:
        """Accuracy on fresh prompts, by seed."""
        if name == COOL:
            return [self.found[key(self.setting, seed, START)][f"fresh {COOLER[-1]:g}"] for seed in self.seeds]
        if name in (START, SCRATCH):
            return [self.found[key(self.setting, seed, name)][f"fresh {temperature}"] for seed in self.seeds]
        method = next(method for method in self.experiment.methods if method.name == name)
        return [self.chosen(method, seed, temperature)[2][f"fresh {temperature}"] for seed in self.seeds]

    def references(self, temperature: str) -> list[str]:
        """What a method is compared with."""
        rivals = [START, *(method.name for method in self.experiment.rivals)]
        rivals += [SCRATCH] if self.experiment.whole else []
        return [*rivals, COOL] if temperature == "1" else rivals

    def difference(self, name: str, other: str, temperature: str) -> Interval:
        """Paired over seeds. [points: hundredths of accuracy]"""
        pairs = zip(self.values(name, temperature), self.values(other, temperature), strict=True)
        return Interval.of([100 * (one - two) for one, two in pairs])

    def best_rival(self, temperature: str) -> str:
        """The reference with the highest mean."""
        return max(self.references(temperature), key=lambda name: statistics.fmean(self.values(name, temperature)))

    def verdict(self, name: str, temperature: str) -> str:
        """One word from the intervals against the start and every rival."""
        gaps = [self.difference(name, other, temperature) for other in self.references(temperature) if other != name]
        if all(gap.low > 0 for gap in gaps):
            return "helps"
        if gaps[0].high < 0:
            return "hurts"
        if any(gap.high < 0 for gap in gaps[1:]):
            return "loses to a rival"
        return "cannot be told"


def tables(results: Results) -> Iterator[str]:
    """Lines of Markdown."""
    setting = results.setting
    yield f"\n### {setting.name}, {len(results.seeds)} seeds\n"
    start = [results.found[key(setting, seed, START)] for seed in results.seeds]
    temperatures = ["0", *(f"{t:g}" for t in COOLER), "1"]
    cells = [f"{100 * statistics.fmean(facts[f'fresh {t}'] for facts in start):.1f} %" for t in temperatures]
    yield "Accuracy of the start on fresh prompts: " + ", ".join(
        f"{cell} at T = {t}" for cell, t in zip(cells, temperatures, strict=True)
    )
    for temperature in ("0", "1"):
        yield from _methods(results, temperature)
    if VARIETY in start[0]:
        yield from _variety(results)


def _methods(results: Results, temperature: str) -> Iterator[str]:
    """Each method at its chosen rates and rounds, and every reference, beside the start, SFT, and the best of all."""
    sft, best = results.experiment.rivals[0].name, results.best_rival(temperature)
    columns = list(dict.fromkeys((START, sft, best)))
    yield f"\nRight answers at T = {temperature}; differences in points, with 95 % t-intervals over seeds\n"
    yield f"| method | rates, rounds | right | minus {' | minus '.join(columns)} | verdict |"
    yield "|---" * (4 + len(columns)) + "|"
    methods = {method.name: method for method in results.experiment.methods}
    for name in dict.fromkeys((*results.references(temperature), *methods)):
        method = methods.get(name)
        picked = (
            Counter("{:g}, {}".format(*results.chosen(method, seed, temperature)[:2]) for seed in results.seeds)
            if method
            else Counter[str]()
        )
        how = "; ".join(f"{one} ({count})" for one, count in picked.most_common())
        gaps = ["" if other == name else _points(results.difference(name, other, temperature)) for other in columns]
        mean = 100 * statistics.fmean(results.values(name, temperature))
        told = results.verdict(name, temperature) if method and method.kind == "spin" else ""
        yield f"| {name} | {how} | {mean:.1f} % | {' | '.join(gaps)} | {told} |"


def _points(gap: Interval) -> str:
    return f"{gap.mean:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})"


def _variety(results: Results) -> Iterator[str]:
    """How many different right answers four samples hold, after the last round at the rate chosen at T = 1."""
    start = [results.found[key(results.setting, seed, START)][VARIETY] for seed in results.seeds]
    yield f"\nDifferent right answers in four samples at T = 0.7; the start has {statistics.fmean(start):.2f}\n"
    yield "| method | after the last round | minus start |"
    yield "|---|---|---|"
    for method in results.experiment.methods:
        ends = []
        for seed in results.seeds:
            rate = results.chosen(method, seed, "1")[0]
            ends.append(results.found[key(results.setting, seed, method.name, rate)][VARIETY])
        gap = Interval.of([end - begin for end, begin in zip(ends, start, strict=True)])
        yield f"| {method.name} | {statistics.fmean(ends):.2f} | {gap} |"


def panels(results: Results) -> Iterator[Panel]:
    """Accuracy by rate after the last round, or by round where there are many."""
    setting, methods = results.setting, results.experiment.methods
    for temperature in ("0", "1"):
        start = statistics.fmean(results.values(START, temperature))
        many = setting.rounds > 4
        lines = {}
        for method in methods:
            lines[method.name] = (
                _by_round(results, method, temperature) if many else _by_rate(results, method, temperature)
            )
        names = [str(number) for number in range(1, setting.rounds + 1)] if many else _rates(results)
        title = f"{setting.world}: right answers at T = {temperature}, by {'round' if many else 'rate'}"
        yield Panel(title, lines, names, start)


def _rates(results: Results) -> list[str]:
    return [f"{rate:g}" for rate in results.experiment.rates]


def _by_rate(results: Results, method: Method, temperature: str) -> list[float | None]:
    """Where every seed has a round."""
    means: list[float | None] = []
    for rate in results.experiment.rates:
        ends = [results.rounds(method, seed, rate)[-1:] for seed in results.seeds]
        whole = all(ends)
        means.append(statistics.fmean(end[0][f"fresh {temperature}"] for end in ends) if whole else None)
    return means


def _by_round(results: Results, method: Method, temperature: str) -> list[float | None]:
    """After each round, at the rate that the selection set would choose then; None once a seed has no round left."""
    means: list[float | None] = []
    for number in range(results.setting.rounds):
        ends = [
            [
                rounds[number]
                for rate in results.experiment.rates
                if len(rounds := results.rounds(method, seed, rate)) > number
            ]
            for seed in results.seeds
        ]
        best = [max(end, key=lambda facts: facts[f"selection {temperature}"], default=None) for end in ends]
        values = [facts[f"fresh {temperature}"] for facts in best if facts is not None]
        means.append(statistics.fmean(values) if len(values) == len(ends) else None)
    return means
