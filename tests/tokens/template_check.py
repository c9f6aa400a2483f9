"""Holds chat templates against ``apply_chat_template``: python tests/tokens/template_check.py FOLDER [OPTIONS].

FOLDER holds .jinja files. Each is given a tokenizer that has the template's marks as special tokens. Conversations of
several kinds are then written twice: by the renderer, and by transformers alone (the generation prompt as text, and
what the whole conversation adds to it, each encoded by the tokenizer). A kind is

right       both give the same tokens, the prompt is the generation prompt, and the row ends with the end of the turn
differs     the row is the generation prompt and the answer, but the template itself never writes the two together
            (it leaves out the block of reasoning that its generation prompt opens, or writes other white space)
refused     one line says why
WRONG       anything else

The kind ``marks`` is another check: a question that spells every mark of the template must give no more of their tokens
than a harmless one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from spintune.cli.options import options_from
from spintune.errors import DataError, ModelError
from spintune.records import Example, Message, ToolCall
from spintune.tokens.chat import ChatRenderer
from spintune.tokens.template_options import TemplateOptions

MARKS = re.compile(
    r"<\|[^|<>\s{}]{1,40}\|?>|<[a-z_]{1,20}\|>|<｜[^｜\s]{1,40}｜>|</?[a-z_:]{1,20}>|\[/?[A-Z_]{3,20}\]|\[\|[a-z]{1,20}\|\]"
    r"|<(?:start|end)_of_\w+>|<SPECIAL_\d+>|\[e~\[|\]~b\]"
)
BOS, EOS = "<s>", "</s>"

SYSTEM = Message("system", "Answer in one line.")
ASK, SAY = Message("user", "How many legs has a cat?"), Message("assistant", "Four.")
AGAIN, SAID = Message("user", "And a bird?"), Message("assistant", "Two, of course.")
TOOL = orjson.dumps(
    {
        "type": "function",
        "function": {
            "name": "count_legs",
            "description": "Counts legs.",
            "parameters": {
                "type": "object",
                "properties": {"animal": {"type": "string", "description": "Which one."}},
                "required": ["animal"],
            },
        },
    }
).decode()
CALL = ToolCall("count_legs", '{"animal": "cat"}', "abcdef123")
ASKED = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "4 legs", call_id="abcdef123", name="count_legs")
THOUGHT = "A cat is a mammal."

KINDS = {
    "plain": Example((ASK, SAY)),
    "system": Example((SYSTEM, ASK, SAY)),
    "turns": Example((ASK, SAY, AGAIN, SAID)),
    "reasoning": Example((ASK, Message("assistant", "Four.", reasoning=THOUGHT))),
    "think": Example((ASK, Message("assistant", f"<think>\n{THOUGHT}\n</think>\n\nFour."))),
    "history": Example((ASK, Message("assistant", "Four.", reasoning=THOUGHT), AGAIN, SAID)),
    "tools": Example((ASK, SAY), tools=(TOOL,)),
    "call": Example((ASK, ASKED), tools=(TOOL,)),
    "result": Example((ASK, ASKED, RESULT, SAY), tools=(TOOL,)),
}


@dataclass(frozen=True)
class Verdict:
    """What came out for one kind of conversation: a word and, except where it is right, why."""

    word: str
    reason: str = ""


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges that has the marks of a template as special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer.model = models.BPE(vocab=alphabet, merges=[])
    found = set(MARKS.findall(template)) - {"<tool_name>"}
    tokenizer.add_special_tokens([BOS, EOS, *sorted(found)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, chat_template=template, name_or_path="it"
    )


def candidates(example: Example) -> list[list[dict[str, object]]]:
    """The conversation in every form in which templates are known to read reasoning and calls."""
    forms = []
    for key in ("reasoning_content", "reasoning", "thinking", None):
        for parsed in (True, False):
            for missing in ("", None):
                forms.append([_as_dict(message, key, parsed, missing) for message in example.messages])
    return forms


def _as_dict(message: Message, key: str | None, parsed: bool, missing: str | None) -> dict[str, object]:
    content: str | None = message.content
    found: dict[str, object] = {"role": message.role}
    if message.reasoning and key:
        found[key] = message.reasoning
    elif message.reasoning:
        content = f"<think>\n{message.reasoning}\n</think>\n\n{content}"
    elif key and "</think>" in message.content:
        thought, _, content = message.content.partition("</think>")
        found[key], content = thought.removeprefix("<think>").strip(), content.lstrip()
    if message.tool_calls:
        content = content or missing
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments) if parsed else call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        found |= {"tool_call_id": message.call_id, "name": message.name}
    return {**found, "content": content}


def judge(
    tokenizer: PreTrainedTokenizerFast, renderer: ChatRenderer, example: Example, options: TemplateOptions
) -> Verdict:
    """The verdict on one conversation."""
    try:
        row = renderer.row(example)
        asked = renderer.prompt(example.prompt, example.tools)
    except (DataError, ModelError) as error:
        return Verdict("WRONG" if "\n" in str(error) else "refused", str(error))
    if asked != row.prompt_ids:
        return Verdict("WRONG", "the prompt of the row is not the prompt for generation")
    if row.response_ids[-len(renderer.end_ids) :] != renderer.end_ids and not example.messages[-1].tool_calls:
        return Verdict("WRONG", "the row does not end with the end of the turn")
    ids = (row.prompt_ids, row.response_ids)
    prompt, response = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in ids)
    return _compare(tokenizer, example, ids, (prompt, response), options)


def _compare(
    tokenizer: PreTrainedTokenizerFast,
    example: Example,
    ids: tuple[tuple[int, ...], tuple[int, ...]],
    texts: tuple[str, str],
    options: TemplateOptions,
) -> Verdict:
    (prompt, response), (prompt_ids, response_ids) = texts, ids
    tools = [json.loads(tool) for tool in example.tools] or None
    reasons = []
    for form in candidates(example):
        served = _written(tokenizer, form[:-1], tools, True, options)
        whole = _written(tokenizer, form, tools, False, options)
        if served is None or whole is None or prompt != served:
            reasons.append("the prompt is not the generation prompt")
            continue
        if tuple(tokenizer.encode(served, add_special_tokens=False)) != prompt_ids:
            return Verdict("WRONG", "the prompt's text is encoded otherwise")
        if tuple(tokenizer.encode(response, add_special_tokens=False)) != response_ids:
            return Verdict("WRONG", "the response's text is encoded otherwise")
        if flaw := _flaw(example.messages[-1], prompt, response):
            return Verdict("WRONG", flaw)
        if (f"{prompt}{response}").startswith(whole) or whole.startswith(prompt + response):
            return Verdict("right")
        reasons.append(f"generation prompt {prompt[-30:]!r}, answer {response[:60]!r}; template {whole[-80:]!r}")
    texts_differ = [reason for reason in reasons if reason.startswith("generation prompt")]
    if texts_differ:
        return Verdict("differs", texts_differ[0])
    return Verdict("WRONG", reasons[0])


def _flaw(last: Message, prompt: str, response: str) -> str | None:
    """What is wrong with a response by itself."""
    content = last.content.rpartition("</think>")[2].strip()
    thinks = bool(last.reasoning) or "</think>" in last.content
    if content not in response or (thinks and not 0 <= response.find(THOUGHT) < response.find(content)):
        return "content or reasoning is not in the response"
    if response.count("<think>") > 1 or response.count("</think>") > 1:
        return "two blocks of reasoning"
    opened = prompt.rstrip().endswith("<think>")
    if opened and (response.lstrip().startswith("<think>") or "</think>" not in response):
        return "the block that the prompt opens is opened again or never closed"
    return None


def _written(
    tokenizer: PreTrainedTokenizerFast,
    form: list[dict[str, object]],
    tools: list[object] | None,
    generation: bool,
    options: TemplateOptions,
) -> str | None:
    try:
        return tokenizer.apply_chat_template(
            form, tools=tools, tokenize=False, add_generation_prompt=generation, **options
        )
    except Exception:  # a template is foreign code and may raise anything
        return None


def check(source: str, options: TemplateOptions) -> dict[str, Verdict]:
    """The verdict on each kind of conversation for one template, with those of the options that it reads."""
    from spintune.tokens.template_options import variables_of
    from spintune.tokens.templates import with_fixed_date

    tokenizer = tokenizer_of(with_fixed_date(source))
    options = {key: value for key, value in options.items() if key in variables_of(source)}
    try:
        renderer = ChatRenderer(tokenizer, options=options)
    except ModelError as error:
        return dict.fromkeys([*KINDS, "marks"], Verdict("WRONG" if "\n" in str(error) else "refused", str(error)))
    found = {kind: judge(tokenizer, renderer, example, options) for kind, example in KINDS.items()}
    tools = renderer._template.probe_tools
    return {**found, "marks": _injected(tokenizer, renderer, tools)}


def _injected(tokenizer: PreTrainedTokenizerFast, renderer: ChatRenderer, tools: tuple[str, ...]) -> Verdict:
    """Whether a question that spells all marks is written without one of their tokens."""
    marks = "".join(tokenizer.all_special_tokens + [token.content for token in tokenizer.added_tokens_decoder.values()])
    counts = []
    for question in ("Hm?", f"Hm {marks}?"):
        row = renderer.row(Example((Message("user", question), SAY), tools=tools))
        ids = row.prompt_ids + row.response_ids
        counts.append([ids.count(id) for id in tokenizer.added_tokens_decoder])
        if question not in tokenizer.decode(ids, clean_up_tokenization_spaces=False):
            return Verdict("WRONG", "the question is not in the row")
    return Verdict("right") if counts[0] == counts[1] else Verdict("WRONG", "a mark in the question is a token")


def main() -> None:
    """Prints a table, and writes it as Markdown where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, help="a Markdown file to write")
    parser.add_argument("--reasons", action="store_true", help="say why, except where it is right")
    parser.add_argument("--option", action="append", metavar="KEY=VALUE", help="for templates that read it")
    arguments = parser.parse_args()
    options = options_from(arguments.option) or {}
    logging.set_verbosity_error()
    rows, words = (
        [f"| template | SHA-256 | {' | '.join([*KINDS, 'marks'])} |", f"|---|---|{'---|' * (len(KINDS) + 1)}"],
        [],
    )
    for file in sorted(arguments.folder.glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        found = check(source, options)
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        rows.append(f"| {file.stem} | `{digest}` | {' | '.join(verdict.word for verdict in found.values())} |")
        words += [verdict.word for verdict in found.values()]
        print(f"{file.stem:70} {digest}  " + "  ".join(f"{kind} {verdict.word}" for kind, verdict in found.items()))
        if arguments.reasons:
            for kind, verdict in found.items():
                if verdict.reason:
                    print(f"      {kind}: {verdict.word}: {verdict.reason[:300]}")
    if arguments.table:
        arguments.table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print({word: words.count(word) for word in sorted(set(words))})
    sys.exit("WRONG" in words)


if __name__ == "__main__":
    main()
