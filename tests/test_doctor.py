"""The doctor names what is missing and says so with its exit code."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from spintune import doctor

Spintune = Callable[..., Any]
REPOSITORY = Path(__file__).resolve().parents[1]


def test_a_sound_installation_ends_with_0(spintune: Spintune) -> None:
    result = spintune("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(result.out)}
    own = {"vllm", "llama.cpp", "python", "processor", "kernels", "memory", "gpu", "cache", "here"}
    installed = metadata.requires("spintune") or []
    assert {*(one.subject for one in doctor.packages(installed)), *own} == set(findings)
    assert {"torch", "transformers", "lm-eval"} <= set(findings)
    assert result.code == (0 if all(finding["fine"] for finding in findings.values()) else 1)
    import torch

    # a package of the CUDA build does not name the build, the module does
    assert findings["torch"]["text"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_engines_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    vllm, llama = doctor._engines({"PATH": str(tmp_path)})
    assert (vllm.fine, llama.fine) == (True, True)
    assert vllm.text.startswith("not on the PATH")
    assert str(program) in llama.text
    vllm, llama = doctor._engines({"PATH": "", "SPINTUNE_VLLM": str(tmp_path / "nothing")})
    assert not vllm.fine
    assert "SPINTUNE_VLLM=" in vllm.text
    assert "is no program" in vllm.text
    assert llama.text.startswith("not on the PATH")
    vllm, _ = doctor._engines({"PATH": "", "SPINTUNE_VLLM": str(program)})
    assert vllm.text == f"{program}; a run starts it for generate.engine: vllm"


def test_layers_that_are_not_compiled_are_told_of(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINTUNE_KERNELS", "off")
    assert "ok    kernels: torch's own layers, slower: switched off by SPINTUNE_KERNELS\n" in spintune("doctor").out
    monkeypatch.setenv("SPINTUNE_KERNELS", "avx9")
    found = spintune("doctor")
    assert found.code == 1
    assert "torch's own layers, slower: SPINTUNE_KERNELS=avx9 is none of off, native, " in found.out


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_missing_package_ends_with_1_and_is_named(
    spintune: Spintune, monkeypatch: pytest.MonkeyPatch, json_option: tuple[str, ...]
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2", "no-such-package>=3", "numpy<1"])
    result = spintune("doctor", *json_option)
    assert result.code == 1
    old = metadata.version("numpy")
    if json_option:
        wrong = [finding for finding in json.loads(result.out) if not finding["fine"]]
        assert [(one["subject"], one["text"]) for one in wrong] == [
            ("no-such-package", "not installed; pip install 'no-such-package>=3'"),
            ("numpy", f"{old}; pip install 'numpy<1'"),
        ]
    else:
        assert "WRONG no-such-package: not installed; pip install 'no-such-package>=3'\n" in result.out
        assert "ok    torch: " in result.out


def test_a_tree_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nowhere)
    (finding,) = doctor._packages()
    assert not finding.fine
    assert finding.text.startswith("not installed")


def test_every_extra_that_a_user_may_want_says_what_it_is_for() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(doctor.USES) == set(extras) - {"dev", "docs"}
    newer = [f"{Requirement(one).name}>=9999; extra == '{extra}'" for extra in extras for one in extras[extra]]
    found = list(doctor.packages([*project["dependencies"], *newer]))
    assert all(one.fine for one in found)
    absent = {one.subject: one.text for one in found if "pip install" in one.text}
    assert absent["uvicorn"].endswith("; >=9999 is needed only for spintune watch: pip install 'spintune[watch]'")
    assert "pytest" not in absent


def test_a_cache_that_does_not_exist_yet_is_judged_by_the_folder_it_will_be_in(tmp_path: Path) -> None:
    finding = doctor._disk("cache", tmp_path / "a" / "b")
    assert finding.fine
    assert str(tmp_path / "a" / "b") in finding.text


def test_what_the_cache_holds_is_told_and_cleared(
    spintune: Spintune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "spintune"
    assert doctor._cache(cache).text.endswith(", empty")
    assert json.loads(spintune("doctor", "--clear-cache", "--json").out) == {"freed": {}}
    for name, size in {"models/m/model.safetensors": 30_000_000, "tokens/t/rows.jsonl": 20_000_000}.items():
        (cache / name).parent.mkdir(parents=True)
        with (cache / name).open("wb") as file:
            file.truncate(size)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "big").write_bytes(b"x" * 10)
    (cache / "gguf").symlink_to(tmp_path / "disk")
    held = "models 0.03 GB, tokens 0.02 GB, gguf 0.00 GB"
    assert f", holds {held}; spintune doctor --clear-cache empties it" in doctor._cache(cache).text
    assert spintune("doctor", "--clear-cache").out == f"{cache}: removed {held}\n"
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert (cache / "gguf").is_symlink()
    assert list((tmp_path / "disk").iterdir()) == []


def model_report(spintune: Spintune, model: Path) -> dict[str, Any]:
    result = spintune("doctor", "--model", model, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert isinstance(report, dict)
    return report


def test_a_model_is_told_its_path_its_kernels_and_its_costs(spintune: Spintune, tiny_model: Path) -> None:
    report = model_report(spintune, tiny_model)
    assert (report["architecture"], report["model_type"]) == ("LlamaForCausalLM", "llama")
    assert (report["paths"]["scores"], report["paths"]["generation"]) == ("packed", "batch")
    assert report["positions"] == 512
    assert report["window"] is None
    assert report["stop_tokens"] == {"1": "<|im_end|>"}
    # embeddings tied to the head; q, o 32 x 32, k, v 32 x 16, three of 32 x 64, two norms, twice; a last norm
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert report["parameters"] == report["vocabulary"] * 32 + 2 * layer + 32
    assert report["memory"] == {name: n * report["parameters"] for name, n in MEMORY.items()}
    assert [report["kernels"][kind]["total"] for kind in ("products", "norms", "gated")] == [15, 5, 2]
    assert report["kernels"]["rotary"].keys() == {"transformers.models.llama.modeling_llama"}
    assert report["speed"]["packed"] > 0
    assert report["price"] is None
    assert report["problems"] == []


MEMORY = {"weights": 4, "gradients": 4, "moments": 8}


def test_people_read_the_same(spintune: Spintune, tiny_model: Path) -> None:
    result = spintune("doctor", "--model", tiny_model)
    assert result.code == 0
    for line in ("ok    scores: packed (", "ok    generation: batch (", "ok    limits: 512 positions\n"):
        assert line in result.out


def test_the_options_of_a_template_are_listed(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from spintune.model_report import template_text

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert template_text(tokenizer) == "the tokenizer's own"
    tokenizer.chat_template = "{{ enable_thinking }}{{ date_string }}" + tokenizer.chat_template
    assert template_text(tokenizer) == "the tokenizer's own; data.template_options may set date_string, enable_thinking"
    tokenizer.chat_template = None
    assert template_text(tokenizer) == "none; set data.template"


def test_an_encoder_decoder_needs_no_template(spintune: Spintune, tiny_t5: Path) -> None:
    report = model_report(spintune, tiny_t5)
    assert report["template"] == "none needed: text to text"
    assert report["positions"] is None
    assert list(report["stop_tokens"].values()) == ["</s>"]


def test_a_model_that_cannot_be_packed_is_told_the_price(spintune: Spintune, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    report = model_report(spintune, tmp_path)
    assert (report["paths"]["scores"], report["paths"]["generation"]) == ("one row at a time", "plain")
    assert report["speed"]["packed"] is None
    assert min(report["price"].values()) >= 1
    assert "ok    price: one at a time takes about" in spintune("doctor", "--model", tmp_path).out


def test_what_stands_in_the_way_ends_with_1(spintune: Spintune, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "untold")
    (tmp_path / "untold" / "chat_template.jinja").unlink()
    result = spintune("doctor", "--model", tmp_path / "untold")
    assert result.code == 1
    assert "WRONG template: " in result.out
    assert "Traceback" not in result.err
    config = tmp_path / "untold" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "awq"}}))
    result = spintune("doctor", "--model", tmp_path / "untold")
    assert result.code not in (0, 1)
    assert "quantized" in result.err.splitlines()[-1]
