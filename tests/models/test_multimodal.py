"""Models that also read images or sound: their text part is trained, all else is exported as it came."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoTokenizer

import spintune
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.peak import arithmetic
from spintune.engine.query import Query
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.models.architecture import text_modules
from spintune.models.loading import load_model, load_tokenizer
from spintune.models.lora import merge, new_adapter
from spintune.models.quantized import quantized_layers
from spintune.recipe import LoraSection

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EYES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_EYES = {"hidden_size": 16, "intermediate_size": 16, "out_hidden_size": 32, "depth": 1, "num_heads": 2}
QWEN_IDS = {"image_token_id": 390, "video_token_id": 391, "vision_start_token_id": 392, "vision_end_token_id": 393}


def rotary(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": list(sections), "rope_theta": 1e4}}


# the text part, the other part, the rest
KINDS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": {**EYES, "model_type": "siglip_vision_model"},
        "image_token_index": 390,
        "mm_tokens_per_image": 4,
    },
    "qwen2_vl": {
        "text_config": rotary(1, 1, 2),
        "vision_config": {"embed_dim": 16, "hidden_size": 32, "depth": 1, "num_heads": 2, "patch_size": 4},
        **QWEN_IDS,
    },
    "qwen2_5_vl": {
        "text_config": rotary(1, 1, 2),
        "vision_config": {**QWEN_EYES, "patch_size": 4, "fullatt_block_indexes": [0]},
        **QWEN_IDS,
    },
    "qwen3_vl": {
        "text_config": {"head_dim": 8, **rotary(2, 1, 1)},
        "vision_config": {
            **QWEN_EYES,
            "patch_size": 4,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        **QWEN_IDS,
    },
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": {**EYES, "model_type": "clip_vision_model"},
        "image_token_index": 390,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "head_dim": 8},
        "vision_config": {**EYES, "model_type": "pixtral"},
        "image_token_index": 390,
    },
    "qwen2_audio": {
        "text_config": {"model_type": "qwen2"},
        "audio_config": {
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "num_mel_bins": 8,
        },
        "audio_token_index": 390,
    },
}
PROCESSOR = {
    "processor_config.json": '{"processor_class": "Own",  "num": 1}',
    "preprocessor_config.json": '{"image_mean": [0.5]}\n\n',
    "video_preprocessor_config.json": '{"fps": 2}',
}


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind: random weights in bfloat16, as published, a tokenizer and files of its processor."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            tokenizer = AutoTokenizer.from_pretrained(tiny_model)
            parts = dict(KINDS[kind])
            parts["text_config"] = {**TEXT, "vocab_size": 400, **parts["text_config"]}
            config = AutoConfig.for_model(kind, **parts)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForMultimodalLM.from_config(config)
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        torch.nn.init.normal_(parameter, 0, 0.2)
            made[kind] = tmp_path_factory.mktemp(kind) / "given"
            model.to(torch.bfloat16).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
            for name, text in PROCESSOR.items():
                (made[kind] / name).write_text(text)
        return made[kind]

    return folder


def reference(folder: Path, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Log-probability by one plain call of transformers' own model, with the position ids that it makes itself."""
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_packed_rows_are_those_of_the_whole_model(kind, folders, tmp_path):
    loaded = load_model(str(folders(kind)), cache=tmp_path)
    engine = LogProbEngine(loaded.model)
    assert engine.packed
    prompt, answers = tuple(range(5, 45)), ((7, 8, 9, 10), tuple(range(60, 90)))
    first, (second, third) = engine.score([Query((3, 4), ((5, 6),)), Query(prompt, answers)])
    assert first[0] == pytest.approx(reference(folders(kind), (3, 4), (5, 6)), abs=2e-3)
    for score, answer in zip((second, third), answers, strict=True):
        assert score == pytest.approx(reference(folders(kind), prompt, answer), abs=2e-3)


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("generator", ["batch", "plain"])
def test_answers_are_those_of_greedy_steps_over_the_whole_text(kind, generator, folders, tmp_path):
    model = load_model(str(folders(kind)), cache=tmp_path).model
    tokenizer = load_tokenizer(str(folders(kind)), cache=tmp_path)
    prompts = [tuple(range(5, 25)), (9, 8, 7), tuple(range(100, 133))]  # of several lengths, one after the other
    written = build_generator(LogProbEngine(model), tokenizer, frozenset({1}), generator).generate(
        prompts, Sampling(6, temperature=0)
    )
    for prompt, completion in zip(prompts, written, strict=True):
        ids = list(prompt)
        for token in completion.ids:
            with torch.no_grad():
                assert model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax() == token
            ids.append(token)


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("gemma3", False),
        ("qwen2_5_vl", True),
        pytest.param("gemma3", True, marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", False, marks=pytest.mark.slow),
        pytest.param("llava", False, marks=pytest.mark.slow),
        pytest.param("qwen2_audio", False, marks=pytest.mark.slow),
    ],
)
def test_training_moves_the_text_part_alone_and_the_folder_stays_whole(kind, lora, folders, alpaca_file, tmp_path):
    given = folders(kind)
    spintune.run(
        {
            "out": str(tmp_path / "run"),
            "model": str(given),
            "data": {"train": str(alpaca_file), "max_length": 96, "eval_fraction": 0.0},
            "sft": {"tokens_per_step": 256, "learning_rate": 1e-3, "max_steps": 2},
            "eval": [],
            **({"lora": {"rank": 2}} if lora else {}),
        }
    )
    saved = tmp_path / "run" / "sft" / "model"
    for name, text in PROCESSOR.items():
        assert (saved / name).read_text() == text
    model = AutoModelForMultimodalLM.from_pretrained(saved)
    assert type(model).__name__ == json.loads((given / "config.json").read_text())["architectures"][0]
    before, after = load_file(given / "model.safetensors"), load_file(saved / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name].float(), after[name])}
    other = {name for name in before if not any(part in name for part in ("language_model", "lm_head", "embed_tokens"))}
    other -= {name for name in before if name.startswith(("model.layers.", "model.norm."))}  # of Qwen, as published
    assert other, sorted(before)
    assert not moved & other
    assert any("q_proj" in name for name in moved)
    assert moved >= (set() if lora else {name for name in before if "mlp.up_proj.weight" in name} - other)


