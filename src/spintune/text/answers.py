"""What a text gives as its answer: a number, one of several options, or a text to compare.

1. An answer is announced by "answer is", "answer:" and the like (also "final answer:", "the correct answer is"), or by
   "####" as in GSM8K, where a number with up to two words of a unit, an equation, or a letter alone follows, or the
   text ends on that line; other "####" begin a heading. It extends from the last announcement to the end of the line.
   A text without an announcement is the answer as a whole. If nothing can be read there, the announcement before
   counts ("... is 7. That answer is right.").
2. number: the number after the last "=" of the sentence, else the sentence's first number; in a text without an
   announcement, the last number. 1,000 = 1000.0 = $1000; 3/4 = 0.75; 1 1/2 = 1.5; a percent sign is ignored.
   2e3 = 2 × 10^3 = 2000; 2^10 = 2¹⁰ = 1024; the 2 in m² is part of a unit.
3. option: the option whose text the answer is or begins with, else the one whose label it begins with (emphasis, quotes
   and LaTeX around it do not matter; "B or C" chooses none), else the only one that it contains in whole words or
   numbers. A longer option comes before a shorter one inside it ("not equivalent" before "equivalent"). Options that
   read the same are the same answer.
4. text: equal up to case, punctuation, articles and white space (SQuAD's normalization, Rajpurkar et al. 2016); more
   sentences may follow.
"""

from __future__ import annotations

import itertools
import re
import string
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

CURRENCIES = "$€£¥₹"
_LINE_ENDS = r"(?:#++[^\S\n]*+)?+(?:\n|\Z)"  # a closed heading ends with its marks
_UNIT = r"(?!(?-i:[A-Z][a-z]))[^\W\d_][\w/^]*+"  # a capital begins a heading
_ANNOUNCED = r"\banswers?+\b\s*+(?:(?:is|are)\s*+)?+[:=]|\banswers?+\s++(?:is|are)\b"
_AFTER_MARKS = (  # what makes "####" announce an answer
    rf"(?:[^#\n]*=)?+[^#\n\w]*+\d(?:[^#\n\w]|\d|(?<=\d)e(?=[-+]?\d))*+{_LINE_ENDS}",  # 72, x = 72, 5e3
    r"(?:[^#\n]*=)?+[^#\n\w]*+(?!\d[\d.]*\s*[.:)–—-]\s|\d++(?:st|nd|rd|th)\b)\d(?:[^#\n\w]|\d)*+"
    rf"{_UNIT}(?:[ \t]++{_UNIT})?+[^#\n\w:?]*+{_LINE_ENDS}",  # 72 dollars, but not "2. Why", "2nd step"
    rf"[^#\n\w]*+[A-Z][^#\n\w]*+{_LINE_ENDS}",  # B
    r"[^#\n\w]*+\w[^#\n]*+(?:#++\s*+|\s*+)\Z",  # anything, where the text ends with it
)
_MARK = re.compile(
    rf"{_ANNOUNCED}|(?<!#)####(?!#)(?:{'|'.join(f'(?={part})' for part in _AFTER_MARKS)})", re.IGNORECASE
)
_SIGN_APART = re.compile(  # a hyphen after "is" or ":" may be a dash
    r"(?:(?<==)|(?<==[ \t])|(?:(?<=:)|(?<=[:#][ \t])|(?<=\bis[ \t]))(?=\u2212))[-\u2212][ \t]+"
    rf"(?=[{CURRENCIES}]?\.?\d)",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    rf"(?<![\w.^])(?<!\^[-+{{])(?P<sign>[-+])?(?:[{CURRENCIES}]\s?)?(?P<inner>-)?(?=\.?\d)"
    r"(?:(?P<mixed>\d+)\s+(?=\d+\s?/\s?\d))?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?(?:\s?\^\s?\{?(?P<power>[-+]?\d+)\}?)?"
    r"(?:(?:[eE]|\s?[*×·xX]\s?10\s?\^\s?\{?)(?P<ten>[-+]?\d+)\}?(?!\w))?"
    r"(?:\s?/\s?(?P<under>\d+)(?![\d/]))?"
)
_OPENING = r"(?:[\s\"'“‘«*_`(\[]|\$(?=\\|\w{1,2}\$)|\\[(\[]|\\(?:boxed|(?:text|math)(?:bf|rm)?)\{)*+"
_CLOSING = r"[\"'”’»*_`$}]*+"
_ONE_ALONE = (  # "B or C" and "B, C" choose none
    rf"(?!\\?[)\]]?{_CLOSING}\s*+(?:,\s*+(?:or\b|and\b)?|[/&]|or\b|and\b){_OPENING}(?-i:[A-HJ-Z])(?!\w))"
)
_LABEL = re.compile(
    rf"^{_OPENING}(?:option|choice|letter|number)?+{_OPENING}(?P<label>(?-i:(?P<capital>[A-Z]))|[A-Z]|\d{{1,2}})"
    rf"{_CLOSING}{_ONE_ALONE}"
    r"(?:\\?[)\]]|[.:,;!](?!\d)|\s*+$|\s++[-–—]\s|(?(capital)(?-i:\s++(?:as|because|since)\b)|(?!)))",
    re.IGNORECASE,
)
_LETTER = re.compile(rf"^{_OPENING}(?P<label>[B-HJ-Z]){_CLOSING}{_ONE_ALONE}\s(?P<rest>.*)")  # A and I may be words
_DENIED = re.compile(r"\b(?:not|wrong|incorrect|false)\b|n['’]t\b", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|(?<=\s))[(\[]?(?P<label>[A-Za-z]|\d{1,2})(?P<close>[)\].:])[ \t]+(?=\S)", re.MULTILINE)
_DIGITS = 1000  # of a number and of its value; a model that repeats a digit forever gives none
_ANNOUNCEMENTS = 20  # of an answer that are read, from the last one on
_VULGAR = re.compile("([\u00bc-\u00be\u2150-\u215e])")
_SUPERSCRIPT = re.compile("([\u00b2\u00b3\u00b9\u2070-\u207b]+)")
_SUBSCRIPT = re.compile("([\u2080-\u2089]+)")
_AROUND = string.whitespace + "\"'`*.,;:!?()[]{}"
_AROUND_MATHS = string.whitespace + "\"'`*.,;:"  # "8!" is not 8, nor "(0, 1]" the same as "[0, 1]"
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def announced_answers(text: str) -> list[str]:
    """The announced answers of a text, the last one first; the whole text if none is announced."""
    ends = [mark.end() for mark in _MARK.finditer(text)][-_ANNOUNCEMENTS:]
    lines = [text[end:].lstrip(string.whitespace + ":*").split("\n", 1)[0].strip() for end in reversed(ends)]
    return [re.sub(r"(?<=\s)#+$", "", line).rstrip() for line in lines] or [text.strip()]


