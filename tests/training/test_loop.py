"""The loop: batching changes nothing, one step is AdamW's, bad numbers move nothing, a stopped run goes on exactly."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from spintune.errors import NonFiniteError, RecipeError, RunError, StorageError
from spintune.recipe import parse_recipe
from spintune.recipe.losses import LOSSES, SelfPlayLoss, register_loss
from spintune.selfplay.spin import learns_from_identical, objective_of
from spintune.training import checkpoint
from spintune.training.batches import Batches, steps_by_rows
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood, SelfPlay
from spintune.training.optimization import Optimization

NEVER = 1e9  # minutes


def weights(engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def assert_same_bits(mine, theirs) -> None:
    for name in theirs:
        assert torch.equal(mine[name], theirs[name]), name


def run(
    engine, rows, steps, objective, folder, *, minutes=NEVER, tokens=1000, rate=1e-3, on_step=None, copies=False, **more
):
    """Trains; the reports of all steps. ``more`` is of the optimization."""
    reports = []
    engine.tokens_per_forward = tokens
    train(
        engine,
        Batches(rows, steps),
        objective,
        Optimization(rate, **more),
        Checkpoints(folder, minutes, copies=copies),
        TrainingHooks(on_step=on_step or reports.append),
    )
    return reports


def without_ties(pairs):
    """Scores off by up to a hundredth of a nat: a player that equals its opponent has margins of 0, and accuracy would
    depend on the last bit of each."""
    return [
        replace(pair, real=replace(pair.real, opponent=pair.real.opponent + 0.01 * (-1) ** place))
        for place, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize("kind", ["sft", "spin"])
def test_tokens_per_forward_changes_nothing(kind, player, rows, pairs, tmp_path):
    pairs = without_ties(pairs)
    items, objective = (rows, NegativeLogLikelihood()) if kind == "sft" else (pairs, SelfPlay("logistic", 0.5))
    steps = steps_by_rows(len(items), 8, 2, seed=0)
    assert [len(step) for step in steps] == [8, 3, 8, 3]  # short last windows included
    engines, reports = [], []
    for tokens in (1, 30, 10_000):
        engine = player()
        reports.append(run(engine, items, steps, objective, tmp_path, tokens=tokens, weight_decay=0.1))
        engines.append(engine)
    for engine in engines[1:]:
        for (name, mine), theirs in zip(engine.model.named_parameters(), engines[0].model.parameters(), strict=True):
            assert (mine - theirs).abs().max() < 1e-10, name
    for mine, theirs in zip(reports[0], reports[2], strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-10)
        assert mine.facts == pytest.approx(theirs.facts, rel=1e-9, abs=1e-12)
        assert mine.tokens == theirs.tokens


def padded(rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch as everybody else builds it: padding on the right, labels of -100 where nothing is trained."""
    width = max(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    ids, mask, labels = (torch.full((len(rows), width), fill) for fill in (0, 0, -100))
    for i, row in enumerate(rows):
        tokens = [*row.prompt_ids, *row.response_ids]
        ids[i, : len(tokens)], mask[i, : len(tokens)] = torch.tensor(tokens), 1
        for j, trained in enumerate(row.trained):
            if trained:
                labels[i, len(row.prompt_ids) + j] = row.response_ids[j]
    return ids, mask, labels


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_sft_steps_are_plain_adamw_on_the_padded_batch(max_grad_norm, player, rows, tmp_path):
    steps = [[0, 3, 5, 7], [1, 2, 4]]
    engine, reference = player(), player().model
    reference.set_attn_implementation("sdpa")
    reports = run(
        engine,
        rows,
        steps,
        NegativeLogLikelihood(),
        tmp_path,
        tokens=40,
        schedule="constant",
        warmup=0.0,
        max_grad_norm=max_grad_norm,
    )
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.0)
    for step, report in zip(steps, reports, strict=True):
        ids, mask, labels = padded([rows[i] for i in step])
        output = reference(ids, attention_mask=mask, labels=labels)
        # transformers computes its loss in float32; the step needs the same one in float64
        loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        assert report.loss == pytest.approx(output.loss.item(), rel=1e-6)
        assert report.loss == pytest.approx(loss.item(), rel=1e-12)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_grad_norm or math.inf)
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-10)
        optimizer.step()
    for (name, mine), theirs in zip(engine.model.named_parameters(), reference.parameters(), strict=True):
        # torch clips to norm / (norm + 1e-6), which Adam's scale-free step all but forgets
        assert (mine - theirs).abs().max() < (1e-7 if max_grad_norm else 1e-10), name


