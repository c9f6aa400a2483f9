"""Whether training moved the model at all, or too far. A run that did either says so before anything else.

A comparison of models that hardly differ says nothing about a method, and one of a model that fell apart says nothing
else. Each finding ends with a number to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spintune.report.facts import RunFacts
from spintune.results import DiagnosisFacts, HeldoutPairFacts, IterationFacts, RunResults, SftFacts

HARDLY = 0.5
"""A player that is nearer to its opponent has hardly moved; our choice. [nats per answer]"""
FAR = 0.5
"""A player that is farther from its opponent has run away; our choice. [nats per token of an answer]"""
LOST = 0.1
"""Real answers that became less likely by more are being forgotten; our choice. [nats per token]"""
LITTLE, MUCH = 0.001, 0.01
"""A held-out loss of SFT that fell by a smaller share has hardly changed; one that rose by a larger one got worse."""
HALF_DECADE = 10**0.5


def movement_of_run(run: RunFacts) -> list[str]:
    """What is wrong with how far the models of a run folder moved, as sentences; none where nothing is."""
    trained = [(one.training, one.diagnosis) for one in run.iterations if one.training]
    further = run.facts("spin/baseline-sft", SftFacts)
    return [*_sft(run.facts("sft", SftFacts)), *_self_play(trained), *_baseline(further)]


def movement(results: RunResults) -> list[str]:
    """The same of ``results.json``."""
    played = [(one, one.diagnosis) for one in results.spin]
    return [*_sft(results.sft), *_self_play(played), *_baseline(results.baseline)]


def _sft(facts: SftFacts | None) -> Iterator[str]:
    return _of_sft(facts, "SFT", "sft.learning_rate", ", use auto, or raise sft.epochs")


def _baseline(facts: SftFacts | None) -> Iterator[str]:
    return _of_sft(facts, "The baseline, more SFT,", "spin.baseline_learning_rate", ", or use auto")


def _of_sft(facts: SftFacts | None, title: str, key: str, otherwise: str) -> Iterator[str]:
    """What to say of a stage of SFT; ``otherwise`` ends the advice for one that changed nothing."""
    if facts is None or facts.start_loss is None or facts.heldout_loss is None:
        return
    start, end, rate = facts.start_loss, facts.heldout_loss, facts.learning_rate
    losses = f"its held-out loss was {start:.4f} nats a token before and is {end:.4f} after"
    if end - start > MUCH * start:
        lower = _rounded(rate / HALF_DECADE)
        yield f"{title} made the model worse: {losses}. Lower {key} from {rate:g} to {lower:g}, or use auto."
    elif start - end < LITTLE * start:
        higher = _rounded(rate * 10)
        yield f"{title} hardly changed the model: {losses}. Raise {key} from {rate:g} to {higher:g}{otherwise}."


def _self_play(iterations: Sequence[tuple[IterationFacts, DiagnosisFacts | None]]) -> Iterator[str]:
    for training, diagnosis in iterations:
        if reasons := list(_ran_away(training, diagnosis)):
            lower = _rounded(training.learning_rate / HALF_DECADE)
            yield (
                f"Iteration {training.iteration} ran away from its opponent: {'; '.join(reasons)}. Lower "
                f"spin.learning_rate from {training.learning_rate:g} to {lower:g}, or use auto."
            )
        elif training.heldout and not training.heldout.learned:
            yield _learned_nothing(training, training.heldout, diagnosis)


def _learned_nothing(training: IterationFacts, heldout: HeldoutPairFacts, diagnosis: DiagnosisFacts | None) -> str:
    rate = training.learning_rate
    loss = f"the held-out pair loss began at {heldout.start_loss:.4f} and is {heldout.loss:.4f}"
    if (divergence := _divergence(diagnosis)) is not None:
        distance, moved = divergence, f"it is {divergence:.2f} nats an answer from its opponent"
    else:
        distance = max(abs(heldout.real_ratio), abs(heldout.generated_ratio))
        moved = f"log-probabilities of answers changed by {distance:.2f} nats"
    if distance < HARDLY:
        return (
            f"Iteration {training.iteration} learned nothing, for the player hardly moved: {loss}, and {moved}. Raise "
            f"spin.learning_rate from {rate:g} to {_rounded(rate * 10):g}, or use auto; comparisons of such models say "
            "nothing about self-play."
        )
    if heldout.loss < heldout.start_loss:
        error = "" if heldout.loss_error is None else f", with a standard error of {heldout.loss_error:.2g}"
        return (
            f"Whether iteration {training.iteration} learned anything cannot be told from {heldout.pairs} held-out "
            f"pair{'s' * (heldout.pairs != 1)}: {loss}{error}. Hold out more (data.eval_fraction) to know."
        )
    return (
        f"Iteration {training.iteration} learned nothing, though the player moved: {loss}, and {moved}. Lower "
        f"spin.learning_rate from {rate:g} to {_rounded(rate / HALF_DECADE):g}, or end self-play there "
        "(spin.stop.start_loss: true)."
    )


def _ran_away(training: IterationFacts, diagnosis: DiagnosisFacts | None) -> Iterator[str]:
    """The signs of it, as phrases."""
    heldout = training.heldout
    if diagnosis:
        own, usual = diagnosis.answers, diagnosis.real.tokens
        if heldout:
            usual = max(usual, heldout.generated_tokens)
        divergence = _divergence(diagnosis)
        if divergence is not None and divergence > FAR * usual:
            yield f"it is {divergence:.1f} nats an answer away, and answers have {usual:.0f} tokens"
        if own.tokens > 2 * usual:
            yield f"its answers have {own.tokens:.0f} tokens, those it learned from at most {usual:.0f}"
        if own.repetition > diagnosis.real.repetition + 0.2:
            yield f"{own.repetition:.0%} of what it writes repeats itself"
    if heldout and heldout.real_ratio < -LOST * heldout.real_tokens:
        yield f"real answers became less likely, by {-heldout.real_ratio:.1f} nats each"


def _divergence(diagnosis: DiagnosisFacts | None) -> float | None:
    """KL(player || opponent), measured on answers of the player; None where they are no plain samples. [nats]

    ``-generated_ratio`` is no estimate of KL(opponent || player): pairs lack the answers that equal the real one.
    """
    return diagnosis.kl_opponent.mean if diagnosis and diagnosis.kl_opponent else None


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")
