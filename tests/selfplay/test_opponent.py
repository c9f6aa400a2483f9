"""The opponent's answers become pairs that keep what was written, and say what was left out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
import torch

from spintune.engine.query import Query
from spintune.errors import DataError, RunError
from spintune.generation.sampling import Sampling
from spintune.progress import Silent
from spintune.records import Answer, Pair
from spintune.selfplay.filters import EMPTY, IDENTICAL, FilteredPairs, with_first_answers, without_degenerate
from spintune.selfplay.opponent import check_sampler, draw_writer, given_pairs, sample_pairs, score_pairs
from spintune.selfplay.shards import SHARD_SIZE, Shards
from spintune.tokens.rows import TokenRow

STOP = 1
# 5 6 7 stop; 2 stop; 10 11 12 13 10 11 ... for ever
CHAIN = {5: 6, 6: 7, 7: STOP, 2: STOP, 10: 11, 11: 12, 12: 13, 13: 10}


def row(prompt, response, name="row") -> TokenRow:
    return TokenRow(name, prompt, response, (True,) * len(response), response[-1] == STOP)


def play_with(player, rows, folder, *, max_new_tokens=6, max_length=40, tag="tag", seed=0, count=1) -> FilteredPairs:
    """Answers, without those that cannot teach, scored by who wrote them."""
    engine, generator = player
    shards, sampling = Shards(folder, tag, Silent()), Sampling(max_new_tokens, seed=seed)
    pairs = without_degenerate(sample_pairs(generator, rows, sampling, count, max_length, "writer", shards, "write"))
    return FilteredPairs(score_pairs(engine, pairs.kept, "opponent", shards, "score"), pairs.dropped)


def written(pair) -> list[tuple[tuple[int, ...], bool]]:
    return [(answer.ids, answer.complete) for answer in pair.generated]


def test_pairs_keep_exactly_what_was_written(chain_player, tmp_path):
    rows = [
        row((3, 5), (9, 9, STOP), "whole"),
        row((4, 10), (8, STOP), "endless"),
        row((3, 5), (8, 8), "cut by the user"),
    ]
    pairs = play_with(chain_player(CHAIN), rows, tmp_path)
    assert not pairs.dropped
    whole, endless, cut = pairs.kept
    assert (whole.example_id, whole.prompt_ids, whole.writer) == ("whole", (3, 5), "writer")
    assert (whole.real.ids, whole.real.text) == ((9, 9, STOP), "w9 w9 w1")
    assert written(whole) == [((6, 7, STOP), True)]
    assert whole.generated[0].text == "w6 w7"
    # six tokens, no end token behind them
    assert written(endless) == [((11, 12, 13, 10, 11, 12), False)]
    assert (whole.real.complete, endless.real.complete, cut.real.complete) == (True, True, False)
    # certain tokens have a log-probability of 0
    assert [pair.generated[0].opponent for pair in pairs.kept] == pytest.approx([0, 0, 0], abs=1e-9)


def test_an_answer_gets_the_room_of_max_length_and_loses_its_end_token_when_cut(chain_player, tmp_path):
    rows = [row((3, 5), (9, STOP)), row((3, 3, 5), (9, STOP)), row((3, 3, 3, 5), (9, STOP))]
    pairs = play_with(chain_player(CHAIN), rows, tmp_path, max_length=5)
    assert [written(pair) for pair in pairs.kept] == [[((6, 7, STOP), True)], [((6, 7), False)], [((6,), False)]]
    assert [pair.generated[0].text for pair in pairs.kept] == ["w6 w7", "w6 w7", "w6"]


def test_identical_answers_are_dropped_and_counted_and_those_without_text_stay(chain_player, tmp_path):
    rows = [
        row((3, 5), (6, 7, STOP), "identical"),
        row((2,), (9, STOP), "no text"),
        row((5,), (6, 7), "same words, but cut"),
        row((10,), (11, STOP), "kept"),
    ]
    pairs = play_with(chain_player(CHAIN), rows, tmp_path)
    assert dict(pairs.dropped) == {IDENTICAL: 1}
    assert [pair.example_id for pair in pairs.kept] == ["no text", "same words, but cut", "kept"]
    assert (pairs.kept[0].generated[0].ids, pairs.kept[0].generated[0].text) == ((STOP,), "")
    assert len(pairs.kept) + pairs.dropped.total() == len(rows)


def test_both_scores_are_those_of_a_plain_forward(random_player, tmp_path):
    player = random_player()
    rows = [row((3 + i, 5, 9)[: 1 + i % 3], (4, 8, 20 - i, STOP)[i % 2 :]) for i in range(7)]
    pairs = play_with(player, rows, tmp_path)
    assert len(pairs.kept) + pairs.dropped.total() == 7
    model = player[0].model
    for pair in pairs.kept:
        for answer in pair.answers:
            response, found = answer.ids, answer.opponent
            ids = torch.tensor([[*pair.prompt_ids, *response]])
            with torch.no_grad():
                logprobs = model(ids).logits[0, len(pair.prompt_ids) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, torch.tensor(response)[:, None]).sum().item()
            assert found == pytest.approx(expected, abs=1e-6)


def times(folder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_finished_shards_are_read_and_missing_ones_written_the_same(random_player, tmp_path):
    rows = [row((3 + i % 5, 4), (7, STOP), f"row{i}") for i in range(SHARD_SIZE + 120)]
    first = play_with(random_player(), rows, tmp_path)
    names = [f"tag-{what}-{begin:08d}.jsonl" for what in ("answers", "opponent-scores") for begin in (0, SHARD_SIZE)]
    assert sorted(times(tmp_path)) == names

    # a run that was killed while it scored its second shard
    kept = tmp_path / names[2]
    os.utime(kept, ns=(1, 1))
    (tmp_path / names[3]).unlink()
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


@pytest.mark.parametrize("damage", ["shorter", "digit", "zeros", "of an earlier version", "head"])
def test_a_damaged_shard_is_told_and_computed_again(damage, random_player, tmp_path, caplog):
    """One record less would give later prompts the answers of others."""
    rows = [row((3 + i % 5, 4), (7, STOP), f"row{i}") for i in range(12)]
    first = play_with(random_player(), rows, tmp_path)
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        changed = {
            "shorter": b"".join(lines[:-1]),
            "digit": whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:],
            "zeros": whole[:-9] + bytes(9),
            "of an earlier version": b"".join(lines[1:]),
            "head": b"{}\n" + b"".join(lines[1:]),
        }[damage]
        assert changed != whole
        path.write_bytes(changed)
    assert play_with(random_player(), rows, tmp_path) == first
    assert caplog.text.count("this part is computed again") == 2
    assert play_with(random_player(), rows, tmp_path) == first
    assert caplog.text.count("this part is computed again") == 2


def test_answers_do_not_depend_on_shards_and_repeated_prompts_get_answers_of_their_own(random_player, tmp_path):
    rows = [row((3, 4), (7, STOP), f"row{i}") for i in range(SHARD_SIZE + 20)]
    engine, generator = random_player()
    completions = generator.generate([r.prompt_ids for r in rows], Sampling(6, seed=0))
    pairs = play_with((engine, generator), rows, tmp_path)
    expected = {f"row{i}": completion.ids for i, completion in enumerate(completions)}
    assert all(pair.generated[0].ids == expected[pair.example_id] for pair in pairs.kept)
    # 22^6 answers of similar probability: hardly any two are equal, also across the border of the shards
    assert len({pair.generated[0].ids for pair in pairs.kept}) > 0.8 * len(pairs.kept)


def test_another_seed_gives_other_answers(random_player, tmp_path):
    rows = [row((3 + i, 4), (7, STOP)) for i in range(8)]
    answers = [
        [pair.generated[0].ids for pair in play_with(random_player(), rows, tmp_path, tag=f"{seed}", seed=seed).kept]
        for seed in (0, 1)
    ]
    assert answers[0] != answers[1]


def test_several_answers_to_a_prompt_are_draws_of_their_own_and_scored_as_alone(random_player, tmp_path):
    rows = [row((3 + i, 5, 9), (7, 8, STOP), f"row{i}") for i in range(4)]
    player = random_player()
    three = play_with(player, rows, tmp_path, count=3).kept
    written = [(pair.example_id, answer.ids) for pair in three for answer in pair.generated]
    assert len(written) >= 10  # of 12; hardly any is empty, and hardly two are equal
    assert len(set(written)) >= len(written) - 1
    for pair in three:
        for number, answer in enumerate(pair.generated):
            shards = Shards(tmp_path, f"{pair.example_id}-{number}", Silent())
            alone = replace(pair, generated=(replace(answer, opponent=None),))
            (scored,) = score_pairs(player[0], [alone], "opponent", shards, "s")
            assert scored.generated[0].opponent == pytest.approx(answer.opponent, abs=1e-6)
            assert scored.real.opponent == pytest.approx(pair.real.opponent, abs=1e-6)


def pair_of(*answers: tuple[tuple[int, ...], str]) -> Pair:
    return Pair("id", (3,), Answer((7, STOP), "w7", True), tuple(Answer(ids, text, True) for ids, text in answers))


def test_a_pair_stays_whole_while_one_of_its_answers_can_teach():
    """Without the answer that equals the real one, the others would weigh more than in a pair that has none."""
    mixed, equal = pair_of(((7, STOP), "w7"), ((8, STOP), "w8")), pair_of(((7, STOP), "w7"), ((7, STOP), "w7"))
    found = without_degenerate([mixed, equal])
    assert found.kept == [mixed]
    assert dict(found.dropped) == {IDENTICAL: 1}  # pairs are counted, not answers: kept + dropped = read


def test_a_given_answer_without_a_token_has_nothing_to_learn():
    found = without_degenerate([pair_of(((), "")), pair_of(((STOP,), ""))], keep_identical=True)
    assert found.kept == [pair_of(((STOP,), ""))]
    assert dict(found.dropped) == {EMPTY: 1}


def test_losses_of_single_ratios_keep_a_pair_of_equal_answers():
    pair = pair_of(((7, STOP), "w7"))
    found = without_degenerate([pair], keep_identical=True)
    assert found.kept == [pair]
    assert not found.dropped


def test_scores_go_to_the_answers_they_belong_to(random_player, tmp_path):
    """Under another iterate the opponent's scores stay; iterate 0's answer is scored as well."""
    engine, _ = random_player()
    pair = replace(pair_of(((8, STOP), "w8"), ((9, 9), "w9 w9")), first=Answer((4,), "w4", False))
    pair = replace(pair, real=replace(pair.real, opponent=-1.0))
    (found,) = score_pairs(engine, [pair], "base", Shards(tmp_path, "tag", Silent()), "score")
    singles = [Query((3,), (ids,)) for ids in ((7, STOP), (8, STOP), (9, 9), (4,))]
    expected = [sums[0] for sums in engine.score(singles)]
    assert [answer.base for answer in found.answers] == pytest.approx(expected, abs=1e-6)
    assert found.real.opponent == -1.0
    assert found.first.opponent is None


def test_a_prompt_without_iterate_0s_answer_is_named():
    first = Answer((5,), "w5", False)
    assert with_first_answers([pair_of()], {"id": first})[0].first == first
    with pytest.raises(DataError, match=r"1 of 2 prompts have none \(example lost\)"):
        with_first_answers([pair_of(), replace(pair_of(), example_id="lost")], {"id": first})


def test_the_opponents_scores_of_its_own_answers_are_those_its_generator_drew_them_with(random_player, tmp_path):
    rows = [row((3 + i, 5), (7, STOP), f"row{i}") for i in range(6)]
    pairs = play_with(random_player(), rows, tmp_path).kept
    check_sampler(pairs, "writer", 1e-4)
    off = [replace(p, generated=tuple(replace(a, opponent=a.opponent + 0.2) for a in p.generated)) for p in pairs]
    with pytest.raises(RunError, match=r"differ from its generator's by 0\.200 nats"):
        check_sampler(off, "writer", 0.1)
    check_sampler(off, "another", 0.1)  # others' answers say nothing about it


def test_writers_are_drawn_evenly_from_the_latest_iterates():
    # the third iteration's opponent is iterate 2; a history of 2 draws from iterates 1 and 2
    drawn = Counter(draw_writer(f"{i}", 3, 2, seed=0) for i in range(4000))
    assert set(drawn) == {1, 2}
    assert abs(drawn[1] - 2000) < 4 * 32  # four standard deviations of a fair coin
    assert {draw_writer(f"{i}", 3, 1, seed=0) for i in range(50)} == {2}
    assert {draw_writer(f"{i}", 2, 9, seed=0) for i in range(50)} == {0, 1}  # there are no more


def test_answers_of_somebody_else_get_the_same_room(chain_player):
    _, generator = chain_player(CHAIN)
    real, answer = row((3, 5), (9, STOP), "id"), row((3, 5), (6, 7, 8, 9, STOP))
    (whole,) = given_pairs(generator, [real], {"id": [answer]}, 8, 40, "file")
    (cut,) = given_pairs(generator, [real], {"id": [answer]}, 8, 5, "file")
    (short,) = given_pairs(generator, [real], {"id": [answer]}, 2, 40, "file")
    assert written(whole) == [((6, 7, 8, 9, STOP), True)]
    assert written(cut) == [((6, 7, 8), False)]
    assert written(short) == [((6, 7), False)]
    assert whole.writer == "file"


def test_what_a_player_wrote_before_it_learned_is_not_computed_again(tmp_path) -> None:
    frozen = Shards(tmp_path / "rounds", "tag", Silent(), frozen=True)
    with pytest.raises(RunError, match=f"the player has learned since it was written; delete {tmp_path}/checkpoints"):
        frozen.map("scores", [1], Pair, lambda part: [], "scores")
