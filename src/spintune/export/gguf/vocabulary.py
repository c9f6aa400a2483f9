"""A tokenizer as a GGUF file holds it: pieces, their kinds, and how they are put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from spintune.errors import ModelError
from spintune.export.gguf.pretokenizers import rule_name
from spintune.tokens.chat_template import template_errors
from spintune.tokens.templates import with_fixed_date
from spintune.typed_json import JsonObject

_SPACE = "▁"
_KEEPING_IN_PHI3 = {"<unk>", "<s>", "<|endoftext|>"}
_BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(256)}


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a vocabulary by id.

    Attributes:
        model: "gpt2" for bytes and merges, "llama" for SentencePiece's.
        rule: name of the pre-tokenizer.
        merges: pairs in order; empty for SentencePiece's, which have scores.
        space_first: a space is put before a text.
        family: what the name of a file must hold for llama.cpp to treat its tokens as they are.
    """

    model: str
    rule: str
    tokens: list[str]
    types: list[TokenType]
    merges: list[str]
    scores: list[float]
    space_first: bool = False
    family: str = ""


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer, filled up to the rows of the embeddings.

    Raises ModelError where llama.cpp would cut texts otherwise, or is not known not to.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, which GGUF is made from")
    content = json.loads(backend.to_str())
    model = content["model"]
    unknown = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model["type"] != "BPE" or unknown:
        raise ModelError(
            f"its tokenizer ({', '.join([model['type'], *unknown])}) cannot be written to GGUF; byte-level BPE and "
            "SentencePiece's BPE can"
        )
    family = _stripping_family(content["added_tokens"], str(tokenizer.chat_template or ""))
    tokens, types = _pieces(content, rows)
    if model.get("byte_fallback"):
        space_first = _sentencepiece_space(content, tokenizer)
        return Vocabulary("llama", "default", tokens, types, [], _scores(model, tokens), space_first, family)
    normalizer = content["normalizer"]
    if normalizer is not None and not (
        normalizer["type"] == "NFC" or normalizer == {"type": "Sequence", "normalizers": []}
    ):
        raise ModelError(
            f"its tokenizer rewrites texts ({normalizer['type']}) as llama.cpp does not; not exported to GGUF"
        )
    rule = rule_name(content["pre_tokenizer"], bool(model.get("ignore_merges")))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return Vocabulary("gpt2", rule, tokens, types, merges, [], family=family)


def _pieces(content: JsonObject, rows: int) -> tuple[list[str], list[TokenType]]:
    """Texts and kinds of all ids; ids without a text are unused."""
    model, added = content["model"], {one["id"]: one for one in content["added_tokens"]}
    by_id = {id: text for text, id in model["vocab"].items()} | {id: one["content"] for id, one in added.items()}
    if max(by_id) >= rows:
        raise ModelError(f"its tokenizer has {max(by_id) + 1} tokens and its embeddings {rows} rows; not exported")
    fallback = bool(model.get("byte_fallback"))
    tokens, types = [], []
    for id in range(rows):
        text = by_id.get(id)
        tokens.append(f"[PAD{id}]" if text is None else text)
        if text is None:
            types.append(TokenType.UNUSED)
        elif text == model.get("unk_token") and fallback:
            types.append(TokenType.UNKNOWN)
        elif id in added:
            types.append(TokenType.CONTROL if added[id]["special"] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.BYTE if fallback and text in _BYTE_PIECES else TokenType.NORMAL)
    return tokens, types


def _stripping_family(added: list[JsonObject], template: str) -> str:
    """The family in which llama.cpp has tokens take away the white space behind them; "" where none does.

    Raises ModelError where tokens of the chat template do so otherwise.
    """
    stripping = [one["content"] for one in added if one["lstrip"] or one["rstrip"]]
    written = [text for text in stripping if text in template]
    if not written:
        return ""
    others = {one["content"] for one in added} - set(stripping)
    if others == _KEEPING_IN_PHI3 and "</s>" in stripping and not any(one["lstrip"] for one in added):
        return "phi-3"
    raise ModelError(
        f"its token {written[0]} takes away white space beside it, as it does not in llama.cpp; not exported to GGUF"
    )


