"""How a recipe names a teacher or a judge to ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from spintune.recipe.section import Count, NonNegative, Positive, Section, WholeNumber

ENDPOINT = "endpoint"

_OTHER_KINDS_TAKE = {"kind", "model", "extra"}


class BudgetSection(Section):
    """The most that a teacher may cost. Asking stops before a request that could pass it; all replies are kept."""

    tokens: Count | None = None
    """Maximum tokens of prompts and answers together. [tokens] Default: no limit."""
    dollars: Positive | None = None
    """Maximum cost at the prices below. [US dollars] Default: no limit."""
    prompt_price: NonNegative = 0.0
    """Price of what the teacher reads. [US dollars per million tokens]"""
    completion_price: NonNegative = 0.0
    """Price of what the teacher writes. [US dollars per million tokens]"""

    def _problems(self) -> Iterator[str]:
        if self.dollars and not (self.prompt_price or self.completion_price):
            yield "a budget in dollars needs prompt_price and completion_price"


class EndpointSection(Section):
    """An endpoint that speaks OpenAI's protocol, or a registered kind of teacher."""

    kind: str = ENDPOINT
    """endpoint, scripted (replies from a file), or a kind that you registered (register_teacher). Kinds other than
    endpoint take only model and extra."""
    model: str = ""
    """The model's name at the endpoint. Other kinds get it as the argument model, if given; for scripted, it is the
    path of the file."""
    style: Literal["chat", "completions"] = "chat"
    """Which requests to send: chat completions or plain completions."""
    key_variable: str | None = None
    """Environment variable that holds the key; the key goes to the endpoint's host alone. Default: OPENAI_API_KEY for
    api.openai.com, no key for other hosts."""
    concurrency: Count = 8
    """Requests under way at a time. [requests]"""
    timeout_seconds: Positive = 300.0
    """Maximum time of one attempt. [seconds]"""
    max_retries: WholeNumber = 5
    """Retries after timeouts, lost connections, and refusals that may pass. [attempts]"""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Field that limits the answer; newer models of some providers want max_completion_tokens."""
    extra: dict[str, Any] = Field(default={})
    """More fields of each request, such as {reasoning_effort: low}; null leaves a field out. Other kinds get these as
    arguments."""
    budget: BudgetSection = BudgetSection()
    """Maximum cost."""

    def _problems(self) -> Iterator[str]:
        own = {name for name in self.model_fields_set if name in EndpointSection.model_fields or name == "url"}
        if self.kind == ENDPOINT and not self.model:
            yield "model is missing; give the model's name"
        if self.kind != ENDPOINT and (unused := sorted(own - _OTHER_KINDS_TAKE)):
            yield f"{unused[0]} is for an endpoint, and kind is {self.kind}; leave it out, or put it in extra"

    @model_serializer(mode="wrap")
    def _without_default_kind(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves ``kind`` out for an endpoint, so that runs from before there were kinds keep their identity."""
        values: dict[str, Any] = serialize(self)
        if values.get("kind") == ENDPOINT:
            del values["kind"]
        return values
