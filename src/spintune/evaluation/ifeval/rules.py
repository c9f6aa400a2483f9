"""The 25 instruction types of IFEval (Zhou et al. 2023), one function each: does a response follow it?

Every function takes the response first and the instruction's parameters by name, and is a pure function of them. The
annotation of a parameter says which values it may have.

The functions decide as the official checker does, quirks included (a list item starts a sentence, ``***`` divides
paragraphs), with three differences, each of which makes the result unique:

- a detector with a fixed seed recognizes languages (:mod:`~spintune.evaluation.ifeval.language`);
- ``letter_frequency`` counts the character it was given; the official checker replaces one that is not a letter of
  the English alphabet by a random letter (keys 1122 and 1129);
- keywords are text, not regular expressions (no official one has a character that would matter).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeGuard, get_type_hints

from spintune.evaluation.ifeval.language import LANGUAGES, detect
from spintune.evaluation.ifeval.segmentation import count_capital_words, count_sentences


@dataclass(frozen=True)
class ParameterKind:
    """The values that a parameter may have: in words, and as a test."""

    words: str
    fits: Callable[[object], bool]


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value != ""


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_text, value))


_LANGUAGE_NAMES = ", ".join(sorted(LANGUAGES))

Text = Annotated[str, ParameterKind("a text", _is_text)]
Texts = Annotated[list[str], ParameterKind("a list of texts", _are_texts)]
Count = Annotated[int, ParameterKind("a whole number, 0 or more", _is_count)]
Ordinal = Annotated[int, ParameterKind("a whole number, 1 or more", lambda value: _is_count(value) and value > 0)]
Character = Annotated[str, ParameterKind("one character", lambda value: _is_text(value) and len(value) == 1)]
Relation = Annotated[str, ParameterKind("'at least' or 'less than'", lambda value: value in ("at least", "less than"))]
Language = Annotated[
    str, ParameterKind(f"one of {_LANGUAGE_NAMES}", lambda value: _is_text(value) and value in LANGUAGES)
]


def _holds(count: int, relation: Relation, bound: int) -> bool:
    return count >= bound if relation == "at least" else count < bound


# Keywords ------------------------------------------------------------------------------------------------------------


def existence(response: str, keywords: Texts) -> bool:
    """Every keyword occurs, in any case, also inside a longer word."""
    return all(_occurrences(response, keyword) for keyword in keywords)


def frequency(response: str, keyword: Text, frequency: Count, relation: Relation) -> bool:
    """The keyword occurs at least (or less than) ``frequency`` times, in any case, also inside longer words."""
    return _holds(_occurrences(response, keyword), relation, frequency)


def forbidden_words(response: str, forbidden_words: Texts) -> bool:
    """None of the words occurs as a whole word, in any case."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, letter: Character, let_frequency: Count, let_relation: Relation) -> bool:
    """The character occurs at least (or less than) ``let_frequency`` times, in any case."""
    return _holds(response.lower().count(letter.lower()), let_relation, let_frequency)


def _occurrences(response: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword), response, re.IGNORECASE))


# Language and case ---------------------------------------------------------------------------------------------------


def response_language(response: str, language: Language) -> bool:
    """The response is in that language; a response without letters passes."""
    return detect(response) in (language, None)


def english_capital(response: str) -> bool:
    """English in capital letters only."""
    return response.isupper() and response_language(response, "en")


def english_lowercase(response: str) -> bool:
    """English in small letters only."""
    return response.islower() and response_language(response, "en")


def capital_word_frequency(response: str, capital_frequency: Count, capital_relation: Relation) -> bool:
    """At least (or less than) ``capital_frequency`` words are in capitals; "I" is one."""
    return _holds(count_capital_words(response), capital_relation, capital_frequency)


# Length --------------------------------------------------------------------------------------------------------------


def number_sentences(response: str, num_sentences: Count, relation: Relation) -> bool:
    """At least (or less than) ``num_sentences`` sentences."""
    return _holds(count_sentences(response), relation, num_sentences)


def number_words(response: str, num_words: Count, relation: Relation) -> bool:
    """At least (or less than) ``num_words`` runs of letters, digits and underscores: "don't" is two."""
    return _holds(len(re.findall(r"\w+", response)), relation, num_words)


def number_paragraphs(response: str, num_paragraphs: Count) -> bool:
    """Exactly ``num_paragraphs`` paragraphs, divided by ``***``; an empty one between two dividers fails."""
    parts = re.split(r"\s?\*\*\*\s?", response)
    return all(_filled(parts[1:-1])) and sum(_filled(parts)) == num_paragraphs


