"""How a recipe asks a teacher for instruction data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from spintune.recipe.endpoint import EndpointSection
from spintune.recipe.section import Count, NonNegative, Section


class TeacherSection(EndpointSection):
    """Who writes instruction data: an endpoint that speaks OpenAI's protocol."""

    url: str = Field(description="Its base, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1.")


class FilterSection(Section):
    """Which instructions and examples of a teacher are dropped. Defaults: the method's paper."""

    fewest_words: Count = Field(4, description="Of an instruction. [words] Default: Self-Instruct.")
    most_words: Count = Field(150, description="Of an instruction. [words] Default: Self-Instruct.")
    keywords: list[str] | None = Field(
        None, description="Whole words that no instruction may have. Default: the method's own list."
    )
    starts: list[str] = Field(default=["Write a program"], description="Beginnings that none may have.")
    ascii_start: bool | None = Field(
        None, description="The first character must be ASCII. Default: yes, unless novelty_tokens is unicode."
    )
    refusals: bool = Field(True, description="Drop answers such as 'As an AI language model'.")
    novelty: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="Highest ROUGE-L with any other instruction. [F-measure] Default: Self-Instruct; 1 is off."
    )
    novelty_tokens: Literal["reference", "unicode"] = Field(
        "reference",
        description="Words of ROUGE-L: reference has a-z and 0-9 alone, as rouge_score; unicode reads every script.",
    )


class DecontaminateSection(Section):
    """Removes examples that share a run of words with evaluation data."""

    files: list[str] = Field(description="Evaluation files, in any format that data.train takes.")
    ngram: Annotated[int, Field(ge=2)] = Field(13, description="Length of a shared run. [words] Default: GPT-3's.")


class SynthSection(Section):
    """A teacher writes instruction data from seed tasks; data.train: synth trains on it."""

    method: Literal["self_instruct", "alpaca"] = Field(
        "self_instruct", description="self_instruct (arXiv 2212.10560) or alpaca (Stanford Alpaca)."
    )
    seeds: str = Field("builtin:seeds", description="Seed tasks: builtin:seeds, or a file as the papers have it.")
    instructions: Count = Field(200, description="New instructions to accept. [instructions] The papers: 52,000.")
    teacher: TeacherSection | None = Field(
        None, description="Who writes. Default: the recipe's own model, on this machine."
    )
    requests_per_round: Count = Field(
        32, description="Requests between two looks at what is new. [requests] The paper's code: 5."
    )
    patience: Count = Field(4, description="Rounds without anything new before it stops. [rounds]")
    temperature: NonNegative | None = Field(
        None, description="Of new instructions. Default: 0.7 for self_instruct, 1 for alpaca (their code)."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Of new instructions. [share] Default: 0.5 for self_instruct, 1 for alpaca (their code)."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(
        None, description="Of new instructions. Default: 2 for self_instruct, 0 for alpaca (their code)."
    )
    max_tokens: Count | None = Field(
        None, description="Of a reply with new instructions. [tokens] Default: 1024 and 3072 (their code)."
    )
    instance_tokens: Count = Field(
        300, description="Of a reply with instances; self_instruct alone. [tokens] Default: the paper."
    )
    filters: FilterSection = Field(default=FilterSection.model_validate({}), description="What is dropped.")
    decontaminate: DecontaminateSection | None = Field(None, description="Evaluation data to keep out.")
    format: Literal["alpaca", "chat", "parquet"] = Field(
        "alpaca", description="Of the file for others: alpaca.json, chat.jsonl or examples.parquet."
    )

    @model_validator(mode="after")
    def _every_option_is_used(self) -> SynthSection:
        if self.method == "alpaca" and "instance_tokens" in self.model_fields_set:
            raise ValueError("instance_tokens would do nothing here: it is for method: self_instruct; leave it out")
        return self
