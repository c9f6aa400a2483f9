"""The row formats of instruction data, and how each becomes a conversation.

===========  =======================================================  ================================================
chat         ``messages``: a list of turns                            OpenAI, UltraChat, TRL, LLaMA-Factory, ms-swift
sharegpt     ``conversations`` or ``conversation``: a list of turns   ShareGPT, Vicuna, LMSYS
seeds        ``instruction``, ``instances: [{input, output}]``        Self-Instruct seed tasks
alpaca       ``instruction``, ``output`` or ``response``,             Stanford Alpaca, LLaMA-Factory, Dolly
             optional ``input`` or ``context``
prompt       ``prompt`` and ``completion`` or ``response``;           TRL, T0 tasks of Self-Instruct, ms-swift, FLAN,
             ``query``, ``response``; ``inputs``, ``targets``;        NuminaMath
             ``problem``, ``solution``; ``input``, ``output``
qa           ``question`` and ``answer`` or ``response``              GSM8K, OpenOrca
oasst        ``message_tree_id``, ``prompt`` with ``replies``         OpenAssistant; the best-ranked path is read
spin         ``real``, ``generated``: lists of turns                  SPIN's own data; the real side is read
preference   ``chosen``, ``rejected``, and where they are no whole    TRL, LLaMA-Factory; the chosen side is read
             conversations a prompt
===========  =======================================================  ================================================

A prompt or an answer is a text or a list of turns. A turn is ``{role, content}`` or ``{from, value}``:

- roles in any case: system, developer; user, human, prompter; assistant, gpt, chatgpt, bing, bard, model, bot, ai;
  tool, function, observation, tool_response, tool_result; function_call and tool_call, whose text is the call
- content: a text, a list of text parts, or null beside tool calls
- ``reasoning_content``, ``thinking`` or ``reasoning``: what the assistant thought first
- ``tool_calls`` or ``function_call``, OpenAI's way or flat; ``tool_call_id`` and ``name`` of a tool's turn
- ``train``, ``loss`` (true or false) or ``weight`` (0 or 1): whether an assistant's turn is trained

Beside the conversation, in every format:

- ``system``, ``system_prompt`` or ``system_message``: the system message
- ``history``: earlier turns, as pairs, objects with a question and an answer, or turns
- ``context``: stands before the first question (after an instruction that has no input, as in Dolly)
- ``tools`` or ``functions``: what the assistant may call, as a list or JSON text
- ``reasoning_content``, ``thinking``, ``reasoning`` beside a prompt and an answer
- ``train``, ``weight``: whether the row is trained; ``label``, ``kto_tag``: false drops the row, and counts it
- ``image``, ``images``, ``audio``, ``audios``, ``video``, ``videos``: the row cannot be used, unless they are empty

All other keys are ignored, and counted. Turns after the last answer to train on are cut off, and counted.

Text is kept verbatim, white space included, with one exception: ``prompt`` rows lose an ``<|endoftext|>`` that ends
their answer. There it is the stop token of another tokenizer, written out, and not text. Raw ``text`` without a prompt
is refused.

Users add formats of their own, from Python or by an entry point of the group ``spintune.formats``::

    def letter(row: FileRow) -> Iterator[Conversation]:
        yield Message("user", row.text("letter", "a letter")), Message("assistant", row.text("reply", "a reply"))

    register_format(Format("letter", (("letter", "reply"),), letter))

After that a recipe may say ``format: letter``, and rows with these keys are recognized without it.
"""

from spintune.data.formats.builtin import BUILTIN_FORMATS, drop_reason, preferred
from spintune.data.formats.format import Conversation, Format, RowConversation
from spintune.data.formats.recognition import (
    AUTO,
    FORMATS,
    all_formats,
    choose_format,
    read_row,
    recognize,
    register_format,
)

__all__ = [
    "AUTO",
    "BUILTIN_FORMATS",
    "FORMATS",
    "Conversation",
    "Format",
    "RowConversation",
    "all_formats",
    "choose_format",
    "drop_reason",
    "preferred",
    "read_row",
    "recognize",
    "register_format",
]
