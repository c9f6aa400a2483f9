"""Self-Instruct (arXiv 2212.10560): instructions first, then whether each is a classification task, then instances."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spintune.synthesis import parsers, prompts
from spintune.synthesis.bootstrap import BootstrapMethod
from spintune.synthesis.decoding import DecodingSettings, stream
from spintune.synthesis.examples import GeneratedExample, SeedTask
from spintune.synthesis.filters import FilterCounts, FilterRules, conflicting
from spintune.synthesis.parsers import ParsedReply
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Outcome, Request

SHOWN = 8
SHOWN_OF_TEACHER = 2
MOST_INSTANCES = 5

INSTRUCTION_DECODING = DecodingSettings(max_tokens=1024, temperature=0.7, top_p=0.5, presence_penalty=2.0)
CLASSIFICATION_DECODING = DecodingSettings(max_tokens=3, temperature=0.0, top_p=1.0)
INSTANCE_DECODING = DecodingSettings(max_tokens=300, temperature=0.0, top_p=1.0, presence_penalty=1.5)
"""Paper, appendix A.2; its top_p of 0 is the temperature of 0 said twice."""

_LONGEST_LABEL = 16


def self_instruct_method(decoding: DecodingSettings = INSTRUCTION_DECODING) -> BootstrapMethod:
    """Eight tasks are shown, of which the teacher wrote two as soon as there are two."""

    def show(random: random.Random, seeds: Sequence[SeedTask], accepted: Sequence[SeedTask]) -> list[SeedTask]:
        own = random.sample(accepted, min(SHOWN_OF_TEACHER, len(accepted)))
        shown = own + random.sample(list(seeds), min(SHOWN - len(own), len(seeds)))
        random.shuffle(shown)
        return shown

    def request(shown: Sequence[SeedTask], number: int) -> Request:
        messages, begin = prompts.new_instructions(shown)
        # what follows the asked ones is not wanted; the number stands at the beginning of a line
        stop = (f"\n{len(shown) + prompts.NEW_INSTRUCTIONS + 1}.", "\n\n\n")
        return Request(messages, begin, stop=stop, **vars(decoding), draw=number)

    def read(outcome: Outcome, request: Request) -> ParsedReply:
        return parsers.instructions(outcome, request.begin)

    return BootstrapMethod("self_instruct", show, request, read, prompts.INSTRUCTIONS, whole=False)


@dataclass
class Instances:
    """Turns instructions into examples: is it a classification task, then inputs and outputs for it.

    Attributes:
        examples: what was kept, at most five an instruction.
        sorting: what became of the questions after the kind of task.
        replies: what became of the requests for instances.
        instances: what became of the instances in the replies.
    """

    asker: CachedTeacher
    rules: FilterRules
    decoding: DecodingSettings
    seed: int
    examples: list[GeneratedExample] = field(default_factory=list)
    sorting: FilterCounts = field(default_factory=lambda: FilterCounts("classification", "replies"))
    replies: FilterCounts = field(default_factory=lambda: FilterCounts("replies with instances", "requests"))
    instances: FilterCounts = field(default_factory=lambda: FilterCounts("instances", "examples"))

    def add(self, tasks: Sequence[GeneratedExample]) -> None:
        """Asks for the instances of these tasks."""
        self.write(self.sort(tasks))

    def sort(self, tasks: Sequence[GeneratedExample]) -> list[GeneratedExample]:
        """Says of each task whether it is a classification task. What cannot be read is none, as in the paper."""
        judged = []
        for written, request, outcome in self._ask(tasks, _classification_request, CLASSIFICATION_DECODING):
            said = parsers.classification(outcome, request.begin)
            if isinstance(said, str):
                self.sorting.drop(said)
            else:
                self.sorting.keep()
            judged.append(self._with(written, request, prompts.CLASSIFICATION, classification=said is True))
        return judged

    def write(self, tasks: Sequence[GeneratedExample]) -> None:
        """Asks for inputs and outputs, and keeps those of use."""
        for written, request, outcome in self._ask(tasks, _instance_request, self.decoding):
            labels = bool(written.task.classification)
            read = parsers.instances_output_first if labels else parsers.instances_input_first
            parsed = read(outcome, request.begin, written.task)
            if parsed.failure:
                self.replies.drop(parsed.failure)
            else:
                self.replies.keep()
            for reason, count in parsed.dropped.items():
                self.instances.drop(reason, count)
            prompt = prompts.OUTPUT_FIRST if labels else prompts.INPUT_FIRST
            random = stream(self.seed, "instances", written.task.id)
            self.examples += [
                self._with(written, request, prompt, id=task.id, input=task.input, output=task.output)
                for task in _useful(parsed.tasks, request, self.rules, random, self.instances)
            ]

    def _ask(
        self,
        tasks: Sequence[GeneratedExample],
        request_of: Callable[[SeedTask, DecodingSettings], Request],
        decoding: DecodingSettings,
    ) -> Iterator[tuple[GeneratedExample, Request, Outcome]]:
        requests = [request_of(written.task, decoding) for written in tasks]
        return zip(tasks, requests, self.asker.ask(requests), strict=True)

    def _with(self, written: GeneratedExample, request: Request, prompt: str, **changes: Any) -> GeneratedExample:
        provenance = written.provenance
        requests = (*provenance.requests, (prompt, self.asker.key(request)))
        return GeneratedExample(replace(written.task, **changes), replace(provenance, requests=requests))


def _useful(
    tasks: Sequence[SeedTask], request: Request, rules: FilterRules, random: random.Random, funnel: FilterCounts
) -> list[SeedTask]:
    """The paper's filters of instances, in its order: form, conflicts, duplicates, number.

    Before them our own: what a weak teacher copies from the worked examples belongs to another task.
    """
    sound = []
    for task in tasks:
        if _copied(task, request):
            funnel.drop("copied_from_prompt")
        elif reason := rules.flaw_of_instance(task):
            funnel.drop(reason)
        else:
            sound.append(task)
    if conflicting(sound):
        funnel.drop("conflicting_outputs", len(sound))
        return []
    distinct = list({task.id: task for task in sound}.values())
    funnel.drop("duplicate", len(sound) - len(distinct))
    chosen = sorted(random.sample(range(len(distinct)), min(MOST_INSTANCES, len(distinct))))
    funnel.drop("more_than_wanted", len(distinct) - len(chosen))
    funnel.keep(len(chosen))
    return [distinct[place] for place in chosen]


def _copied(task: SeedTask, request: Request) -> bool:
    """Whether an example stands in the prompt. A label alone says nothing."""
    shown = request.messages[-1].content
    texts = [text for text in (task.input, task.output or "") if len(text) > _LONGEST_LABEL]
    return bool(texts) and all(text in shown for text in texts)


def _classification_request(task: SeedTask, decoding: DecodingSettings) -> Request:
    messages, begin = prompts.is_classification(task)
    return Request(messages, begin, stop=("\n",), **vars(decoding))


def _instance_request(task: SeedTask, decoding: DecodingSettings) -> Request:
    ask = prompts.instances_output_first if task.classification else prompts.instances_input_first
    messages, begin = ask(task)
    return Request(messages, begin, stop=("\nTask:", f"\nExample {MOST_INSTANCES + 1}"), **vars(decoding))
