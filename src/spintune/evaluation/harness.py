"""Standard benchmarks and a user's own, run by lm-evaluation-harness on the model in memory.

Tasks, prompts, exemplars and metrics are those of the harness (EleutherAI/lm-evaluation-harness, extra ``eval``).
spintune computes the answers, and keeps rows and intervals for paired comparisons. lm_eval is imported only when a
benchmark runs.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from spintune.errors import MissingExtraError, RecipeError
from spintune.evaluation.custom_tasks import CustomTask, read_custom_task
from spintune.evaluation.harness_results import HarnessReport, HarnessResult, read_result
from spintune.hub import only_if_reachable
from spintune.memory import is_out_of_memory
from spintune.progress import Progress, Silent
from spintune.storage import digest_file
from spintune.typed_json import JsonObject

if TYPE_CHECKING:
    from spintune.evaluation.harness_model import HarnessModel, InMemory

log = logging.getLogger(__name__)

EXEMPLAR_SEED = 1234
"""Seed of the exemplars that a task draws: the harness's default, so that published numbers are comparable."""
_SILENT = Silent()
_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Benchmark:
    """A task and how to run it.

    Attributes:
        task: a task or group of the harness, or a user's YAML file (:mod:`spintune.evaluation.custom_tasks`).
        shots: answered examples before each question; None for the task's own number.
        metric: ``name,filter`` of the number that represents the task in tables; None for its first one.
    """

    task: str
    shots: int | None = None
    metric: str | None = None


PRESETS: dict[str, tuple[Benchmark, ...]] = {
    # The Open LLM Leaderboard of 2023, by which SPIN was evaluated (arXiv 2401.01335, section 6.1). The paper used
    # harness v0.4.0; other versions give other numbers, so compare only numbers of one version.
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


def check_benchmarks(chosen: Sequence[Benchmark], data_dir: Path | None = None) -> dict[str, str]:
    """The titles of benchmarks, by the names in the recipe.

    Raises as :func:`run_benchmarks` for mistakes in names, files and rows, before anything is computed.
    """
    if not chosen:  # importing the harness takes a second
        return {}
    _need_harness()
    with tempfile.TemporaryDirectory(prefix="spintune-tasks-") as temporary:
        library = _Library(chosen, data_dir, Path(temporary))
        return {benchmark.task: library.title(benchmark) for benchmark in chosen}


def task_inputs(benchmark: Benchmark, title: str, data_dir: Path | None) -> JsonObject:
    """What the requests of a benchmark depend on, apart from the model: its name, and digests of its files and rows."""
    return {
        "task": benchmark.task,
        "file": read_custom_task(Path(benchmark.task)).version if _is_file(benchmark.task) else None,
        "folder": _digests(data_dir / title) if data_dir else None,
    }


def _digests(folder: Path) -> dict[str, str] | None:
    if not folder.is_dir():
        return None
    return {file.name: digest_file(file) for file in sorted(folder.iterdir()) if file.is_file()}


def _need_harness() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("benchmarks need lm-evaluation-harness; pip install 'spintune[eval]'")


def run_benchmarks(
    model: InMemory,
    chosen: Sequence[Benchmark],
    *,
    limit: int | None = None,
    chat: bool = False,
    data_dir: Path | None = None,
    progress: Progress = _SILENT,
    name: str = "model",
) -> HarnessReport:
    """Runs benchmarks one after the other.

    A task that fails, or whose data cannot be reached, is skipped; ``progress.note`` says why in one line.

    Args:
        model: the model to evaluate.
        limit: maximum number of documents per task, and per part of a group.
        chat: render prompts by the model's chat template, exemplars as turns of the conversation.
        data_dir: folder with the data of standard tasks, which then need no hub: ``TASK/SPLIT.jsonl`` (or .json,
            .parquet) with the keys of the hub's data set, such as ``gsm8k/train.jsonl`` and ``gsm8k/test.jsonl``.
        name: of the model, in progress lines.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        RecipeError: a task that does not exist, a file that is not a task, or a data folder named after no task.
        DataError: a broken row of a user's own task.
    """
    _need_harness()
    import lm_eval

    from spintune.evaluation.harness_model import HarnessModel

    with tempfile.TemporaryDirectory(prefix="spintune-tasks-") as temporary, _quiet():
        library = _Library(chosen, data_dir, Path(temporary))
        results: list[HarnessResult] = []
        failed: dict[str, str] = {}
        for benchmark in chosen:
            title = library.title(benchmark)
            try:
                lm = HarnessModel(model, progress, f"{name}: {title}")
                loaded = library.load(benchmark, lm.plain_texts.guarded)
                results += _run(lm, loaded, benchmark.shots, library.metric(benchmark), limit, chat)
            except Exception as error:  # tasks are foreign code that may raise anything
                if is_out_of_memory(error):
                    raise
                log.debug("benchmark failed", exc_info=error)
                failed[title] = _reason(error)
                progress.note(f"{title} skipped: {failed[title]}")
    return HarnessReport(lm_eval.__version__, tuple(results), failed)


def _run(
    lm: HarnessModel, loaded: Any, shots: int | None, metric: str | None, limit: int | None, chat: bool
) -> list[HarnessResult]:
    """Evaluates loaded tasks: one task, the parts of a group, or all that carry a tag."""
    import lm_eval

    for task in loaded["tasks"].values():
        # as the harness itself: a task with 0 shots has its exemplars in its prompt
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
    return [read_result(head, found, loaded, metric) for head in heads]


# Tasks ---------------------------------------------------------------------------------------------------------


class _Library:
    """The tasks to run: of the harness, of the harness with local data, and of a user's own files.

    Raises RecipeError or DataError for mistakes in names, files and rows, before anything runs.
    """

    def __init__(self, chosen: Sequence[Benchmark], data_dir: Path | None, temporary: Path) -> None:
        names = [benchmark.task for benchmark in chosen]
        self.own: dict[str, CustomTask] = {name: read_custom_task(Path(name)) for name in names if _is_file(name)}
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

    def load(self, benchmark: Benchmark, guarded: Callable[[str], str]) -> Any:
        """The task or tasks with their data, which this fetches; ``guarded`` as for :meth:`CustomTask.config`."""
        if own := self.own.get(benchmark.task):
            return self.manager.load([own.config(guarded)])
        with only_if_reachable():
            return self.manager.load([benchmark.task])


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _advice(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, [*PRESETS, *known], 3)
    presets = ", ".join(PRESETS)
    return f"did you mean {' or '.join(close)}?" if close else f"name a preset ({presets}), a task or a .yaml file"


@functools.cache
def _all_tasks() -> Any:
    """The harness's index of its tasks; it reads thousands of files, for about ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _no_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


def _with_local_data(manager: Any, data_dir: Path, temporary: Path) -> Any:
    """The same tasks; those with a folder in ``data_dir`` read their data there."""
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


def _local_data(folder: Path) -> JsonObject:
    """Settings that make the harness read the files of a folder instead of a data set of the hub."""
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
    """Keeps progress bars and warnings of the harness and the hub off the terminal."""
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
