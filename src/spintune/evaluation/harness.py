"""Standard benchmarks and a user's own, run by lm-evaluation-harness on the model in memory.

Tasks, prompts, exemplars and metrics are the harness's (EleutherAI/lm-evaluation-harness, extra ``eval``), the
computing is spintune's, and rows and intervals are kept for paired comparisons. lm_eval is imported when a benchmark
runs, never before.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from spintune.errors import MissingExtraError, RecipeError
from spintune.evaluation.measures import Interval, bootstrap
from spintune.evaluation.own_tasks import OwnTask, read_own_task
from spintune.progress import Progress, Silent

if TYPE_CHECKING:
    from spintune.evaluation.harness_model import HarnessModel, InMemory

log = logging.getLogger(__name__)

EXEMPLAR_SEED = 1234
"""Of the exemplars that a task draws; the harness's own default, so that its published numbers compare."""
_SILENT = Silent()
_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Benchmark:
    """A task and how it is asked.

    Attributes:
        task: a task or group of the harness, or the YAML file of a user's own (:mod:`own_tasks`).
        shots: answered examples before each question; None for the task's own number.
        metric: ``name,filter`` of the harness: the number that stands for the task in tables; None for its first one.
    """

    task: str
    shots: int | None = None
    metric: str | None = None


PRESETS: dict[str, tuple[Benchmark, ...]] = {
    # The Open LLM Leaderboard of 2023, with which SPIN was judged (arXiv 2401.01335, section 6.1). The paper used
    # harness v0.4.0; other versions give other numbers, so compare only what one version measured.
    "spin-paper": (
        Benchmark("arc_challenge", 25, "acc_norm,none"),
        Benchmark("truthfulqa_mc2", 0, "acc,none"),
        Benchmark("winogrande", 5, "acc,none"),
        Benchmark("gsm8k", 5, "exact_match,strict-match"),
        Benchmark("hellaswag", 10, "acc_norm,none"),
        Benchmark("mmlu", 5, "acc,none"),
    ),
}


def benchmarks(names: Sequence[str], shots: int | None = None) -> list[Benchmark]:
    """Presets, tasks of the harness and YAML files, by name; ``shots`` overrides the number of all of them."""
    chosen = [known for name in names for known in PRESETS.get(name, (Benchmark(name),))]
    return [known if shots is None else Benchmark(known.task, shots, known.metric) for known in chosen]


