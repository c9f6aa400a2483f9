"""One whole iteration of self-play, from prompts to new weights, with spintune and with what one would assemble.

    python benchmarks/pipeline.py [--prompts 32] [--new-tokens 96] [--repeats 2] [--model NAME] [--report FILE]

TRL takes part where it is installed (``pip install "spintune[benchmarks]"``). Everybody answers the same prompts, pairs
the answers with the real ones, computes the opponent's log-probabilities, and takes one optimizer step on all pairs.
Contestants, each in a process of its own, in alternating order, float32, all cores:

* spintune: its generator, engine and loop, as a recipe runs them; once more with bfloat16 products where the processor
  has them;
* TRL: transformers ``generate``, then DPOTrainer with the settings that training.py found best on such a machine
  (batch 2, sorted by length, reference log-probabilities computed beforehand, no gradient checkpointing);
* the authors' algorithm (uclaml/SPIN), written down plainly: ``generate``, then player and opponent both in memory,
  real and generated answers padded to one length in batches of 8, whole logits of both.

Answers are greedy, so that all write the same; loading models and a short warm-up of generation do not count, the first
training step does. Times count only if answers, first loss and gradient norm agree, else the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import Lab, describe, peak_memory, processor, threads
from workload import BETA, PreferencePair, Workload

Ids = list[int]
PHASES = ("generate", "score", "train")
GENERATE_BATCH = 16
"""Fastest of those that generation.py tries."""
TITLES = {
    "spintune": "spintune",
    "trl": "transformers generate and TRL",
    "authors": "the authors' algorithm",
}
BFLOAT16 = "spintune bfloat16"


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """Prompts with their real answers, the ids that end an answer, and the model's folder and shape."""
    from peer_spintune import prepare as prepare_workload

    # pairs are made here by each contestant; what prepare() lets the model write is not used
    sizes = {"rows": 1, "pairs": spec["prompts"], "answer_tokens": spec["new_tokens"]}
    whole = prepare_workload({**spec, **sizes, "seed": 0})
    whole.save(Path(spec["workload"]))
    from spintune.models.loading import load_tokenizer
    from spintune.tokens.chat import ChatRenderer

    renderer = ChatRenderer(load_tokenizer(spec["model"], cache=Path(spec["cache"])))
    return {"stop": sorted(renderer.stop_ids)}


def paired(workload: Workload, answers: list[Ids]) -> Workload:
    """The workload with these generated answers."""
    pairs = [
        PreferencePair(pair.prompt, pair.real, answer) for pair, answer in zip(workload.pairs, answers, strict=True)
    ]
    return Workload(workload.model, workload.shape, [], pairs)


