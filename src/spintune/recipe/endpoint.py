"""How a recipe names a teacher or a judge to ask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from spintune.recipe.section import Count, NonNegative, Positive, Section, WholeNumber

ENDPOINT = "endpoint"

_OTHER_KINDS_TAKE = {"kind", "model", "extra"}

_SECRET_NAME = re.compile(
    r"api[_-]?key|authorization|(^|[_-])token$|secret|passw(or)?d|credential|cookie", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"(Bearer |Basic |sk-|gh[opsu]_|hf_|xox[abp]-|AIza|AKIA|eyJ)[\w.-]{16,}")


def _secret_in(value: object, place: str) -> str | None:
    """Where a value, or something inside it, has the name or the form of a key; None if nothing has."""
    if isinstance(value, str):
        return place if _SECRET_VALUE.match(value) else None
    items = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else ()
    for name, inside in items:
        if isinstance(inside, str) and _SECRET_NAME.search(str(name)):
            return f"{place}.{name}"
        if found := _secret_in(inside, f"{place}.{name}"):
            return found
    return None


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
    """Environment variable that holds the key, such as MISTRAL_API_KEY; the key goes to its provider alone, or to a
    host named in SPINTUNE_KEY_HOSTS. Default: OPENAI_API_KEY for api.openai.com, no key for other hosts."""
    concurrency: Count = 8
    """Requests under way at a time. [requests]"""
    timeout_seconds: Positive = 300.0
    """Maximum time of one attempt. [seconds]"""
    max_retries: WholeNumber = 5
    """Retries after timeouts, lost connections, and refusals that may pass. [attempts]"""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Field that limits the answer; newer models of some providers want max_completion_tokens."""
    thinking_tokens: Count | None = None
    """What a reasoning model may think before each answer, on top of the answer's own limit. [tokens] Default: none;
    its short answers are then cut in thought, and counted as that."""
    extra: dict[str, Any] = Field(default={})
    """More fields of each request (never a key), such as {reasoning_effort: low}; null leaves a field out. Other kinds
    get these as arguments."""
    budget: BudgetSection = BudgetSection()
    """Maximum cost."""

    def _problems(self) -> Iterator[str]:
        yield from self._secrets()
        own = {name for name in self.model_fields_set if name in EndpointSection.model_fields or name == "url"}
        if self.kind == ENDPOINT and not self.model:
            yield "model is missing; give the model's name"
        if self.kind != ENDPOINT and (unused := sorted(own - _OTHER_KINDS_TAKE)):
            yield f"{unused[0]} is for an endpoint, and kind is {self.kind}; leave it out, or put it in extra"

    def _secrets(self) -> Iterator[str]:
        """Keys where none belongs; the text does not repeat them. Recipes are kept in folders, reports and cards."""
        if self.key_variable and not re.fullmatch(r"\w*API_KEY", self.key_variable, re.ASCII):
            yield "key_variable takes the name of an environment variable that ends with API_KEY; export the key there"
        if re.search(r"[?#]|//[^/]*@", getattr(self, "url", None) or ""):
            yield "url takes scheme, host and path only; export a key in a variable and give its name as key_variable"
        if (place := _secret_in(self.extra, "extra")) is not None:
            yield f"{place} looks like a key; export it in an environment variable and name that as key_variable"

    @model_serializer(mode="wrap")
    def _without_default_kind(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves ``kind`` out for an endpoint, so that runs from before there were kinds keep their identity."""
        values: dict[str, Any] = serialize(self)
        if values.get("kind") == ENDPOINT:
            del values["kind"]
        return values