@dataclass(frozen=True)
class Answered:
    """One document of a task, and what the model made of it.

    Attributes:
        task: the task, or that part of a group, that it belongs to.
        doc_id: its place in the task.
        doc_hash: SHA-256 of the document; pair two models on it.
        prompt_hash: SHA-256 of the first prompt, which other exemplars or another chat template change.
        target_hash: SHA-256 of the right answer.
        text: all texts of the document, for finding it in training data.
        scores: by ``name,filter``, as the harness computes them: mostly one number, for perplexities the
            log-probability and its words or bytes.
        responses: log-probability (nats) and greedy flag of each continuation; or the text, or the log-probability.
    """

    task: str
    doc_id: int
    doc_hash: str
    prompt_hash: str
    target_hash: str
    text: str
    scores: dict[str, Any]
    responses: list[Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Answered:
        return cls(**row)


@dataclass(frozen=True)
class Metric:
    """A number of a task, with its 95 % interval where the number is a mean or a ratio over documents."""

    value: float
    interval: Interval | None
    higher_is_better: bool

    def to_json(self) -> dict[str, Any]:
        bounds = {"low": self.interval.low, "high": self.interval.high} if self.interval else {}
        return {"value": self.value, **bounds, "higher_is_better": self.higher_is_better}


@dataclass(frozen=True)
class Result:
    """A benchmark that was run.

    Attributes:
        task: its name.
        metric: key in ``metrics`` of the number that stands for it.
        shots: answered examples before each question.
        version: the task's version in the harness; for one's own tasks a digest of file and rows.
        metrics: by ``name,filter``.
        rows: its documents.
    """

    task: str
    metric: str
    shots: int
    version: str
    metrics: dict[str, Metric]
    rows: tuple[Answered, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {
            "task": self.task,
            "metric": self.metric,
            "shots": self.shots,
            "version": self.version,
            "documents": len({(row.task, row.doc_id) for row in self.rows}),
            "metrics": {name: metric.to_json() for name, metric in self.metrics.items()},
        }


@dataclass(frozen=True)
class Report:
    """What a run of benchmarks gave: results, and one line for each task that could not be run."""

    harness: str
    """Version of lm-evaluation-harness."""
    results: tuple[Result, ...]
    failed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "harness": self.harness,
            "results": [result.to_json() for result in self.results],
            "failed": self.failed,
        }


def check_benchmarks(chosen: Sequence[Benchmark], data_dir: Path | None = None) -> dict[str, str]:
    """The titles of benchmarks, by what they were asked for as, and nothing that a user mistyped in them.

    Raises as :func:`run_benchmarks` does, before anything is computed.
    """
    if not chosen:  # importing the harness takes a second
        return {}
    _need_harness()
    with tempfile.TemporaryDirectory(prefix="spintune-tasks-") as temporary:
        library = _Library(chosen, data_dir, Path(temporary))
        return {benchmark.task: library.title(benchmark) for benchmark in chosen}


def _need_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("benchmarks need lm-evaluation-harness; pip install 'spintune[eval]'")


def run_benchmarks(
    model: InMemory,
    chosen: Sequence[Benchmark],
    *,
    tokens_per_forward: int = 1024,
    limit: int | None = None,
    chat: bool = False,
    data_dir: Path | None = None,
    progress: Progress = _SILENT,
    name: str = "model",
) -> Report:
    """Runs benchmarks one after the other.

    A task whose data set is out of reach, or that fails, is told of in one line (``progress.note``) and left out; the
    others go on.

    Args:
        model: what is evaluated.
        tokens_per_forward: tokens computed at once; changes speed and memory, not results.
        limit: only the first so many documents of each task, of each part of a group.
        chat: prompts go through the model's chat template, exemplars as turns of the conversation.
        data_dir: folder with the data of standard tasks, which then need no hub: ``TASK/SPLIT.jsonl`` (or .json,
            .parquet) with the keys that the hub's data set has, such as ``gsm8k/train.jsonl`` and ``gsm8k/test.jsonl``.
        name: of the model, in progress lines.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        RecipeError: no such task, a file that is no task, or a folder of data that belongs to none.
        DataError: a broken row of a user's own task.
    """
    _need_harness()
    import lm_eval

    from spintune.evaluation.harness_model import HarnessModel

    with tempfile.TemporaryDirectory(prefix="spintune-tasks-") as temporary, _quiet():
        library = _Library(chosen, data_dir, Path(temporary))
        results: list[Result] = []
        failed: dict[str, str] = {}
        for benchmark in chosen:
            title = library.title(benchmark)
            try:
                lm = HarnessModel(model, tokens_per_forward, progress, f"{name}: {title}")
                results += _run(lm, library.load(benchmark), benchmark.shots, library.metric(benchmark), limit, chat)
            except Exception as error:  # tasks are foreign code that may raise anything
                log.debug("benchmark failed", exc_info=error)
                failed[title] = _reason(error)
                progress.note(f"{title} left out: {failed[title]}")
    return Report(lm_eval.__version__, tuple(results), failed)


def _run(
    lm: HarnessModel, loaded: Any, shots: int | None, metric: str | None, limit: int | None, chat: bool
) -> list[Result]:
    """Evaluates loaded tasks: one task, the parts of a group, or all that carry a tag."""
    import lm_eval

    for task in loaded["tasks"].values():
        # a task that says 0 has its exemplars in its prompt; so the harness itself decides
        if shots is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=EXEMPLAR_SEED)
    found = lm_eval.evaluate(
        lm=lm,
        task_dict=loaded,
        limit=limit,
        bootstrap_iters=0,  # intervals are ours
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    heads = list(loaded["groups"])[:1] or list(loaded["tasks"])
    return [_result(head, found, loaded, metric) for head in heads]


# Tasks ---------------------------------------------------------------------------------------------------------


class _Library:
    """Where tasks come from: the harness, its tasks with local data, and a user's own files.

    Everything that a user may have mistyped is looked at here, before anything runs.
    """

    def __init__(self, chosen: Sequence[Benchmark], data_dir: Path | None, temporary: Path) -> None:
        names = [benchmark.task for benchmark in chosen]
        self.own: dict[str, OwnTask] = {name: read_own_task(Path(name)) for name in names if _is_file(name)}
        standard = [name for name in names if name not in self.own]
        self.manager = _all_tasks() if standard else _no_tasks()
        for name in standard:
            if name not in self.manager.task_index:
                raise RecipeError(f"no benchmark is called {name!r}; {_advice(name, self.manager.all_tasks)}")
        if data_dir is not None and standard:
            self.manager = _with_local_data(self.manager, data_dir, temporary)

    def title(self, benchmark: Benchmark) -> str:
        return self.own[benchmark.task].name if benchmark.task in self.own else benchmark.task

    def metric(self, benchmark: Benchmark) -> str | None:
        own = self.own.get(benchmark.task)
        return benchmark.metric or (own.metric if own else None)

    def load(self, benchmark: Benchmark) -> Any:
        """The task or tasks with their data, which are fetched here."""
        own = self.own.get(benchmark.task)
        return self.manager.load([own.config() if own else benchmark.task])


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _advice(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, [*PRESETS, *known], 3)
    presets = ", ".join(PRESETS)
    return f"did you mean {' or '.join(close)}?" if close else f"name a preset ({presets}), a task or a .yaml file"


@functools.cache
def _all_tasks() -> Any:
    """The harness's index of its tasks; reading its thousands of files takes about ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _no_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


def _with_local_data(manager: Any, data_dir: Path, temporary: Path) -> Any:
    """The same tasks, those that have a folder in ``data_dir`` with its files for data."""
    from lm_eval.tasks import TaskManager

    if not data_dir.is_dir():
        raise RecipeError(f"{data_dir} is not a folder; give the one that holds TASK/SPLIT.jsonl")
    for folder in sorted(path for path in data_dir.iterdir() if path.is_dir()):
        entry = manager.task_index.get(folder.name)
        if entry is None or entry.kind.name != "TASK":
            raise RecipeError(f"{folder}: no task is called {folder.name!r}; {_advice(folder.name, manager.all_tasks)}")
        override = {"include": str(entry.yaml_path), "task": folder.name, "tag": None, **_local_data(folder)}
        (temporary / f"{folder.name}.yaml").write_text(yaml.safe_dump(override))
    local = TaskManager(include_path=str(temporary), include_defaults=False)
    for name, entry in manager.task_index.items():
        local.task_index.setdefault(name, entry)
    return local


def _local_data(folder: Path) -> dict[str, Any]:
    """The settings with which the harness reads the files of a folder instead of a data set of the hub."""
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES}
    suffixes = {path.suffix for path in files.values()}
    if not files:
        raise RecipeError(f"{folder} holds no .jsonl, .json or .parquet files; name them by split, such as test.jsonl")
    if ".parquet" in suffixes and len(suffixes) > 1:
        raise RecipeError(f"{folder} mixes .parquet and JSON files; use one kind")
    kind = "parquet" if ".parquet" in suffixes else "json"
    paths = {split: str(path.resolve()) for split, path in files.items()}
    return {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": paths}}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    if not isinstance(error, ConnectionError):
        return line
    return f"{line}; connect, or give its data as TASK/SPLIT.jsonl in a folder (evaluation.folder)"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the harness and the hub from writing bars and warnings over our own progress."""
    import datasets
    import lm_eval.api.task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    tqdm = lm_eval.api.task.tqdm
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)
        yield
    finally:
        lm_eval.api.task.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# Results -------------------------------------------------------------------------------------------------------


