"""Who is asked: an endpoint, or a model of this machine."""

from __future__ import annotations

from spintune.generation.local_teacher import LocalTeacher
from spintune.models.loading import model_identity
from spintune.recipe import EndpointSection, JudgeSection
from spintune.stages.context import LoadedIterate, RunContext
from spintune.teachers.budget import Budget
from spintune.teachers.protocol import Teacher, Usage
from spintune.teachers.replies import Replies


def endpoint_teacher(context: RunContext, section: EndpointSection, url: str, replies: Replies) -> Teacher:
    """An endpoint that goes on with the budget that earlier attempts left of it."""
    identity = _ask(context, section, url).identity
    return _ask(context, section, url, replies.spent(identity))


def check_judge(context: RunContext, section: JudgeSection) -> None:
    """Raises what asking the judge would raise at once: ModelError for no such model, TeacherError without its key."""
    if section.url is None:
        model_identity(section.model, context.cache)
    else:
        _ask(context, section, section.url)


def _ask(context: RunContext, section: EndpointSection, url: str, spent: Usage = Usage()) -> Teacher:  # noqa: B008
    # the client takes a third of a second to import, which runs without an endpoint are spared
    from spintune.teachers.endpoint import Endpoint, EndpointTeacher

    endpoint = Endpoint(
        base_url=url,
        model=section.model,
        style=section.style,
        key_variable=section.key_variable,
        concurrency=section.concurrency,
        timeout_seconds=section.timeout_seconds,
        max_retries=section.max_retries,
        budget=budget_of(section),
        extra=section.extra,
        max_tokens_field=section.max_tokens_field,
    )
    return EndpointTeacher(endpoint, context.environment, spent)


def budget_of(section: EndpointSection | None) -> Budget:
    return Budget(**section.budget.model_dump()) if section else Budget()


def local_teacher(context: RunContext, name: str, player: LoadedIterate) -> Teacher:
    """A model of this machine, in memory."""
    identity = {
        "kind": "local",
        "model": player.iterate.digest,
        "precision": context.recipe.precision,
        "template": player.template,
    }
    longest = player.loaded.max_input_length
    whole = not player.loaded.encoder_decoder
    return LocalTeacher(name, identity, player.generator, player.renderer("last"), longest, whole, context.progress)
