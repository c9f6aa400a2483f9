"""Instruction data from seed tasks in one call: rounds of requests, filters, instances, decontamination."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from spintune.data.contamination import Removed, decontaminate
from spintune.data.evaluation_items import evaluation_items
from spintune.errors import BudgetError, DataError, RecipeError
from spintune.progress import Progress, Silent
from spintune.storage import write_json_lines
from spintune.synthesis.alpaca import ALPACA_DECODING, Alpaca
from spintune.synthesis.bootstrap import BootstrapSettings, bootstrap
from spintune.synthesis.decoding import DecodingSettings
from spintune.synthesis.examples import GeneratedExample, SeedTask, read_seeds
from spintune.synthesis.filters import KEYWORDS, FilterCounts, FilterRules
from spintune.synthesis.self_instruct import INSTANCE_DECODING, INSTRUCTION_DECODING, InstanceWriter, SelfInstruct
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Teacher, Usage
from spintune.teachers.replies import Replies

MethodName = Literal["self_instruct", "alpaca"]


@dataclass(frozen=True)
class EvaluationTexts:
    """Evaluation data that no example may overlap with.

    Attributes:
        texts: by file, two texts of each item: its prompt, and its prompt with the answer. The prompt counts by itself
            because an item shorter than an n-gram is looked up whole: with the answer behind it, it would be found only
            where a teacher gave the same answer.
        ngram: length of a shared run of words.
        sources: by file, the row of each item, as ``file:line`` or ``file: row N``; empty where nobody knows.
    """

    texts: Mapping[str, Sequence[str]]
    ngram: int = 13
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Sequence[str], ngram: int = 13) -> EvaluationTexts:
        """Reads evaluation files of any format, with or without answers. Raises DataError."""
        texts: dict[str, list[str]] = {}
        sources: dict[str, list[str]] = {}
        for file in files:
            texts[file], sources[file] = [], []
            for item in evaluation_items(file):
                texts[file] += [item.prompt, item.text]
                sources[file].append(item.where)
        return cls(texts, ngram, sources)


@dataclass(frozen=True)
class RemovedExample(Removed):
    """An example removed by decontamination.

    Attributes:
        item: counts the items of the evaluation file from 0.
        source: the item's row, as ``file:line`` or ``file: row N``; "" where nobody knows.
    """

    instruction: str
    source: str = ""


@dataclass(frozen=True)
class SynthesisOptions:
    """Settings of :func:`synthesize` that have good defaults.

    Attributes:
        requests_per_round: requests made before the next look at what is new.
        patience: rounds in a row without a new task after which it stops.
        decoding: how new tasks are sampled. None: as in the method's own code.
        instance_decoding: how the instances of self_instruct are sampled.
        rules: which candidates are dropped. None: the rules of the method's paper.
        evaluation: evaluation data to keep out.
    """

    requests_per_round: int = 32
    patience: int = 4
    decoding: DecodingSettings | None = None
    instance_decoding: DecodingSettings = INSTANCE_DECODING
    rules: FilterRules | None = None
    evaluation: EvaluationTexts | None = None


@dataclass(frozen=True)
class SynthesisResult:
    """What :func:`synthesize` made.

    Attributes:
        teacher: the teacher's name.
        examples: what was kept, each with its provenance.
        counts: what each step read, kept and dropped, in order.
        cost: requests and tokens by the teacher's own count, with those of earlier calls on the same replies.
        stopped: why it stopped before the target; None if it reached it.
        budget_used_up: whether it stopped because of the teacher's budget.
        removed: examples that overlapped with evaluation data.
        thoughts: replies before which the teacher reasoned.
        left_out: replies to requests without a parameter that the server refuses, by parameter.
    """

    teacher: str
    method: MethodName
    examples: list[GeneratedExample]
    counts: list[FilterCounts]
    cost: Usage
    stopped: str | None = None
    budget_used_up: bool = False
    removed: list[RemovedExample] = field(default_factory=list)
    thoughts: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def instructions(self) -> list[str]:
        """The distinct instructions of the examples, in order."""
        return list(dict.fromkeys(one.task.instruction for one in self.examples))

    def save(self, path: Path | str) -> None:
        """Writes the examples as JSON lines in the Alpaca format, which ``data.train`` and other tools read."""
        write_json_lines(Path(path), [one.to_json() for one in self.examples])

    def __str__(self) -> str:
        cost = self.cost
        return "\n".join(
            [
                f"{len(self.examples):,} examples of {len(self.instructions):,} instructions from {cost.requests:,} "
                f"requests ({cost.prompt_tokens:,} tokens read, {cost.completion_tokens:,} written)",
                *map(str, self.counts),
            ]
        )


def synthesize(
    seeds: str | Path | Sequence[SeedTask],
    teacher: Teacher,
    target: int = 100,
    method: MethodName = "self_instruct",
    seed: int = 0,
    replies: Replies | Path | str | None = None,
    options: SynthesisOptions = SynthesisOptions(),
    progress: Progress = Silent(),  # noqa: B008 -- it keeps nothing
) -> SynthesisResult:
    """Lets a teacher write instruction data from seed tasks, by the method of Self-Instruct or Stanford Alpaca.

    This example needs no model: a function of the request plays the teacher. The first request asks for numbered
    tasks, the second whether the new task is a classification task, the third for an input and an output.

        >>> from spintune.teachers.scripted import ScriptedTeacher
        >>> def reply(request):
        ...     text = request.messages[-1].content
        ...     if "classification task when" in text:
        ...         return "No"
        ...     if "Write examples of each task" in text:
        ...         return "Output: Oats, apples and walnuts."
        ...     return "9. List three ingredients of a healthy breakfast."
        >>> result = synthesize("builtin:seeds", ScriptedTeacher(reply, "script"), target=1)
        >>> result.examples[0].task.instruction, result.examples[0].task.output
        ('List three ingredients of a healthy breakfast.', 'Oats, apples and walnuts.')

    Args:
        seeds: "builtin:seeds", a file (see :func:`~spintune.synthesis.examples.read_seeds`), or the tasks themselves.
        teacher: anything with the members of :class:`~spintune.teachers.protocol.Teacher`.
        target: instructions to accept. [instructions]
        method: "self_instruct" (arXiv 2212.10560) or "alpaca" (Stanford Alpaca, 2023).
        seed: of all random draws. The same seed and replies give the same examples.
        replies: file that keeps every reply, so that a second call asks nothing again; None keeps them in memory.

    Raises:
        RecipeError: there is no such method.
        DataError: the seeds cannot be read, or no task passed the filters.
        TeacherError: the teacher cannot be asked, or none of its replies holds a usable task.
        BudgetError: the budget was used up before the first example.
    """
    if method not in get_args(MethodName):
        close = difflib.get_close_matches(method, get_args(MethodName), 1, 0.0)
        raise RecipeError(f"there is no method {method!r}; did you mean {close[0]}?")
    tasks = read_seeds(str(seeds)) if isinstance(seeds, (str, Path)) else seeds
    settings = BootstrapSettings(target, options.requests_per_round, options.patience, seed)
    with _opened(replies) as file:
        cached = CachedTeacher(teacher, file)
        stopped, examples, counts = _generate(cached, method, tasks, settings, options, progress)
        cost = cached.spent
    removed: list[RemovedExample] = []
    if options.evaluation is not None:
        examples, removed = _decontaminate(examples, options.evaluation, counts)
    if not examples and cached.exhausted:
        raise BudgetError(f"no example was finished: {cached.exhausted}")
    if not examples:
        kept = f"; the replies are kept in {file.path}" if file.path else ""
        raise DataError(f"{teacher.name}: no example passed the filters{kept}")
    budget_used_up = cached.exhausted is not None
    return SynthesisResult(
        teacher.name,
        method,
        examples,
        counts,
        cost,
        stopped,
        budget_used_up,
        removed,
        cached.thoughts,
        dict(cached.left_out),
    )


def _opened(replies: Replies | Path | str | None) -> contextlib.AbstractContextManager[Replies]:
    if isinstance(replies, Replies):
        return contextlib.nullcontext(replies)
    return Replies(None if replies is None else Path(replies))


def _generate(
    teacher: CachedTeacher,
    method: MethodName,
    seeds: Sequence[SeedTask],
    settings: BootstrapSettings,
    options: SynthesisOptions,
    progress: Progress,
) -> tuple[str | None, list[GeneratedExample], list[FilterCounts]]:
    """Why it stopped early (None if it did not), the examples, and the counts of all steps."""
    rules = options.rules or FilterRules(keywords=KEYWORDS[method])
    if method == "alpaca":
        alpaca = Alpaca(options.decoding or ALPACA_DECODING)
        pool = bootstrap(teacher, alpaca, seeds, rules, settings, progress=progress)
        return pool.stopped, pool.accepted, [pool.replies, pool.candidates]
    self_instruct = SelfInstruct(options.decoding or INSTRUCTION_DECODING)
    writer = InstanceWriter(teacher, rules, options.instance_decoding, settings.seed)
    pool = bootstrap(teacher, self_instruct, seeds, rules, settings, writer.add, progress)
    return pool.stopped, writer.examples, [pool.replies, pool.candidates, *writer.counts]


def _decontaminate(
    examples: Sequence[GeneratedExample], evaluation: EvaluationTexts, counts: list[FilterCounts]
) -> tuple[list[GeneratedExample], list[RemovedExample]]:
    """Splits the examples into those without an overlap and the removed ones, and counts them."""
    _, overlaps = decontaminate([one.example for one in examples], evaluation.texts, evaluation.ngram)
    gone = {one.row for one in overlaps}
    step = FilterCounts("decontamination", "examples")
    step.drop("in_evaluation_data", len(gone))
    step.keep(len(examples) - len(gone))
    counts.append(step)
    removed = []
    for one in overlaps:
        item, instruction = one.item // 2, examples[one.row].task.instruction  # each item has two texts
        source = evaluation.sources[one.evaluation][item] if evaluation.sources else ""
        removed.append(RemovedExample(one.row, one.evaluation, item, one.ngram, instruction, source))
    return [one for row, one in enumerate(examples) if row not in gone], removed