def _scores(model: JsonObject, tokens: list[str]) -> list[float]:
    """What is merged first has the highest score. Raises ModelError where an order of pairs is none of pieces."""
    pairs = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    ranks: dict[str, int] = {}
    last = ""
    for first, second in pairs:
        piece = first + second
        if piece != last and piece in ranks:
            raise ModelError("its merges are no order of pieces, which SentencePiece's are in GGUF; not exported")
        ranks.setdefault(piece, len(ranks))
        last = piece
    merged, vocabulary = set(pairs), model["vocab"]
    for piece, rank in ranks.items():
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair not in merged and all(part in ranks or len(part) == 1 for part in pair) and _both(pair, vocabulary):
                raise ModelError(f"its tokenizer never joins {pair}, which llama.cpp would ({rank}); not exported")
    return [float(-ranks[token]) if token in ranks else -1e6 for token in tokens]


def _both(pair: tuple[str, str], vocabulary: JsonObject) -> bool:
    return pair[0] in vocabulary and pair[1] in vocabulary


def _sentencepiece_space(content: JsonObject, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a space is put before each text. Raises ModelError for another way of handling spaces."""
    steps = _flat(content["normalizer"], "normalizers")
    cuts = _flat(content["pre_tokenizer"], "pretokenizers")
    prepends = [one for one in steps if one["type"] == "Prepend"]
    replaces = [one for one in steps if one["type"] == "Replace"]
    if len(prepends) + len(replaces) != len(steps) or any(one["pattern"] != {"String": " "} for one in replaces):
        raise ModelError("its tokenizer rewrites texts as llama.cpp does not; not exported to GGUF")
    metaspace = [one for one in cuts if one["type"] == "Metaspace"]
    inert = [one for one in cuts if one["type"] == "Split" and one["pattern"] == {"String": " "} and replaces]
    if (
        len(metaspace) + len(inert) != len(cuts)
        or not (metaspace or replaces)
        or any(one["split"] for one in metaspace)
    ):
        raise ModelError("its tokenizer cuts texts as llama.cpp does not; not exported to GGUF")
    scheme = metaspace[0]["prepend_scheme"] if metaspace else "always" if prepends else "never"
    if scheme == "first":
        # llama.cpp puts one behind every control token, or nowhere; conversations that begin with one need nowhere
        return not _begins_with_control(tokenizer)
    return bool(scheme == "always")


def _begins_with_control(tokenizer: PreTrainedTokenizerBase) -> bool:
    if tokenizer.convert_ids_to_tokens(_first_of_a_prompt(tokenizer)) in tokenizer.all_special_tokens:
        return True
    raise ModelError(
        "its tokenizer puts a space before the first word only, as llama.cpp does not; not exported to GGUF"
    )


def _flat(step: JsonObject | None, key: str) -> list[JsonObject]:
    if step is None:
        return []
    return [inner for one in step[key] for inner in _flat(one, key)] if step["type"] == "Sequence" else [step]


def vocabulary_fields(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a vocabulary, the ids with a meaning, and the chat template."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_first)
    else:
        writer.add_token_merges(vocabulary.merges)
    named = {
        "bos": (tokenizer.bos_token_id, writer.add_bos_token_id),
        "eos": (tokenizer.eos_token_id, writer.add_eos_token_id),
        "unk": (tokenizer.unk_token_id, writer.add_unk_token_id),
        "pad": (tokenizer.pad_token_id, writer.add_pad_token_id),
    }
    for id, add in named.values():
        if id is not None:
            add(id)
    writer.add_add_bos_token(begins_itself(tokenizer))
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(default_template(tokenizer))


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that is used where none is named."""
    own = tokenizer.chat_template
    return str(own["default"] if isinstance(own, dict) else own)


def begins_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether llama.cpp is to put the first token before a text: as this does, and prompts of the template have it.

    llama.cpp takes it off a prompt that has it already.
    """
    first = tokenizer.bos_token_id
    if first is None or tokenizer("a")["input_ids"][:1] != [first]:
        return False
    if not tokenizer.chat_template:
        return True
    return _first_of_a_prompt(tokenizer) == first


def _first_of_a_prompt(tokenizer: PreTrainedTokenizerBase) -> int:
    text = render_chat(tokenizer, [{"role": "user", "content": "a"}], False)
    return int(tokenizer(text, add_special_tokens=False)["input_ids"][0])


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], generation: bool) -> str:
    """A conversation as the chat template in a GGUF file writes it, with or without the generation prompt.

    Raises RefusedError when the template refuses the conversation, and ModelError when it fails.
    """
    with template_errors("the model"):
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=with_fixed_date(default_template(tokenizer)),
            tokenize=False,
            add_generation_prompt=generation,
        )
    return str(text)