def number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, by rule 2; None if it gives none.

    >>> number("3 bags of 4 and 2 more: the answer is 3 * 4 + 2 = 14 apples.")
    Fraction(14, 1)
    """
    text = _SIGN_APART.sub("-", text)
    if not _MARK.search(text):
        return next(reversed(_numbers(text)), None)
    for answer in announced_answers(text):
        sentence = _sentence(answer)
        numbers = _numbers(sentence.rpartition("=")[2]) or _numbers(sentence) or _numbers(answer)
        if numbers:
            return numbers[0]
    return None


def _sentence(text: str) -> str:
    return re.split(r"[.;!?](?=\s|$)", text, maxsplit=1)[0]


def _numbers(text: str) -> list[Fraction]:
    # NFKC writes ½, ² and ₂ as digits, which must not join those before them
    text = _SUBSCRIPT.sub(r"_\1", _SUPERSCRIPT.sub(r"^\1", _VULGAR.sub(r" \1", text)))
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("\u2044", "/")
    found = []
    for match in _NUMBER.finditer(text):
        if len(match[0]) > _DIGITS:
            continue
        digits = (match["whole"] or "0").replace(",", "") + (match["decimals"] or "")
        value, power, ten = Fraction(digits), int(match["power"] or 1), int(match["ten"] or 0)
        if len(digits) * abs(power) + abs(ten) > _DIGITS or (power < 0 and not value):
            continue
        value = value**power * Fraction(10) ** ten
        if match["under"] and int(match["under"]):
            value /= int(match["under"])
        value += int(match["mixed"] or 0)
        found.append(-value if "-" in (match["sign"], match["inner"]) else value)
    return found


def chosen(text: str, options: Sequence[str]) -> int | None:
    """The place of the option that a text chooses, by rule 3; None if it chooses none or several.

    >>> chosen("The answer is (B).", ["rain", "snow"]), chosen("snow, I think", ["rain", "snow"])
    (1, 1)
    """
    announced = bool(_MARK.search(text))
    named = (_named(answer, options, announced) for answer in announced_answers(text))
    return next((place for place in named if place is not None), None)


def _named(text: str, options: Sequence[str], announced: bool) -> int | None:
    around = characters_around(options)
    answer, plain = plain_text(text, around), [plain_text(option, around) for option in options]
    if answer in plain:
        return plain.index(answer)
    by_length = sorted(range(len(options)), key=lambda place: -len(plain[place]))
    for place in by_length:
        if re.match(whole_words(plain[place]), answer):
            return place
    label = _LABEL.match(text) or (_bare_letter(text, len(options)) if announced else None)
    if label and 0 <= (place := _place(label["label"])) < len(options):
        return place
    named, rest = [], answer
    for place in by_length:
        whole = whole_words(plain[place])
        if re.search(whole, rest):
            named.append(place)
            rest = re.sub(whole, "\n", rest)
    return named[0] if len(named) == 1 else None


def _bare_letter(text: str, options: int) -> re.Match[str] | None:
    """The letter that a text begins with, if its sentence neither names another option nor denies anything."""
    letter = _LETTER.match(text)
    if letter is None:
        return None
    sentence = _sentence(letter["rest"])
    others = set(string.ascii_uppercase[:options]) - {letter["label"]}
    return None if others & set(re.findall(r"\w+", sentence)) or _DENIED.search(sentence) else letter


def _place(label: str) -> int:
    return int(label) - 1 if label.isdigit() else ord(label.lower()) - ord("a")


def label(text: str) -> str | None:
    """The label that the announced answer of a text begins with, in lower case; None without one.

    >>> label("The answer is (B)."), label("Bees make honey.")
    ('b', None)
    """
    return next((found["label"].lower() for answer in announced_answers(text) if (found := _LABEL.match(answer))), None)


def options_in(prompt: str) -> list[str]:
    """The options that a prompt lists: the last ones that are labeled in order, or lines with dashes after "Options:".

    >>> options_in("What falls? (A) rain (B) snow"), options_in("Is it wet?\nOPTIONS:\n- yes\n- no")
    (['rain', 'snow'], ['yes', 'no'])
    """
    found: list[re.Match[str]] = []
    runs: list[list[re.Match[str]]] = []
    for mark in _OPTION.finditer(prompt):
        place = _place(mark["label"])
        if place == 0:
            found = [mark]
            runs.append(found)
        elif place == len(found) and _style(mark) == _style(found[0]):
            found.append(mark)
    labeled = next((run for run in reversed(runs) if len(run) > 1), None)
    if labeled:
        ends = [mark.start() for mark in labeled[1:]]
        last = prompt[labeled[-1].end() :].split("\n", 1)[0]
        return [*(prompt[mark.end() : end].strip() for mark, end in zip(labeled, ends, strict=False)), last.strip()]
    _, listed, rest = prompt.lower().rpartition("options:\n")
    lines = prompt[len(prompt) - len(rest) :].split("\n") if listed and len(prompt) == len(prompt.lower()) else []
    return [line[2:].strip() for line in itertools.takewhile(lambda line: line.startswith("- "), lines)]


def _style(mark: re.Match[str]) -> tuple[bool, bool, str]:
    """How an option is labeled: digit or letter, capital or not, and what follows."""
    text = mark["label"]
    return text.isdigit(), text.isupper(), mark["close"]


def whole_words(option: str) -> str:
    """A pattern that matches an option as whole words; 5 is not in "2.5", "3/5", "5,000" or "-5"."""
    before = r"(?<!\w)" + (r"(?<!\d[.,/])(?<![-\u2212])" if option[:1].isdigit() else "")
    after = r"(?!\w)" + (r"(?![.,/]\d)" if option[-1:].isdigit() else "")
    return before + re.escape(option) + after


def characters_around(options: Sequence[str]) -> str:
    """Characters to strip from an answer; fewer if two options differ only in them ("8" and "8!")."""
    return max((_AROUND, _AROUND_MATHS), key=lambda around: len({plain_text(option, around) for option in options}))


def plain_text(text: str, around: str) -> str:
    """A text without case, runs of white space, and the characters ``around`` it."""
    folded = " ".join(text.casefold().split())
    return folded.strip(around) or folded


def same_text(expected: str, given: str) -> bool:
    """Whether the first sentences of ``given``, or all of them, read like ``expected``."""
    target = next(filter(None, _readings(expected)), "")
    readings = [_readings(piece) for piece in re.split(r"(?<=[.!?])\s+|\n", given)]
    if not any(map(any, readings)):
        return not target
    for place in range(3):
        # sentences of articles or punctuation alone count as they stand, until one says more
        if _begins(target, [reading[place] for reading in readings]):
            return True
        more = next((count for count, reading in enumerate(readings) if reading[place]), len(readings))
        readings = readings[:more]
    return False


def _begins(target: str, pieces: Sequence[str]) -> bool:
    """Whether the target is the first of the pieces, joined by spaces. Every piece is read once."""
    taken, length = [], -1
    for piece in filter(None, pieces):
        taken.append(piece)
        length += 1 + len(piece)
        if length >= len(target):
            break
    return bool(taken) and " ".join(taken) == target


def _readings(text: str) -> tuple[str, str, str]:
    """SQuAD's normalization; and, for a text that is an article or punctuation alone ("A", "?"), less of it."""
    folded = text.casefold()
    words = " ".join(folded.translate(_PUNCTUATION).split())
    return " ".join(_ARTICLES.sub(" ", words).split()), words, folded.strip()
