"""Every family that the installed transformers can build computes what plain calls of transformers compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families.checks import measure
from families.table import PAGE, page, read_verdicts
from families.variants import VARIANTS
from transformers.utils import logging

EXPECTED = read_verdicts()

QUICK = (
    "llama longrope",
    "qwen3 window",
    "gemma2 soft caps",
    "gemma3_text",
    "gpt2",
    "gpt_oss",
    "mixtral",
    "deepseek_v3",
    "falcon alibi",
    "bloom",
    "falcon_mamba",
    "t5",
    "bart",
)
ADAPTED = (
    *("llama", "llama tied", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma2", "gemma3_text", "phi3"),
    *("gpt2", "gpt_neox", "gpt_oss", "opt", "falcon", "bloom", "mpt", "deepseek_v3", "olmo2", "granite", "cohere2"),
    *("mamba", "t5", "t5 untied", "umt5", "bart", "marian"),
)
"""The families that train with LoRA as well."""


@pytest.fixture(autouse=True, scope="module")
def quiet_and_alone() -> Iterator[None]:
    """Threads only get in each other's way at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name in QUICK if name in EXPECTED])
def test_main_families_compute_what_transformers_computes(name: str, tmp_path: Path) -> None:
    verdict = measure(name, tmp_path, training=False)
    assert not verdict.wrong
    assert verdict.expected() == EXPECTED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_family_computes_and_trains_as_plain_calls_of_transformers_do(name: str, tmp_path: Path) -> None:
    verdict = measure(name, tmp_path, adapters=name in ADAPTED)
    assert not verdict.wrong
    assert verdict.expected() == EXPECTED[name]


def test_every_variant_has_a_known_name() -> None:
    assert set(EXPECTED) <= set(VARIANTS)
    assert len(VARIANTS) >= 150


def test_the_page_of_the_docs_is_the_table() -> None:
    assert PAGE.read_text() == page(EXPECTED)
