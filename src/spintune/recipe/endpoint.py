"""How a recipe names an endpoint that is asked: a teacher's or a judge's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from spintune.recipe.section import Count, NonNegative, Positive, Section


class BudgetSection(Section):
    """What a teacher may cost. It stops before a request that could pass it; everything paid for is kept."""

    tokens: Count | None = Field(None, description="Of prompts and answers together. [tokens] Default: no limit.")
    dollars: Positive | None = Field(None, description="At the prices below. [US dollars] Default: no limit.")
    prompt_price: NonNegative = Field(0.0, description="Of what the teacher reads. [dollars a million tokens]")
    completion_price: NonNegative = Field(0.0, description="Of what it writes. [dollars a million tokens]")

    @model_validator(mode="after")
    def _dollars_have_prices(self) -> BudgetSection:
        if self.dollars and not (self.prompt_price or self.completion_price):
            raise ValueError("a budget in dollars needs prompt_price and completion_price")
        return self


class EndpointSection(Section):
    """An endpoint that speaks OpenAI's protocol. Its key comes from the environment and goes to its host alone."""

    model: str = Field(description="As the endpoint calls it.")
    style: Literal["chat", "completions"] = Field("chat", description="Which of its two ways to ask.")
    key_variable: str | None = Field(
        None,
        description="Environment variable of the key. Default: OPENAI_API_KEY for api.openai.com, else no key.",
    )
    concurrency: Count = Field(8, description="Requests under way at a time. [requests]")
    timeout_seconds: Positive = Field(300.0, description="For one attempt. [seconds]")
    max_retries: Annotated[int, Field(ge=0)] = Field(5, description="After refusals that may pass. [attempts]")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="Newer models of some providers want max_completion_tokens."
    )
    extra: dict[str, Any] = Field(
        default={}, description="More fields of each request, such as {reasoning_effort: low}; null leaves one out."
    )
    budget: BudgetSection = Field(default=BudgetSection.model_validate({}), description="What it may cost.")
