"""What other tools call the keys of a recipe, so that who knows those is told the name here."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

_BATCHES = (
    "batch_size",
    "per_device_train_batch_size",
    "train_batch_size",
    "micro_batch_size",
    "gradient_accumulation_steps",
)
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "peak_lr", "max_lr"),
    "tokens_per_step": _BATCHES,
    "pairs_per_step": _BATCHES,
    "tokens_per_forward": ("micro_batch_tokens",),
    "epochs": ("num_train_epochs", "num_epochs", "n_epochs", "epoch"),
    "max_length": ("max_seq_length", "max_seq_len", "sequence_len", "cutoff_len", "block_size", "context_length"),
    "max_target_length": ("max_completion_length", "max_output_length"),
    "max_new_tokens": ("max_tokens", "max_completion_tokens", "max_completion_length"),
    "lambda": ("beta", "lambda_", "dpo_beta"),
    "loss": ("loss_type", "pref_loss"),
    "schedule": ("lr_scheduler_type", "lr_scheduler", "scheduler"),
    "warmup": ("warmup_ratio", "warmup_steps"),
    "optimizer": ("optim",),
    "max_grad_norm": ("gradient_clipping", "grad_clip", "clip"),
    "eval_every": ("eval_steps", "eval_interval"),
    "patience": ("early_stopping_patience", "early_stopping"),
    "checkpoint_minutes": ("save_steps", "save_interval"),
    "checkpoint_write": ("async_mode", "async_save", "async_checkpointing"),
    "eval_fraction": ("val_set_size", "val_size", "test_size", "validation_split"),
    "train": ("dataset", "datasets", "dataset_name", "train_file", "train_data"),
    "heldout": (
        "eval_dataset",
        "eval_datasets",
        "eval_data",
        "eval_file",
        "test_datasets",
        "test_file",
        "val_data",
        "val_dataset",
        "val_file",
        "validation_data",
        "validation_dataset",
        "validation_file",
        "dev_file",
    ),
    "template": ("chat_template",),
    "rank": ("r", "lora_r", "lora_rank"),
    "alpha": ("lora_alpha",),
    "targets": ("target_modules", "lora_target_modules", "lora_target"),
    "rslora": ("use_rslora",),
    "dora": ("use_dora",),
    "out": ("output_dir", "output", "save_dir"),
    "model": ("model_name_or_path", "base_model", "model_name"),
    "recompute": ("gradient_checkpointing", "activation_checkpointing"),
    "base": ("load_in_4bit", "qlora", "bnb_4bit_quant_type", "quantization_bit"),
    "offload": ("cpu_offload", "offload_optimizer", "optimizer_offload", "activation_offloading"),
    "precision": ("bf16", "dtype", "torch_dtype", "mixed_precision"),
    "tracking": ("report_to", "logger"),
    "router_aux_loss": ("router_aux_loss_coef", "aux_loss_coef"),
    "negatives": ("num_generations", "num_return_sequences"),
    "iterations": ("num_iterations", "rounds"),
    "baseline": ("rival",),
}
"""By key of a recipe: what TRL, transformers, LLaMA-Factory, axolotl and torchtune call it."""

COUNTS: dict[str, str] = {
    "tokens_per_step": "counts tokens of a whole step, without accumulation: 16 rows of 300 tokens are about 4,800",
    "pairs_per_step": "counts pairs of a whole step, without accumulation",
    "warmup": "is a share of the steps",
    "eval_every": "counts epochs",
    "checkpoint_minutes": "counts minutes",
}
"""What a key is where other tools count something else under their names."""


def counted(key: str) -> str:
    """A sentence for a key that is suggested for a word of another tool; empty where both count the same.

    >>> counted("spin.pairs_per_step")
    'It counts pairs of a whole step, without accumulation'
    """
    unit = COUNTS.get(key.rpartition(".")[2])
    return f"It {unit}" if unit else ""


def meant(word: str, keys: Iterable[str]) -> str | None:
    """The key that a word of another tool stands for, or an abbreviation such as ``lr``; None for other words."""
    known = list(keys)
    plain = word.lower().replace("-", "_")
    if plain in known:
        return plain
    by_name = (key for key in known if plain in OTHER_NAMES.get(key, ()))
    initials = (key for key in known if "_" in key and plain == "".join(part[:1] for part in key.split("_")))
    return next(itertools.chain(by_name, initials), None)


def nearest(word: str, keys: Iterable[str]) -> str | None:
    """The key that was meant by a word, or that it is a misspelling of; None where none is near."""
    known = list(keys)
    return meant(word, known) or next(iter(difflib.get_close_matches(word, known, 1)), None)
