"""Self-Instruct (arXiv 2212.10560): instructions first, then whether each is a classification task, then instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import ClassVar

from spintune.synthesis import parsers, prompts
from spintune.synthesis.decoding import DecodingSettings, stream
from spintune.synthesis.examples import AnsweredPrompt, GeneratedExample, SeedTask, SynthesisProvenance
from spintune.synthesis.filters import FilterCounts, FilterRules, conflicting
from spintune.synthesis.parsers import ParsedReply
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Outcome, Request

SHOWN = 8
SHOWN_OF_TEACHER = 2
MAX_INSTANCES = 5

INSTRUCTION_DECODING = DecodingSettings(max_tokens=1024, temperature=0.7, top_p=0.5, presence_penalty=2.0)
CLASSIFICATION_DECODING = DecodingSettings(max_tokens=3, temperature=0.0, top_p=1.0)
INSTANCE_DECODING = DecodingSettings(max_tokens=300, temperature=0.0, top_p=1.0, presence_penalty=1.5)
"""Appendix A.2 of the paper. Its top_p of 0 means the same as a temperature of 0."""

_MAX_LABEL_LENGTH = 16
"""A longer text is not a label. [characters]"""


@dataclass(frozen=True)
class SelfInstruct:
    """Shows eight tasks, two of them the teacher's own once there are two, and asks for new instructions."""

    decoding: DecodingSettings = INSTRUCTION_DECODING
    name: ClassVar[str] = "self_instruct"
    prompt: ClassVar[str] = prompts.INSTRUCTIONS
    writes_outputs: ClassVar[bool] = False

    def show(self, rng: Random, seeds: Sequence[SeedTask], accepted: Sequence[SeedTask]) -> list[SeedTask]:
        own = rng.sample(accepted, min(SHOWN_OF_TEACHER, len(accepted)))
        shown = own + rng.sample(list(seeds), min(SHOWN - len(own), len(seeds)))
        rng.shuffle(shown)
        return shown

    def request(self, shown: Sequence[SeedTask], number: int) -> Request:
        messages, begin = prompts.new_instructions(shown)
        # stop before the first item too many; a line break in front, so that no number inside a text stops it
        stop = (f"\n{len(shown) + prompts.NEW_INSTRUCTIONS + 1}.", "\n\n\n")
        return Request(messages, begin, stop=stop, **vars(self.decoding), draw=number)

    def read(self, outcome: Outcome, request: Request) -> ParsedReply:
        return parsers.instructions(outcome, request.begin)


@dataclass
class InstanceWriter:
    """Turns instructions into examples: asks whether each is a classification task, then for inputs and outputs.

    Attributes:
        examples: the examples kept, at most five for an instruction.
        classified: how many replies said whether the task is a classification task.
        replies: how many replies with instances could be read.
        instances: how many instances of these replies were kept.
    """

    teacher: CachedTeacher
    rules: FilterRules
    decoding: DecodingSettings
    seed: int
    examples: list[GeneratedExample] = field(default_factory=list)
    classified: FilterCounts = field(default_factory=lambda: FilterCounts("classification", "replies"))
    replies: FilterCounts = field(default_factory=lambda: FilterCounts("replies with instances", "requests"))
    instances: FilterCounts = field(default_factory=lambda: FilterCounts("instances", "examples"))

    @property
    def counts(self) -> list[FilterCounts]:
        """The counts of its steps in order."""
        return [self.classified, self.replies, self.instances]

    def add(self, tasks: Sequence[GeneratedExample]) -> None:
        """Classifies these tasks and writes their instances."""
        self.write(self.classify(tasks))

    def classify(self, tasks: Sequence[GeneratedExample]) -> list[GeneratedExample]:
        """Marks each task as a classification task or not. An unreadable reply means not, as in the paper."""
        classified = []
        for one, request, outcome in self._ask(tasks, _classification_request, CLASSIFICATION_DECODING):
            answer = parsers.classification(outcome, request.begin)
            self.classified.count(answer if isinstance(answer, str) else None)
            task = replace(one.task, classification=answer is True)
            classified.append(GeneratedExample(task, self._provenance(one, request, prompts.CLASSIFICATION)))
        return classified

    def write(self, tasks: Sequence[GeneratedExample]) -> None:
        """Asks for inputs and outputs of each task, and keeps those that pass the filters."""
        for one, request, outcome in self._ask(tasks, _instance_request, self.decoding):
            labels_first = bool(one.task.classification)
            read = parsers.instances_output_first if labels_first else parsers.instances_input_first
            parsed = read(outcome, request.begin, one.task)
            self.replies.count(parsed.failure)
            self.instances.drop_all(parsed.dropped)
            rng = stream(self.seed, "instances", one.task.id)
            kept = _filtered(parsed.tasks, request, self.rules, rng, self.instances)
            prompt = prompts.OUTPUT_FIRST if labels_first else prompts.INPUT_FIRST
            provenance = self._provenance(one, request, prompt)
            self.examples += [GeneratedExample(task, provenance) for task in kept]

    def _ask(
        self,
        tasks: Sequence[GeneratedExample],
        request_of: Callable[[SeedTask, DecodingSettings], Request],
        decoding: DecodingSettings,
    ) -> Iterator[tuple[GeneratedExample, Request, Outcome]]:
        requests = [request_of(one.task, decoding) for one in tasks]
        return zip(tasks, requests, self.teacher.ask(requests), strict=True)

    def _provenance(self, one: GeneratedExample, request: Request, prompt: str) -> SynthesisProvenance:
        """The provenance so far, with this request added."""
        asked = AnsweredPrompt(prompt, self.teacher.key(request))
        return replace(one.provenance, requests=(*one.provenance.requests, asked))


def _filtered(
    tasks: Sequence[SeedTask], request: Request, rules: FilterRules, rng: Random, counts: FilterCounts
) -> list[SeedTask]:
    """The paper's filters of instances in its order: form, conflicts, duplicates, number.

    Our own filter comes first: a weak teacher copies worked examples from the prompt, which belong to other tasks.
    """
    well_formed = []
    for task in tasks:
        if reason := "copied_from_prompt" if _copied(task, request) else rules.instance_drop_reason(task):
            counts.drop(reason)
        else:
            well_formed.append(task)
    if conflicting(well_formed):
        counts.drop("conflicting_outputs", len(well_formed))
        return []
    distinct = list({task.id: task for task in well_formed}.values())
    counts.drop("duplicate", len(well_formed) - len(distinct))
    chosen = sorted(rng.sample(range(len(distinct)), min(MAX_INSTANCES, len(distinct))))
    counts.drop("more_than_wanted", len(distinct) - len(chosen))
    counts.keep(len(chosen))
    return [distinct[place] for place in chosen]


def _copied(task: SeedTask, request: Request) -> bool:
    """Whether input and output both occur in the prompt. Short labels do not count: they occur by chance."""
    shown = request.messages[-1].content
    texts = [text for text in (task.input, task.output or "") if len(text) > _MAX_LABEL_LENGTH]
    return bool(texts) and all(text in shown for text in texts)


def _classification_request(task: SeedTask, decoding: DecodingSettings) -> Request:
    messages, begin = prompts.is_classification(task)
    return Request(messages, begin, stop=("\n",), **vars(decoding))


def _instance_request(task: SeedTask, decoding: DecodingSettings) -> Request:
    ask = prompts.instances_output_first if task.classification else prompts.instances_input_first
    messages, begin = ask(task)
    return Request(messages, begin, stop=("\nTask:", f"\nExample {MAX_INSTANCES + 1}"), **vars(decoding))
