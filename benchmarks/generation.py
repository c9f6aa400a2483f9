"""Lets one model answer the same prompts with spintune and with the engines one would use instead, and times them.

    python benchmarks/generation.py [--prompts 128] [--new-tokens 128] [--repeats 3] [--quick] [--report FILE]

Needs ``pip install "spintune[benchmarks]"``, and takes in ``ctranslate2`` and ``llama-cpp-python`` where they are
installed. Contestants, each in a process of its own, in alternating order, with the same weights in float32, all cores:

* spintune: its generator as recipes use it; on a processor that multiplies bfloat16 natively once more in bfloat16;
* transformers ``generate``: prompts sorted by length and padded on the left, the fastest batch size of those tried;
* transformers ``generate_batch``, its continuous batching, with the fastest number of tokens a call of those tried;
  one run, for on a CPU every token attends under a mask over all sequences;
* CTranslate2: its own batching, with the fastest batch size and vector width of those that the processor has;
* llama.cpp: all sequences in one batch of its own interface, one token each a call; the fastest number at once.

Everybody writes exactly ``--new-tokens`` tokens to each prompt, greedily; no token ends an answer. What is timed is the
whole of it, prompts included, after a warm-up. Settings are sought with a quarter of the tokens; those that do not run
here drop out and are named. Times count only if the tokens agree: where an answer differs from spintune's float32, both
tokens at the first difference must be equally likely to 0.01 nats in a plain float64 forward, and the exit code is 1
when they are not (bfloat16 is only counted).

The limit follows from counts. Operations: 2 for each weight of the layers and each token read, 2 for each weight of the
head and each token written, 4 for each layer, unit of the query heads' width and visible pair of tokens; the prompts'
common beginning once. Bytes: for each new token of all sequences together every weight once, and for each sequence its
keys and values once. Divided by the measured rates of matrix products and of reading memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import Lab, RoleError, describe, peak_memory, processor, threads

Ids = list[int]
WARM_UP_TOKENS = 4
NEARLY = 1e-2
"""Nats by which two tokens may differ that rounding decides between: llama.cpp's moves logits by some 1e-3."""
ONCE = ("generate_batch",)
PEERS = {
    "generate": ("transformers", [{"batch": batch} for batch in (16, 32, 64, 128)]),
    "generate_batch": ("transformers", [{"tokens": tokens} for tokens in (64, 256)]),
    "ctranslate2": (
        "ctranslate2",
        [{"batch": batch, "isa": isa} for batch in (32, 64, 128) for isa in ("AVX2", "AVX512")],
    ),
    "llama_cpp": ("llama_cpp", [{"batch": batch} for batch in (32, 64, 128)]),
}
"""Package that a peer needs, and settings that are tried."""
TITLES = {
    "spintune": "spintune",
    "generate": "transformers generate",
    "generate_batch": "transformers generate_batch",
    "ctranslate2": "CTranslate2",
    "llama_cpp": "llama.cpp",
}


def prepare(spec: dict[str, Any]) -> dict[str, Any]:
    """The prompts as ids, the model's folder and shape, and the same weights in the formats of the peers."""
    from spintune.data.sources import Source, read_sources
    from spintune.models.loading import load_model, locate_model

    cache = Path(spec["cache"])
    loaded = load_model(spec["model"], cache=cache, precision="float32")
    renderer = loaded.renderer("tokenizer")
    examples = read_sources([Source(spec["data"])], seed=0).examples
    prompts = [list(renderer.prompt(example.prompt)) for example in examples[: spec["prompts"]]]
    if len(prompts) < spec["prompts"]:
        raise SystemExit(f"{spec['data']} has {len(prompts)} examples; lower --prompts or give --data")
    folder, files = spec["formats"], {}
    model, _ = locate_model(spec["model"], cache)
    if "ctranslate2" in spec["peers"]:
        from ctranslate2.converters import TransformersConverter

        files["ctranslate2"] = TransformersConverter(model).convert(f"{folder}/ctranslate2")
    if "llama_cpp" in spec["peers"]:
        files["llama_cpp"] = write_gguf(loaded.model, f"{folder}/model.gguf")
    config = loaded.model.config
    head = loaded.model.get_output_embeddings().weight.numel()
    matrices = sum(p.numel() for name, p in loaded.model.named_parameters() if p.ndim == 2 and "embed" not in name)
    tied = loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    return {
        "prompts": prompts,
        "model": model,
        "files": files,
        "shape": {
            "layers": config.num_hidden_layers,
            "attention_width": config.num_attention_heads * config.head_dim,
            "cache_width": 2 * config.num_key_value_heads * config.head_dim,
            "body": matrices - (0 if tied else head),
            "head": head,
        },
    }


