"""Settings of TRL that are measured. No torch: the benchmark's parent process reads them."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BATCH = 8
"""``per_device_train_batch_size`` of both trainers."""
BATCHES = (1, 2, 4, 8)
FLAT_BATCHES = (4, 8)
"""Rows flattened into one without padding (``padding_free``, which is also what ``packing=True`` computes). Attention
is dense over the flattened row on a CPU, so ever larger ones lose."""


@dataclass(frozen=True)
class Setting:
    """How TRL is set. ``tuned``: best for a CPU. Otherwise as TRL sets itself with ``use_cpu=True``."""

    tuned: bool
    precision: str
    batch: int
    padding_free: bool = False

    def __str__(self) -> str:
        if not self.tuned:
            return f"defaults (bf16 autocast, gradient checkpointing, batch {self.batch})"
        return f"{self.precision}, {'padding-free ' if self.padding_free else ''}batch {self.batch}"


def candidates(task: str, rows: int, precision: str) -> list[Setting]:
    """Tuned settings worth trying; a batch divides the step, so that DPO's mean of means is the mean."""
    batches = [batch for batch in BATCHES if rows % batch == 0]
    flat = [batch for batch in FLAT_BATCHES if rows % batch == 0] if task == "sft" else []
    return [Setting(True, precision, batch) for batch in batches] + [
        Setting(True, precision, batch, padding_free=True) for batch in flat
    ]


def default_setting(rows: int) -> Setting:
    """TRL's own batch, or the largest one below that divides the step."""
    batch = next(size for size in range(min(DEFAULT_BATCH, rows), 0, -1) if rows % size == 0)
    return Setting(False, "bfloat16", batch)
