"""Evaluates iterates on the held-out examples: the likelihood of the references, and greedy answers beside them.

::

    likelihood/NAME/likelihood.jsonl           log-probability of every reference
    eval/heldout/NAME/answers.jsonl            greedy answers with their metrics
    eval/heldout-sampled/NAME/answers.jsonl    answers at temperature 1; every model is given the same random numbers
    eval/heldout-measures/NAME/scores.jsonl    the checker's verdicts, and the metrics of sampled answers
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spintune.checkers import TASKS
from spintune.errors import DataError
from spintune.evaluation.heldout import (
    HeldoutAnswer,
    SampledAnswer,
    answer_heldout,
    heldout_differences,
    sampled_answers,
    score_further,
    score_heldout,
    summarize_heldout,
    with_further,
)
from spintune.evaluation.scores import MEASURES_FOLDER, SCORES, HeldoutLikelihood, read_scores
from spintune.generation.sampling import Sampling, stream_keys
from spintune.generation.sharing import generate_parts
from spintune.metrics import metric_inputs
from spintune.records import Completion, Example, read_records, write_records
from spintune.results import EvaluationResults, LikelihoodCounts
from spintune.selfplay.shards import Shards
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate
from spintune.stages.task_accuracy import checker_of, judge_tasks
from spintune.storage import digest_file, digest_json, remove_folder
from spintune.tokens.rows import RowRenderer, TokenRow, fit
from spintune.typed_json import JsonObject, to_json

SAMPLED_FOLDER = "heldout-sampled"

HELDOUT_TOKENS = 256
"""Maximum length of an answer when the recipe has no spin section."""


def likelihood_stage(context: RunContext, iterate: Iterate) -> list[HeldoutLikelihood]:
    """The log-probability of every held-out reference under an iterate."""
    stage = f"likelihood/{iterate.name}"
    path = context.run.folder / stage / "likelihood.jsonl"
    inputs = context.heldout_inputs(iterate)
    if context.run.finished(stage, inputs) is None:
        model = context.load(iterate, stage, inputs)
        examples, rows = _rows_that_fit(context, model.renderer("last"))
        write_records(path, score_heldout(model.engine, examples, rows, context.progress, iterate.name))
        context.run.finish(stage, inputs, [path], LikelihoodCounts(len(rows), len(context.heldout) - len(rows)))
    return read_records(path, HeldoutLikelihood)


def answer_stage(context: RunContext, iterate: Iterate) -> list[HeldoutAnswer]:
    """An iterate's greedy answers to the held-out prompts, with their metrics against the references."""
    likelihoods = likelihood_stage(context, iterate)
    stage = f"eval/heldout/{iterate.name}"
    path = context.run.folder / stage / "answers.jsonl"
    longest = _longest(context)
    inputs = context.heldout_inputs(iterate, max_new_tokens=longest, **metric_inputs())
    if context.run.finished(stage, inputs) is None:
        model = context.load(iterate, stage, inputs)
        examples, rows = _rows_that_fit(context, model.renderer("last"))
        answers = answer_heldout(model.writer, examples, rows, likelihoods, longest, context.progress, iterate.name)
        write_records(path, map(to_json, answers))
        context.run.finish(stage, inputs, [path], {"items": len(answers), **context.written_by})
    return read_records(path, HeldoutAnswer)


def sampled_stage(context: RunContext, iterate: Iterate) -> list[SampledAnswer]:
    """An iterate's answers to the held-out prompts at temperature 1, ``evaluation.samples`` of each.

    An answer's random numbers depend on the seed, the prompt and how many came before it, so models differ only where
    their distributions do.
    """
    stage = f"eval/{SAMPLED_FOLDER}/{iterate.name}"
    folder = context.run.folder / stage
    samples = context.recipe.evaluation.samples
    longest = _longest(context)
    inputs = context.heldout_inputs(iterate, max_new_tokens=longest, samples=samples)
    if context.run.finished(stage, inputs) is None:
        model = context.load(iterate, stage, inputs)
        examples, rows = _rows_that_fit(context, model.renderer("last"))
        prompts = [row.prompt_ids for row in rows for _ in range(samples)]
        sampling = Sampling(longest, seed=int(digest_json([SAMPLED_FOLDER, context.recipe.seed])[:12], 16))
        keys = stream_keys(prompts, sampling.seed)
        shards = Shards(folder / "shards", digest_json(inputs)[:12], context.progress)
        completions = shards.map(
            "answers",
            prompts,
            Completion,
            lambda parts, finished: generate_parts(
                model.writer, [(prompts[part], keys[part]) for part in parts], sampling, finished
            ),
            f"{iterate.name}: held-out answers at temperature 1",
        )
        path = folder / "answers.jsonl"
        write_records(path, sampled_answers(examples, completions, samples))
        context.run.finish(
            stage, inputs, [path], {"items": len(examples), "answers": len(completions), **context.written_by}
        )
    remove_folder(folder / "shards")
    return read_records(folder / "answers.jsonl", SampledAnswer)