def _result(head: str, found: Any, loaded: Any, metric: str | None) -> Result:
    """A task or a group of them: the harness's numbers, with intervals over its documents."""
    group = loaded["groups"].get(head)
    parts = [task.task_name for task in group.get_all_tasks()] if group else [head]
    rows = tuple(row for part in parts for row in _rows(part, found["samples"][part]))
    better = {key: up for part in [head, *parts] for key, up in found["higher_is_better"].get(part, {}).items()}
    values = {
        key: float(value)
        for key, value in found["results"][head].items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }
    if not values:
        raise ValueError(f"{head} gave no numbers")
    metrics = {
        key: Metric(
            value,
            _interval(key.partition(",")[0], value, [row.scores[key] for row in rows if key in row.scores]),
            better.get(key.partition(",")[0]) is not False,
        )
        for key, value in values.items()
    }
    if metric is not None and metric not in metrics:
        raise ValueError(f"{head} has no metric {metric!r}, only {', '.join(metrics)}")
    shots = {found["n-shot"].get(part, 0) for part in parts}
    return Result(
        task=head,
        metric=metric or next(iter(metrics)),
        shots=max(shots),
        version=str(found["versions"].get(head)),
        metrics=metrics,
        rows=rows,
    )


def _rows(task: str, samples: Sequence[dict[str, Any]]) -> list[Answered]:
    """One row a document; the harness writes one for each of a task's filters."""
    rows: dict[int, Answered] = {}
    for sample in samples:
        scores = {f"{metric},{sample['filter']}": _plain(sample[metric]) for metric in sample["metrics"]}
        row = rows.setdefault(
            sample["doc_id"],
            Answered(
                task=task,
                doc_id=sample["doc_id"],
                doc_hash=sample["doc_hash"],
                prompt_hash=sample["prompt_hash"],
                target_hash=sample["target_hash"],
                text="\n\n".join(_texts(sample["doc"])),
                scores={},
                responses=[_plain(response) for responses in sample["resps"] for response in responses],
            ),
        )
        row.scores.update(scores)
    return list(rows.values())


def _texts(value: Any) -> Iterator[str]:
    """Every text in a document, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in _texts(each))


def _plain(value: Any) -> Any:
    """A score as JSON has it."""
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


_OF_RATIOS: dict[str, Callable[[float], float]] = {
    "word_perplexity": math.exp,
    "byte_perplexity": math.exp,
    "perplexity": math.exp,
    "bits_per_byte": lambda nats: nats / math.log(2),
}
"""What becomes of nats a word, byte or document."""


def _interval(metric: str, value: float, scores: Sequence[Any]) -> Interval | None:
    """The interval of a number over documents; None where it is neither their mean nor a ratio of their sums."""
    if metric in _OF_RATIOS:
        pairs = [score if isinstance(score, list) else [score, 1] for score in scores]
        nats = bootstrap([-logprob for logprob, _ in pairs], [weight for _, weight in pairs])
        whole = _OF_RATIOS[metric]
        interval = Interval(whole(nats.mean), whole(nats.low), whole(nats.high))
    elif scores and all(isinstance(score, int | float) for score in scores):
        interval = bootstrap(scores)
    else:
        return None
    return interval if math.isclose(interval.mean, value, rel_tol=1e-6, abs_tol=1e-9) else None
