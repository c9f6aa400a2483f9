"""The fields of a request's JSON, without those that the server turned out to refuse.

Newer models take no ``stop``, no ``temperature`` other than 1, or ``max_completion_tokens`` in the place of
``max_tokens``; gateways and servers know still others. A refusal names the parameter, so the request is asked again
without it, or with its other name, and so are all that follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from spintune.teachers.protocol import Request

_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_CONTENTS = {"model", "messages", "prompt"}
_UNSUPPORTED = re.compile(
    r"un-?supported|not (?:\w+ )?(?:supported|permitted|allowed|enabled|available|accepted|recogni[sz]ed)"
    r"|(?:does|do) not (?:support|accept|allow)|doesn(?:'|’)t support|unrecogni[sz]ed"
    r"|unknown (?:name|field|param|argument)"
    r"|unexpected (?:keyword|field|param|argument)|no longer supported|deprecated|extra_forbidden|cannot both",
    re.IGNORECASE,
)


class Parameters:
    """Makes the JSON of requests to one model of one endpoint, and learns which parameters it refuses."""

    def __init__(self, model: str, style: str, limit_field: str, extra: Mapping[str, object]) -> None:
        self._model, self._style, self._extra = model, style, extra
        self._limit = limit_field
        self._refused: list[str] = []

    def body(self, request: Request) -> dict[str, object]:
        """The request's JSON. Penalties and stop are left out where they do nothing: some models refuse their names."""
        body: dict[str, object] = {"model": self._model}
        if self._style == "chat":
            body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
        else:
            body["prompt"] = "\n\n".join(m.content for m in request.messages) + request.begin
        # always sent, because servers have defaults of their own for these two (generation_config.json)
        body |= {"temperature": request.temperature, "top_p": request.top_p}
        body[self._limit] = request.max_tokens
        if request.presence_penalty:
            body["presence_penalty"] = request.presence_penalty
        if request.frequency_penalty:
            body["frequency_penalty"] = request.frequency_penalty
        if request.stop:
            body["stop"] = list(request.stop)
        values = {**body, **self._extra}
        return {name: value for name, value in values.items() if value is not None and name not in self._refused}

    def left_out(self, request: Request) -> tuple[str, ...]:
        """What the server refused of this request. It does not matter for ``stop``: the answer is cut here."""
        return tuple(
            name for name in self._refused if name != "stop" and (name in self._extra or _matters(name, request))
        )

    def refuse(self, name: str) -> bool:
        """Leaves out a parameter from now on. Returns whether that is news."""
        if name in self._refused:
            return False
        self._refused.append(name)
        return True

    def adapt(self, sent: Mapping[str, object], error: object) -> tuple[bool, str]:
        """What a refused request changes: whether asking again helps, and what to tell ("" if it is known already)."""
        name = _named(sent, error)
        if name is None:
            return False, ""
        if name not in _LIMITS:
            return True, f"asked without {name}, which it refuses" if self.refuse(name) else ""
        other = _LIMITS[name]
        if name in self._refused or name != self._limit:  # another request found out at the same time
            return self._limit != name, ""
        if other in self._refused:
            return False, ""
        self._refused.append(name)
        self._limit = other
        return True, f"asked with {other} in the place of {name}, which it refuses"


def _matters(name: str, request: Request) -> bool:
    """Whether leaving out a parameter changes what is asked for. The value 1 is what servers take without one."""
    return (name in ("temperature", "top_p") and getattr(request, name) != 1.0) or (
        name in ("presence_penalty", "frequency_penalty") and getattr(request, name) != 0.0
    )


def _named(sent: Mapping[str, object], error: object) -> str | None:
    """The parameter that an error says is not supported; None if it says something else."""
    text = str(error)
    if not _UNSUPPORTED.search(text):
        return None
    names = [name for name in sent if name not in _CONTENTS]
    if isinstance(error, dict) and error.get("param") in names:
        return str(error["param"])
    places = {name: found.start() for name in names if (found := _mention(name).search(text))}
    # "temperature and top_p cannot both be specified": the second one goes
    first = max if "both" in text else min
    return first(places, key=places.__getitem__) if places else None


def _mention(name: str) -> re.Pattern[str]:
    """A parameter's name in a text, as presence_penalty, presencePenalty or presence penalty."""
    words = r"[_ ]?".join(map(re.escape, name.split("_")))
    return re.compile(rf"(?<![A-Za-z_]){words}(?![A-Za-z_])", re.IGNORECASE)
