"""Decides by a task's rule whether a prediction gives the right answer.

:mod:`spintune.text.answers` says what a text gives as its answer. An answer that names another option is right only if
it equals the target (the label "1" of 2, though 1 is an option too). If it names none, or the row is not given, the
rule for text applies.
"""

from __future__ import annotations

from collections.abc import Iterable

from spintune.mixtures.rendering import provenance
from spintune.mixtures.tasks import MixtureTask, TaskItem, item_numbered
from spintune.text.answers import announced_answers, characters_around, chosen, number, plain_text, same_text


def correct(task: MixtureTask, target: str, prediction: str, item: TaskItem | None = None) -> bool:
    """Whether ``prediction`` gives the same answer as ``target``.

    Args:
        task: defines the rule (``task.check``).
        target: the rendered target, including a rationale before its answer.
        prediction: what a model wrote.
        item: the row; with it an option counts by its text and by its label.
    """
    if task.check == "number":
        expected = number(target)
        return expected is not None and expected == number(prediction)
    right, given = announced_answers(target)[0], announced_answers(prediction)[0]
    if task.check == "option" and item is not None and item.choice is not None:
        place = chosen(prediction, item.options)
        if place is not None:
            around = characters_around(item.options)
            plain = [
                plain_text(text, around) for text in (item.options[place], item.options[item.choice], right, given)
            ]
            return plain[0] == plain[1] or plain[2] == plain[3]
    return same_text(right, given)


class TaskRules:
    """Checks answers to examples of a mixture, each by the rule of its task (:class:`spintune.checkers.Verdicts`).

    An answer to an example of no task is right if it equals the reference, up to case and what surrounds it.
    """

    name, reads, right_or_wrong = "tasks", "an answer", True

    def __init__(self, tasks: Iterable[MixtureTask]) -> None:
        self._tasks = {task.name: task for task in tasks}

    def verdict(self, answer: str, reference: str, prompt: str, where: str) -> float:
        """1 for a right answer, else 0. ``where`` is the source of the example, which names its task and row."""
        found = provenance(where)
        if found is None or found.task not in self._tasks:
            return float(same_text(reference, answer))
        task = self._tasks[found.task]
        return float(correct(task, reference, answer, item_numbered(task, found.row)))
