"""What chat models put around the texts they were asked for: code fences, titles, rules, labels, remarks.

Structure decides where it can: a fence that holds a label goes around the list, a fence without one is part of a text.
Only for a remark at the end there is a list of phrases, because nothing else tells it from a text's last paragraph.
"""

from __future__ import annotations

import re

# Possessive where a run could be divided in many ways. Patterns for the end of a text expect none of white space there.
_FENCE = re.compile(r"^[ \t]*+(?:`{3,}+|~{3,}+)[ \t]*+([\w+#.-]*+)[ \t]*+$\n?", re.MULTILINE)
_WHOLE_FENCE = re.compile(
    r"\s*+`{3,}+[ \t]*+(?:text|txt|markdown|md|plaintext)?+[ \t]*+\n(.*?)\n[ \t]*+`{3,}+\s*+", re.DOTALL
)
_GUARD = "\0"
_MAX_DEPTH = 3  # of fences around a list
_RULER = re.compile(r"(?:^|\n)[ \t]*+(?:#{2,}+|-{3,}+|\*{3,}+|_{3,}+)\Z")
_TITLE = re.compile(
    r"\n[ \t]*+(?:(?:#++[ \t]*+|\*\*|__)(?:(?:Task|Example|Item)[ \t]*+#?\d{1,3}\b[^\n]*+|\d{1,3}[.):]?[*_ \t]*+)"
    r"|(?:Task|Example|Item)[ \t]*+#?\d{1,3}[ \t]*+[.:)]?)\Z",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\n[ \t]*+\n[ \t*_(\[]*+(?:(?:please )?let me know\b|(?:i )?hope\b|feel free\b|would you like\b|do you want\b"
    r"|if you(?:'d|’d| would| want| need)\b|these\b|this (?:list|set)\b|note\b|the (?:remaining|rest)\b|remaining\b"
    r"|continu|and so on\b|i can\b|i(?:'ve|’ve| have) )"
    r"(?=[^\n]*\b(?:tasks?|examples?|instructions?|list|sets?|variations|prompts|more|further|adjust\w*|modif\w*|help\w*))"
    r"[^\n]++(?:\n[^\n]++)*+\Z",
    re.IGNORECASE,
)
_BOLD_LABEL = re.compile(
    r"(?:\*\*|__)(?P<label>[^*_\n]{1,60}?)(?::(?:\*\*|__)|(?:\*\*|__)[ \t]*(?::|[–—-](?=\s)|\n))\s*(?=\S)"
)
_SENTENCE_ENDS = (".", "?", "!")


def unwrapped(text: str, start: re.Pattern[str], depth: int = 0) -> str:
    """The text without the fences around a list or its items; lines in other fences are guarded.

    ``start`` matches the line that begins an item. No pattern for labels matches a guarded line, so that code may hold
    one. :func:`unguarded` takes the guards off again. Fences in more than three others are text.
    """
    text = text.replace(_GUARD, "")
    first = start.search(text)
    pieces, wrapped, outside, place = [], [], [], 0
    for begin, inside, end, after in _fenced(text):
        if begin < place:
            continue
        outside.append(text[place:begin])
        pieces.append(outside[-1])
        content = text[inside:end]
        around = first is not None and (begin < first.start() < end or start.match(content.lstrip("\n")))
        if around and depth < _MAX_DEPTH:  # what it holds may be fenced again
            wrapped.append(unwrapped(content, start, depth + 1))
            pieces.append(wrapped[-1])
        elif content.strip():
            outside.append(text[begin:inside] + _guarded(content) + text[end:after])
            pieces.append(outside[-1])
        place = after
    outside.append(text[place:])
    pieces.append(outside[-1])
    if wrapped and not any(map(start.search, outside)):
        pieces = wrapped  # what stands outside is about the list
    return "".join(pieces)


def _fenced(text: str) -> list[tuple[int, int, int, int]]:
    """Where fences and their contents begin and end, the outer ones first. A name, as of a language, always opens."""
    found: list[tuple[int, int, int, int]] = []
    open_ones: list[re.Match[str]] = []
    for fence in _FENCE.finditer(text):
        if fence[1] or not open_ones:
            open_ones.append(fence)
        else:
            opening = open_ones.pop()
            found.append((opening.start(), opening.end(), fence.start(), fence.end()))
    found += [(opening.start(), opening.end(), len(text), len(text)) for opening in open_ones]
    return sorted(found)


def _guarded(content: str) -> str:
    return "".join(_GUARD + line for line in content.splitlines(keepends=True))


def unguarded(text: str) -> str:
    """The text without the guards of :func:`unwrapped`."""
    return text.replace(_GUARD, "")


def without_fence(text: str) -> str:
    """A text that is fenced as a whole, without its fence."""
    fenced = _WHOLE_FENCE.fullmatch(text)
    return fenced[1] if fenced and "```" not in fenced[1] else text


def without_frame(text: str) -> str:
    """A text without the rule below it and the title of the next item."""
    text = _RULER.sub("", text.rstrip())
    bare = _TITLE.sub("", text.rstrip())
    return _RULER.sub("", bare.rstrip()).strip() if bare.strip() else text.strip()


def without_remark(text: str) -> str:
    """The last text of a reply without a remark about the list in a paragraph of its own."""
    text = without_frame(text)
    bare = _REMARK.sub("", text)
    return without_frame(bare) if bare.strip() else text


def without_label(text: str) -> str:
    """An instruction without the bold title in front of it; a bold sentence is no title."""
    label = _BOLD_LABEL.match(text)
    if label is None or label["label"].strip().endswith(_SENTENCE_ENDS):
        return text
    return text[label.end() :]
