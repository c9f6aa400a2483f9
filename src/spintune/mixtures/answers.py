"""Decides by a task's rule whether a prediction gives the right answer.

:mod:`spintune.text.answers` says what a text gives as its answer. An answer that names another option is right only if
it equals the target (the label "1" of 2, though 1 is an option too). If it names none, or the row is not given, the
rule for text applies.
"""

from __future__ import annotations

from spintune.mixtures.tasks import MixtureTask, TaskItem
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
