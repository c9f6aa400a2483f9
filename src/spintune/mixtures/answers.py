"""Decides by rules whether a prediction gives the right answer.

1. An answer is announced by "answer is", "answer:" and the like (also "final answer:", "the correct answer is"), or by
   "####" as in GSM8K. It extends from the last announcement to the end of the line. A text without an announcement is
   the answer as a whole. If nothing can be read there, the announcement before counts ("... is 7. That answer is
   right.").
2. number: the number after the last "=" of the sentence, else the sentence's first number; in a text without an
   announcement, the last number. 1,000 = 1000.0 = $1000; 3/4 = 0.75; 1 1/2 = 1.5; a percent sign is ignored.
3. option: the option whose text the answer is or begins with, else the one whose label it begins with, else the only
   one that it contains in whole words or numbers. A longer option comes before a shorter one inside it ("not
   equivalent" before "equivalent"). Options that read the same are the same answer. An answer that names another option
   is right only if it equals the target (the label "1" of 2, though 1 is an option too). If it names none, or the row
   is not given, the rule for text applies.
4. text: equal up to case, punctuation, articles and white space (SQuAD's normalization, Rajpurkar et al. 2016); more
   sentences may follow.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from spintune.mixtures.tasks import MixtureTask, TaskItem

_MARK = re.compile(r"\banswers?+\b\s*+(?:(?:is|are)\s*+)?+[:=]|\banswers?+\s++(?:is|are)\b|####", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+])?(?:[$€£¥₹]\s?)?(?P<inner>-)?"
    r"(?:(?P<mixed>\d+)\s+(?=\d+\s?/\s?\d))?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?(?:\s?/\s?(?P<under>\d+)(?![\d/]))?"
)
_LABEL = re.compile(
    r"^[\s\"'*]*+(?:option|choice|letter|number)?+\s*+[(\[]?(?P<label>[A-Z]|\d{1,2})"
    r"(?:[)\]]|[.:,](?!\d)|\s*+$|\s++[-–—]\s)",
    re.IGNORECASE,
)
_DIGITS = 1000  # a model that repeats a digit forever gives no number; Python refuses to read more than 4300
_ANNOUNCEMENTS = 20  # of an answer that are read, from the last one on
_VULGAR = re.compile("([\u00bc-\u00be\u2150-\u215e])")
_AROUND = string.whitespace + "\"'`*.,;:!?()[]{}"
_AROUND_MATHS = string.whitespace + "\"'`*.,;:"  # "8!" is not 8, nor "(0, 1]" the same as "[0, 1]"
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def correct(task: MixtureTask, target: str, prediction: str, item: TaskItem | None = None) -> bool:
    """Whether ``prediction`` gives the same answer as ``target``.

    Args:
        task: defines the rule (``task.check``).
        target: the rendered target, including a rationale before its answer.
        prediction: what a model wrote.
        item: the row; with it an option counts by its text and by its label.
    """
    if task.check == "number":
        expected = number(target)
        return expected is not None and expected == number(prediction)
    right, given = _answers(target)[0], _answers(prediction)[0]
    if task.check == "option" and item is not None and item.choice is not None:
        place = chosen(prediction, item.options)
        if place is not None:
            around = _around(item.options)
            plain = [_plain(text, around) for text in (item.options[place], item.options[item.choice], right, given)]
            return plain[0] == plain[1] or plain[2] == plain[3]
    return _same_text(right, given)


def _answers(text: str) -> list[str]:
    """The announced answers of a text, the last one first; the whole text if none is announced."""
    ends = [mark.end() for mark in _MARK.finditer(text)][-_ANNOUNCEMENTS:]
    return [text[end:].lstrip(string.whitespace + ":*").split("\n", 1)[0].strip() for end in reversed(ends)] or [
        text.strip()
    ]


def number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, by rule 2; None if it gives none.

    >>> number("3 bags of 4 and 2 more: the answer is 3 * 4 + 2 = 14 apples.")
    Fraction(14, 1)
    """
    if not _MARK.search(text):
        return next(reversed(_numbers(text)), None)
    for answer in _answers(text):
        sentence = re.split(r"[.;!?](?=\s|$)", answer, maxsplit=1)[0]
        numbers = _numbers(sentence.rpartition("=")[2]) or _numbers(sentence) or _numbers(answer)
        if numbers:
            return numbers[0]
    return None


def _numbers(text: str) -> list[Fraction]:
    text = unicodedata.normalize("NFKC", _VULGAR.sub(r" \1", text)).replace("\u2212", "-").replace("\u2044", "/")
    found = []
    for match in _NUMBER.finditer(text):
        if len(match[0]) > _DIGITS or (match["whole"] is None and match["decimals"] is None):
            continue
        value = Fraction((match["whole"] or "0").replace(",", "") + (match["decimals"] or ""))
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
    return next((place for answer in _answers(text) if (place := _named(answer, options)) is not None), None)


def _named(text: str, options: Sequence[str]) -> int | None:
    around = _around(options)
    answer, plain = _plain(text, around), [_plain(option, around) for option in options]
    if answer in plain:
        return plain.index(answer)
    by_length = sorted(range(len(options)), key=lambda place: -len(plain[place]))
    for place in by_length:
        if re.match(_whole(plain[place]), answer):
            return place
    label = _LABEL.match(text)
    if label and 0 <= (place := _place(label["label"])) < len(options):
        return place
    named, rest = [], answer
    for place in by_length:
        whole = _whole(plain[place])
        if re.search(whole, rest):
            named.append(place)
            rest = re.sub(whole, "\n", rest)
    return named[0] if len(named) == 1 else None


def _place(label: str) -> int:
    return int(label) - 1 if label.isdigit() else ord(label.lower()) - ord("a")


def _whole(option: str) -> str:
    """A pattern that matches an option as whole words; 5 is not in "2.5", "3/5", "5,000" or "-5"."""
    before = r"(?<!\w)" + (r"(?<!\d[.,/])(?<![-\u2212])" if option[:1].isdigit() else "")
    after = r"(?!\w)" + (r"(?![.,/]\d)" if option[-1:].isdigit() else "")
    return before + re.escape(option) + after


def _around(options: Sequence[str]) -> str:
    """Characters to strip from an answer; fewer if two options differ only in them ("8" and "8!")."""
    return max((_AROUND, _AROUND_MATHS), key=lambda around: len({_plain(option, around) for option in options}))


def _plain(text: str, around: str) -> str:
    """A text without case, runs of white space, and the characters ``around`` it."""
    folded = " ".join(text.casefold().split())
    return folded.strip(around) or folded


def _same_text(expected: str, given: str) -> bool:
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
