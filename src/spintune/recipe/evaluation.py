"""Settings of the evaluations, and of the model that judges answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from spintune import checkers
from spintune.metrics import BUILT_IN, METRICS
from spintune.recipe.endpoint import ENDPOINT, EndpointSection
from spintune.recipe.section import Count, Section, WholeNumber, offered

HELDOUT, IFEVAL, QUESTIONS, MT_BENCH = "heldout", "ifeval", "questions", "mt-bench"
"""Names in eval besides standard benchmarks and files of your own tasks."""

MT_BENCH_ANSWERS = "mt-bench-answers"
"""Folder of the answers that the judge rates; the ratings are the evaluation."""

FILES_OF = {IFEVAL: "ifeval", QUESTIONS: "questions", MT_BENCH: "mt_bench"}
"""The key of :class:`EvaluationSection` that gives the file of each of these evaluations."""


AUTO, CHECKER, SAMPLED = "auto", "checker", "sampled:"
"""Values of evaluation.metric beside the names of metrics; the last goes before a name."""


def _known_metric(name: str) -> str:
    of_answers = name.removeprefix(SAMPLED)
    if of_answers == CHECKER or name == AUTO:
        return name
    if of_answers not in METRICS:
        raise ValueError(METRICS.unknown(of_answers))
    if name != of_answers and METRICS[of_answers].function is None:
        raise ValueError(f"{of_answers} is no metric of answers; name it without {SAMPLED}")
    return name


_CHECKER_SCHEMA = {
    "anyOf": [
        {"enum": [*checkers.BUILT_IN, checkers.TASKS]},
        {"type": "string"},
        *(
            {"type": "object", "properties": {kind: {"type": "string"}}, "required": [kind]}
            for kind in ("regex", "json")
        ),
    ]
}
_ANSWER_METRICS = [CHECKER, *(metric.name for metric in BUILT_IN if metric.function)]

MetricName = Annotated[
    str,
    AfterValidator(_known_metric),
    offered([AUTO, *(metric.name for metric in BUILT_IN if not metric.function), *_ANSWER_METRICS]),
]
CheckerSetting = Annotated[
    str | dict[str, str], BeforeValidator(checkers.check_setting), WithJsonSchema(_CHECKER_SCHEMA)
]


class EvaluationSection(Section):
    """What judges the models of a run, and files and settings of the evaluations in eval."""

    metric: MetricName = AUTO
    """Metric of held-out examples that decides which model is best: nll (loss per token), rouge_l, exact_match,
    checker, one that you register, or one of these after ``sampled:`` for answers at temperature 1. auto takes the
    checker if there is one, exact_match where most references have at most 5 words, else rouge_l. Of a mixture it takes
    the checker where most references give an answer of at most 5 words. [name]"""
    checker: CheckerSetting | None = None
    """What says whether an answer is right: number, choice, json, contains, {regex: PATTERN}, {json: SCHEMA_FILE},
    tasks (each task of the mixture by its own rule), or one that you register. Default: tasks of a mixture, else none.
    """
    samples: WholeNumber = 0
    """Further answers to each held-out prompt, drawn at temperature 1 and scored as the greedy one is. [answers] 0
    saves their time: each costs as much as the greedy one, for every model."""

    ifeval: str | None = None
    """File of IFEval's prompts, for eval: ifeval. [path]"""
    questions: str | None = None
    """File of instructions with good answers, for eval: questions, such as the 252 user-oriented ones of Self-Instruct.
    [path]"""
    rivals: list[str] = Field(default=[])
    """Files of other models' answers to the questions, to show and judge as well. [paths]"""
    mt_bench: str | None = None
    """File of MT-Bench's questions, for eval: mt-bench. [path]"""
    folder: str | None = None
    """Folder with the data of standard benchmarks as TASK/SPLIT.jsonl, such as gsm8k/test.jsonl. These benchmarks then
    need no hub. [path]"""
    limit: Count | None = None
    """Use only the first items of each evaluation. [items] Default: all."""
    shots: WholeNumber | None = None
    """Few-shot examples before each question of standard benchmarks. [examples] Default: the benchmark's own."""
    chat: bool = False
    """Apply the chat template to standard benchmarks. Default: lm-evaluation-harness (no template)."""
    max_new_tokens: Count = 1024
    """Maximum length of answers to ifeval, questions and mt-bench. [tokens] Default: MT-Bench."""

    @property
    def needs_heldout(self) -> str | None:
        """A setting that does nothing without held-out examples; None where there is none."""
        given = {
            "metric": self.metric != AUTO,
            "checker": self.checker not in (None, checkers.TASKS),
            "samples": bool(self.samples),
        }
        return next((key for key, there in given.items() if there), None)

    def _problems(self) -> Iterator[str]:
        if self.metric.removeprefix(SAMPLED) == CHECKER and self.checker is None:
            known = ", ".join(checkers.BUILT_IN)
            yield f"metric: {self.metric} needs checker: {known}, {{regex: PATTERN}} or your own"
        if self.metric.startswith(SAMPLED) and not self.samples:
            yield f"metric: {self.metric} needs sampled answers; set samples to 1 or more"


class JudgeSection(EndpointSection):
    """A model that compares answers in pairs, in both orders, and rates the answers to mt-bench."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["model"]}, {"required": ["kind"]}]})

    url: str | None = None
    """Base URL of its endpoint. Default: none; model is then an alias, folder or hub id and runs locally."""
    items: Count | None = None
    """Maximum comparisons per pair of models, drawn by the seed. [items] Default: all."""
    max_tokens: Count = 1024
    """Maximum length of a verdict, reasons included. [tokens]"""

    @property
    def runs_locally(self) -> bool:
        """Whether ``model`` is loaded on this machine."""
        return self.kind == ENDPOINT and self.url is None

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        own = {"kind", "model", "url", "items", "max_tokens"}
        if self.runs_locally and (unused := sorted(self.model_fields_set - own)):
            yield f"{unused[0]} needs an endpoint; give url, or leave it out"
