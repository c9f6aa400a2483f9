"""Settings of the evaluations, and of the model that judges answers."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ConfigDict, Field

from spintune.recipe.endpoint import ENDPOINT, EndpointSection
from spintune.recipe.section import Count, Section, WholeNumber

HELDOUT, IFEVAL, QUESTIONS, MT_BENCH = "heldout", "ifeval", "questions", "mt-bench"
"""Names in eval besides standard benchmarks and files of your own tasks."""

MT_BENCH_ANSWERS = "mt-bench-answers"
"""Folder of the answers that the judge rates; the ratings are the evaluation."""

FILES_OF = {IFEVAL: "ifeval", QUESTIONS: "questions", MT_BENCH: "mt_bench"}
"""The key of :class:`EvaluationSection` that gives the file of each of these evaluations."""


class EvaluationSection(Section):
    """Files and settings of the evaluations in eval."""

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
