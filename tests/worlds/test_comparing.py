"""``spintune compare`` and ``spintune report`` on real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]
Spintune = Callable[..., Any]


def test_models_of_a_run_are_compared_on_the_same_items(run: Run, spintune: Spintune, tmp_path: Path) -> None:
    results = run(tmp_path / "run", data={"eval_fraction": 0.4}, spin=None)
    found = spintune("compare", str(tmp_path / "run"), "--json")
    assert found.code == 0, found.err
    comparison = json.loads(found.out)
    assert comparison["names"] == ["base", "sft"]
    (nll,) = [one for one in comparison["differences"] if one["measure"] == "nll_per_token"]
    expected = results["heldout"]["base"]["nll_per_token"]["mean"] - results["heldout"]["sft"]["nll_per_token"]["mean"]
    assert abs(nll["difference"]["mean"] - expected) < 1e-9
    text = spintune("compare", str(tmp_path / "run"), "--against", "sft").out
    assert text.startswith("base is worse than sft on")
    rows = [line.rstrip() for line in text.splitlines() if line.lstrip().startswith(("measure", "nll", "perplexity"))]
    assert rows
    assert max(map(len, rows)) <= 60
    assert "--all shows all of them" in text
    text = spintune("compare", str(tmp_path / "run"), "--against", "sft", "--all").out
    assert "p (Holm)" in text


@pytest.mark.slow
def test_two_runs_are_told_apart_by_their_folders(run: Run, spintune: Spintune, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0)):
        run(tmp_path / name, data={"eval_fraction": 0.4}, spin=None, seed=seed)
    found = spintune("compare", f"{tmp_path / 'one'}:sft", f"{tmp_path / 'two'}:sft")
    assert found.code == 0, found.err
    assert "cannot be told apart" in found.out


def test_what_cannot_be_compared_is_one_line(finished: Path, spintune: Spintune, tmp_path: Path) -> None:
    for arguments, words in (
        ((str(tmp_path),), "no run folder and no file of answers"),
        ((f"{finished}:sft",), "nothing to be compared with"),
        ((f"{finished}:nobody",), "nothing was measured of 'nobody'; use one of: base, iterate-1, iterate-2, sft"),
        ((str(finished), "--against", "nobody"), "--against nobody is none of base"),
        ((str(finished),), "items"),  # 8 held-out examples are too few for any test
    ):
        result = spintune("compare", *arguments)
        assert result.code in (2, 3)
        assert words in result.err
        assert len(result.err.strip().splitlines()) == 1


def test_a_report_is_one_file_with_the_numbers_of_the_run(finished: Path, spintune: Spintune, tmp_path: Path) -> None:
    result = spintune("report", str(finished), "--out", str(tmp_path / "page.html"))
    assert result.code == 0, result.err
    assert result.out.strip() == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    loss = json.loads((finished / "results.json").read_text())["heldout"]["sft"]["nll_per_token"]["mean"]
    assert f"{loss:.3f}" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def asked(path: Path, answers: list[str], **more: Any) -> str:
    rows = [{"instruction": f"Say it {n} times", "output": text, **more} for n, text in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_saved_answers_of_anybody_are_compared_against_references_from_a_file(
    spintune: Spintune, tmp_path: Path
) -> None:
    good = asked(tmp_path / "good.jsonl", [f"say say {n}" for n in range(40)])
    right = asked(tmp_path / "right.jsonl", [f"say say {n}" if n % 2 else "no" for n in range(40)])
    wrong = asked(tmp_path / "wrong.jsonl", ["no"] * 40)
    found = spintune("compare", right, wrong, "--references", good, "--json")
    assert found.code == 0, found.err
    differences = {one["measure"]: one for one in json.loads(found.out)["differences"]}
    assert differences["exact_match"]["values"] == [0.5, 0.0]
    assert (differences["exact_match"]["first"], differences["exact_match"]["second"]) == ("right", "wrong")
    # McNemar: 20 items that only one has right, 2 * (1/2)^20
    assert abs(differences["exact_match"]["p"] - 2 * 0.5**20) < 1e-12
    assert differences["exact_match"]["finding"] == "better"
    assert "exact_match" not in spintune("compare", right, wrong).out  # nothing says what is right
    missing = spintune("compare", right, asked(tmp_path / "x.jsonl", ["a"] * 40), "--references", str(tmp_path / "no"))
    assert missing.code == 3
    assert "does not exist" in missing.err


def test_a_prompt_that_comes_twice_is_two_items_with_a_reference_each(spintune: Spintune, tmp_path: Path) -> None:
    def twice(name: str, answers: list[str]) -> str:
        rows = [{"instruction": f"Say it {n // 2} times", "output": text} for n, text in enumerate(answers)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    good = twice("good.jsonl", [f"word {n}" for n in range(20)])
    right = twice("right.jsonl", [f"word {n}" for n in range(20)])
    half = twice("half.jsonl", [f"word {n}" if n % 2 else "no" for n in range(20)])
    found = spintune("compare", right, half, "--references", good, "--json")
    (match,) = [one for one in json.loads(found.out)["differences"] if one["measure"] == "exact_match"]
    assert (match["items"], match["values"]) == (20, [1.0, 0.5])


def test_a_model_is_judged_by_flags_alone_and_compared_by_what_judged_it(
    tiny_model: Path, spintune: Spintune, tmp_path: Path
) -> None:
    questions = asked(tmp_path / "questions.jsonl", [f"say say {n}" for n in range(12)])
    for name in ("one", "two"):
        result = spintune(
            "eval", "--model", str(tiny_model), "--on", "questions", "--out", str(tmp_path / name),
            f"evaluation.questions={questions}", "evaluation.max_new_tokens=6",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert "questions, 12 items" in result.out
    compared = spintune("compare", str(tmp_path / "one"), str(tmp_path / "two"))
    assert "cannot be told apart" in compared.out or "too few items differ" in compared.out
    limited = spintune("eval", "--model", str(tiny_model), "--on", "questions", "--out", str(tmp_path / "three"))
    assert limited.code == 2
    assert "give its file as evaluation.questions" in limited.err
    assert spintune("eval", "--on", "questions").code == 2


def test_a_model_is_exported_with_its_card_and_is_a_model(finished: Path, spintune: Spintune, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "hub" / "mine"
    result = spintune("export", str(finished), str(out), "--model", "iterate-1")
    assert result.code == 0, result.err
    assert (out / "README.md").read_text().startswith("---\nlicense: unknown\n")
    assert "1 iteration of self-play" in (out / "README.md").read_text()
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (finished / "spin/iterate-1/model/model.safetensors").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(out).chat_template
    again = spintune("export", str(finished), str(out))
    assert again.code != 0
    assert "already exists" in again.err
    assert "has no model nobody" in spintune("export", str(finished), str(tmp_path / "x"), "--model", "nobody").err
    assert not (tmp_path / "x").exists()