def test_reports_count_steps_tokens_and_rates(player, rows, tmp_path):
    steps = [[0, 1], [2], [3, 4]]
    reports = run(player(), rows, steps, NegativeLogLikelihood(), tmp_path, schedule="linear", warmup=0.0)
    assert [report.step for report in reports] == [1, 2, 3]
    assert [report.learning_rate for report in reports] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert [report.tokens for report in reports] == [
        sum(len(rows[i].prompt_ids) + len(rows[i].response_ids) for i in step) for step in steps
    ]


def test_training_lowers_the_loss(player, rows, tmp_path):
    reports = run(player(), rows, [list(range(11))] * 10, NegativeLogLikelihood(), tmp_path, rate=1e-2)
    assert reports[-1].loss < 0.7 * reports[0].loss


def test_a_loss_that_is_not_finite_stops_before_weights_move(player, rows, tmp_path):
    engine = player()
    after_each_step = []
    with pytest.raises(NonFiniteError, match="step 2"):
        # weights of about 1e200 overflow in the second step
        run(
            engine,
            rows,
            [[0, 1], [2, 3], [4, 5]],
            NegativeLogLikelihood(),
            tmp_path,
            minutes=0,
            rate=1e200,
            on_step=lambda report: after_each_step.append(weights(engine)),
        )
    assert len(after_each_step) == 1
    assert_same_bits(weights(engine), after_each_step[0])
    assert all(p.grad is None or not p.grad.any() for p in engine.model.parameters())


def test_a_gradient_that_is_not_finite_stops_before_weights_move(player, rows, tmp_path):
    engine = player()
    engine.model.transformer.wte.weight.register_hook(lambda grad: grad * math.inf)
    before = weights(engine)
    with pytest.raises(NonFiniteError, match="not touched"):
        run(engine, rows, [[0, 1]], NegativeLogLikelihood(), tmp_path)
    assert_same_bits(weights(engine), before)


# --- the first loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["logistic", "hinge", "exponential", "correlation"])
def test_self_play_starts_at_the_known_value(loss, player, pairs, tmp_path):
    objective = SelfPlay(loss, 0.1)
    (report,) = run(player(), pairs, [list(range(11))], objective, tmp_path)
    assert report.loss == pytest.approx({"logistic": math.log(2)}.get(loss, 1.0), abs=1e-12)
    assert report.facts["margin"] == pytest.approx(0, abs=1e-12)


@pytest.fixture
def squared_loss():
    """A user's own loss of each ratio: (λr - μ)² + (λr' + μ)², 2μ² at the start."""

    def squared(real_ratio_D, generated_ratio_D, lambda_, mu):
        return (lambda_ * real_ratio_D - mu).square() + (lambda_ * generated_ratio_D + mu).square()

    register_loss(SelfPlayLoss("squared", squared, "ratios", 0.5, ("mu",), learns_from_identical=True))
    yield
    LOSSES.unregister("squared")


def test_a_users_own_loss_trains_by_its_name_in_a_recipe(squared_loss, player, pairs, tmp_path):
    values = {"out": "o", "model": "m", "data": {"train": "x"}, "spin": {"loss": "squared", "mu": 3.0}}
    section = parse_recipe(values, "test").spin
    assert learns_from_identical(section, 1)
    objective = objective_of(section, 1)
    assert objective.lambda_ == 0.5
    assert objective.start(pairs) == pytest.approx(18)
    reports = run(player(), pairs, [list(range(11))] * 3, objective, tmp_path)
    assert reports[0].loss == pytest.approx(18, abs=1e-12)
    assert reports[2].loss < reports[1].loss < 18
    with pytest.raises(RecipeError, match="squared reads no margin"):
        parse_recipe({**values, "spin": {"loss": "squared", "reference_mixture": 0.5}}, "test")


def test_scores_of_another_opponent_are_refused_before_weights_move(player, pairs, tmp_path):
    engine = player()
    before = weights(engine)
    # margin 1, λ = 0.1: log(1 + e^-0.1) = 0.6444 instead of 0.6931
    wrong = [replace(pair, real=replace(pair.real, opponent=pair.real.opponent - 1)) for pair in pairs]
    with pytest.raises(RunError, match=r"0\.644397 and must be 0\.693147"):
        run(engine, wrong, [[0, 1, 2]], SelfPlay("logistic", 0.1), tmp_path)
    assert_same_bits(weights(engine), before)


def test_an_error_common_to_both_scores_is_refused_though_the_loss_cannot_show_it(player, pairs, tmp_path):
    def shifted(answer):
        return replace(answer, opponent=answer.opponent - 1)

    wrong = [replace(p, real=shifted(p.real), generated=tuple(map(shifted, p.generated))) for p in pairs]
    # m = r - r' is 0 all the same, and the loss ln 2
    with pytest.raises(RunError, match=r"first real ratio is 1\.000000 and must be 0\.000000"):
        run(player(), wrong, [[0, 1, 2]], SelfPlay("logistic", 0.1), tmp_path)


