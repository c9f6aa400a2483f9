"""Right answers to the tasks of a mixture: by quadrant, by cluster, on tasks that were trained and on held-out ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spintune.evaluation.heldout import Judged
from spintune.evaluation.measures import bootstrap
from spintune.mixtures.answers import correct
from spintune.mixtures.rendering import Provenance, provenance
from spintune.mixtures.shares import select
from spintune.mixtures.tasks import Item, Task, load_tasks
from spintune.recipe import MixtureSection
from spintune.stages.workbench import Workbench

Right = dict[str, bool]
"""Whether each held-out example was answered rightly, by example id."""


def judge_tasks(
    bench: Workbench, section: MixtureSection, judged: Mapping[str, Sequence[Judged]], reference: str
) -> dict[str, Any]:
    """Accuracy of every model in every group of questions, and each one's paired difference from ``reference``.

    An answer is right by the rules of :func:`spintune.mixtures.answers.correct`.
    """
    folder = Path(section.folder).expanduser() if section.folder else None
    loaded = load_tasks(section.tasks, folder).tasks
    tasks = {task.name: task for task in loaded}
    held_out = {task.name for task in select(section.held_out, loaded, "data.mixture.held_out")}
    questions = {
        example.id: (tasks[found.task], found)
        for example in bench.heldout
        if (found := provenance(example.source)) and found.task in tasks
    }
    groups: dict[str, list[str]] = defaultdict(list)
    for id, (task, found) in questions.items():
        trained = "held-out tasks" if task.name in held_out else "trained tasks"
        kind = (
            f"{'few-shot' if found.shots else 'zero-shot'}, {'chain of thought' if found.kind == 'cot' else 'direct'}"
        )
        for group in (trained, f"{trained}, {kind}", f"cluster {task.cluster}", f"task {task.name}"):
            groups[group].append(id)
    right = {name: _right(rows, questions) for name, rows in judged.items()}
    return {
        "accuracy": {name: _means(groups, answers) for name, answers in right.items()},
        "differences": {
            f"{name} - {reference}": _differences(groups, answers, right[reference])
            for name, answers in right.items()
            if name != reference
        },
    }


def _right(rows: Sequence[Judged], questions: Mapping[str, tuple[Task, Provenance]]) -> Right:
    items: dict[str, dict[int, Item]] = {}
    answers: Right = {}
    for row in rows:
        if row.id in questions:
            task, found = questions[row.id]
            known = items.setdefault(task.name, {item.number: item for item in task.items})
            answers[row.id] = correct(task, row.reference, row.answer, known.get(found.row))
    return answers


def _means(groups: Mapping[str, Sequence[str]], answers: Right) -> dict[str, Any]:
    return {
        group: {"items": len(values), **bootstrap(values).to_json()}
        for group, ids in groups.items()
        if (values := [float(answers[id]) for id in ids if id in answers])
    }


def _differences(groups: Mapping[str, Sequence[str]], answers: Right, others: Right) -> dict[str, Any]:
    return {
        group: {"items": len(values), **bootstrap(values).to_json()}
        for group, ids in groups.items()
        if (values := [float(answers[id]) - float(others[id]) for id in ids if id in answers and id in others])
    }
