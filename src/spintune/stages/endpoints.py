"""The teacher or judge that a recipe names: an endpoint, a registered kind, or a model on this machine."""

from __future__ import annotations

from spintune.generation.local_teacher import LocalTeacher
from spintune.models.loading import model_identity
from spintune.recipe import JudgeSection, TeacherSection
from spintune.recipe.endpoint import ENDPOINT
from spintune.stages.context import RunContext
from spintune.stages.iterates import LoadedIterate
from spintune.teachers.budget import Budget
from spintune.teachers.protocol import Teacher, Usage
from spintune.teachers.registry import build_teacher
from spintune.teachers.replies import Replies


def named_teacher(context: RunContext, section: TeacherSection | JudgeSection, replies: Replies) -> Teacher:
    """A registered kind of teacher, or an endpoint with what earlier attempts left of its budget."""
    if section.kind != ENDPOINT:
        return build_teacher(section.kind, section.model, section.extra)
    identity = _endpoint(context, section).identity
    return _endpoint(context, section, replies.spent(identity))


def check_judge(context: RunContext, section: JudgeSection) -> None:
    """Raises early what asking the judge would raise: ModelError without such a model, TeacherError without its key."""
    if section.runs_locally:
        model_identity(section.model, context.cache)
    elif section.kind == ENDPOINT:
        _endpoint(context, section)
    else:
        build_teacher(section.kind, section.model, section.extra)


def _endpoint(
    context: RunContext,
    section: TeacherSection | JudgeSection,
    spent: Usage = Usage(),  # noqa: B008 -- frozen
) -> Teacher:
    # importing the client takes a third of a second, which runs without an endpoint save
    from spintune.teachers.endpoint import Endpoint, EndpointTeacher

    endpoint = Endpoint(
        base_url=section.url or "",
        model=section.model,
        style=section.style,
        key_variable=section.key_variable,
        concurrency=section.concurrency,
        timeout_seconds=section.timeout_seconds,
        max_retries=section.max_retries,
        budget=budget_of(section),
        extra=section.extra,
        max_tokens_field=section.max_tokens_field,
        thinking_tokens=section.thinking_tokens or 0,
    )
    return EndpointTeacher(endpoint, context.environment, spent, context.progress)


def budget_of(section: TeacherSection | JudgeSection | None) -> Budget:
    """The budget of an endpoint; without limits and prices for all other teachers."""
    return Budget(**section.budget.model_dump()) if section else Budget()


def local_teacher(context: RunContext, name: str, player: LoadedIterate) -> Teacher:
    """A model on this machine, in memory."""
    identity = {
        "kind": "local",
        "model": player.iterate.digest,
        "precision": "auto",  # as in RunContext.model_inputs
        "template": player.template,
        **({"generate": context.settings["generate"]} if player.serve else {}),
        **({"generation_prompt": "bare"} if player.generation_prompt == "bare" else {}),
        **({"template_options": dict(player.template_options)} if player.template_options else {}),
    }
    longest = player.loaded.max_input_length
    whole = not player.loaded.encoder_decoder
    return LocalTeacher(name, identity, player.writer, player.renderer("last"), longest, whole, context.progress)