def nth_paragraph_first_word(response: str, num_paragraphs: Count, nth_paragraph: Ordinal, first_word: Text) -> bool:
    """Exactly ``num_paragraphs`` paragraphs, divided by an empty line, and the nth begins with the word, in any case.

    Empty paragraphs are not counted, but keep their place when the nth is looked up.
    """
    paragraphs = response.split("\n\n")
    filled = sum(_filled(paragraphs))
    if filled != num_paragraphs or nth_paragraph > filled or not paragraphs[nth_paragraph - 1].strip():
        return False
    opening = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"""[.,?!'"]""", opening)[0].lower() == first_word.lower()


# Content and format --------------------------------------------------------------------------------------------------


def number_placeholders(response: str, num_placeholders: Count) -> bool:
    """At least ``num_placeholders`` of ``[this form]``, each on one line."""
    # a closing bracket ends one if a bracket was opened since the closing one before
    return sum("[" in text for line in response.split("\n") for text in line.split("]")[:-1]) >= num_placeholders


def postscript(response: str, postscript_marker: Text) -> bool:
    """The marker occurs somewhere, in any case; a space may divide the letters of "P.S." and "P.P.S"."""
    pattern = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}.get(postscript_marker)
    return re.search(pattern or re.escape(postscript_marker.lower()), response.lower()) is not None


def number_bullet_lists(response: str, num_bullets: Count) -> bool:
    """Exactly ``num_bullets`` lines begin with ``-`` or with one ``*``."""
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(response: str) -> bool:
    """The response contains one of the three answers."""
    return any(f"My answer is {answer}." in response for answer in ("yes", "no", "maybe"))


def number_highlighted_sections(response: str, num_highlights: Count) -> bool:
    """At least ``num_highlights`` nonempty ``*highlights*`` or ``**highlights**``, each on one line."""
    single = re.findall(r"\*([^\n*]*)\*", response)
    double = re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(bool(text.strip()) for text in single + double) >= num_highlights


def multiple_sections(response: str, section_spliter: Text, num_sections: Count) -> bool:
    """At least ``num_sections`` section heads such as "Section 1"."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", response)) >= num_sections


def json_format(response: str) -> bool:
    """All of the response is JSON, in a Markdown fence or not."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A nonempty title in ``<<`` and ``>>``, on one line."""
    for line in response.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if 0 <= begin < end - 2 and line[begin:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def no_comma(response: str) -> bool:
    """No comma."""
    return "," not in response


def two_responses(response: str) -> bool:
    """Two different responses, divided by ``******``; an empty one between two dividers fails."""
    parts = response.split("******")
    answers = [part.strip() for part in parts if part.strip()]
    return all(_filled(parts[1:-1])) and len(answers) == 2 and answers[0] != answers[1]


def _filled(parts: list[str]) -> list[bool]:
    return [bool(part.strip()) for part in parts]


def repeat_prompt(response: str, prompt_to_repeat: Text) -> bool:
    """The response begins with the request, in any case."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(response: str, end_phrase: Text) -> bool:
    """The response ends with the phrase, in any case; quotation marks around the response do not count."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    """The whole response is in double quotation marks."""
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# All of them ---------------------------------------------------------------------------------------------------------

_GROUPS: Mapping[str, Sequence[Callable[..., bool]]] = {
    "change_case": (capital_word_frequency, english_capital, english_lowercase),
    "combination": (repeat_prompt, two_responses),
    "detectable_content": (number_placeholders, postscript),
    "detectable_format": (
        constrained_response,
        json_format,
        multiple_sections,
        number_bullet_lists,
        number_highlighted_sections,
        title,
    ),
    "keywords": (existence, forbidden_words, frequency, letter_frequency),
    "language": (response_language,),
    "length_constraints": (nth_paragraph_first_word, number_paragraphs, number_sentences, number_words),
    "punctuation": (no_comma,),
    "startend": (end_checker, quotation),
}
_NEED_LANGDETECT = (english_capital, english_lowercase, response_language)


@dataclass(frozen=True)
class InstructionRule:
    """An instruction type: the function that decides it."""

    followed: Callable[..., bool]

    @property
    def needs_langdetect(self) -> bool:
        return self.followed in _NEED_LANGDETECT

    @cached_property
    def parameters(self) -> Mapping[str, ParameterKind]:
        """The instruction's parameters, as the function declares them."""
        hints = get_type_hints(self.followed, include_extras=True)
        return {name: hint.__metadata__[0] for name, hint in hints.items() if name not in ("response", "return")}


INSTRUCTION_RULES: Mapping[str, InstructionRule] = {
    f"{group}:{followed.__name__}": InstructionRule(followed)
    for group, functions in _GROUPS.items()
    for followed in functions
}
