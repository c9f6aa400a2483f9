"""The front door in Python: load a model, write and score answers, read data, run a recipe."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

from spintune.data.sources import Source, read_source
from spintune.errors import DataError, ModelError
from spintune.hub import refuse_missing_path
from spintune.progress import Progress, Silent, StopRequest
from spintune.recipe import MixtureSection, Recipe, parse_recipe, read_yaml
from spintune.records import ROLES, Completion, Example, Message
from spintune.storage import cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spintune.pipeline import Stage
    from spintune.results import RunResults
    from spintune.sweeps.results import SweepResults
    from spintune.teachers.protocol import Teacher
    from spintune.tokens.template_options import TemplateOptions

Turn: TypeAlias = Message | Mapping[str, str]
"""A message: a Message, or a mapping with ``role`` and ``content``."""

Prompt: TypeAlias = str | Sequence[Turn] | Sequence[int]
"""What a model answers: a text (one user message), a conversation, or token ids that are used as they are."""


class Score(NamedTuple):
    """How likely a model finds an answer."""

    logprob: float
    """Log-probability of all scored tokens, in nats."""
    tokens: int
    """How many tokens were scored: those of the answer, and the end of the turn where the template has one."""

    @property
    def per_token(self) -> float:
        """Mean log-probability of a token, in nats."""
        return self.logprob / self.tokens


class Model:
    """A language model with its tokenizer: it writes answers and scores them.

    Make one with :func:`load`. Several prompts are computed together; what is written does not depend on their order.

    Attributes:
        name: what it was loaded as.
        model: the transformers model. Plain calls of it, and training it, work as ever between calls of this class.
        tokenizer: its tokenizer.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        precision: str = "auto",
        template: str = "tokenizer",
        generation_prompt: Literal["served", "bare"] = "served",
        generator: str | None = None,
        template_options: TemplateOptions | None = None,
    ) -> None:
        from spintune.engine.logprobs import LogProbEngine
        from spintune.generation.build import build_generator
        from spintune.models.loading import LoadedModel, autocast_type

        self.name, self.model, self.tokenizer = name, model, tokenizer
        loaded = LoadedModel(name, model, tokenizer, autocast_type(precision, model.device))
        self._renderer = loaded.renderer(template, "last", generation_prompt, template_options)
        self._engine = LogProbEngine(model, loaded.autocast)
        self._generator = build_generator(self._engine, tokenizer, self._renderer.stop_ids, generator)
        self._max_length = loaded.max_input_length

    def __repr__(self) -> str:
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<spintune.Model {self.name}: {weights / 1e6:.0f}M weights on {self.model.device}>"

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """Writes one answer for each prompt, in their order.

        Args:
            prompts: texts, conversations or token ids; a single text is one prompt.
            max_new_tokens: longest answer, its end token included.
            temperature: 0 takes the likeliest token each time; 1 draws from the model itself.
            top_p: draw from the likeliest tokens whose probabilities reach this sum; 1 keeps all.
            top_k: draw from this many likeliest tokens; 0 keeps all.
            seed: draws are a pure function of seed, prompt and sampling settings.
            on_text: called with the number of a prompt, from 0, and each new piece of its answer as it is written.

        Raises:
            DataError: a prompt that is empty, of an unknown role, or of none of the three kinds.
            ModelError: a prompt that leaves no room for an answer in what the model reads.
        """
        from spintune.generation.sampling import Sampling

        ids = [self._prompt_ids(prompt, f"prompt {number}") for number, prompt in enumerate(_several(prompts), 1)]
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
        for number, prompt_ids in enumerate(ids, 1):
            if self._max_length and len(prompt_ids) + max_new_tokens > self._max_length:
                raise ModelError(
                    f"prompt {number} has {len(prompt_ids)} tokens; with max_new_tokens={max_new_tokens} that is more "
                    f"than {self.name} reads ({self._max_length}); shorten one of them"
                )
        return self._generator.generate(ids, sampling, on_token=on_text and self._streamed(on_text))

    def _streamed(self, on_text: Callable[[int, str], None]) -> Callable[[int, int], None]:
        """Turns tokens into text. A character may span tokens: it is passed on when it is whole."""
        written: dict[int, list[int]] = {}
        shown: dict[int, int] = {}

        def on_token(index: int, token: int) -> None:
            if token in self._renderer.stop_ids:
                return
            written.setdefault(index, []).append(token)
            text = self._generator.decode(written[index])
            if not text.endswith("\ufffd"):
                on_text(index, text[shown.get(index, 0) :])
                shown[index] = len(text)

        return on_token

    def score(self, prompt: Prompt, answers: Sequence[str | Sequence[int]]) -> list[Score]:
        """Log-probability of each answer to a prompt. The prompt is computed once for all of them.

        A text is rendered as the model's chat template writes an answer, so the end of the turn counts as well. An
        answer of token ids is scored as it is, behind the prompt's ids.

        Raises DataError for an empty prompt or answer, or a single text in place of a list of answers.
        """
        from spintune.engine.query import Query

        if isinstance(answers, str):
            raise DataError("answers is a single text; give a list of answers")
        rows = [self._answer_ids(prompt, answer, f"answer {place}") for place, answer in enumerate(answers, 1)]
        if not rows:
            return []
        # a template may write the same prompt in two ways (before an answer with and without thoughts)
        prompts = list(dict.fromkeys(prompt_ids for prompt_ids, _, _ in rows))
        groups = [[place for place, row in enumerate(rows) if row[0] == ids] for ids in prompts]
        queries = [
            Query(ids, tuple(rows[place][1] for place in group), tuple(rows[place][2] for place in group))
            for ids, group in zip(prompts, groups, strict=True)
        ]
        found = self._engine.score(queries)
        logprobs = {
            place: x for group, xs in zip(groups, found, strict=True) for place, x in zip(group, xs, strict=True)
        }
        return [Score(logprobs[place], sum(rows[place][2])) for place in range(len(rows))]

    def as_teacher(self) -> Teacher:
        """This model as a teacher that writes data (:func:`synthesize`). Its replies depend on the request alone."""
        from spintune.generation.local_teacher import LocalTeacher

        identity = {"kind": "local", "model": self.name, "autocast": str(self._engine.autocast)}
        whole = not self.model.config.is_encoder_decoder
        return LocalTeacher(self.name, identity, self._generator, self._renderer, self._max_length, whole)

    def _prompt_ids(self, prompt: Prompt, where: str) -> tuple[int, ...]:
        if _is_ids(prompt):
            return self._checked_ids(cast("Sequence[int]", prompt), where)
        return self._renderer.prompt(_messages(prompt, where))

    def _answer_ids(
        self, prompt: Prompt, answer: str | Sequence[int], where: str
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
        """Ids of prompt and answer, and whether each token of the answer counts."""
        if not isinstance(answer, str):
            ids = self._checked_ids(answer, where)
            return self._prompt_ids(prompt, "the prompt"), ids, (True,) * len(ids)
        if not answer:
            raise DataError(f"{where} is empty")
        if _is_ids(prompt):
            raise DataError(f"{where} is a text and the prompt token ids; give both as texts, or both as ids")
        row = self._renderer.row(Example((*_messages(prompt, "the prompt"), Message("assistant", answer)), where))
        return row.prompt_ids, row.response_ids, row.trained

    def _checked_ids(self, ids: Sequence[int], where: str) -> tuple[int, ...]:
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if not ids:
            raise DataError(f"{where} has no tokens")
        if wrong := [id for id in ids if not 0 <= id < vocabulary]:
            raise DataError(f"{where}: token {wrong[0]} is outside of the model's vocabulary (0 to {vocabulary - 1})")
        return tuple(ids)


def load(
    name: str | Path,
    *,
    precision: str = "auto",
    template: str = "tokenizer",
    generation_prompt: Literal["served", "bare"] | None = None,
    generator: str | None = None,
    template_options: TemplateOptions | None = None,
    model: str | None = None,
) -> Model:
    """Loads a model that writes and scores answers.

    Args:
        name: an alias (``smollm2-135m-instruct``), a model folder, a run folder, a GGUF file, or a hub
            id ``owner/name[@revision]``.
        precision: ``float32``, ``bfloat16``, or ``auto`` (bfloat16 on a GPU that has it).
        template: chat template: ``tokenizer`` (its own), ``tokenizer:NAME`` (one of several), ``alpaca``, ``chatml`` or
            ``plain``.
        generation_prompt: how prompts end: ``served`` as the template's generation prompt, ``bare`` as the template's
            text before an answer. None takes what the recipe of a run folder says, and ``served`` elsewhere.
        generator: one registered by :func:`register_generator`; None takes the fastest built-in one that is right
            for the model.
        template_options: variables that the chat template reads, such as ``{"enable_thinking": True}``. None takes what
            the recipe of a run folder says for the template that it trains with, and the template's defaults elsewhere.
        model: of a run folder: ``best`` (the one that the run decided to use; None is the same), ``last``, ``base``,
            ``sft``, ``sft-more`` or ``iterate-N``.

    A transformers model of your own becomes one by ``spintune.Model(name, model, tokenizer)``.

    Raises ModelError for a model that does not exist or cannot be loaded.
    """
    refuse_missing_path(str(name))  # before torch is imported, which takes seconds
    from spintune.models.loading import check_template_options, load_model
    from spintune.run_folder import read_recipe
    from spintune.run_models import check_inside_run, final_model

    if (recipe := Path(name) / "recipe.json").is_file():
        data = read_recipe(recipe.parent).recipe.get("data")
        data = data if isinstance(data, dict) else {}
        generation_prompt = generation_prompt or data.get("generation_prompt")
        if template_options is None and template == "tokenizer":
            template_options = data.get("template_options")
        name = final_model(Path(name), model)
    elif model is not None:
        raise ModelError(f"{name} is no run folder, so it has no model {model}; leave the model out or name a run")
    else:
        check_inside_run(str(name))
    if template_options:
        check_template_options(str(name), template, template_options, cache=cache_folder())
    with _no_bars():
        loaded = load_model(str(name), cache=cache_folder(), precision=precision)
    return Model(
        str(name),
        loaded.model,
        loaded.tokenizer,
        precision=precision,
        template=template,
        generation_prompt=generation_prompt or "served",
        generator=generator,
        template_options=template_options,
    )


def read(
    path: str | Path,
    *,
    format: str = "auto",
    limit: int | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> Sequence[Example]:
    """Reads examples: a prompt and its reference answer each, in file order, without empty ones and duplicates.

    Args:
        path: a data file (.jsonl, .csv, .xlsx, .parquet, ...), a folder or pattern of them, ``builtin:seeds``, or a hub
            id.
        format: Alpaca, chat messages, ShareGPT, ... by name; ``auto`` recognizes it from the keys.
        limit: maximum number of examples; None reads all.
        columns: which keys of the rows hold what (``{"prompt": "customer_message", ...}``), as in a recipe.

    The examples stay on disk; indexing reads them. Raises DataError, which names the first ten rows that are broken.
    """
    return read_source(Source(str(path), format, limit=limit, columns=columns)).examples


def mix(
    tasks: str | Sequence[str],
    count: int,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    tokenizer: str | None = None,
    max_length: int = 512,
    **options: object,
) -> list[Example]:
    """Makes a FLAN-style mixture: ``count`` examples of several tasks in many phrasings.

    Args:
        tasks: ``builtin:NAME`` or YAML files that declare tasks.
        folder: where the files of built-in tasks are.
        tokenizer: model whose tokenizer counts the length of few-shot prompts; None counts words.
        max_length: longest prompt and answer together, in those units.
        options: further keys of a recipe's ``data.mixture``: preset, groups, quadrants, shots, inversion, ...

    Raises RecipeError for unknown tasks and options, DataError for files that cannot be read.
    """
    from spintune.mixtures.mixture import load_mixture
    from spintune.mixtures.report import materialize

    values = {"tasks": tasks, "examples": count, "folder": folder and str(folder), **options}
    section = parse_recipe({"out": "", "model": "", "data": {"mixture": values}}, "spintune.mix").data.mixture
    mixture = load_mixture(cast("MixtureSection", section), seed, 0.0, max_length, _counter(tokenizer))
    return list(materialize(mixture, count).examples)


def run(
    recipe: str | Path | Mapping[str, object] | Recipe,
    *,
    until: Stage = "eval",
    progress: Progress | None = None,
    **overrides: object,
) -> RunResults:
    """Runs the stages of a recipe. The same call resumes a stopped run and repeats nothing.

    Args:
        recipe: a YAML file, plain values as they stand in one, or a Recipe.
        until: last stage: ``synth``, ``sft``, ``spin`` or ``eval``.
        progress: receives what happens; None is silent. ``spintune.progress_display.open_progress`` draws bars.
        overrides: sections and keys that replace the recipe's: ``seed=3, spin={"iterations": 2}``. Keys that are not
            named stay. A key of another name is ``**{"spin.iterations": 2}``.

    Raises SpintuneError for every problem that the user can solve.
    """
    from spintune.pipeline import run_recipe

    if overrides or not isinstance(recipe, Recipe):
        name = str(recipe) if isinstance(recipe, (str, Path)) else "recipe"
        values = _recipe_values(recipe)
        for key, value in overrides.items():
            for part in reversed(key.split(".")):  # {"a": {"b": value}} for the key a.b
                value = {part: value}
            values = merged(values, cast("dict[str, object]", value))
        recipe = parse_recipe(values, name)
    with _no_bars():
        return run_recipe(recipe, cache_folder(), progress or Silent(), until, os.environ)


def sweep(recipe: str | Path, *values: str, progress: Progress | None = None) -> SweepResults:
    """Runs a recipe with every combination of values, each in a folder of its own.

    ``sweep("recipe.yaml", "seed=0..4", "spin.loss=[logistic,space]")`` is ``spintune sweep`` with the same words,
    without its limit of runs. The same call goes on with a stopped sweep.

    Returns what the finished runs say together; ``runs`` names those that failed, with the reason.

    Raises RecipeError, and other SpintuneErrors, for what is wrong before any run begins.
    """
    from spintune.sweeps.execution import check_sweep, run_sweep
    from spintune.sweeps.plan import plan_sweep

    def unforeseen(error: BaseException) -> str:
        raise error

    plan = plan_sweep(Path(recipe), values, many=True)
    check_sweep(plan)
    told, stop = progress or Silent(), StopRequest()
    with _no_bars():
        return run_sweep(plan, plan.runs, cache_folder(), told, os.environ, stop, unforeseen)[0]


def _recipe_values(recipe: str | Path | Mapping[str, object] | Recipe) -> dict[str, object]:
    """A recipe as plain values, without the defaults of its keys."""
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return dict(recipe) if isinstance(recipe, Mapping) else read_yaml(Path(recipe), "recipe")


def merged(values: Mapping[str, object], others: Mapping[str, object]) -> dict[str, object]:
    """Nested mappings in which ``others`` replaces what both have."""
    result = dict(values)
    for key, value in others.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws no progress bars inside; ``progress`` tells what happens."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _several(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts; a single text is one. A single conversation or list of ids could be meant either way."""
    if isinstance(prompts, str):
        return [prompts]
    if any(isinstance(one, (int, Message, Mapping)) for one in prompts):
        raise DataError("prompts is a single conversation or list of token ids; put it into a list: [prompt]")
    return cast("Sequence[Prompt]", prompts)


def _is_ids(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and all(isinstance(one, int) for one in prompt)


def _messages(prompt: Prompt, where: str) -> list[Message]:
    if isinstance(prompt, str):
        turns: list[Message] = [Message("user", prompt)]
    else:
        turns = [_message(turn, where) for turn in cast("Sequence[Turn]", prompt)]
    if not turns or not turns[-1].content:
        raise DataError(f"{where} is empty")
    return turns


def _message(turn: Turn, where: str) -> Message:
    if isinstance(turn, Message):
        return turn
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"} or not isinstance(turn["content"], str):
        raise DataError(f"{where}: {turn!r:.60} is no message; give role and content")
    if turn["role"] not in ROLES:
        raise DataError(f"{where}: unknown role {turn['role']!r}; use one of {', '.join(ROLES)}")
    return Message(turn["role"], turn["content"])


def _counter(tokenizer: str | None) -> Callable[[str], int]:
    """Counts the tokens of a text, or its words where no tokenizer is named."""
    if tokenizer is None:
        return lambda text: len(text.split())
    from spintune.models.loading import load_tokenizer

    encode = load_tokenizer(tokenizer, cache=cache_folder()).encode
    return lambda text: len(encode(text, add_special_tokens=False))
