"""Bases in 4 bits: what is quantized, what they compute, what adapters over them become."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError
from spintune.models.loading import LoadedModel, load_model
from spintune.models.lora import load_adapter, merge, new_adapter, save_adapter
from spintune.models.quantized import bytes_of, count_of, pack_on_meta, quantized_layers, require_bitsandbytes
from spintune.models.saving import save_folder
from spintune.recipe import LoraSection
from spintune.training.footprint import footprint

QUERIES = [Query((3, 4, 5), ((6, 7, 8), (9, 10))), Query((3, 4, 5, 9, 9), ((6, 7, 8, 100), (9, 10, 12)))]
SECTION = LoraSection(rank=4, base="nf4")
GRID = (0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0)
NEGATIVE = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0)
"""The 16 values of NF4, to four digits (arXiv 2305.14314, appendix E)."""


def test_without_the_library_one_line_says_what_to_install() -> None:
    code = (
        "import importlib.util as u; u.find_spec = lambda name: None\n"
        "from spintune.models.quantized import require_bitsandbytes as r\n"
        "try: r('lora.base: nf4')\nexcept Exception as e: print(type(e).__name__, e)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "ModelError lora.base: nf4 needs bitsandbytes; pip install 'spintune[memory]'"


class TestWithTheLibrary:
    """What bitsandbytes is needed for."""

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("bitsandbytes")
        require_bitsandbytes("a test")

    @pytest.fixture
    def loaded(self, tiny_model: Path, cache: Path) -> LoadedModel:
        return load_model(str(tiny_model), cache=cache, frozen=True, base="nf4")

    def test_each_block_of_weights_is_on_the_grid(self, tiny_model: Path, cache: Path, loaded: LoadedModel) -> None:
        """Of 64 weights the largest gives the scale, and each is at the nearest of its 16 multiples."""
        plain = load_model(str(tiny_model), cache=cache).model
        layers = quantized_layers(loaded.model)
        assert len(layers) == 2 * 7
        assert loaded.model.get_output_embeddings().weight.dtype == torch.float32
        merged = merge(new_adapter(loaded.model, SECTION, "test"))
        grid = torch.tensor([*NEGATIVE, *GRID])
        for name in layers:
            exact = plain.get_submodule(name).weight.detach().reshape(-1, 64)
            scale = exact.abs().amax(1, keepdim=True)
            nearest = grid[(exact[..., None] / scale[..., None] - grid).abs().argmin(-1)] * scale
            found = merged.get_submodule(name).weight.detach().reshape(-1, 64)
            off = (found - nearest).abs() / scale  # scales have errors of their own, of 8 bits
            assert off.median() < 0.01
            assert (off > 0.02).float().mean() < 0.05

    def test_the_merged_model_scores_as_the_player_does(self, loaded: LoadedModel, tmp_path: Path) -> None:
        adapted = new_adapter(loaded.model, SECTION, "test")
        engine = LogProbEngine(loaded.model, loaded.autocast)
        assert engine.packed
        start = engine.score(QUERIES)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, 0, 0.1)
        scores = torch.tensor(engine.score(QUERIES))
        assert (scores - torch.tensor(start)).abs().max() > 0.05
        merged = merge(adapted)
        assert not quantized_layers(merged)
        assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
        save_folder(merged, loaded.tokenizer, tmp_path / "model")
        again = load_model(str(tmp_path / "model"), cache=tmp_path)
        assert torch.tensor(LogProbEngine(again.model).score(QUERIES)) == pytest.approx(scores, abs=1e-4)

    @pytest.mark.parametrize("weights", [None, "bfloat16"])
    def test_gradients_are_those_over_the_dequantized_weights(self, tiny_model, cache, weights) -> None:
        def gradients(engine: LogProbEngine) -> torch.Tensor:
            engine(QUERIES).sum_N.sum().backward()
            found = [p.grad for p in engine.model.parameters() if p.requires_grad]
            return torch.cat([gradient.double().flatten() for gradient in found])

        loaded = load_model(str(tiny_model), cache=cache, frozen=True, base="nf4", weights=weights)
        new_adapter(loaded.model, SECTION, "test")
        found = gradients(LogProbEngine(loaded.model, loaded.autocast))
        other = load_model(str(tiny_model), cache=cache, frozen=True, base="nf4", weights=weights)
        plain = merge(new_adapter(other.model, SECTION, "test"))  # which does not change it yet
        new_adapter(plain, LoraSection(rank=4), "test")
        exact = gradients(LogProbEngine(plain))
        assert (found - exact).norm() < (1e-4 if weights is None else 0.05) * exact.norm()

    def test_bytes_and_counts_are_those_of_the_weights_they_stand_for(self, tiny_model, cache, loaded) -> None:
        """A matrix of 32 x 32: 512 bytes, 16 scales of 1 byte, and one scale of those, of 4."""
        plain = load_model(str(tiny_model), cache=cache).model
        counts = [sum(map(count_of, model.parameters())) for model in (plain, loaded.model)]
        assert counts[0] == counts[1]
        assert bytes_of(loaded.model.model.layers[0].self_attn.q_proj.weight) == 512 + 16 + 4
        new_adapter(loaded.model, SECTION, "test")
        found = footprint(loaded.model)
        adapters = sum(p.numel() * 4 for p in loaded.model.parameters() if p.requires_grad)
        assert (found.gradients, found.moments) == (adapters, 2 * adapters)

    def test_sizes_are_known_without_numbers(self, tiny_model: Path, loaded: LoadedModel) -> None:
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model))
        pack_on_meta(shell)
        for model in (shell, loaded.model):
            new_adapter(model, SECTION, "test")
        assert footprint(shell, "adamw8bit") == footprint(loaded.model, "adamw8bit")
        assert sum(map(count_of, shell.parameters())) == sum(map(count_of, loaded.model.parameters()))

    def test_an_adapter_says_what_its_base_was(self, tiny_model, cache, loaded, tmp_path) -> None:
        save_adapter(new_adapter(loaded.model, SECTION, "test"), tmp_path / "adapter", "owner/name")
        written = json.loads((tmp_path / "adapter" / "base.json").read_text())
        assert written == {"model": "owner/name", "format": "nf4", "block_size": 64, "quantized_scales": True}
        plain = load_model(str(tiny_model), cache=cache).model
        with pytest.raises(ModelError, match=r"was trained over nf4 weights \(lora.base\), not plain"):
            load_adapter(plain, tmp_path / "adapter")
        save_adapter(new_adapter(plain, LoraSection(rank=4), "test"), tmp_path / "other", "owner/name")
        assert not (tmp_path / "other" / "base.json").exists()
        again = load_model(str(tiny_model), cache=cache, frozen=True, base="nf4")
        with pytest.raises(ModelError, match="was trained over plain weights"):
            load_adapter(again.model, tmp_path / "other")
        load_adapter(again.model, tmp_path / "adapter")

    def test_transposed_weights_come_back_as_they_were(self, tiny_model: Path, cache: Path, tmp_path: Path) -> None:
        """GPT-2 keeps matrices as [in, out]."""
        with torch.random.fork_rng():
            torch.manual_seed(3)
            config = GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=64)
            GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        tokenizer = load_model(str(tiny_model), cache=cache).tokenizer
        tokenizer.save_pretrained(tmp_path / "gpt2")
        loaded = load_model(str(tmp_path / "gpt2"), cache=cache, frozen=True, base="nf4")
        loaded.rehearse_saving()
        scores = LogProbEngine(loaded.model, loaded.autocast).score(QUERIES)
        merged = merge(new_adapter(loaded.model, SECTION, "test"))
        save_folder(merged, tokenizer, tmp_path / "merged")
        again = load_model(str(tmp_path / "merged"), cache=cache)
        assert torch.tensor(LogProbEngine(again.model).score(QUERIES)) == pytest.approx(torch.tensor(scores), abs=1e-4)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_gpu_holds_the_same_weights(self, tiny_model: Path, cache: Path) -> None:
        merged = [
            merge(new_adapter(loaded.model, SECTION, "test"))
            for device in ("cpu", "cuda")
            for loaded in [
                load_model(str(tiny_model), cache=cache, base="nf4", frozen=True, device=torch.device(device))
            ]
        ]
        for here, there in zip(merged[0].parameters(), merged[1].parameters(), strict=True):
            assert there.device.type == "cpu"
            assert (here - there).abs().max() < 0.01 * here.abs().max()
