"""TRL's side: SFTTrainer and DPOTrainer, fed with the workload's ids through their own collators.

What it takes to hand TRL token ids instead of text:

* SFT: columns ``input_ids`` and ``labels``, and ``dataset_kwargs={"skip_prepare_dataset": True}``, as documented;
* DPO: columns ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``, which its collator reads. The trainer has no
  switch for data that is tokenized already, so :class:`TimedDPOTrainer` returns the data set from
  ``_prepare_dataset`` as it is. Nothing else of TRL is changed.

Rows go in sorted by length and are read in that order where TRL is tuned: the least padding that its batches can have
(its own grouping by length raises an error in DPO). A step holds all rows, so the order changes no result.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import peak_memory
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl_settings import Setting
from workload import BETA, LEARNING_RATE, Workload


class Clock(TrainerCallback):
    """When steps began and ended, and what the trainer logged of each."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.logs: list[dict[str, Any]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begins.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.logs.append(dict(logs))


class TimedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """DPOTrainer that takes data as token ids, and says how long it computed reference log-probabilities.

    One batch to warm up is left out of that time, and so is the digest of all weights that TRL takes before.
    """

    reference_seconds: float | None = None

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self.compute_ref_log_probs(self.model, self.data_collator([dataset[0], dataset[1 % len(dataset)]]))
        started = time.perf_counter()
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        self.reference_seconds = time.perf_counter() - started
        return dataset


def build(
    task: str, workload: Workload, order: list[int], setting: Setting, steps: int, folder: Path, threads: int
) -> tuple[SFTTrainer | DPOTrainer, Clock]:
    """A trainer whose every step holds all rows of ``order``."""
    torch.set_num_threads(threads)
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "per_device_train_batch_size": setting.batch,
        "gradient_accumulation_steps": len(order) // setting.batch,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE[task],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if setting.tuned:
        common |= {
            "bf16": setting.precision == "bfloat16",
            "gradient_checkpointing": False,
            "train_sampling_strategy": "sequential",
        }
    clock = Clock()
    shared: dict[str, Any] = {
        "model": workload.model,
        "processing_class": AutoTokenizer.from_pretrained(workload.model),
        "callbacks": [clock],
    }
    if task == "sft":
        rows = [workload.rows[index] for index in order]
        flat = {"padding_free": True, "max_length": None} if setting.padding_free else {}
        arguments = SFTConfig(**common, **flat, dataset_kwargs={"skip_prepare_dataset": True})
        data = Dataset.from_dict({"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]})
        return SFTTrainer(args=arguments, train_dataset=data, **shared), clock
    pairs = [workload.pairs[index] for index in order]
    data = Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.real for pair in pairs],
            "rejected_ids": [pair.generated for pair in pairs],
        }
    )
    arguments = DPOConfig(**common, beta=BETA, loss_type=["sigmoid"], precompute_ref_log_probs=setting.tuned)
    return TimedDPOTrainer(args=arguments, train_dataset=data, **shared), clock


def order_of(task: str, workload: Workload, setting: Setting) -> list[int]:
    """Indices of the rows, by length where TRL is tuned."""
    lengths = [len(row.ids) for row in workload.rows] if task == "sft" else [pair.longer for pair in workload.pairs]
    return sorted(range(len(lengths)), key=lambda index: lengths[index] if setting.tuned else index)


def measure(spec: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """Trains ``spec["steps"]`` steps, the first of them to warm up; seconds are between the ends of two steps.

    ``first_seconds`` is the first step itself, which is enough to choose a setting by.
    """
    task, setting = spec["task"], Setting(**spec["setting"])
    order = order_of(task, workload, setting)
    trainer, clock = build(task, workload, order, setting, spec["steps"], Path(spec["folder"]), spec["threads"])
    result: dict[str, Any] = {}
    if task == "spin" and setting.tuned:
        result["score_seconds"] = trainer.reference_seconds
        scored = trainer.train_dataset
        both = zip(order, scored["ref_chosen_logps"], scored["ref_rejected_logps"], strict=True)
        result["logprobs"] = [[float(real), float(generated)] for _, real, generated in sorted(both)]
    trainer.train()
    if task == "spin":
        result["mean_logprobs"] = [clock.logs[0]["logps/chosen"], clock.logs[0]["logps/rejected"]]
    return {
        **result,
        "first_seconds": clock.ends[0] - clock.begins[0],
        "seconds": [end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False)],
        "losses": [float(log["loss"]) for log in clock.logs],
        "grad_norms": [float(log["grad_norm"]) for log in clock.logs],
        "peak_gb": peak_memory(),
    }