def test_a_step_without_rows_leaves_the_weights_alone_and_is_not_reported(player, rows, tmp_path):
    # in the third of four steps the constant rate is the same whether or not a step before it was empty
    kept, gapped = player(), player()
    plain = {"schedule": "constant", "warmup": 0.0}
    run(kept, rows, [[0, 1], [2, 3]], NegativeLogLikelihood(), tmp_path / "kept", **plain)
    reports = run(gapped, rows, [[0, 1], [], [2, 3]], NegativeLogLikelihood(), tmp_path / "gapped", **plain)
    assert [report.step for report in reports] == [1, 3]
    assert_same_bits(weights(gapped), weights(kept))


# --- checkpoints ------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stop_at(step):
    def on_step(report):
        if report.step == step:
            raise StoppedError

    return on_step


SCHEDULE = {"schedule": "cosine", "warmup": 0.3, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("optimizer", "copies"), [("adamw", True), ("adafactor", False), ("rmsprop", False), ("muon", True)]
)
def test_a_stopped_run_goes_on_bit_for_bit(optimizer, copies, player, rows, tmp_path):
    settings = {**SCHEDULE, "optimizer": optimizer}
    steps = steps_by_rows(len(rows), 3, 2, seed=1)
    objective = NegativeLogLikelihood()
    whole = player()
    run(whole, rows, steps, objective, tmp_path / "whole", minutes=0, **settings)
    started = []
    for stop in (3, 4, 7):
        more = {**settings, "copies": copies, "on_step": stop_at(stop)}
        with pytest.raises(StoppedError):
            run(player(), rows, steps, objective, tmp_path / "parts", minutes=0, **more)
    resumed = player()
    train(
        resumed,
        Batches(rows, steps),
        objective,
        Optimization(1e-3, **settings),
        Checkpoints(tmp_path / "parts", 0),
        TrainingHooks(on_start=started.append),
    )
    assert started == [6]  # step 7 was told of, but not yet kept
    assert_same_bits(weights(resumed), weights(whole))
    # the last checkpoints hold the optimizer's state as well
    files = [sorted((tmp_path / part).rglob("*.*")) for part in ("whole", "parts")]
    assert [file.name for file in files[0]] == [
        "checkpoint.json",
        "optimizer.safetensors",
        "weights.safetensors",
    ]
    for mine, theirs in zip(*files, strict=True):
        assert mine.read_bytes() == theirs.read_bytes()


