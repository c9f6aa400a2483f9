"""Sentences and capital words against NLTK's tokenizers, and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer

from spintune.evaluation.ifeval.segmentation import count_capital_words, count_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two? Three!", 3),
        ("Wait... what", 1),
        ("Why?! Because.", 2),
        ("Mr. Smith met Dr. Jones at 5 p.m. yesterday.", 1),
        ("He lives in the U.S. He likes it.", 2),
        ("It costs $3.50, i.e. little", 2),  # "i.e." is no abbreviation to the newspaper model
        ('She said "Go." Then she went.', 2),
        ('"Go."', 1),
        ("(It rained.) We left.", 2),
        ("1. One\n2. Two", 3),  # 1. | One 2. | Two
        ("Version 2. beta", 1),
        ("I can't. You can.", 2),
        ("Vitamin C. The best.", 1),
        ("A. Overview", 2),
        ("**Bold end.**", 2),  # the asterisks stand alone
        ("visit www.example.com today", 1),
        ("No space.Between them", 1),
    ],
)
def test_sentences_by_hand(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


# Without abbreviations, initials and ellipses, an untrained Punkt decides as the trained one does.
CHUNKS = r"""Word word word. Word. no? No! 3. 3.5 12.) ( ) " * ** can't. what?! end.* end.** it.] - x-y. , so, 9.* [a.]
go!) so?* "Go." go." (go.) **go.** (go?!) (e.g.) a.b.c. www.x.org. Q: A: {z.} *word* 'tis." """
chunks = st.lists(st.tuples(st.sampled_from(CHUNKS.split()), st.sampled_from([" ", "\n", "\n\n"])), max_size=12)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(chunks)
def test_sentences_are_those_of_punkt(parts: list[tuple[str, str]]) -> None:
    text = "Once " + "".join(chunk + space for chunk, space in parts)
    assert count_sentences(text) == len(PunktSentenceTokenizer().tokenize(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("I am Here", 1),
        ("NASA, (ESA) and *JAXA*", 3),
        ("I'M I'm DON'T", 5),  # I 'M, I, DO N'T
        ("HBO's", 1),
        ("A/B COVID-19 U.S. 42 3D", 4),
        ("AT 10:30,000 OK:OK", 3),
        ("DON’T", 2),  # DON, T
        ("CANNOT Cannot", 2),
        ("Ok OK", 1),
    ],
)
def test_capital_words_by_hand(text: str, words: int) -> None:
    assert count_capital_words(text) == words


WORDS = r"""I NASA Ok a A-B a-B 3D 5 U.S. A/B _X_ CANNOT Cannot GONNA DON'T Don't HBO's HBO'S I'M I'm WE'LL BOYS' 'TIL
ISN’T (ESA) [X] *JAXA* **Y** “Z” "W" «V» OK! OK? SO... A--B A—B A:B 1:B 10:30 1,000 A,B A&B R@D 50% #TAG `C` <D>
{E} -- *"""
spaced = st.lists(
    st.tuples(st.sampled_from(WORDS.split()), st.sampled_from([" ", ", ", ". ", "\n", "! ", ": "])), max_size=12
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(spaced)
def test_capital_words_are_those_of_the_nltk_word_tokenizer(parts: list[tuple[str, str]]) -> None:
    text = "".join(word + space for word, space in parts)
    sentences = PunktSentenceTokenizer().tokenize(text)
    words = [word for sentence in sentences for word in NLTKWordTokenizer().tokenize(sentence)]
    assert count_capital_words(text) == sum(word.isupper() for word in words)
