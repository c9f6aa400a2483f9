"""The doctor names what is missing and says so with its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune import doctor

Spintune = Callable[..., Any]


def test_a_sound_installation_ends_with_0(spintune: Spintune) -> None:
    result = spintune("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(result.out)}
    own = {"python", "processor", "layers", "memory", "gpu", "cache", "here"}
    assert {*doctor.REQUIRED, *doctor.OPTIONAL, *own} == set(findings)
    assert result.code == (0 if all(finding["fine"] for finding in findings.values()) else 1)
    import torch

    # a package of the CUDA build does not name the build, the module does
    assert findings["torch"]["text"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_layers_that_are_not_compiled_are_told_of(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINTUNE_KERNELS", "off")
    assert "ok    layers: torch's own, slower: switched off by SPINTUNE_KERNELS\n" in spintune("doctor").out


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_a_missing_package_ends_with_1_and_is_named(
    spintune: Spintune, monkeypatch: pytest.MonkeyPatch, json_option: tuple[str, ...]
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "no-such-package"))
    result = spintune("doctor", *json_option)
    assert result.code == 1
    if json_option:
        (wrong,) = [finding for finding in json.loads(result.out) if not finding["fine"]]
        assert wrong == {"subject": "no-such-package", "text": "missing; pip install no-such-package", "fine": False}
    else:
        assert "WRONG no-such-package: missing; pip install no-such-package\n" in result.out
        assert "ok    torch: " in result.out


def test_a_cache_that_does_not_exist_yet_is_judged_by_the_folder_it_will_be_in(tmp_path: Path) -> None:
    finding = doctor._disk("cache", tmp_path / "a" / "b")
    assert finding.fine
    assert str(tmp_path / "a" / "b") in finding.text
