"""The command ``spintune init``: looks at data and a model, and writes a commented recipe that fits both."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spintune.cli.options import Heldout, Json, print_json
from spintune.cli.questions import Questions
from spintune.errors import RecipeError, SpintuneError
from spintune.storage import cache_folder

if TYPE_CHECKING:
    from spintune.data.sources import Source, SourceResult
    from spintune.plan.devices import Target
    from spintune.plan.plan import RunPlan
    from spintune.progress import ExpectedStage, Progress, ProgressTask
    from spintune.survey.data import DataSurvey
    from spintune.tokens.rows import RowRenderer, Turns
    from spintune.typed_json import JsonObject

_BUDGET = 30 * 60.0
"""Seconds of training that a first run takes at most without a GPU."""
_FEWEST = 200  # rows that a limit leaves
_TEMPLATES = ("tokenizer", "chatml", "plain")
_EXAMPLE = "builtin:tickets"


@dataclass(frozen=True)
class InitOptions:
    """The answers that flags give.

    Attributes:
        prompt, response: columns of the data.
        recipe: the file to write.
    """

    model: str | None
    prompt: str | None
    response: str | None
    self_play: bool | None
    recipe: Path | None
    heldout: str | None = None


def init(
    data: Annotated[str | None, typer.Argument(help="builtin:NAME, a file or folder, or a hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="Alias, local folder, GGUF file, or hub id[@revision].")] = None,
    heldout: Heldout = None,
    prompt: Annotated[str | None, typer.Option(help="The column of prompts, where no format knows it.")] = None,
    response: Annotated[str | None, typer.Option(help="The column of answers.")] = None,
    self_play: Annotated[bool | None, typer.Option(help="Whether self-play follows SFT. Default: no.")] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe to write. Default: named after the data.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take every default and ask nothing.")] = False,
    json: Json = False,
) -> None:
    """Look at data and a model, say what is there, and write a commented recipe that fits both and this machine.

    On a terminal it asks what is missing; Enter accepts the default. It never overwrites a file.
    """
    from spintune.cli.execution import lasting_imports, quiet_libraries
    from spintune.downloads import shown_on
    from spintune.progress_display import open_progress

    questions = Questions.on_terminal(yes, json)
    _refuse_existing(out)
    if data is None and not questions.asks:
        raise RecipeError(f"spintune init needs data: spintune init FILE, or spintune init {_EXAMPLE} to try it")
    path = data or questions.text(f"Data file (or {_EXAMPLE}, to try)", None, "FILE")
    with open_progress(json) as progress:
        progress.note("loading torch and transformers")
        with lasting_imports():
            from spintune.data.sources import Source
            from spintune.plan.devices import target_of
            from spintune.survey.data import head_of

        quiet_libraries()
    options = InitOptions(model, prompt, response, self_play, out, heldout)
    with open_progress(json) as progress, shown_on(progress):
        rows = head_of(Source(path))
    opened = _Opened.of(path, rows, options, questions)
    with open_progress(json) as progress, shown_on(progress):
        seen = opened.look(_WithoutNotes(progress))
    first = seen.draft(False, seen.found.checker)
    if not json:
        from spintune.survey.told import heldout_line, survey_lines
        from spintune.terminal import print_lines

        lines = [*survey_lines(seen.found, first["data"]["max_length"], seen.context, seen.template)]
        lines += [heldout_line(seen.held, seen.shared)] if seen.held else []
        print_lines(("", str(path), *(f"  {line}" for line in lines), ""))
    values = seen.decide(options, questions)
    recipe = out or _free_name(path, questions)
    with open_progress(json) as progress:
        values, plan = seen.fitted(values, target_of(None, None, None, None), _WithoutNotes(progress))
    text = seen.write(values, recipe)
    if json:
        held = {"heldout": _facts(seen.held)} if seen.held else {}
        print_json({"recipe": str(recipe), "text": text, "found": _facts(seen.found), **held})
    else:
        _tell(recipe, plan)
    if not plan.fits:
        raise plan.refusal()


def _refuse_existing(path: Path | None) -> None:
    if path and (path.exists() or path.is_symlink()):
        raise RecipeError(f"{path} exists, and nothing is overwritten; name another file with --out, or remove it")


def _free_name(data: str, questions: Questions) -> Path:
    """The recipe's file: named after the data, in the current folder."""
    default = Path(f"{_name_of(data)}.yaml")
    if questions.asks:
        number = 2
        while default.exists():
            default, number = Path(f"{_name_of(data)}-{number}.yaml"), number + 1
        default = Path(questions.text("Recipe to write", str(default), "--out FILE"))
    _refuse_existing(default)
    return default