def spintune(spec: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """spintune's side."""
    import torch
    from peer_spintune import measure

    from spintune.engine.logprobs import LogProbEngine
    from spintune.generation.build import build_generator
    from spintune.generation.sampling import Sampling
    from spintune.models.loading import load_model

    torch.set_num_threads(threads())
    loaded = load_model(workload.model, cache=Path(spec["cache"]), precision=spec["precision"])
    generator = build_generator(LogProbEngine(loaded.model, loaded.autocast), loaded.tokenizer, frozenset(spec["stop"]))
    prompts = [tuple(pair.prompt) for pair in workload.pairs]
    generator.generate(prompts[:2], Sampling(4, temperature=0))
    began = time.perf_counter()
    completions = generator.generate(prompts, Sampling(spec["new_tokens"], temperature=0))
    seconds = time.perf_counter() - began
    answers = [list(completion.ids) for completion in completions]
    del loaded, generator
    measured = measure(
        {**spec, "task": "spin", "steps": 1, "threads": threads(), "precision": spec["precision"]},
        paired(workload, answers),
    )
    return result(seconds, measured["score_seconds"], measured["first_seconds"], answers, measured)


def trl(spec: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """transformers and TRL."""
    from peer_trl import measure

    seconds, answers = _generate(spec, workload)
    setting = {"tuned": True, "precision": "float32", "batch": 2}
    measured = measure(
        {**spec, "task": "spin", "steps": 1, "threads": threads(), "setting": setting}, paired(workload, answers)
    )
    return result(seconds, measured["score_seconds"], measured["first_seconds"], answers, measured)


def authors(spec: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """Player and opponent side by side, as in the reference implementation: nothing is shared, cached or left out."""
    import torch
    from transformers import AutoModelForCausalLM

    seconds, answers = _generate(spec, workload)
    pairs = paired(workload, answers).pairs
    player, opponent = (AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32) for _ in range(2))
    optimizer = torch.optim.RMSprop(player.parameters(), lr=5e-7)

    def logprobs(model: Any, batch: list[PreferencePair]) -> torch.Tensor:
        """Of real answers, then of generated ones."""
        rows = [(p.prompt, answer) for side in ("real", "generated") for p in batch for answer in [getattr(p, side)]]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        answered, attended = torch.zeros(len(rows), longest), torch.zeros(len(rows), longest, dtype=torch.long)
        for row, (prompt, answer) in enumerate(rows):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            answered[row, len(prompt) : len(prompt) + len(answer)] = 1
            attended[row, : len(prompt) + len(answer)] = 1
        logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]
        token = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
        return (token * answered[:, 1:]).sum(1)

    began = time.perf_counter()
    loss = 0.0
    for batch in _batched(pairs, 8):
        with torch.no_grad():
            before_real, before_generated = logprobs(opponent, batch).chunk(2)
        real, generated = logprobs(player, batch).chunk(2)
        margin = BETA * ((real - before_real) - (generated - before_generated))
        part = -torch.nn.functional.logsigmoid(margin).sum() / len(pairs)
        part.backward()
        loss += part.item()
    norm = torch.nn.utils.clip_grad_norm_(player.parameters(), 1.0)
    optimizer.step()
    took = time.perf_counter() - began
    return result(seconds, None, took, answers, {"losses": [loss], "grad_norms": [norm.item()]})


def _batched(items: list[Any], size: int) -> list[list[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def _generate(spec: dict[str, Any], workload: Workload) -> tuple[float, list[Ids]]:
    """Answers of transformers' ``generate``, prompts sorted by length, and the seconds it took."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(threads())
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32).eval()
    prompts = [pair.prompt for pair in workload.pairs]

    def write(places: list[int], new_tokens: int) -> list[Ids]:
        model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=spec["stop"]
        )
        longest = max(len(prompts[place]) for place in places)
        padding = [longest - len(prompts[place]) for place in places]
        ids = torch.tensor([[0] * pad + prompts[place] for pad, place in zip(padding, places, strict=True)])
        mask = torch.arange(longest)[None, :] >= torch.tensor(padding)[:, None]
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=mask.long())
        return [_ended(row, spec["stop"]) for row in output[:, longest:].tolist()]

    write([0, 1], 4)
    began = time.perf_counter()
    answers: dict[int, Ids] = {}
    for places in _batched(sorted(range(len(prompts)), key=lambda place: len(prompts[place])), GENERATE_BATCH):
        answers |= dict(zip(places, write(places, spec["new_tokens"]), strict=True))
    return time.perf_counter() - began, [answers[place] for place in range(len(prompts))]


def _ended(ids: Ids, stop: Ids) -> Ids:
    """Up to the first token that ends an answer."""
    ends = [place for place, token in enumerate(ids) if token in stop]
    return ids[: ends[0] + 1] if ends else ids


def result(
    generate: float, score: float | None, train: float, answers: list[Ids], measured: dict[str, Any]
) -> dict[str, Any]:
    return {
        "seconds": {"generate": generate, "score": score, "train": train},
        "answers": answers,
        "loss": measured["losses"][0],
        "grad_norm": measured["grad_norms"][0],
        "peak_gb": peak_memory(),
    }


ROLES = {"spintune": spintune, "trl": trl, "authors": authors}


def compete(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everybody's runs, alternating."""
    lab = Lab(Path(__file__), folder)
    common = {
        "workload": str(folder / "workload.json"),
        "model": options.model,
        "data": options.data,
        "cache": str(Path.home() / ".cache" / "spintune"),
        "prompts": options.prompts,
        "new_tokens": options.new_tokens,
    }
    common |= lab.run("prepare", **common)
    everybody = {name: (name, "float32") for name in ROLES}
    if importlib.util.find_spec("trl") is None:
        print("left out: TRL, which is not installed", file=sys.stderr)
        del everybody["trl"]
    if processor()["native_bfloat16"]:
        everybody[BFLOAT16] = ("spintune", "bfloat16")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in everybody}
    for repeat in range(options.repeats):
        for name in list(everybody)[:: -1 if repeat % 2 else 1]:
            role, precision = everybody[name]
            runs[name].append(lab.run(role, precision=precision, **common))
    return {
        "machine": describe(),
        "model": options.model,
        "prompts": options.prompts,
        "new_tokens": options.new_tokens,
        "foreign_cores": lab.foreign_cores,
        "contestants": {name: _together(found) for name, found in runs.items()},
    }


def _together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    phases = {
        phase: None if runs[0]["seconds"][phase] is None else statistics.median(run["seconds"][phase] for run in runs)
        for phase in PHASES
    }
    whole = [sum(filter(None, run["seconds"].values())) for run in runs]
    together = {"seconds": phases, "whole": statistics.median(whole), "all_whole": whole}
    return {**runs[0], **together, "peak_gb": max(run["peak_gb"] for run in runs)}


def print_results(results: dict[str, Any]) -> bool:
    """Prints the table; whether all computed the same."""
    machine, everybody = results["machine"], results["contestants"]
    ours = everybody["spintune"]
    print(f"\n{results['model']}; {machine['processor']['name']}, {machine['threads']} threads")
    print(
        f"{results['prompts']} prompts, up to {results['new_tokens']} tokens each, "
        f"{sum(map(len, ours['answers']))} written"
    )
    foreign = results["foreign_cores"]
    print(f"other work: {sum(foreign) / len(foreign):.2f} cores on average, {max(foreign):.2f} at most\n")
    print("| | generate, s | score, s | train, s | whole, s | spintune is | peak GB | answers that differ | gradient |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    right = True
    for name, found in everybody.items():
        seconds = ["in training" if found["seconds"][p] is None else f"{found['seconds'][p]:.1f}" for p in PHASES]
        differing = sum(a != b for a, b in zip(found["answers"], ours["answers"], strict=True))
        print(
            f"| {TITLES.get(name, name)} | {' | '.join(seconds)} | {found['whole']:.1f} | "
            f"{found['whole'] / ours['whole']:.2f} x as fast | {found['peak_gb']:.2f} | {differing} | "
            f"{found['grad_norm']:.4f} |"
        )
        if name != BFLOAT16:
            same = abs(found["grad_norm"] / ours["grad_norm"] - 1) < 0.01 and abs(found["loss"] - ours["loss"]) < 1e-3
            right = right and not differing and same
    print("\nAll agree." if right else "\nDIFFERENT: the times above compare different things")
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default="builtin:seeds")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        spec = json.loads((options.folder / "spec.json").read_text())
        if options.role == "prepare":
            found = prepare(spec)
        else:
            found = ROLES[options.role](spec, Workload.load(Path(spec["workload"])))
        (options.folder / "result.json").write_text(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory(prefix="spintune-pipeline-") as temporary:
        results = compete(options, Path(temporary))
    if options.report:
        options.report.write_text(json.dumps(results, indent=1))
    return 0 if print_results(results) else 1


if __name__ == "__main__":
    sys.exit(main())