def write_gguf(model: Any, path: str) -> str:
    """A Llama's weights in float32 for llama.cpp, without a vocabulary: it is given ids."""
    import gguf

    config = model.config
    if config.model_type != "llama":
        raise SystemExit(f"llama.cpp is compared on models of the Llama kind, not {config.model_type}")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.float().numpy()
        for kind, count in heads.items():
            if kind in name:
                # llama.cpp turns neighbours, transformers halves
                halves = weight.reshape(count, 2, config.head_dim // 2, -1)
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def timed(spec: dict[str, Any], write: Callable[[list[Ids], int], list[Ids]]) -> dict[str, Any]:
    """Times ``write(prompts, new tokens)`` after a warm-up."""
    prompts = spec["prompts"]
    write(prompts[:2], WARM_UP_TOKENS)
    started = time.perf_counter()
    answers = write(prompts, spec["new_tokens"])
    seconds = time.perf_counter() - started
    if any(len(answer) != spec["new_tokens"] for answer in answers) or len(answers) != len(prompts):
        raise SystemExit("not everything was written")
    return {"seconds": seconds, "answers": answers, "peak_gb": peak_memory()}


def spintune(spec: dict[str, Any]) -> dict[str, Any]:
    """spintune's side."""
    import torch

    from spintune.engine.logprobs import LogProbEngine
    from spintune.generation.build import build_generator
    from spintune.generation.sampling import Sampling
    from spintune.models.loading import load_model

    torch.set_num_threads(threads())
    loaded = load_model(spec["model"], cache=Path(spec["folder"]), precision=spec["precision"])
    generator = build_generator(LogProbEngine(loaded.model, loaded.autocast), loaded.tokenizer, frozenset())

    def write(prompts: list[Ids], new_tokens: int) -> list[Ids]:
        completions = generator.generate([tuple(prompt) for prompt in prompts], Sampling(new_tokens, temperature=0))
        return [list(completion.ids) for completion in completions]

    return timed(spec, write)


def generate(spec: dict[str, Any]) -> dict[str, Any]:
    """``generate`` of transformers on padded batches."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(threads())
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32).eval()

    def write(prompts: list[Ids], new_tokens: int) -> list[Ids]:
        config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=None)
        # or the checkpoint's own would be filled in
        model.generation_config = config
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        answers: list[Ids] = [[] for _ in prompts]
        for begin in range(0, len(order), spec["batch"]):
            places = order[begin : begin + spec["batch"]]
            longest = max(len(prompts[place]) for place in places)
            padding = [longest - len(prompts[place]) for place in places]
            ids = torch.tensor([[0] * pad + prompts[place] for pad, place in zip(padding, places, strict=True)])
            mask = torch.arange(longest)[None, :] >= torch.tensor(padding)[:, None]
            with torch.inference_mode():
                output = model.generate(ids, attention_mask=mask.long())
            for place, row in zip(places, output[:, longest:].tolist(), strict=True):
                answers[place] = row
        return answers

    return timed(spec, write)


def generate_batch(spec: dict[str, Any]) -> dict[str, Any]:
    """transformers' continuous batching; ``tokens`` a call at most."""
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    torch.set_num_threads(threads())
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32, attn_implementation="sdpa").eval()

    def write(prompts: list[Ids], new_tokens: int) -> list[Ids]:
        page = 32
        pages = sum(-(-(len(prompt) + new_tokens + 1) // page) for prompt in prompts)
        outputs = model.generate_batch(
            prompts,
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=-1
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=page, num_blocks=pages + len(prompts), max_batch_tokens=spec["tokens"]
            ),
            progress_bar=False,
        )
        # their order is that of the requests' names, which count up
        done = sorted(outputs.items(), key=lambda item: int(item[0].rsplit("_", 1)[1]))
        return [list(output.generated_tokens) for _, output in done]

    return timed(spec, write)


def ctranslate2(spec: dict[str, Any]) -> dict[str, Any]:
    """CTranslate2; ``batch`` sequences at once."""
    os.environ["CT2_FORCE_CPU_ISA"] = spec["isa"]
    import ctranslate2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    generator = ctranslate2.Generator(
        spec["files"]["ctranslate2"], device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads()
    )

    def write(prompts: list[Ids], new_tokens: int) -> list[Ids]:
        results = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(prompt) for prompt in prompts],
            max_batch_size=spec["batch"],
            beam_size=1,
            sampling_topk=1,
            max_length=new_tokens,
            end_token=[],
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in results]

    return timed(spec, write)


