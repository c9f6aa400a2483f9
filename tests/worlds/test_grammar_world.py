"""The world of benchmarks/self_play_grammar.py is what it says: probabilities sum to 1, no model beats the truth."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import self_play_grammar as grammar


def test_the_answers_of_a_prompt_have_probability_one() -> None:
    world = grammar.World()
    answers = list(world.answers(3))
    assert len(answers) == len(set(answers))
    assert max(map(len, answers)) == grammar.LONGEST
    assert math.fsum(math.exp(world.log_probability(3, answer)) for answer in answers) == pytest.approx(1, abs=1e-12)


def test_an_answer_of_another_form_has_probability_zero() -> None:
    world = grammar.World()
    first = next(iter(world.next(3, ())))
    strange = next(word for word in grammar.WORDS if word not in world.next(3, (first,)))
    assert world.log_probability(3, ()) == -math.inf
    assert world.log_probability(3, (first, strange)) == -math.inf
    assert world.log_probability(3, ("nowhere", first)) == -math.inf


def test_samples_come_as_often_as_the_probability_says() -> None:
    world, count = grammar.World(), 4000
    random = np.random.default_rng(0)
    (answer, seen), *_ = Counter(tuple(world.sample(3, random)) for _ in range(count)).most_common(1)
    expected = math.exp(world.log_probability(3, answer))
    assert seen / count == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / count))


def test_a_model_is_no_closer_to_the_truth_than_the_truth(tmp_path: Path) -> None:
    world = grammar.World()
    rows = grammar.draw(world, seed=0, count=100)
    assert len({row.prompt for row in rows}) == 100
    grammar.write_model(tmp_path / "model", seed=0)
    measured: Any = grammar.measure(str(tmp_path / "model"), world, rows)
    # random weights are near uniform over the vocabulary, whose size is known: 3 + 4 + 10 + 16 + 12 tokens
    assert measured.token_loss == pytest.approx(math.log(45), rel=0.1)
    truth = -np.mean([world.log_probability(row.state, row.words) for row in rows])
    tokens = np.mean([len(row.words) + 1 for row in rows])
    assert measured.kl == pytest.approx(measured.token_loss * tokens - truth, abs=1e-3)
    assert measured.kl > 0
    assert measured.ungrammatical > 0.9
