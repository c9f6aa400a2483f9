"""How a recipe lets a teacher write instruction data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from spintune.recipe.endpoint import ENDPOINT, EndpointSection
from spintune.recipe.section import Count, NonNegative, PositiveShare, Section


class TeacherSection(EndpointSection):
    """The teacher that writes instruction data: an endpoint, or a registered kind of teacher."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["url", "model"]}, {"required": ["kind"]}]})

    url: str | None = None
    """Base URL of the endpoint, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.kind == ENDPOINT and self.url is None:
            yield "url is missing; give the base URL of the endpoint, or another kind of teacher"


class FilterSection(Section):
    """Which instructions and examples of a teacher are dropped. Defaults are those of the method's paper."""

    fewest_words: Count = 4
    """Minimum length of an instruction. [words] Default: Self-Instruct."""
    most_words: Count = 150
    """Maximum length of an instruction. [words] Default: Self-Instruct."""
    keywords: list[str] | None = None
    """Whole words that an instruction must not contain. Default: the method's own list."""
    starts: list[str] = Field(default=["Write a program"])
    """Texts that an instruction must not begin with. Default: Self-Instruct."""
    ascii_start: bool | None = None
    """Drop instructions whose first character is not ASCII. Default: true, unless novelty_tokens is unicode."""
    refusals: bool = True
    """Drop answers such as 'As an AI language model'."""
    novelty: PositiveShare = 0.7
    """Maximum ROUGE-L that a new instruction may have with a seed or an accepted instruction. [F-measure] Default:
    Self-Instruct; 1 turns it off."""
    novelty_tokens: Literal["reference", "unicode"] = "reference"
    """Words of ROUGE-L: reference knows a-z and 0-9 only, as rouge_score does; unicode reads every script."""


class DecontaminateSection(Section):
    """Removes examples that share a run of words with evaluation data."""

    files: list[str]
    """Evaluation files, in any format that data.train takes; rows need no answer."""
    ngram: Annotated[int, Field(ge=2)] = 13
    """Length of the shared run of words. [words] Default: GPT-3's."""


class SynthSection(Section):
    """Instruction data that a teacher writes from seed tasks. data.train: synth trains on it."""

    method: Literal["self_instruct", "alpaca"] = "self_instruct"
    """self_instruct (arXiv 2212.10560) or alpaca (Stanford Alpaca)."""
    seeds: str = "builtin:seeds"
    """Seed tasks: builtin:seeds, or a file in the format of Self-Instruct or Alpaca."""
    instructions: Count = 200
    """New instructions to accept before it stops. [instructions] The papers: 52,000."""
    teacher: TeacherSection | None = None
    """The teacher that writes. Default: the recipe's own model, on this machine."""
    requests_per_round: Count = 32
    """Requests before the next look at what is new. [requests] The paper's code: 5."""
    patience: Count = 4
    """Stop after this many rounds in a row without a new instruction. [rounds]"""
    temperature: NonNegative | None = None
    """Sampling of new instructions. Default: 0.7 for self_instruct, 1 for alpaca (their code)."""
    top_p: PositiveShare | None = None
    """Sampling of new instructions. [share] Default: 0.5 for self_instruct, 1 for alpaca (their code)."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Sampling of new instructions. Default: 2 for self_instruct, 0 for alpaca (their code)."""
    max_tokens: Count | None = None
    """Maximum length of a reply with new instructions. [tokens] Default: 1024 for self_instruct, 3072 for alpaca (their
    code)."""
    instance_tokens: Count = 300
    """Maximum length of a reply with instances; self_instruct only. [tokens] Default: the paper."""
    filters: FilterSection = FilterSection()
    """What is dropped."""
    decontaminate: DecontaminateSection | None = None
    """Evaluation data to keep out."""
    format: Literal["alpaca", "chat", "parquet"] = "alpaca"
    """File for other tools: alpaca.json, chat.jsonl or examples.parquet."""

    def _problems(self) -> Iterator[str]:
        if self.method == "alpaca" and "instance_tokens" in self.model_fields_set:
            yield "instance_tokens would do nothing here: it needs method: self_instruct; leave it out"