def test_the_arithmetic_of_a_text_is_that_of_the_text_part(folders, tmp_path):
    whole = load_model(str(folders("gemma3")), cache=tmp_path).model
    alone = AutoModelForCausalLM.from_config(whole.config.text_config)
    assert arithmetic(whole) == arithmetic(alone)


def test_only_layers_of_the_text_part_get_an_adapter(folders, tmp_path):
    model = load_model(str(folders("gemma3")), cache=tmp_path).model
    text = set(text_modules(model))
    for targets in ("all-linear", ["q_proj"], r".*q_proj"):
        adapted = new_adapter(model, LoraSection(rank=2, targets=targets), "key")
        names = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
        assert names
        assert names <= text
        assert not any("vision" in name for name in names)
        model = merge(adapted)


def test_a_4_bit_base_leaves_what_no_text_passes_through_as_it_is(folders, tmp_path):
    pytest.importorskip("bitsandbytes")
    given = folders("gemma3")
    model = load_model(str(given), cache=tmp_path, frozen=True, base="nf4").model
    packed = set(quantized_layers(model))
    assert packed
    assert packed < set(text_modules(model))
    merged = merge(new_adapter(model, LoraSection(rank=2, base="nf4"), "key")).state_dict()
    plain = load_model(str(given), cache=tmp_path).model.state_dict()
    assert plain.keys() == merged.keys()
    changed = {key.removesuffix(".weight") for key, tensor in plain.items() if not torch.equal(tensor, merged[key])}
    assert changed == packed


def test_a_template_beside_the_tokenizer_is_found_and_kept(folders, tmp_path):
    import shutil

    given = tmp_path / "given"
    shutil.copytree(folders("gemma3"), given)
    (given / "chat_template.jinja").rename(tmp_path / "template")
    template = (tmp_path / "template").read_text()
    (given / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(str(given), cache=tmp_path).chat_template == template
    assert load_model(str(given), cache=tmp_path).tokenizer.chat_template == template