def measured_answers(context: RunContext, iterate: Iterate) -> list[HeldoutAnswer]:
    """An iterate's greedy answers with all that is measured of each example, sampled answers and checker included."""
    section, answers = context.recipe.evaluation, answer_stage(context, iterate)
    if not section.samples and section.checker is None:
        return answers
    sampled = sampled_stage(context, iterate) if section.samples else []
    stage = f"eval/{MEASURES_FOLDER}/{iterate.name}"
    path = context.run.folder / stage / SCORES
    digests = [context.run.digest(f"eval/heldout/{iterate.name}")]
    if sampled:
        digests.append(context.run.digest(f"eval/{SAMPLED_FOLDER}/{iterate.name}"))
    inputs = {"answers": digests, "checker": _checker_inputs(context), **metric_inputs()}
    if context.run.finished(stage, inputs) is None:
        checker = checker_of(context.recipe)
        sources = {example.id: example.source or example.id for example in context.heldout}
        table = score_further(answers, sampled, checker, sources)
        write_records(path, table.items)
        context.run.finish(stage, inputs, [path], {**to_json(table.facts()), "checker": section.checker})
    return with_further(answers, read_scores(path.parent))


def _checker_inputs(context: RunContext) -> JsonObject:
    """What a checker's verdicts depend on."""
    setting = context.recipe.evaluation.checker
    schema = digest_file(Path(setting["json"])) if isinstance(setting, dict) and "json" in setting else None
    return {"checker": setting, "schema": schema, **({"tasks": context.task_digests} if setting == TASKS else {})}


def _longest(context: RunContext) -> int:
    """Maximum length of an answer. [tokens]"""
    return context.recipe.spin.longest_answer if context.recipe.spin else HELDOUT_TOKENS


def heldout_results(
    context: RunContext, iterates: Sequence[Iterate], pairs: Sequence[tuple[str, str]], reference: str
) -> EvaluationResults:
    """Every iterate's measures, the paired differences of ``pairs``, and with a mixture the accuracy on its tasks.

    All are of the examples that report; none without one that fits.
    """
    report = {example.id for example in context.reporting}
    every = {iterate.name: measured_answers(context, iterate) for iterate in iterates}
    answers = {name: [row for row in rows if row.id in report] for name, rows in every.items()}
    if not all(answers.values()):
        context.progress.note("no held-out example that reports fits data.max_length, so none is judged; raise it")
        return EvaluationResults()
    mixture = context.recipe.data.mixture
    return EvaluationResults(
        heldout={name: summarize_heldout(rows) for name, rows in answers.items()},
        differences={f"{one} - {other}": heldout_differences(answers[one], answers[other]) for one, other in pairs},
        tasks=judge_tasks(context, mixture, answers, reference) if mixture else None,
    )


def _rows_that_fit(context: RunContext, renderer: RowRenderer) -> tuple[list[Example], list[TokenRow]]:
    """The held-out examples within the recipe's lengths, and their rows. Raises DataError when there is none."""
    data = context.recipe.data
    rows = renderer.rows(context.heldout)
    fitted = [fit(row, data.max_length, data.max_target_length, data.max_input_length) for row in rows]
    kept = [(example, row) for example, row in zip(context.heldout, fitted, strict=True) if isinstance(row, TokenRow)]
    if not kept:
        raise DataError(f"no held-out example fits data.max_length; raise it, or {data.without_long_ones}")
    return [example for example, _ in kept], [row for _, row in kept]
