"""Sentences and capital words, counted as the NLTK tokenizers of the official checker count them, without their data.

Sentences follow the Punkt algorithm (Kiss and Strunk 2006). Short word lists and rules of thumb replace its English
model, which was trained on newspapers, so a count may differ where an initial, an abbreviation or an ellipsis comes
before a capital (8 of 1,082 responses of two models). Its quirks stay: "1." in a list ends a sentence, and the
asterisks that close a bold last sentence count as another one.
"""

from __future__ import annotations

import itertools
import re

# What may follow a full stop without a space; also where a word ends.
_BREAKERS = r"""?!()\[\]{}"'*:;@"""
_CHUNK = re.compile(r"\S+")
_STOP_INSIDE = re.compile(rf"[.?!](?=[{_BREAKERS}])")
_TO_LAST_BREAKER = re.compile(rf".*[{_BREAKERS}]", re.DOTALL)
_NUMBER = re.compile(r"-?[.,]?\d[\d.,-]*\Z")
_INITIAL = re.compile(r"[^\W\d_]\Z")
_CLOSERS = re.compile(r"""["')\]}]+(?:\s+|(?=--)|\Z)""")

_ABBREVIATIONS = frozenset(
    "a.m adm ala ariz aug ave bros calif cie co col colo conn corp ct d.c dec dr feb fla fri ft ga gen ill inc jan "  # noqa: SIM905
    "jr kan ky lt ltd maj mich minn mr mrs ms nev nov oct okla ore p.m pa ph.d prof rep sen sept sr st tenn u.k u.n "
    "u.s u.s.a v va vs vt wash wed wis".split()
)
_LETTER_ABBREVIATIONS = frozenset("cdefghklmnprstvw")  # "vitamin C. The": never the end
_LETTER_NUMERALS = frozenset("abi")  # "A. Overview", "I. Overview": the end, as after a number
# Capitalized after an abbreviation or an ellipsis, these open a sentence.
_STARTERS = frozenset(
    "although but despite even he her here however i if in indeed it meanwhile moreover nevertheless since so "  # noqa: SIM905
    "some still such the there these they this though thus when while yet your".split()
)


def count_sentences(text: str) -> int:
    """The number of sentences.

    >>> count_sentences("Mr. Smith paid $3.50 at 5 p.m. today. Why?! He left.")
    3
    """
    pieces, begin = [], 0
    for stop, resume in _breaks(text):
        pieces.append(text[begin:stop])
        begin = resume
    pieces.append(text[begin:].rstrip())
    return sum(bool(_without_closers(piece) if number else piece) for number, piece in enumerate(pieces))


def _without_closers(piece: str) -> str:
    """Quotes and brackets that close the sentence before belong to it."""
    closers = _CLOSERS.match(piece)
    return piece[closers.end() :] if closers else piece


def _breaks(text: str) -> list[tuple[int, int]]:
    """Where sentences end and the next ones begin.

    A chunk between white space has at most one break: behind the last of its marks that something follows, if any of
    them ends a sentence. A mark at the very end is judged together with the next chunk, whose own marks count as well.
    """
    chunks = list(_CHUNK.finditer(text))
    breaks = []
    for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
        word = chunk[0]
        if following and word[-1] in ".?!":
            if _ends_sentence(word, following[0]) or _ends_inside(word) or _ends_inside(following[0]):
                breaks.append((chunk.end(), following.start()))
        elif _ends_inside(word):
            *_, last = _STOP_INSIDE.finditer(word)
            stop = chunk.start() + last.end()
            breaks.append((stop, stop))
    return breaks


def _ends_inside(word: str) -> bool:
    begin = 0  # a mark has a breaker behind it, and no more than that decides about the next one
    for mark in _STOP_INSIDE.finditer(word):
        if _ends_sentence(word[begin : mark.end()], word[mark.end()]):
            return True
        begin = mark.end()
    return False


def _ends_sentence(before: str, after: str) -> bool:
    """Whether the mark at the end of ``before`` ends a sentence, when ``after`` is what follows."""
    if before[-1] in "?!":
        return True
    head = _TO_LAST_BREAKER.match(before)
    # an apostrophe belongs to the word, so that the t of "can't." is no initial
    name = (before[:-1] if head is None else before[head.end() - head[0].endswith("'") : -1]).lower()
    lower, upper = after[0].islower(), after[0].isupper()
    if _NUMBER.match(name):
        return not lower and after[0] not in ",.;:?!"
    if _INITIAL.match(name):
        return name not in _LETTER_ABBREVIATIONS and not lower and (name in _LETTER_NUMERALS or not upper)
    if before.endswith("..") or name in _ABBREVIATIONS or name.rpartition("-")[2] in _ABBREVIATIONS:
        return upper and _first_word(after) in _STARTERS
    return True


def _first_word(chunk: str) -> str:
    match = re.match(r"\w+", chunk)
    return match[0].lower() if match else ""


# Where words are cut apart: brackets, quotes and single signs, dashes, ellipses, a comma or colon that no
# digit follows; then fused words, and clitics.
_CUTS = re.compile(r"""[\s;@#$%&?!*\[\](){}<>"“”„«»‘’`‒-―]|--|\.\.+|[:,](?!\d)""")
_FUSED = re.compile(r"\b(CAN(?=NOT)|GIM(?=ME)|GON(?=NA)|GOT(?=TA)|LEM(?=ME)|WAN(?=NA))(NOT|ME|NA|TA)\b")
_CLITIC = re.compile(r"(?<=[^'])('[sS]|'[mM]|'[dD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T|')\.?\Z")


def count_capital_words(text: str) -> int:
    """The number of words in capitals: of those with a letter that has case, the ones without a small letter.

    Clitics count on their own, as in the Penn Treebank: "I'M" is two words.

    >>> count_capital_words("NASA's I'M, COVID-19: A/B U.S. Ok 42")
    6
    """
    return sum(
        part.isupper()
        for word in _CUTS.split(_FUSED.sub(r" \1 \2 ", text))
        if word
        for part in _CLITIC.split(word)
        if part
    )