def _name_of(data: str) -> str:
    name = Path(data.removeprefix("builtin:").partition("@")[0].rstrip("/")).name.partition(".")[0]
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name).strip("-")
    return safe or "recipe"


def _facts(found: DataSurvey) -> dict[str, object]:
    """What was found, without the length of each row."""
    rows = found.lengths.rows
    lengths = {"mean_tokens": sum(rows) / max(1, len(rows)), "longest": max(rows, default=0)}
    plain = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(found).items()}
    return {**plain, "lengths": lengths}


def _tell(target: Path, plan: RunPlan) -> None:
    from spintune.plan.text import plan_lines
    from spintune.terminal import print_lines

    print_lines(("", "What it takes (spintune plan):", *(f"  {line}" for line in plan_lines(plan))))
    print(f"\n{target} is written; every setting has a comment. Next:")
    print(f"  spintune run {target}        train and measure; Ctrl-C stops it, the same command goes on")
    print(f"  spintune inspect {target}    the very tokens of training")


class _WithoutNotes:
    """Progress without notes: what readers and plans tell on the way is in the lines about the data."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        self._progress.expect(stages)

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._progress.stage(name)

    def task(self, name: str, total: float, unit: str) -> contextlib.AbstractContextManager[ProgressTask]:
        return self._progress.task(name, total, unit)

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class _Opened:
    """The data and the model, before they were looked at."""

    source: Source
    heldout: Source | None
    model: str
    keys: tuple[str, ...]

    @classmethod
    def of(cls, path: str, rows: Sequence[dict[str, object]], options: InitOptions, questions: Questions) -> _Opened:
        """Asks for the columns of the data where no format knows its first rows, and for the model."""
        from spintune.data.formats import recognize
        from spintune.data.sources import Source
        from spintune.recipe import DEFAULT_MODEL
        from spintune.run_models import final_model
        from spintune.survey.data import keys_of_rows, likely_columns

        source = Source(path, on_bad_row="drop")
        keys = keys_of_rows(rows)
        columns = {"prompt": options.prompt, "response": options.response}
        if not any(columns.values()) and rows and recognize(rows) is None and len(keys) > 1:
            guess = likely_columns(rows) or (None, None)
            told = f"{path}: no column is known as a prompt or an answer (columns: {', '.join(keys)})"
            if not (questions.asks or questions.accepts):
                these = f", or --yes for {guess[0]} and {guess[1]}" if guess[0] else ""
                raise RecipeError(f"{told}; give --prompt COLUMN and --response COLUMN{these}")
            columns["prompt"] = questions.text("Column of prompts", guess[0], "--prompt COLUMN", keys)
            columns["response"] = questions.text("Column of answers", guess[1], "--response COLUMN", keys)
        if mapped := {target: key for target, key in columns.items() if key}:
            source = replace(source, columns=mapped)
        model = options.model or questions.text("Model", DEFAULT_MODEL, "--model MODEL")
        if (Path(model) / "recipe.json").is_file():
            model = final_model(Path(model))
        held = replace(source, path=options.heldout, split="test") if options.heldout else None
        return cls(source, held, model, keys)

    def look(self, progress: Progress) -> _Seen:
        """Reads data and model. Raises DataError or ModelError, as a run would."""
        from spintune.data.split import without_prompts_of
        from spintune.models.loading import load_config, unpack_alias
        from spintune.models.packaged import ALIASES
        from spintune.plan.shapes import read_shape
        from spintune.survey.data import survey

        result = _read(self.source, progress)
        given = _read(self.heldout, progress) if self.heldout else None
        shared = len(result.examples) - len(without_prompts_of(result.examples, given.examples)) if given else 0
        if self.model in ALIASES:
            unpack_alias(self.model, cache_folder())
        shape = read_shape(self.model, cache_folder())
        config = load_config(self.model, cache=cache_folder()).get_text_config()
        context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        is_encoder_decoder = bool(shape.config.is_encoder_decoder)
        refused: SpintuneError | None = None
        for template in _TEMPLATES:
            try:
                renderer = self._renderer(template, "last", is_encoder_decoder)
                all_turns = None if is_encoder_decoder else self._renderer(template, "all", False)
                found = survey(result, self.keys, renderer, progress, all_turns)
                held = survey(given, self.keys, renderer, progress, all_turns) if given else None
            except SpintuneError as error:
                refused = refused or error
                continue
            other = None if template == "tokenizer" else template
            return _Seen(self, found, held, shared, other, context, is_encoder_decoder)
        raise refused or RecipeError(f"{self.model}: no template fits")

    def _renderer(self, template: str, turns: Turns, is_encoder_decoder: bool) -> RowRenderer:
        from spintune.models.loading import load_stop_ids, load_tokenizer
        from spintune.tokens.rendering import build_renderer

        tokenizer = load_tokenizer(self.model, cache=cache_folder())
        stops = load_stop_ids(self.model, cache=cache_folder())
        return build_renderer(tokenizer, template, turns, is_encoder_decoder, model_stop_ids=stops)


def _read(source: Source, progress: Progress) -> SourceResult:
    """What a source holds. Raises DataError where that is nothing that can be used."""
    from spintune.data.sources import read_source, read_sources

    result = read_source(source, progress)
    if not result.examples:
        read_sources([source], 0)  # raises, with the reasons
    return result


@dataclass(frozen=True)
class _Seen:
    """Data and model after they were looked at.

    Attributes:
        held: what was found in held-out examples that are given.
        shared: training examples that have their prompts.
    """

    opened: _Opened
    found: DataSurvey
    held: DataSurvey | None
    shared: int
    template: str | None
    context: int | None
    is_encoder_decoder: bool

    def decide(self, options: InitOptions, questions: Questions) -> JsonObject:
        """Asks what only a person knows, and drafts the recipe."""
        checker = self.found.checker
        if checker and not questions.agrees(f"Judge answers by the checker {checker}?", True, "--yes"):
            checker = None
        self_play = options.self_play
        if self_play is None:
            self_play = questions.asks and questions.agrees(
                "Self-play after SFT, with a baseline at equal compute?", False, "--self-play or --no-self-play"
            )
        return self.draft(self_play, checker)

    def draft(self, self_play: bool, checker: str | None) -> JsonObject:
        """The recipe as plain values."""
        from spintune.models.loading import default_device
        from spintune.survey.draft import HELDOUT_ON_CPU, Choices, draft

        opened = self.opened
        source: JsonObject = {"path": opened.source.path}
        if opened.source.columns:
            source["columns"] = dict(opened.source.columns)
        on_gpu = default_device().type != "cpu"
        heldout: JsonObject | None = None
        if self.held:
            heldout = {"path": self.held.path}
            if not on_gpu and self.held.kept > HELDOUT_ON_CPU:
                heldout["limit"] = HELDOUT_ON_CPU
        chosen = Choices(
            out=f"runs/{_name_of(opened.source.path)}",
            model=opened.model,
            source=source,
            unreadable=bool(self.found.unreadable or (self.held and self.held.unreadable)),
            template=self.template,
            all_turns=self.found.multi_turn > 0 and not self.is_encoder_decoder,
            checker=checker,
            self_play=self_play,
            context=self.context,
            on_gpu=on_gpu,
            heldout=heldout,
        )
        return draft(self.found, chosen)

    def fitted(
        self, values: JsonObject, target: Target, progress: Progress, budget: float = _BUDGET
    ) -> tuple[JsonObject, RunPlan]:
        """The recipe within a machine's memory and, without a GPU, within ``budget`` seconds; and its plan."""
        from spintune.plan.plan import make_plan
        from spintune.recipe import parse_recipe
        from spintune.survey.draft import with_limit, with_lora

        def planned(values: JsonObject, probe: bool, before: RunPlan | None = None) -> RunPlan:
            recipe = parse_recipe(values, "the drafted recipe")
            known = before.rates if before else None
            return make_plan(recipe, target, cache_folder(), progress, None, probe, known)

        plan = planned(values, probe=False)
        if not plan.fits:
            values = with_lora(values)
            plan = planned(values, probe=False)
        if not plan.fits or not target.measured:
            return values, plan
        plan = planned(values, probe=True)
        if not target.on_gpu and plan.seconds and plan.seconds > budget:
            rows = max(_FEWEST, int(self.found.kept * budget / plan.seconds) // 100 * 100)
            if rows < self.found.kept:
                values = with_limit(values, rows, self.found)
                plan = planned(values, probe=False, before=plan)
        return values, plan

    def write(self, values: JsonObject, target: Path) -> str:
        """Writes the recipe, and reads it back. Raises RecipeError where a file is there, or cannot be written."""
        from spintune.recipe.yaml_files import parse_yaml
        from spintune.survey.commented import commented_yaml
        from spintune.survey.told import reasons_for

        rows = f"{self.found.kept:,} examples of {self.found.path}, format {self.found.format}"
        head = [
            f"Written by spintune init: {rows}.",
            "Any setting can be changed here, or behind spintune run as KEY=VALUE.",
        ]
        text = commented_yaml(values, reasons_for(values, self.found, self.held), head)
        if parse_yaml(text, str(target)) != values:
            raise RuntimeError("the recipe that was written is not the one that was drafted")
        try:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            _refuse_existing(target)
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                target.unlink()  # half of it, on a full disk
            raise RecipeError(f"{target} cannot be written ({error.strerror}); name another file with --out") from error
        return text
