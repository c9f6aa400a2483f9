"""The opponent's answers become pairs that keep what was written, and say what was left out."""

from __future__ import annotations

import os

import pytest
import torch

from spintune.models.attention import disable_layouts
from spintune.models.sampling import Sampling
from spintune.progress import Silent
from spintune.selfplay.opponent import EMPTY, IDENTICAL, SHARD, play
from spintune.tokens.chat import Row

STOP = 1
# 5 6 7 stop; 2 stop; 10 11 12 13 10 11 ... for ever
CHAIN = {5: 6, 6: 7, 7: STOP, 2: STOP, 10: 11, 11: 12, 12: 13, 13: 10}


def row(prompt, response, name="row") -> Row:
    return Row(name, prompt, response, (True,) * len(response), response[-1] == STOP)


def play_with(player, rows, folder, *, max_new_tokens=6, max_length=40, tag="tag", seed=0):
    engine, generator = player
    sampling = Sampling(max_new_tokens, seed=seed)
    return play(engine, generator, rows, sampling, max_length, 200, folder, tag, Silent(), "play")


def test_pairs_keep_exactly_what_was_written(chain_player, tmp_path):
    rows = [
        row((3, 5), (9, 9, STOP), "whole"),
        row((4, 10), (8, STOP), "endless"),
        row((3, 5), (8, 8), "cut by the user"),
    ]
    pairs = play_with(chain_player(CHAIN), rows, tmp_path)
    assert not pairs.dropped
    whole, endless, cut = pairs.kept
    assert (whole.example_id, whole.prompt_ids, whole.real_ids) == ("whole", (3, 5), (9, 9, STOP))
    assert (whole.generated_ids, whole.generated_complete, whole.generated_text) == ((6, 7, STOP), True, "w6 w7")
    # six tokens, no end token behind them
    assert (endless.generated_ids, endless.generated_complete) == ((11, 12, 13, 10, 11, 12), False)
    assert (whole.real_complete, endless.real_complete, cut.real_complete) == (True, True, False)
    # certain tokens have a log-probability of 0
    assert [pair.opponent_generated for pair in pairs.kept] == pytest.approx([0, 0, 0], abs=1e-9)


def test_an_answer_gets_the_room_of_max_length_and_loses_its_end_token_when_cut(chain_player, tmp_path):
    rows = [row((3, 5), (9, STOP)), row((3, 3, 5), (9, STOP))]
    pairs = play_with(chain_player(CHAIN), rows, tmp_path, max_length=5)
    assert [(pair.generated_ids, pair.generated_complete) for pair in pairs.kept] == [
        ((6, 7, STOP), True),
        ((6, 7), False),
    ]


def test_identical_and_empty_answers_are_dropped_and_counted(chain_player, tmp_path):
    rows = [
        row((3, 5), (6, 7, STOP), "identical"),
        row((2,), (9, STOP), "empty"),
        row((9, 2), (8, STOP), "empty"),
        row((5,), (6, 7), "same words, but cut"),
        row((10,), (11, STOP), "kept"),
    ]
    pairs = play_with(chain_player(CHAIN), rows, tmp_path)
    assert dict(pairs.dropped) == {IDENTICAL: 1, EMPTY: 2}
    assert [pair.example_id for pair in pairs.kept] == ["same words, but cut", "kept"]
    assert len(pairs.kept) + pairs.dropped.total() == len(rows)


def test_both_scores_are_those_of_a_plain_forward(random_player, tmp_path):
    player = random_player()
    rows = [row((3 + i, 5, 9)[: 1 + i % 3], (4, 8, 20 - i, STOP)[i % 2 :]) for i in range(7)]
    pairs = play_with(player, rows, tmp_path)
    assert len(pairs.kept) + pairs.dropped.total() == 7
    model = player[0].model
    disable_layouts(model)
    for pair in pairs.kept:
        for response, score in ((pair.real_ids, pair.opponent_real), (pair.generated_ids, pair.opponent_generated)):
            ids = torch.tensor([[*pair.prompt_ids, *response]])
            with torch.no_grad():
                logprobs = model(ids).logits[0, len(pair.prompt_ids) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, torch.tensor(response)[:, None]).sum().item()
            assert score == pytest.approx(expected, abs=1e-6)


def times(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_finished_shards_are_read_and_missing_ones_written_the_same(random_player, tmp_path):
    rows = [row((3 + i % 5, 4), (7, STOP), f"row{i}") for i in range(SHARD + 20)]
    first = play_with(random_player(), rows, tmp_path)
    names = ["tag-00000000.jsonl", f"tag-{SHARD:08d}.jsonl"]
    assert sorted(times(tmp_path)) == names

    # a run that was killed in its second shard
    kept = tmp_path / names[0]
    os.utime(kept, ns=(1, 1))
    (tmp_path / names[1]).unlink()
    second = play_with(random_player(), rows, tmp_path)
    assert kept.stat().st_mtime_ns == 1
    assert second == first

    # nothing left to do: the same pairs, though this player would write others
    before = times(tmp_path)
    player = random_player()
    with torch.no_grad():
        player[0].model.lm_head.weight.mul_(-1)
    assert play_with(player, rows, tmp_path) == first
    assert times(tmp_path) == before
    # other inputs use none of it
    assert play_with(player, rows, tmp_path, tag="other") != first


def test_answers_do_not_depend_on_shards_and_repeated_prompts_get_answers_of_their_own(random_player, tmp_path):
    rows = [row((3, 4), (7, STOP), f"row{i}") for i in range(SHARD + 20)]
    engine, generator = random_player()
    completions = generator.generate([r.prompt_ids for r in rows], Sampling(6, seed=0))
    pairs = play_with((engine, generator), rows, tmp_path)
    written = {f"row{i}": completion.ids for i, completion in enumerate(completions)}
    assert all(pair.generated_ids == written[pair.example_id] for pair in pairs.kept)
    # 22^6 answers of similar probability: hardly any two are equal, also across the border of the shards
    assert len({pair.generated_ids for pair in pairs.kept}) > 0.8 * len(pairs.kept)


def test_another_seed_gives_other_answers(random_player, tmp_path):
    rows = [row((3 + i, 4), (7, STOP)) for i in range(8)]
    answers = [
        [pair.generated_ids for pair in play_with(random_player(), rows, tmp_path, tag=f"{seed}", seed=seed).kept]
        for seed in (0, 1)
    ]
    assert answers[0] != answers[1]