def flip(path, place=-5):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def other_step(path):
    """A changed digit, in the number that training goes on from."""
    text = path.read_text()
    assert text.count('"step": 2') == 1
    path.write_text(text.replace('"step": 2', '"step": 3'))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights.safetensors", flip),
        ("optimizer.safetensors", flip),
        ("optimizer.safetensors", lambda path: path.unlink()),
        ("checkpoint.json", other_step),
        ("checkpoint.json", lambda path: path.write_text("{")),
        ("checkpoint.json", lambda path: path.write_text("[]")),
        ("checkpoint.json", lambda path: path.write_text('{"step": 2, "sha256": []}')),
        ("checkpoint.json", lambda path: path.write_text('{"step": 2, "sha256": {}}')),
        ("checkpoint.json", lambda path: path.unlink()),
        ("", lambda path: path.rename(path.with_name("step-00000003"))),
    ],
)
def test_a_damaged_checkpoint_is_told_and_not_used(file, damage, player, rows, tmp_path, caplog):
    steps = [[0], [1], [2], [3]]
    whole = player()
    run(whole, rows, steps, NegativeLogLikelihood(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(player(), rows, steps, NegativeLogLikelihood(), tmp_path / "parts", minutes=0, on_step=stop_at(3))
    damage(tmp_path / "parts" / "step-00000002" / file)
    again = player()
    with caplog.at_level(logging.WARNING, "spintune"):
        reports = run(again, rows, steps, NegativeLogLikelihood(), tmp_path / "parts")
    assert "this checkpoint is not used" in caplog.text
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert_same_bits(weights(again), weights(whole))


def test_the_checkpoint_before_a_damaged_one_is_used(player, rows, tmp_path, monkeypatch, caplog):
    """It is there when the disk refused to delete it, which does not stop training either."""
    steps = [[0], [1], [2], [3]]

    def refuse(*arguments, **options):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(os, "rmdir", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StoppedError):
        run(player(), rows, steps, NegativeLogLikelihood(), tmp_path / "parts", minutes=0, on_step=stop_at(3))
    monkeypatch.undo()
    assert "could not be removed" in caplog.text
    flip(tmp_path / "parts" / "step-00000002" / "weights.safetensors")
    assert [report.step for report in run(player(), rows, steps, NegativeLogLikelihood(), tmp_path / "parts")] == [
        2,
        3,
        4,
    ]


def test_a_checkpoint_of_an_earlier_version_is_used(player, rows, tmp_path):
    """It has the digests of its files, and its step in its name."""
    with pytest.raises(StoppedError):
        run(player(), rows, [[0], [1], [2]], NegativeLogLikelihood(), tmp_path, minutes=0, on_step=stop_at(3))
    (path,) = tmp_path.rglob("checkpoint.json")
    facts = json.loads(path.read_text())
    del facts["digest"]
    path.write_text(json.dumps(facts))
    assert [report.step for report in run(player(), rows, [[0], [1], [2]], NegativeLogLikelihood(), tmp_path)] == [3]


def test_older_checkpoints_are_deleted_and_clear_removes_all(player, rows, tmp_path):
    folder = tmp_path / "checkpoints"
    seen = []
    run(
        player(),
        rows,
        [[0], [1], [2], [3]],
        NegativeLogLikelihood(),
        folder,
        minutes=0,
        on_step=lambda report: seen.append(sorted(path.name for path in folder.glob("*"))),
    )
    # told of a step before its checkpoint is written; the last step needs none
    assert seen == [[], ["step-00000001"], ["step-00000002"], ["step-00000003"]]
    Checkpoints(folder, 0).clear()
    assert not folder.exists()


def test_checkpoints_wait_for_their_time(player, rows, tmp_path):
    run(player(), rows, [[0], [1], [2]], NegativeLogLikelihood(), tmp_path / "checkpoints", minutes=60)
    assert not (tmp_path / "checkpoints").exists()


def test_the_first_checkpoint_comes_after_a_minute(tmp_path, monkeypatch, player):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints, model = Checkpoints(tmp_path, 10), player().model
    due = []
    for now[0] in (59.0, 60.0, 659.0, 660.0):
        due.append(checkpoints.due())
        if due[-1]:
            checkpoints.save(int(now[0]), model, torch.optim.AdamW(model.parameters()))
    assert due == [False, True, False, True]
    assert not Checkpoints(tmp_path, 0.5).due()


class Breaks(NegativeLogLikelihood):
    """Fails at the third step, as a library might."""

    calls = 0

    def __call__(self, rows, logprobs):
        self.calls += 1
        if self.calls == 3:
            raise ValueError("a library's error")
        return super().__call__(rows, logprobs)


def test_an_error_leaves_a_checkpoint_and_says_so(player, rows, tmp_path):
    steps = [[0], [1], [2], [3]]
    with pytest.raises(ValueError, match="a library's error") as caught:
        run(player(), rows, steps, Breaks(), tmp_path / "parts")
    assert caught.value.__notes__ == ["the checkpoint of step 2 is kept, and the same command goes on from it"]
    resumed, whole = player(), player()
    assert [one.step for one in run(resumed, rows, steps, NegativeLogLikelihood(), tmp_path / "parts")] == [3, 4]
    run(whole, rows, steps, NegativeLogLikelihood(), tmp_path / "whole")
    assert_same_bits(weights(resumed), weights(whole))


def test_an_error_between_two_steps_says_what_is_kept(player, rows, tmp_path):
    """Such as one of the evaluation after a step, which the same command does again."""

    def fails(report):
        if report.step == 3:
            raise ValueError("a library's error")

    with pytest.raises(ValueError, match="a library's error") as caught:
        run(player(), rows, [[0], [1], [2], [3]], NegativeLogLikelihood(), tmp_path, minutes=0, on_step=fails)
    assert caught.value.__notes__ == ["the checkpoint of step 2 is kept, and the same command goes on from it"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "bad disk")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(error, player, rows, tmp_path, monkeypatch):
    steps = [[0], [1], [2], [3]]
    written = []

    def save(tensors, path):
        written.append(path)
        if len(written) == 4:  # the optimizer of the second checkpoint
            raise error
        return save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", save)
    with pytest.raises(StorageError) as caught:
        run(player(), rows, steps, NegativeLogLikelihood(), tmp_path / "parts", minutes=0)
    assert caught.value.__notes__ == ["the checkpoint of step 1 is kept, and the same command goes on from it"]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["step-00000001"]
    monkeypatch.undo()
    resumed, whole = player(), player()
    assert [one.step for one in run(resumed, rows, steps, NegativeLogLikelihood(), tmp_path / "parts")] == [2, 3, 4]
    run(whole, rows, steps, NegativeLogLikelihood(), tmp_path / "whole")
    assert_same_bits(weights(resumed), weights(whole))
