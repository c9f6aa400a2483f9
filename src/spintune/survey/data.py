"""What data holds: format, rows, lengths in tokens, copies, languages, and whether a chat template can write it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from spintune.checkers import choice, number, same_json
from spintune.data.novelty import NoveltyIndex
from spintune.data.sources import Source, SourceResult
from spintune.data.tables import open_tables
from spintune.errors import MissingExtraError
from spintune.evaluation.ifeval.language import detect
from spintune.evaluation.metric_choice import FINAL_NUMBER
from spintune.evaluation.selection import prompt_text
from spintune.number_files import KeyFile
from spintune.progress import Progress, unless_quick
from spintune.record_files import Selection
from spintune.records import Example
from spintune.streams import DIGEST_BYTES, digest
from spintune.text.answers import CURRENCIES, options_in
from spintune.text.reasoning import without_reasoning
from spintune.text.words import split_words
from spintune.tokens.rows import RowRenderer

LOOKED_AT = 2_000
"""Examples whose tokens and copies are counted, an even share of larger data."""
NEAR = 0.9
"""ROUGE-L above which an example nearly repeats an earlier one."""
SURE = 0.9
"""Share of the answers that must have a form for a checker to be proposed."""
_WORDS = 200  # of an example that are compared
_DETECTED = 60  # examples whose language is looked at
_HEAD = 20  # rows by which columns are told
_BATCH = 256
_STRIDE = 1000  # examples between two reports of progress
_USELESS = frozenset(
    {"empty_prompt", "empty_answer", "duplicate", "over_limit", "weight", "untrained", "negative_label"}
)


@dataclass(frozen=True)
class RowLengths:
    """Tokens of examples as a model reads them."""

    prompts: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def rows(self) -> list[int]:
        """Prompt and answer together."""
        return [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    def beyond(self, max_length: int) -> tuple[int, int]:
        """How many rows would be cut at ``max_length``, and how many dropped, since their prompts leave no room."""
        dropped = sum(prompt >= max_length for prompt in self.prompts)
        return sum(row > max_length for row in self.rows) - dropped, dropped


@dataclass(frozen=True)
class DataSurvey:
    """What was found in one source.

    Attributes:
        keys: columns or keys of its rows.
        prompts: distinct prompts among the examples that are kept.
        near: of ``looked_at`` examples, those that nearly repeat an earlier one.
        system, multi_turn, tools: examples with a system message, with earlier turns, with tools.
        languages: examples by language; empty where no detector is installed.
        checker: that fits the answers, or None.
        lengths: of the examples that were looked at.
    """

    path: str
    format: str
    keys: tuple[str, ...]
    ignored: Counter[str]
    read: int
    kept: int
    prompts: int
    dropped: Counter[str]
    looked_at: int
    near: int
    system: int
    multi_turn: int
    tools: int
    languages: Counter[str]
    checker: str | None
    lengths: RowLengths

    @property
    def unreadable(self) -> Counter[str]:
        """Rows that cannot be read, by reason."""
        return Counter({reason: count for reason, count in self.dropped.items() if reason not in _USELESS})


def head_of(source: Source) -> list[dict[str, object]]:
    """The first rows of a source as they are. Raises DataError for one that cannot be opened."""
    opener = open_tables(source.path, source.split, source.config)[0]
    return [dict(row) for row in opener().sample(_HEAD)]


def keys_of_rows(rows: Sequence[dict[str, object]]) -> tuple[str, ...]:
    """The keys of rows, each once, in their order."""
    return tuple(dict.fromkeys(key for row in rows for key in row))


def likely_columns(rows: Sequence[dict[str, object]]) -> tuple[str, str] | None:
    """The two columns with the longest texts, in their order: what a person most likely means by prompt and answer."""
    lengths = {
        key: statistics.median([len(value) for row in rows if isinstance(value := row.get(key), str)] or [0])
        for key in keys_of_rows(rows)
    }
    found = sorted((key for key in lengths if lengths[key]), key=lambda key: -lengths[key])[:2]
    if len(found) < 2:
        return None
    first, second = (key for key in lengths if key in found)
    return first, second


def spread(examples: Sequence[Example]) -> Sequence[Example]:
    """An even share of the examples, at most :data:`LOOKED_AT`."""
    step = max(1, -(-len(examples) // LOOKED_AT))
    return examples if step == 1 else Selection(examples, range(0, len(examples), step))


def survey(
    result: SourceResult,
    keys: tuple[str, ...],
    renderer: RowRenderer,
    progress: Progress,
    all_turns: RowRenderer | None = None,
) -> DataSurvey:
    """Looks at what was read. Raises DataError for examples that the chat template refuses.

    ``all_turns`` writes conversations with earlier answers once more, as a recipe does that trains all of them.
    """
    examples = result.examples
    sample = list(spread(examples))
    with progress.task(f"looking at {result.source.path}", len(sample), "examples") as task:
        rows = []
        for start in range(0, len(sample), _BATCH):
            batch = sample[start : start + _BATCH]
            rows += renderer.rows(batch)
            if all_turns:
                longer = filter(_has_earlier_answers, batch)
                all_turns.rows([unit for example in longer for unit in all_turns.units(example)])
            task.advance(len(batch))
    prompts, kinds = _count(examples, progress)
    lengths = RowLengths(tuple(len(row.prompt_ids) for row in rows), tuple(len(row.response_ids) for row in rows))
    return DataSurvey(
        path=result.source.path,
        format=result.format,
        keys=keys,
        ignored=result.ignored,
        read=result.read,
        kept=len(examples),
        prompts=prompts,
        dropped=result.dropped,
        looked_at=len(sample),
        near=near_copies(sample),
        system=kinds["system"],
        multi_turn=kinds["multi_turn"],
        tools=kinds["tools"],
        languages=languages(sample),
        checker=guess_checker(sample),
        lengths=lengths,
    )


def _count(examples: Sequence[Example], progress: Progress) -> tuple[int, Counter[str]]:
    """Distinct prompts, and examples of each kind that a chat template must be able to write."""
    prompts, kinds = KeyFile(DIGEST_BYTES), Counter[str]()
    with unless_quick(progress, len(examples)).task("counting", len(examples), "examples") as task:
        for number, example in enumerate(examples, 1):
            prompts.add(digest(prompt_text(example)))
            kinds["system"] += example.messages[0].role == "system"
            kinds["multi_turn"] += _has_earlier_answers(example)
            kinds["tools"] += bool(example.tools)
            if number % _STRIDE == 0:
                task.advance(_STRIDE)
        task.advance(len(examples) % _STRIDE)
    return prompts.distinct(), kinds


def _has_earlier_answers(example: Example) -> bool:
    return sum(one.role == "assistant" for one in example.messages) > 1


def near_copies(examples: Sequence[Example]) -> int:
    """How many examples nearly repeat an earlier one, by ROUGE-L over their first words.

    System messages, and words that all prompts begin with, are instructions of the whole data and do not count. The
    last word of the shortest prompt does.
    """
    index = NoveltyIndex(NEAR, "unicode")
    turns = [[turn.content for turn in one.prompt if turn.role != "system"] for one in examples]
    prompts = [split_words("\n".join(contents)) for contents in turns]
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))
    shared = max(0, min([alike, *(len(one) - 1 for one in prompts)]))
    words = ([*prompt[shared:], *split_words(one.answer)] for prompt, one in zip(prompts, examples, strict=True))
    return sum(not found.novel for found in index.extend(" ".join(one[:_WORDS]) for one in words))


def languages(examples: Sequence[Example]) -> Counter[str]:
    """The languages of some examples, the most frequent first; none where langdetect is not installed."""
    step = max(1, len(examples) // _DETECTED)
    texts = [f"{prompt_text(one)}\n{one.answer}" for one in examples[::step]]
    try:
        found = Counter(filter(None, map(detect, texts)))
    except MissingExtraError:
        return Counter()
    return Counter(dict(found.most_common()))


def guess_checker(examples: Sequence[Example]) -> str | None:
    """The built-in checker whose form nearly all answers have: json, number or choice."""
    forms = Counter[str]()
    for example in examples:
        forms.update(_forms(prompt_text(example), without_reasoning(example.answer).strip()))
    found = [name for name in ("json", "number", "choice") if examples and forms[name] >= SURE * len(examples)]
    return found[0] if found else None


def _forms(prompt: str, answer: str) -> Iterator[str]:
    if answer[:1] in ("{", "[") and same_json(answer, answer):
        yield "json"
    bare = answer.strip(f"+-{CURRENCIES}%. ").replace(",", "").replace("/", "").replace(".", "")
    if number(answer, answer) and (bare.isdecimal() or FINAL_NUMBER.search(answer)):
        yield "number"
    if options_in(prompt) and choice(answer, answer, prompt):
        yield "choice"
