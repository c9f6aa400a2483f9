"""A model card for the Hugging Face hub, from the same facts as the page. It claims nothing that was not measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from spintune.errors import ModelError
from spintune.evaluation.judge import in_words
from spintune.report.facts import RunFacts
from spintune.report.findings import belief, canaries, finding
from spintune.report.model_tables import differences, means, scoreboard
from spintune.report.stages import recipe_text
from spintune.report.table import Cell, MeasureColumn, Table, counted
from spintune.results import DataFacts
from spintune.run_folder import BASE, BASELINE, SFT
from spintune.storage import read_json
from spintune.version import __version__

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def model_card(run: RunFacts, name: str) -> str:
    """The text of README.md for the model ``name`` of a run.

    Its license is "unknown": that of the base model and of the data decides, and no file of a run names them.

    Raises ModelError when the run has no such model, or when it is the recipe's own, which has a card already.
    """
    names = [model.name for model in run.models if model.name != BASE]
    if name not in names:
        raise ModelError(f"{run.folder} has no model {name} of its own; it has {', '.join(names) or 'none yet'}")
    header = yaml.safe_dump(_header(run, name), sort_keys=False, allow_unicode=True)
    found = finding(run)
    parts = [
        f"---\n{header}---",
        f"# {_plain(run.name)} / {name}",
        f"{_made(run, name)} This card was written by spintune {__version__} from the run's own files.",
        "## What was found",
        *map(_plain, (found.sentence, *found.remarks)),
        *_heldout(run),
        *_benchmarks(run, name),
        *_judge(run, name),
        "## Data",
        *_data(run),
        "## Limits",
        *_limits(run),
        "## Use",
        _block(_CODE_SEQ2SEQ if _encoder_decoder(run, name) else _CODE, "python"),
        "## Recipe",
        "Resolved, with all defaults:",
        _block(recipe_text(run.recipe), "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def _header(run: RunFacts, name: str) -> dict[str, Any]:
    header: dict[str, Any] = {"license": "unknown", "library_name": "transformers"}
    base = str(run.recipe["model"])
    if _is_hub_id(base):
        header["base_model"] = base.partition("@")[0]
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
    return header | {"tags": tags}


def _is_hub_id(name: str) -> bool:
    """An owner/name that is no folder or file. Aliases, built-in data and local files are not on the hub."""
    file = Path(name).exists() or Path(name).suffix in (".json", ".jsonl", ".parquet", ".gguf")
    return bool(_HUB_ID.fullmatch(name)) and not file


def _made(run: RunFacts, name: str) -> str:
    base = _code(str(run.recipe["model"]))
    if name == SFT:
        return f"{base} after supervised fine-tuning."
    start = "after supervised fine-tuning" if run.start == SFT else "as it is"
    if name == BASELINE:
        return f"{base} {start}, then trained by as much further SFT as self-play took steps: a baseline."
    number = name.removeprefix("iterate-")
    loss = run.recipe["spin"]["loss"]
    loss = loss[int(number) - 1] if isinstance(loss, list) else loss
    return (
        f"{base} {start}, then {number} iteration{'s' * (number != '1')} of self-play fine-tuning "
        f"(SPIN, arXiv 2401.01335; {loss} loss)."
    )


def _heldout(run: RunFacts) -> list[str]:
    found = []
    if each := means([run]):
        found += [f"On {each.items:,} held-out examples; 95 % intervals in brackets:", _markdown(each)]
    if paired := differences(run):
        found += ["Paired differences on the same examples:", _markdown(paired)]
    return found


def _benchmarks(run: RunFacts, name: str) -> list[str]:
    """Scores of the model beside those of where it starts."""
    board = scoreboard([run])
    rows = [row for row in board.rows if row.label in (_origin(run, name), name)] if board else []
    if board is None or not rows:
        return []
    measures = [(group, measure) for group in board.groups for measure in group.measures]
    lines = [
        [_plain(f"{group.name}: {_title(measure)}"), f"{group.items:,}", *map(_shown, cells)]
        for (group, measure), *cells in zip(measures, *(row.cells for row in rows), strict=True)
    ]
    heading = ["measure", "items", *(row.label for row in rows)]
    return ["## Benchmarks", "95 % intervals in brackets:", _lines([heading, *lines])]


def _judge(run: RunFacts, name: str) -> list[str]:
    """What the judge said of the model against where it starts, and where it is not believed."""
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
    told += [belief(where, canary) for where, canary in canaries(run).items() if not canary.trusted]
    return ["## Judge", _list(told)] if told else []


def _origin(run: RunFacts, name: str) -> str:
    return BASE if name == run.start else run.start


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _markdown(table: Table) -> str:
    heading = [table.first, *map(_title, table.columns)]
    return _lines([heading, *([_plain(row.label), *map(_shown, row.cells)] for row in table.rows)])


def _lines(rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _title(column: MeasureColumn) -> str:
    return column.title + (f", {column.unit}" if column.unit else "")


def _shown(cell: Cell | None) -> str:
    return f"{cell.mean} ({cell.interval})" if cell else "–"


def _data(run: RunFacts) -> list[str]:
    sources = [_code(source["path"]) for source in run.recipe["data"]["train"]]
    facts = run.facts("data", DataFacts)
    if facts and facts.mixture:
        tasks = facts.mixture.tasks
        sources.append(f"a mixture of {len(tasks):,} tasks ({', '.join(map(_code, tasks))})")
    text = [f"Trained on {', '.join(sources)}."]
    if facts:
        text.append(
            f"{facts.read:,} rows read, {facts.train:,} to train on, {facts.heldout:,} held out; dropped: "
            f"{counted(facts.dropped)}."
        )
    if run.recipe.get("synth"):
        text.append("A part of it was written by a model and checked by nobody; `synth/card.md` describes it.")
    if run.contamination:
        text.append("What judges it was looked for in the training data:")
        text.append(
            _list(
                [
                    f"{name}: of {found.items:,} items {found.shared_8:,} share 8 words in a row, "
                    f"{found.shared_13:,} share 13 words in a row"
                    for name, found in run.contamination.sets.items()
                ]
            )
        )
    return text


def _limits(run: RunFacts) -> list[str]:
    judged = any(model.judged for model in run.models)
    by = [f"on {len(run.heldout):,} examples held out of its own training data"] if judged else []
    if benchmarks := [one.name for one in run.evaluations if one.scores]:
        by.append(f"with {', '.join(benchmarks)}")
    limits = [
        f"Judged {', '.join(by)}, and on nothing else: not for other tasks, safety, bias or truthfulness."
        if by
        else "Not judged: nothing is known of how well it answers.",
        "One seed: another one would give other numbers.",
        "The license of the base model and the terms of the data hold; this card does not know them.",
    ]
    if run.missing:
        limits.append(f"The run was not finished when this was written; missing: {'; '.join(run.missing)}.")
    return [_list(limits)]


_CODE = """from transformers import pipeline

chat = pipeline("text-generation", model="PATH_OR_HUB_ID")
print(chat([{"role": "user", "content": "Say hello."}], max_new_tokens=64)[0]["generated_text"][-1]["content"])
"""
_CODE_SEQ2SEQ = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OR_HUB_ID")
model = AutoModelForSeq2SeqLM.from_pretrained("PATH_OR_HUB_ID")
ids = model.generate(**tokenizer("Say hello.", return_tensors="pt"), max_new_tokens=64)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
"""


def _encoder_decoder(run: RunFacts, name: str) -> bool:
    config = run.folder / run.model(name).place / "config.json"
    return config.is_file() and bool(read_json(config).get("is_encoder_decoder"))


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _block(text: str, language: str) -> str:
    """A block of code, fenced by more back-ticks than the text has in a row."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
