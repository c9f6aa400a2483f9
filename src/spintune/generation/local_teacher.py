"""A local model as a teacher or a judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence

import orjson

from spintune.generation.protocol import Generator as Writer
from spintune.generation.sampling import Sampling
from spintune.generation.stopping import StopTexts
from spintune.progress import Progress, Silent
from spintune.records import Completion, Example, Message
from spintune.streams import stream_key
from spintune.teachers.protocol import Failure, Outcome, Reply, Request
from spintune.tokens.rows import RowRenderer
from spintune.typed_json import JsonObject

AT_ONCE = 64
"""Number of requests answered together; they are on disk before the next ones begin."""


class LocalTeacher:
    """Answers requests with a generator, each with its own random stream: a reply depends on its request alone.

    Args:
        identity: what determines its answers: model, precision, template.
        max_length: tokens of prompt and answer together; None for a model without a limit.
        continues: whether it can continue the given beginning of an answer. An encoder-decoder reads only the messages.
    """

    def __init__(
        self,
        name: str,
        identity: JsonObject,
        writer: Writer,
        renderer: RowRenderer,
        max_length: int | None,
        continues: bool = True,
        progress: Progress = Silent(),  # noqa: B008 -- it keeps nothing
    ) -> None:
        self._name, self._identity, self.writer, self.renderer = name, identity, writer, renderer
        self.max_length, self.continues, self.progress = max_length, continues, progress

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> JsonObject:
        return self._identity

    def ask(self, requests: Sequence[Request]) -> Generator[tuple[int, Outcome], None, None]:
        """Yields outcomes; requests of equal sampling settings are answered together."""
        groups: dict[Sampling, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        for index, request in enumerate(requests):
            prompt = _prompt(self.renderer, request, self.continues)
            if self.max_length is not None and len(prompt) + request.max_tokens > self.max_length:
                detail = (
                    f"{len(prompt)} tokens of prompt and {request.max_tokens} of answer; it reads {self.max_length}"
                )
                yield index, Failure("too_long", detail)
            else:
                groups[_sampling(request)].append((index, prompt))
        for sampling, group in groups.items():
            for begin in range(0, len(group), AT_ONCE):
                part = group[begin : begin + AT_ONCE]
                yield from self._answer([requests[index] for index, _ in part], part, sampling)

    def _answer(
        self, requests: Sequence[Request], part: Sequence[tuple[int, tuple[int, ...]]], sampling: Sampling
    ) -> Generator[tuple[int, Outcome], None, None]:
        keys = [stream_key(orjson.dumps(request)) for request in requests]
        stops = [StopTexts(self.writer.decode, request.stop) for request in requests]
        prompts = [prompt for _, prompt in part]
        max_tokens = sum(request.max_tokens for request in requests)
        with self.progress.task(f"{self.name} answers {len(requests)} requests", max_tokens, "tokens at most") as bar:

            def written(place: int, token: int) -> bool:
                bar.advance()
                return stops[place].after(token)

            completions = self.writer.generate(prompts, sampling, keys, written)
        for (index, prompt), completion, stop in zip(part, completions, stops, strict=True):
            yield index, _reply(completion, stop, len(prompt))


def _reply(completion: Completion, stop: StopTexts, prompt_tokens: int) -> Reply:
    at = stop.found(completion.text)
    ended = at is not None or completion.finish_reason == "stop"
    return Reply(completion.text[:at], "stop" if ended else "length", prompt_tokens, len(completion.ids))


def _prompt(renderer: RowRenderer, request: Request, continues: bool) -> tuple[int, ...]:
    """The conversation, with the given beginning of its answer as if the model had written it."""
    prompt = renderer.prompt(request.messages)
    if not (request.begin and continues):
        return prompt
    row = renderer.row(Example((*request.messages, Message("assistant", request.begin))))
    return prompt + row.response_ids[: len(row.response_ids) - len(renderer.end_ids)]


def _sampling(request: Request) -> Sampling:
    return Sampling(
        max_new_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
    )
