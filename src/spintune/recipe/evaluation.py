"""What judges the models of a run: benchmarks with their files, and a model as judge."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from spintune.recipe.endpoint import EndpointSection
from spintune.recipe.section import Count, Section

HELDOUT, IFEVAL, QUESTIONS, MT_BENCH = "heldout", "ifeval", "questions", "mt-bench"
"""What eval may name besides standard benchmarks and files of one's own."""

MT_BENCH_ANSWERS = "mt-bench-answers"
"""Folder of what the judge rates; its ratings are the evaluation."""

FILES_OF = {IFEVAL: "ifeval", QUESTIONS: "questions", MT_BENCH: "mt_bench"}
"""The keys of :class:`EvaluationSection` with the files that these need."""


class EvaluationSection(Section):
    """Files and settings of what eval names."""

    ifeval: str | None = Field(None, description="IFEval's prompts, for eval: ifeval. [path]")
    questions: str | None = Field(
        None,
        description="Instructions with good answers, for eval: questions; such as the 252 user-oriented ones of "
        "Self-Instruct. [path]",
    )
    rivals: list[str] = Field(
        default=[],
        description="Stored answers of other models to the questions, to be shown and judged beside. [paths]",
    )
    mt_bench: str | None = Field(None, description="MT-Bench's questions, for eval: mt-bench. [path]")
    folder: str | None = Field(
        None,
        description="Data of standard benchmarks as TASK/SPLIT.jsonl, which then need no hub, such as "
        "gsm8k/test.jsonl. [path]",
    )
    limit: Count | None = Field(None, description="Ask only the first items of each. [items] Default: all.")
    shots: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Answered examples before each question of standard benchmarks. Default: their own number."
    )
    chat: bool = Field(
        False, description="Standard benchmarks through the chat template. Default: lm-evaluation-harness's (plain)."
    )
    max_new_tokens: Count = Field(
        1024, description="Longest answer to ifeval, questions and mt-bench. [tokens] Default: MT-Bench's."
    )


class JudgeSection(EndpointSection):
    """A model that compares answers in pairs, in both orders, and rates those to mt-bench."""

    url: str | None = Field(
        None,
        description="Base of its endpoint. Default: none; model is then an alias, folder or hub id on this machine.",
    )
    items: Count | None = Field(
        None, description="Contests of each pair of models at most, drawn by the seed. [items] Default: all."
    )
    max_tokens: Count = Field(1024, description="Longest verdict, reasons included. [tokens]")

    @model_validator(mode="after")
    def _local_judges_have_no_endpoint(self) -> JudgeSection:
        own = {"model", "url", "items", "max_tokens"}
        if self.url is None and (unused := sorted(self.model_fields_set - own)):
            raise ValueError(f"{unused[0]} is for an endpoint, and there is no url; give one, or leave it out")
        return self
