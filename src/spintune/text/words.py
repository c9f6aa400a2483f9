"""The words of a text: what ROUGE-L, novelty and contamination compare."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

WordRule = Literal["reference", "unicode"]

_ASCII_WORD = re.compile("[a-z0-9]+")

# Blocks of the scripts that put no spaces between words: ideographs and kana, and those of class SA of Unicode's
# line breaking algorithm (UAX #14), which need a dictionary to find words.
_SPACELESS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"  # Han: planes 2 and 3
    "\u3041-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f\u3100-\u312f\u31a0-\u31bf"  # kana, bopomofo
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf\U00011700-\U0001174f"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet, Ahom
)
_SINGLE = rf"(?=[^\W\d])[{_SPACELESS}]"  # marks are not \w, so they are never a token of their own
_WORD = re.compile(rf"{_SINGLE}[^\w\s]*|(?!{_SINGLE})\w(?:(?!{_SINGLE})\S)*")


def split_words(text: str, rule: WordRule = "unicode") -> tuple[str, ...]:
    """The words of a text, in order.

    reference  lower-case runs of ASCII letters and digits; everything else separates, as in the ``rouge_score`` package
    unicode    runs of letters, digits and their marks of any script, after compatibility composition and case folding
               (NFKC). A script without spaces between words gives one word for a letter with its marks.

    The rules agree on ASCII text, underscores included:

        >>> split_words("It's snake_case, v2!")
        ('it', 's', 'snake', 'case', 'v2')
        >>> split_words("Naïve CAFÉ, 東京 2024年")
        ('naïve', 'café', '東', '京', '2024', '年')
        >>> split_words("ที่นี่")
        ('ที่', 'นี่')

    Invisible characters (joiners, soft hyphens, variation selectors) are removed; symbols and emoji separate.
    """
    if rule == "reference" or text.isascii():
        return tuple(_ASCII_WORD.findall(text.lower()))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_WORD.findall(folded.translate(_IN_WORDS)))


class _InWords(dict[int, str]):
    """By code point: the character itself in a word, nothing where it is invisible, a space where it separates."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if category == "Cf" or "VARIATION SELECTOR" in unicodedata.name(char, ""):
            found = " " if char == "\u200b" else ""  # the zero width space is invisible too, but separates
        else:
            found = char if category[0] in "LMN" else " "
        self[code] = found
        return found


_IN_WORDS = _InWords()


def one_line(text: str) -> str:
    """The text with each run of white space as one space, and none at its ends."""
    return " ".join(text.split())
