"""How llama.cpp stores each family of models: names of its settings, and what is done to a tensor on the way.

Every family here is held against llama.cpp itself (``tests/export/test_gguf_families.py``): a random model must give
the same logits as in transformers. A family that was not is refused.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedConfig

from spintune.errors import ModelError
from spintune.export.gguf.families.dense import DENSE
from spintune.export.gguf.families.experts import EXPERTS
from spintune.export.gguf.families.family import GgufFamily, Shape
from spintune.export.gguf.families.gemma import GEMMA
from spintune.export.gguf.families.latent import LATENT
from spintune.export.gguf.families.recurrent import RECURRENT

__all__ = ["FAMILIES", "GgufFamily", "Shape", "family_of"]

FAMILIES: dict[str, GgufFamily] = dict(sorted({**DENSE, **GEMMA, **EXPERTS, **LATENT, **RECURRENT}.items()))
"""By ``model_type`` of transformers."""


def family_of(config: PreTrainedConfig) -> GgufFamily:
    """The family of a model. Raises ModelError for one that is not written to GGUF."""
    found = FAMILIES.get(config.model_type)
    if found is None:
        raise ModelError(
            f"models of the family {config.model_type} cannot be written to GGUF, {len(FAMILIES)} others can "
            "(docs/reference/gguf-families.md); export the folder instead"
        )
    found.check(config)
    return replace(found, architecture=found.named(config)) if found.named else found
