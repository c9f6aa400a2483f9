"""A token is computed from those before it alone, or the model is told of and refused where it matters."""

from __future__ import annotations

import json

import pytest
import torch
from families.builder import save_tiny, tiny_model
from families.variants import MANY_KEYS, VARIANTS
from tiny_models import LONGROPE

import spintune
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.paths import length_phrases
from spintune.errors import ModelError
from spintune.generation.plain import PlainGenerator
from spintune.generation.sampling import Sampling
from spintune.progress import Silent

TIES = "glm moe dsa ties"
ROWS = [{"instruction": f"w{i} w{i + 1} w{i + 2}", "output": f"w{i + 3} w{i + 5}"} for i in range(20, 28)]


def first_difference(model, short: int, long: int) -> int | None:
    """Tokens read by the first prediction that the longer row changes, by plain calls of transformers."""
    ids = torch.arange(long)[None] * 7 % 91 + 5
    with torch.no_grad():
        logits = [model(input_ids=ids[:, :length], use_cache=False).logits[0, :short] for length in (short, long)]
    wrong = (logits[0] - logits[1]).abs().amax(-1) > 1e-2
    return 1 + int(wrong.nonzero()[0]) if wrong.any() else None


def test_beyond_its_choice_of_keys_a_models_rows_depend_on_their_length_where_transformers_does():
    model = tiny_model(TIES)
    limit = LogProbEngine(model).row_limit
    assert limit == model.config.index_topk
    found = [first_difference(model, short, 60) for short in (limit, 20, 30, 40)]
    assert found[0] is None
    assert min(place for place in found[1:] if place) > limit


def test_a_choice_too_long_for_a_probe_is_found_as_well(monkeypatch):
    monkeypatch.setitem(VARIANTS, "far", ("glm_moe_dsa", {**MANY_KEYS, "index_n_heads": 2, "index_topk": 2048}))
    model = tiny_model("far")
    assert LogProbEngine(model).row_limit == 2048
    assert model.config.index_topk == 2048


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "bloom", "mamba", "lfm2"])
def test_rows_of_other_families_begin_alike(family, build):
    assert LogProbEngine(build(family, dtype=torch.float32)).row_limit is None


def test_frequencies_that_change_by_design_are_no_fault(build):
    engine = LogProbEngine(build("llama", rope_parameters=LONGROPE))
    assert engine.row_limit is None
    assert length_phrases(engine) == (
        "rotary frequencies change at 20 tokens; answers that may cross that are written one at a time",
    )


def test_a_model_that_depends_on_the_length_of_every_row_is_refused_in_one_line():
    with pytest.raises(ModelError, match="the length of a row changes what is computed") as caught:
        LogProbEngine(tiny_model("prophetnet"))
    assert "\n" not in str(caught.value)


def test_beyond_the_limit_every_token_is_drawn_from_a_row_of_its_own(words):
    engine = LogProbEngine(tiny_model(TIES))
    assert engine.scores_as_drawn(3, 4)
    assert not engine.scores_as_drawn(4, 4)
    written = [
        PlainGenerator(engine, words, frozenset(), cached=cached).generate([tuple(range(9, 13))], Sampling(30))[0]
        for cached in (True, False)
    ]
    assert written[0].ids == written[1].ids


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_self_play_beyond_the_limit_is_refused_before_anything_is_generated_and_sft_is_told(tmp_path):
    save_tiny(TIES, tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    data = {"train": str(tmp_path / "rows.jsonl"), "max_length": 64, "template": "plain"}
    recipe = {"out": str(tmp_path / "run"), "model": str(tmp_path / "model"), "data": data, "eval": []}
    with pytest.raises(ModelError, match=r"set data.max_length to 6 or less, or leave spin out") as caught:
        spintune.run(recipe, spin={"iterations": 1, "max_new_tokens": 4})
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").rglob("answers.jsonl"))
    notes = Notes()
    spintune.run(recipe, progress=notes, out=str(tmp_path / "sft"), sft={"epochs": 1})
    (paths,) = [line for line in notes.said if line.startswith("scores: one row at a time")]
    assert "lengths: beyond 6 tokens" in paths
    assert "; price: one at a time takes about" in paths