def llama_cpp(spec: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp through the C interface that its Python package wraps; ``batch`` sequences at once."""
    import llama_cpp as llama
    import numpy as np

    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(spec["files"]["llama_cpp"].encode(), llama.llama_model_default_params())
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    room = max(map(len, spec["prompts"])) + spec["new_tokens"]
    settings = llama.llama_context_default_params()
    settings.n_seq_max = spec["batch"]
    settings.n_ctx = -(-room // 256) * 256 * spec["batch"]
    settings.n_batch = 2048
    settings.n_threads = settings.n_threads_batch = threads()
    settings.type_k = settings.type_v = llama.GGML_TYPE_F32
    context = llama.llama_init_from_model(model, settings)
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(settings.n_batch, 0, 1)

    def decode(pieces: Sequence[tuple[int, int, Ids]]) -> list[int]:
        """The likeliest token behind each (sequence, first position, ids)."""
        last, row = [], 0
        for sequence, begin, ids in pieces:
            for place, token in enumerate(ids):
                batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, begin + place, 1
                batch.seq_id[row][0], batch.logits[row] = sequence, place == len(ids) - 1
                row += 1
            last.append(row - 1)
        batch.n_tokens = row
        if llama.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not decode")
        logits = (llama.llama_get_logits_ith(context, row) for row in last)
        return [int(np.ctypeslib.as_array(row, (vocabulary,)).argmax()) for row in logits]

    def write(prompts: list[Ids], new_tokens: int) -> list[Ids]:
        answers: list[Ids] = []
        for begin in range(0, len(prompts), spec["batch"]):
            part = prompts[begin : begin + spec["batch"]]
            llama.llama_memory_clear(memory, True)
            written: list[Ids] = []
            waiting = list(enumerate(part))
            while waiting:
                fitting, tokens = [], 0
                while waiting and tokens + len(waiting[0][1]) <= settings.n_batch:
                    sequence, ids = waiting.pop(0)
                    tokens += len(ids)
                    fitting.append((sequence, 0, ids))
                written.extend([token] for token in decode(fitting))
            for step in range(new_tokens - 1):
                pieces = [(i, len(prompt) + step, written[i][-1:]) for i, prompt in enumerate(part)]
                for ids, token in zip(written, decode(pieces), strict=True):
                    ids.append(token)
            answers.extend(written)
        return answers

    return timed(spec, write)


def rates(_: dict[str, Any]) -> dict[str, float]:
    """FLOP/s of matrix products by the faster of torch's two libraries, bytes/s of reading memory; best of 20."""
    import torch

    torch.set_num_threads(threads())

    def best(call: Callable[[], object]) -> float:
        call()
        begins = [time.perf_counter()]
        for _ in range(20):
            call()
            begins.append(time.perf_counter())
        return min(end - begin for begin, end in itertools.pairwise(begins))

    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = torch.randn(512, 1024).to(dtype), torch.randn(2048, 1024).to(dtype)
        with torch.inference_mode():
            calls: list[Callable[[], object]] = [lambda a=a, b=b: torch.nn.functional.linear(a, b)]
            if torch.backends.mkldnn.is_available() and dtype == torch.float32:
                packed = torch.ops.mkldnn._reorder_linear_weight(b)
                calls.append(
                    lambda a=a, packed=packed: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")
                )
            found[name] = 2 * 512 * 1024 * 2048 / min(best(call) for call in calls)
    memory = torch.ones(2**28)
    found["bandwidth"] = memory.numel() * 4 / best(memory.sum)
    return found


def compare(spec: dict[str, Any]) -> dict[str, Any]:
    """For each contestant: answers that differ, and the widest gap [nats] between the tokens where one first does."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float64).eval()
    found = {}
    for name, answers in spec["answers"].items():
        gaps = []
        for prompt, mine, theirs in zip(spec["prompts"], spec["reference"], answers, strict=True):
            place = next((i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), None)
            if place is None:
                continue
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + mine[:place]])).logits[0, -1]
            gaps.append(float((logits[mine[place]] - logits[theirs[place]]).abs()))
        found[name] = {"differing": len(gaps), "widest_gap": max(gaps, default=0.0)}
    return found


ROLES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prepare": prepare,
    "rates": rates,
    "compare": compare,
    "spintune": spintune,
    "generate": generate,
    "generate_batch": generate_batch,
    "ctranslate2": ctranslate2,
    "llama_cpp": llama_cpp,
}


def counts(prompts: Sequence[Ids], new_tokens: int, shape: dict[str, int], precision: str) -> dict[str, float]:
    """Operations and bytes that nobody can do without, if all sequences run at once. See the module's text."""
    shared = next((i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1), 0)
    shared = min(shared, min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
    totals = [len(prompt) + new_tokens - 1 for prompt in prompts]
    # the last token written is not read again
    read = shared + sum(total - shared for total in totals)
    visible = sum(total * (total + 1) // 2 for total in totals) - (len(prompts) - 1) * shared * (shared + 1) // 2
    cached = sum(len(prompt) + step for prompt in prompts for step in range(1, new_tokens))
    size = 4 if precision == "float32" else 2
    return {
        "operations": 2 * shape["body"] * read
        + 2 * shape["head"] * len(prompts) * new_tokens
        + 4 * shape["layers"] * shape["attention_width"] * visible,
        "bytes": size
        * ((shape["body"] + shape["head"]) * new_tokens + shape["layers"] * shape["cache_width"] * cached),
    }


def search(
    lab: Lab, role: str, settings: Sequence[dict[str, Any]], common: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The settings with their seconds for a quarter of the tokens, fastest first; and those that cannot run here."""
    few = max(1, common["new_tokens"] // 4)
    tried, dropped = [], []
    for setting in settings:
        try:
            run = lab.run(role, **{**common, "new_tokens": few}, **setting)
        except RoleError as error:
            print(f"{error}; setting left out", file=sys.stderr)
            dropped.append(f"{TITLES[role]} with {', '.join(f'{key} {value}' for key, value in setting.items())}")
            continue
        tried.append({**setting, "seconds": run["seconds"]})
    return sorted(tried, key=lambda setting: setting["seconds"]), dropped


def compete(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that was measured."""
    began = time.monotonic()
    lab = Lab(Path(__file__), folder)
    installed = [name for name, (package, _) in PEERS.items() if importlib.util.find_spec(package)]
    installed = [name for name in installed if name not in arguments.without]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spintune"
    wanted = {"model": arguments.model, "data": arguments.data, "prompts": arguments.prompts, "cache": str(cache)}
    prepared = lab.run("prepare", **wanted, formats=str(folder), peers=installed)
    shape, prompts = prepared.pop("shape"), prepared["prompts"]
    common = {**prepared, "new_tokens": arguments.new_tokens}
    first_rates = lab.run("rates")

    searched, left_out = {}, [TITLES[name] for name in PEERS if name not in installed]
    for name in installed:
        settings = PEERS[name][1]
        # a batch that takes everything is enough
        enough = [setting for setting in settings if setting.get("batch", 1) < 2 * len(prompts)] or settings[:1]
        searched[name], dropped = search(lab, name, enough[-2:] if arguments.quick else enough, common)
        left_out += dropped
    everybody: dict[str, tuple[str, dict[str, Any]]] = {"spintune": ("spintune", {"precision": "float32"})}
    if processor()["native_bfloat16"]:
        everybody["spintune bfloat16"] = ("spintune", {"precision": "bfloat16"})
    for name in [name for name in installed if searched[name]]:
        best = {key: value for key, value in searched[name][0].items() if key != "seconds"}
        everybody[name] = (name, best)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in everybody}
    for repeat in range(arguments.repeats):
        for name in list(everybody) if repeat % 2 == 0 else list(everybody)[::-1]:
            if name in ONCE and repeat:
                continue
            role, setting = everybody[name]
            runs[name].append(lab.run(role, **common, **setting))

    answers = {name: runs[name][0]["answers"] for name in runs}
    checked = lab.run("compare", **prepared, reference=answers["spintune"], answers=answers)
    last_rates = lab.run("rates")
    best_rates = {name: max(first_rates[name], last_rates[name]) for name in first_rates}
    written = len(prompts) * arguments.new_tokens
    contestants = {}
    for name, (role, setting) in everybody.items():
        precision = setting.get("precision", "float32")
        need = counts(prompts, arguments.new_tokens, shape, precision)
        seconds = statistics.median(run["seconds"] for run in runs[name])
        contestants[name] = {
            "title": TITLES[role] + (" bfloat16" if precision == "bfloat16" else ""),
            "setting": {key: value for key, value in setting.items() if key != "precision"},
            "precision": precision,
            "seconds": seconds,
            "all_seconds": [run["seconds"] for run in runs[name]],
            "tokens_per_second": written / seconds,
            "peak_gb": max(run["peak_gb"] for run in runs[name]),
            "share_of_products": need["operations"] / seconds / best_rates[precision],
            "share_of_bandwidth": need["bytes"] / seconds / best_rates["bandwidth"],
            **checked[name],
        }
    need = counts(prompts, arguments.new_tokens, shape, "float32")
    return {
        "machine": describe(),
        "model": arguments.model,
        "data": arguments.data,
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "new_tokens": arguments.new_tokens,
        "written": written,
        "rates": best_rates,
        "counts": need,
        "limits": {
            "by operations": written * best_rates["float32"] / need["operations"],
            "by bytes": written * best_rates["bandwidth"] / need["bytes"],
        },
        "left_out": left_out,
        "searched": searched,
        "contestants": contestants,
        "foreign_cores": lab.foreign_cores,
        "minutes": (time.monotonic() - began) / 60,
    }


def print_results(results: dict[str, Any]) -> bool:
    """Prints the table; whether all wrote the same."""
    machine, measured, limits = results["machine"], results["rates"], results["limits"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"\n{results['model']} on {results['data']}; {machine['processor']['name']}, {machine['threads']} threads")
    print(f"{versions}, Python {machine['python']}")
    print(
        f"{results['prompts']} prompts of {results['prompt_tokens']} tokens together, {results['new_tokens']} new "
        f"tokens each: {results['counts']['operations'] / 1e12:.2f} TFLOP, {results['counts']['bytes'] / 1e9:.0f} GB"
    )
    print(
        f"matrix products {measured['float32'] / 1e9:.0f} GFLOP/s (bfloat16 {measured['bfloat16'] / 1e9:.0f}), memory "
        f"{measured['bandwidth'] / 1e9:.0f} GB/s: at most {limits['by operations']:.0f} tokens/s by operations, "
        f"{limits['by bytes']:.0f} by bytes\n"
    )
    everybody = results["contestants"]
    header = ["", "seconds", "tokens/s", "spintune is", "peak GB", "of products", "of memory", "answers that differ"]
    rows = [header, ["---"] * len(header)]
    for contestant in everybody.values():
        setting = ", ".join(f"{key} {value}" for key, value in contestant["setting"].items())
        rows.append(
            [
                contestant["title"] + (f" ({setting})" if setting else ""),
                f"{contestant['seconds']:.1f}",
                f"{contestant['tokens_per_second']:.0f}",
                f"{contestant['seconds'] / everybody['spintune']['seconds']:.2f} x as fast",
                f"{contestant['peak_gb']:.2f}",
                f"{100 * contestant['share_of_products']:.0f} %",
                f"{100 * contestant['share_of_bandwidth']:.0f} %",
                f"{contestant['differing']}, by {contestant['widest_gap']:.1e} nats at most",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    if results["left_out"]:
        print(f"left out: {', '.join(results['left_out'])}")
    foreign = results["foreign_cores"]
    print(
        f"\nother work on the machine: {sum(foreign) / len(foreign):.2f} cores on average, {max(foreign):.2f} at most"
    )
    if max(foreign) > 0.2:
        print("these times are DISTURBED by other work; measure again on a quiet machine")
    wrong = [
        contestant["title"]
        for contestant in everybody.values()
        if contestant["precision"] == "float32" and contestant["widest_gap"] > NEARLY
    ]
    print(f"WRONG tokens: {', '.join(wrong)}" if wrong else "All agree.")
    print(f"{results['minutes']:.0f} minutes")
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="alias or folder")
    parser.add_argument("--data", default="builtin:seeds", help="builtin:NAME or a file that spintune reads")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128, help="written to each prompt")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contestant")
    parser.add_argument("--quick", action="store_true", help="32 prompts, 32 tokens, one run: does it work?")
    parser.add_argument("--without", default="", type=lambda text: text.split(","), help=f"of {','.join(PEERS)}")
    parser.add_argument("--report", type=Path, help="file for everything that was measured")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        spec = json.loads((arguments.folder / "spec.json").read_text())
        (arguments.folder / "result.json").write_text(json.dumps(ROLES[arguments.role](spec)))
        return 0
    if arguments.quick:
        arguments.prompts, arguments.new_tokens, arguments.repeats = 32, 32, 1
    if min(arguments.prompts, arguments.new_tokens, arguments.repeats) < 1:
        parser.error("--prompts, --new-tokens and --repeats are at least 1")
    if unknown := set(arguments.without) - {*PEERS, ""}:
        parser.error(f"--without takes {', '.join(PEERS)}, not {', '.join(unknown)}")
    if not arguments.data.startswith("builtin:"):
        arguments.data = str(Path(arguments.data).resolve())
    if Path(arguments.model).is_dir():
        arguments.model = str(Path(arguments.model).resolve())
    with tempfile.TemporaryDirectory(prefix="spintune-benchmark-") as temporary:
        results = compete(arguments, Path(temporary))
    if arguments.report:
        arguments.report.write_text(json.dumps(results, indent=1))
    return 0 if print_results(results) else 1


if __name__ == "__main__":
    sys.exit(main())
