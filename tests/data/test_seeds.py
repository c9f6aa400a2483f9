import json
import re
from importlib.resources import files
from itertools import combinations

TEXT = (files("spintune.data") / "builtin" / "seeds.jsonl").read_text(encoding="utf-8")
LINES = TEXT.splitlines()
SEEDS = [json.loads(line) for line in LINES]
KEYS = ["id", "name", "instruction", "instances", "is_classification"]


def tokens(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def lcs_length(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def test_there_are_175_seeds():
    assert len(SEEDS) == 175


def test_every_seed_has_the_same_keys_and_one_instance():
    for seed in SEEDS:
        assert list(seed) == KEYS
        assert len(seed["instances"]) == 1
        assert list(seed["instances"][0]) == ["input", "output"]
        assert isinstance(seed["is_classification"], bool)


def test_ids_are_numbered_in_order():
    assert [seed["id"] for seed in SEEDS] == [f"seed_{i:03d}" for i in range(175)]


def test_names_are_unique_snake_case():
    names = [seed["name"] for seed in SEEDS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in names)


def test_instructions_are_unique():
    assert len({seed["instruction"] for seed in SEEDS}) == len(SEEDS)


def test_25_seeds_are_classification_with_a_label_named_in_the_instruction():
    chosen = [seed for seed in SEEDS if seed["is_classification"]]
    assert len(chosen) == 25
    for seed in chosen:
        label = seed["instances"][0]["output"]
        assert len(label.split()) <= 2
        assert label.lower() in seed["instruction"].lower()


def test_between_40_and_80_seeds_have_no_input():
    assert 40 <= sum(seed["instances"][0]["input"] == "" for seed in SEEDS) <= 80


def test_outputs_are_trimmed_and_hold_1_to_200_words():
    for seed in SEEDS:
        output = seed["instances"][0]["output"]
        assert output == output.strip(), seed["id"]
        assert 1 <= len(output.split()) <= 200, seed["id"]


def test_no_two_instructions_reach_rouge_l_of_0_7():
    tokenised = [(seed["id"], tokens(seed["instruction"])) for seed in SEEDS]
    for (id_a, a), (id_b, b) in combinations(tokenised, 2):
        if 2 * min(len(a), len(b)) / (len(a) + len(b)) >= 0.7:
            assert 2 * lcs_length(a, b) / (len(a) + len(b)) < 0.7, (id_a, id_b)


def test_no_line_contains_chat_template_markers():
    assert not any("<|" in line or "|>" in line for line in LINES)
