"""benchmarks/verdicts.py: a ratio has fallen if no noise explains it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import everything
import generation
import pytest
import verdicts
from machine import Lab
from verdicts import LEAST, ONE_RUN, Ratio, ratio_of, verdict


def test_a_ratio_is_of_medians_and_its_noise_of_the_longest_and_shortest_runs() -> None:
    assert ratio_of([40.0, 44.0, 36.0], [10.0, 9.0, 11.0]) == Ratio(4.0, pytest.approx((44 / 36 * 11 / 9) ** 0.5 - 1))
    assert ratio_of([40.0, 40.1], [10.0, 10.0]).noise == LEAST
    assert ratio_of([40.0], [10.0, 10.1]) == Ratio(pytest.approx(40 / 10.05), ONE_RUN)


@pytest.mark.parametrize(
    ("now", "accepted", "expected"),
    [
        (Ratio(3.7, 0.05), Ratio(4.0, 0.05), "same"),
        (Ratio(3.63, 0.05), Ratio(4.0, 0.05), "SLOWER"),  # 4.0 / 3.63 = 1.102
        (Ratio(3.63, 0.05), Ratio(4.0, 0.06), "same"),
        (Ratio(4.39, 0.05), Ratio(4.0, 0.05), "same"),
        (Ratio(4.41, 0.05), Ratio(4.0, 0.05), "faster"),
        (Ratio(1.0, 0.05), None, "new here"),
    ],
)
def test_only_more_than_both_noises_is_a_change(now: Ratio, accepted: Ratio | None, expected: str) -> None:
    assert verdict(now, accepted) == expected


def contest(ours: float, **peers: float) -> dict[str, object]:
    """Results of generation.py in which each contestant took about so many seconds, three times."""
    seconds = {"spintune": ours, **peers}
    everybody = {name: {"all_seconds": [one, 1.02 * one, 0.98 * one]} for name, one in seconds.items()}
    return {"contestants": everybody, "left_out": ["llama.cpp"], "foreign_cores": [0.01]}


def test_the_command_compares_with_the_same_kind_of_machine_and_accepts_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted, results = tmp_path / "accepted.json", contest(2.0, generate=8.0, ctranslate2=6.0)
    monkeypatch.setattr(everything, "ACCEPTED", accepted)
    monkeypatch.setattr(everything, "kind", lambda: "Maker avx2, 2 cores")

    def written(name: str, options: object) -> int:
        (tmp_path / "generation.json").write_text(json.dumps(results))
        return 0

    monkeypatch.setattr(everything, "_run", written)

    def command(*options: str) -> tuple[int, str]:
        fixed = ["everything.py", "--out", str(tmp_path), "--quick", "--only", "generation"]
        monkeypatch.setattr(sys, "argv", [*fixed, *options])
        return everything.main(), capsys.readouterr().out

    code, told = command()
    assert (code, told.count("new here")) == (0, 2)
    assert "generation: without llama.cpp" in told
    assert not accepted.exists()
    assert command("--accept")[0] == 0
    assert verdicts.read_accepted(accepted, "Maker avx2, 2 cores")["generation beside transformers"].ratio == 4.0

    results = contest(2.0, generate=8.1)
    code, told = command()
    assert code == 0
    assert "| generation beside transformers | 4.05 ± 4 % | 4.00 ± 4 % | same |" in told
    assert "| generation beside CTranslate2 | | 3.00 ± 4 % | not measured |" in told
    results = contest(2.6, generate=8.0, ctranslate2=8.4)
    code, told = command()
    assert code == 1
    assert "| generation beside transformers | 3.08 ± 4 % | 4.00 ± 4 % | SLOWER |" in told
    assert "| generation beside CTranslate2 | 3.23 ± 4 % | 3.00 ± 4 % | same |" in told

    results["foreign_cores"] = [0.01, 0.9]
    code, told = command("--accept")
    assert (code, told.count("DISTURBED"), told.count("not accepted")) == (1, 1, 1)
    monkeypatch.setattr(everything, "kind", lambda: "Maker avx512, 2 cores")
    code, told = command()
    assert (code, told.count("SLOWER")) == (0, 0)
    results["foreign_cores"] = []
    assert command("--accept")[0] == 0
    kinds = json.loads(accepted.read_text())
    assert [kinds[kind]["generation beside transformers"]["ratio"] for kind in sorted(kinds)] == [4.0, 3.077]


def test_settings_of_a_peer_that_cannot_run_drop_out_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that ends badly, as CTranslate2's does where the processor lacks the vector width."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[4])\n"
        "spec = json.loads((folder / 'spec.json').read_text())\n"
        "if spec['isa'] == 'AVX512': sys.exit('this processor has no AVX512')\n"
        "(folder / 'result.json').write_text(json.dumps({'seconds': 100 / spec['batch'] + spec['new_tokens']}))\n"
    )
    settings = [{"batch": batch, "isa": isa} for batch in (5, 10) for isa in ("AVX2", "AVX512")]
    tried, dropped = generation.search(Lab(script, tmp_path), "ctranslate2", settings, {"new_tokens": 32})
    assert tried == [{"batch": 10, "isa": "AVX2", "seconds": 18.0}, {"batch": 5, "isa": "AVX2", "seconds": 28.0}]
    assert dropped == [f"CTranslate2 with batch {batch}, isa AVX512" for batch in (5, 10)]
    assert "this processor has no AVX512\n; setting left out" in capsys.readouterr().err
