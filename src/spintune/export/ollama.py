"""A folder that ``ollama create`` makes a model from: a GGUF file, a Modelfile, and the card."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spintune.errors import ModelError
from spintune.export.card import CardFields, model_card
from spintune.export.gguf.vocabulary import begins_itself, render_chat
from spintune.export.gguf.writing import stop_ids
from spintune.export.go_template import Turns, TurnTexts, turn_texts
from spintune.export.packed import GgufExport, gguf_type, prepare, write_checked
from spintune.export.source import ExportSource, export_source, refuse_existing
from spintune.models.files import GENERATION_CONFIG, quiet_transformers
from spintune.progress import Progress, Silent
from spintune.report.facts import RunFacts
from spintune.storage import atomic_folder, read_json

_SAMPLING = {
    "temperature": ("temperature", 0.7),
    "top_p": ("top_p", 1),
    "top_k": ("top_k", 0),
    "min_p": ("min_p", 0),
    "repeat_penalty": ("repetition_penalty", 1),
}
"""Parameters with their keys in generation_config.json, and their values where it names none. All but the temperature
are off then, since Ollama's own defaults change answers (top_k 40, top_p 0.9, repeat_penalty 1.1)."""


@dataclass(frozen=True)
class Modelfile:
    """What ``ollama create`` reads.

    Attributes:
        file: name of the GGUF file beside it.
        parameters: names and values, in order; a name may come again.
    """

    file: str
    template: str
    parameters: tuple[tuple[str, str], ...]
    system: str | None = None
    license: str | None = None

    def __str__(self) -> str:
        lines = [f"FROM ./{self.file}", f"TEMPLATE {_quoted(self.template)}"]
        lines += [f"PARAMETER {name} {value}" for name, value in self.parameters]
        if self.system is not None:
            lines.append(f"SYSTEM {_quoted(self.system)}")
        if self.license is not None:
            lines.append(f"LICENSE {_quoted(self.license)}")
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A value of several lines. Raises ModelError for one that a Modelfile cannot hold."""
    if '"""' in text or text.startswith('"') or text.endswith('"'):
        raise ModelError(f"a Modelfile cannot hold {text!r:.80}, which has quotes at an end or three in a row")
    return f'"""{text}"""'


def export_ollama(
    folder: Path,
    out: Path,
    name: str | None = None,
    progress: Progress = Silent(),  # noqa: B008
    dtype: str = "f16",
    fields: CardFields = CardFields(),  # noqa: B008
    check: bool = True,
) -> GgufExport:
    """Writes a folder for ``ollama create NAME -f Modelfile``, as :func:`~spintune.export.packed.export_gguf`.

    Raises ModelError also for a chat template that Ollama cannot have.
    """
    kind = gguf_type(dtype)
    source = export_source(folder, name)
    refuse_existing(out)
    file = f"model-{kind}.gguf"
    modelfile = build_modelfile(source, file, fields.license)
    rounded = None if kind == "f32" else kind
    card = model_card(source.run, source.name, rounded=rounded, fields=fields, ollama=ollama_name(out))
    prepare(source, kind, progress)
    with atomic_folder(out) as partial:
        found = write_checked(source, partial / file, kind, progress, fields, check)
        (partial / "Modelfile").write_text(str(modelfile), encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")
    return GgufExport(source.name, out, kind, found)


def ollama_name(folder: Path) -> str:
    """A name for the model of a folder, of what Ollama has in names: up to 80 letters, digits, ``_``, ``.`` and ``-``.

    >>> ollama_name(Path("runs/My model (2)"))
    'my-model-2-'
    """
    name = re.sub(r"[^a-z0-9_.-]+", "-", folder.name.lower())
    return name.lstrip(".-")[:80] or "model"


def build_modelfile(source: ExportSource, file: str, license: str | None) -> Modelfile:
    """The Modelfile of a model. Raises ModelError for a chat template that cannot be retold."""
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    texts = template_texts(tokenizer)
    stops = sorted(stop_ids(source.folder, tokenizer.eos_token_id))
    settings = read_json(path) if (path := source.folder / GENERATION_CONFIG).is_file() else {}
    found = {name: settings.get(key) for name, (key, _) in _SAMPLING.items()}
    sampling = {name: _SAMPLING[name][1] if value is None else value for name, value in found.items()}
    if sampling["repeat_penalty"] != 1:
        sampling["repeat_last_n"] = -1  # the whole context, as in transformers; Ollama looks at 64 tokens
    values = [(name, _number(value)) for name, value in sampling.items()]
    values += [("stop", f'"{tokenizer.convert_ids_to_tokens(id)}"') for id in stops]
    system = usual_system(source.run) if texts.before_system is not None else None
    return Modelfile(file, texts.go(), tuple(values), system or texts.default_system, license)


def _number(value: float) -> str:
    """A number as Ollama reads it: of a whole one, neither point nor exponent."""
    return str(int(value)) if float(value).is_integer() else repr(value)


def template_texts(tokenizer: PreTrainedTokenizerBase) -> TurnTexts:
    """What the chat template of a tokenizer writes around turns. Raises ModelError where Go cannot."""

    def render(turns: Turns, generation: bool) -> str:
        return render_chat(tokenizer, [{"role": role, "content": content} for role, content in turns], generation)

    return turn_texts(render, tokenizer.bos_token if begins_itself(tokenizer) else "")


def usual_system(run: RunFacts) -> str | None:
    """The system message that all held-out conversations of a run begin with; None where they differ or have none."""
    begins = Counter(one.messages[0].content if one.messages[0].role == "system" else None for one in run.heldout)
    return next(iter(begins)) if len(begins) == 1 else None
