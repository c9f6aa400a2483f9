"""A model card for the Hugging Face hub, from the same facts as the page. It claims nothing that was not measured."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from spintune.data.tables.places import FILE_SUFFIXES
from spintune.errors import ModelError, RecipeError
from spintune.evaluation.judge import in_words
from spintune.report.facts import RunFacts
from spintune.report.findings import belief, finding
from spintune.report.model_tables import differences, means, scoreboard
from spintune.report.movement import movement_of_run
from spintune.report.stages import recipe_text
from spintune.report.table import Cell, MeasureColumn, MeasureTable, counted
from spintune.results import DataFacts
from spintune.run_folder import BASE, BASELINE, SFT
from spintune.storage import read_json
from spintune.text.markdown import Markdown, block, code, plain, table
from spintune.typed_json import JsonObject
from spintune.version import __version__

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class CardFields:
    """What no file of a run knows about its model, for the head of the card.

    Attributes:
        license: as the hub calls it, such as ``apache-2.0``.
        languages: ISO codes.
        tags: beside those that the run gives.

    Raises RecipeError for a license or language that the hub would refuse.
    """

    license: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise RecipeError(
                f"--license {self.license!r:.60} is no license of the hub; give its identifier, such as apache-2.0, "
                "mit or other"
            )
        if wrong := [one for one in self.languages if not re.fullmatch(r"[a-z]{2,3}", one)]:
            raise RecipeError(f"--language {wrong[0]!r:.60} is no language code; give two or three letters, such as en")


def model_card(
    run: RunFacts,
    name: str,
    checked: bool = False,
    rounded: str | None = None,
    fields: CardFields = CardFields(),
    adapter: bool = False,
    ollama: str | None = None,
) -> str:
    """The text of README.md for the model ``name`` of a run.

    Its license is "unknown" unless ``fields`` names it: that of the base model and of the data decides, and no file of
    a run names them.

    Args:
        checked: whether the files beside it were compared with what the run wrote; the card then says so.
        rounded: the type to which the weights beside it were rounded since, if they were.
        adapter: it stands beside an adapter, and not a whole model.
        ollama: it stands beside a Modelfile and a GGUF file, and Ollama may call the model so.

    Raises ModelError when the run has no such model, or when it is the recipe's own, which has a card already.
    """
    names = [model.name for model in run.models if model.name != BASE]
    if name not in names:
        raise ModelError(f"{run.folder} has no model {name} of its own; it has {', '.join(names) or 'none yet'}")
    data = run.facts("data", DataFacts)
    number = int(name.removeprefix("iterate-")) if name.startswith("iterate-") else 0
    losses = run.recipe["spin"]["loss"] if number else ""
    config = run.folder / run.model(name).place / "config.json"
    header = _header(run, name, fields, "gguf" if ollama else "peft" if adapter else "transformers")
    text = (
        _environment()
        .get_template("card.md")
        .render(
            run=run,
            name=name,
            checked=checked,
            rounded=rounded,
            adapter=adapter,
            ollama=ollama,
            license=fields.license,
            version=__version__,
            header=Markdown(yaml.safe_dump(header, sort_keys=False, allow_unicode=True)),
            iteration=number,
            loss=losses[number - 1] if isinstance(losses, list) else losses,
            moved=movement_of_run(run),
            found=finding(run),
            each=means([run]),
            paired=differences(run),
            scores=_scores(run, name),
            verdicts=_verdicts(run, name),
            data=data,
            mixture=data.mixture if data else None,
            judges=_judges(run),
            encoder_decoder=config.is_file() and bool(read_json(config).get("is_encoder_decoder")),
        )
    )
    return text + "\n"


def _header(run: RunFacts, name: str, fields: CardFields, library: str) -> JsonObject:
    header: JsonObject = {"license": fields.license or "unknown", "library_name": library}
    if fields.languages:
        header["language"] = list(fields.languages)
    if base := base_model_id(str(run.recipe["model"])):
        header["base_model"] = base
    paths = [source["path"] for source in run.recipe["data"]["train"]]
    if datasets := [path.partition("@")[0] for path in dict.fromkeys(paths) if _is_hub_id(path)]:
        header["datasets"] = datasets
    tags = ["spintune", "instruction-tuning"]
    if run.recipe["sft"] or name in (SFT, BASELINE):
        tags.append("sft")
    if name not in (SFT, BASELINE):
        tags += ["spin", "self-play"]
    if run.recipe["lora"]:
        tags.append("lora")
    return header | {"tags": list(dict.fromkeys((*tags, *fields.tags)))}


def base_model_id(model: str) -> str | None:
    """The hub id of a recipe's model, without its revision; None for aliases and what lies on a disk."""
    return model.partition("@")[0] if _is_hub_id(model) else None


def _is_hub_id(name: str) -> bool:
    """An owner/name that is no folder or file. Aliases, built-in data and local files are not on the hub."""
    file = Path(name).exists() or Path(name).suffix in {*FILE_SUFFIXES, ".gguf"}
    return bool(_HUB_ID.fullmatch(name)) and not file


def _origin(run: RunFacts, name: str) -> str:
    return BASE if name == run.start else run.start


def _scores(run: RunFacts, name: str) -> Markdown | None:
    """Scores of the model beside those of where it starts, a line for each measure."""
    board = scoreboard([run])
    rows = [row for row in board.rows if row.label in (_origin(run, name), name)] if board else []
    if board is None or not rows:
        return None
    lines = [["measure", "items", *(row.label for row in rows)]]
    measures = [(group, measure) for group in board.groups for measure in group.measures]
    for (group, measure), *cells in zip(measures, *(row.cells for row in rows), strict=True):
        lines.append([f"{group.name}: {_title(measure)}", f"{group.items:,}", *map(_shown, cells)])
    return table(lines, numbers=True)


def _verdicts(run: RunFacts, name: str) -> list[str]:
    """The judge's verdicts on the model and the one it starts from, and where the judge is not trusted."""
    judge = run.results.judge
    if judge is None:
        return []
    told = [
        f"{evaluation}: {in_words(facts, first, second, judge.judge)}."
        for evaluation, pairs in judge.pairs.items()
        for pair, facts in pairs.items()
        for first, second in [pair.split(" - ", 1)]
        if {first, second} == {_origin(run, name), name}
    ]
    return told + [belief(where, canary) for where, canary in judge.canary.items() if not canary.trusted]


def _judges(run: RunFacts) -> list[str]:
    """What the models were judged on, in words."""
    judged = any(model.judged for model in run.models)
    found = [f"on {len(run.heldout):,} examples held out of its own training data"] if judged else []
    benchmarks = [one.name for one in run.evaluations if one.scores]
    return found + ([f"with {', '.join(benchmarks)}"] if benchmarks else [])


# Markdown -----------------------------------------------------------------------------------------------------------


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spintune.export"),
        autoescape=False,  # noqa: S701 -- Markdown, which plain escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=plain,
    )
    environment.globals |= {"counted": counted, "recipe_text": recipe_text}
    environment.filters |= {"table": _table, "code": code, "block": block}
    return environment


def _table(found: MeasureTable) -> Markdown:
    heading = [found.first, *map(_title, found.columns)]
    return table([heading, *([row.label, *map(_shown, row.cells)] for row in found.rows)], numbers=True)


def _title(measure: MeasureColumn) -> str:
    return measure.title + (f", {measure.unit}" if measure.unit else "")


def _shown(cell: Cell | None) -> str:
    return f"{cell.mean} ({cell.interval})" if cell else "–"
