"""Models and data of the worlds: as small as they can be, and still of every kind."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

ANSWER = "the quick brown fox jumps over the lazy dog"
ANIMALS = ("fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow", "pig", "elk")
CORPUS = [ANSWER, "user assistant system", "Say fox two times. User: Assistant:"] * 4


def build(folder: str) -> None:
    """Writes everything into ``folder``. It needs torch, so it runs in a child of the fork server."""
    place = Path(folder)
    _decoder(place / "decoder")
    _t5(place / "t5")
    rows = [
        {"instruction": f"Say {animal} {count} times.", "input": "", "output": " ".join([animal] * count)}
        for animal in ANIMALS
        for count in (1, 2, 4)
    ]
    _lines(place / "animals.jsonl", rows)
    many = [
        {"instruction": f"Say {animal} {count} times.", "output": " ".join([ANIMALS[(3 * count + number) % 10]] * 2)}
        for number, animal in enumerate(ANIMALS)
        for count in range(8)
    ]
    _lines(place / "many.jsonl", many)
    _tasks(place)
    _evaluations(place)


def _decoder(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    controls = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=controls, initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=controls[0], eos_token=controls[1], pad_token=controls[1]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{{ message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _t5(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=160,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list(string.printable.strip()),
    )
    backend.train_from_iterator(CORPUS, trainer)
    pieces = [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(4))]
    tokenizer = T5Tokenizer(vocab=[*pieces, *sentinels], extra_ids=len(sentinels))
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tasks(folder: Path) -> None:
    made = {
        "sums": ("arithmetic", [(f"{n} plus {n}", f"{n} and {n} make {2 * n}.", 2 * n) for n in range(12)]),
        "halves": ("arithmetic", [(f"half of {2 * n}", f"two times {n} is {2 * n}.", n) for n in range(12)]),
        "doubles": ("doubling", [(f"twice {n}", f"{n} and {n} make {2 * n}.", 2 * n) for n in range(12)]),
    }
    for name, (cluster, rows) in made.items():
        _lines(folder / f"{name}.jsonl", [{"question": q, "why": why, "answer": str(a)} for q, why, a in rows])
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\ncluster: {cluster}\nfamily: arithmetic\nfile: {name}.jsonl\ncheck: number\n"
            "fields: {question: question, rationale: why, answer: answer}\nphrasings: builtin:arithmetic\n"
        )


def _evaluations(folder: Path) -> None:
    rule = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    _lines(folder / "ifeval.jsonl", [{"key": n, "prompt": f"Say number {n} without commas.", **rule} for n in range(4)])
    asked = [f"Say it {n} times" for n in range(11)]
    instances = [{"input": "", "output": ANSWER}]
    _lines(
        folder / "questions.jsonl",
        [{"id": f"q{n}", "instruction": text, "instances": instances} for n, text in enumerate(asked)],
    )
    _lines(folder / "parrot.jsonl", [{"instruction": text, "input": "", "response": ANSWER} for text in asked])
    _lines(
        folder / "mt-bench.jsonl",
        [{"question_id": n, "category": "writing", "turns": [f"Write {n}", "Again"]} for n in range(2)],
    )


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
