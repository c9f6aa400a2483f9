"""A figure of how instructions begin, as SVG: first words in the inner ring, the words after them in the outer ring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from spintune.synthesis.card import Opening

_SIZE = 640
_INNER, _MIDDLE, _OUTER = 70, 190, 310
_MIN_LABELED_ANGLE = 0.045
"""Narrower slices get no text. [radians]"""


def openings_figure(openings: Sequence[Opening]) -> str:
    """Two rings. A slice's angle is its share of the instructions that begin with one of these words.

    The outer ring stays blank where a next word is not among the most frequent ones of its first word.
    """
    total = sum(row.count for row in openings) or 1
    parts, angle = [], 0.0
    for number, row in enumerate(openings):
        width = 2 * math.pi * row.count / total
        hue = round(360 * number / len(openings))
        parts.append(_slice(angle, width, _INNER, _MIDDLE, f"hsl({hue} 55% 72%)", row.word, row.count))
        start = angle
        for place, following in enumerate(row.next):
            share = 2 * math.pi * following.count / total
            color = f"hsl({hue} 55% {80 + 3 * place}%)"
            parts.append(_slice(start, share, _MIDDLE, _OUTER, color, following.word or "-", following.count))
            start += share
        angle += width
    half = _SIZE // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-{half} -{half} {_SIZE} {_SIZE}" role="img" '
        f'font-family="sans-serif" font-size="11"><title>How instructions begin</title>{"".join(parts)}</svg>\n'
    )


def _slice(start: float, width: float, inner: float, outer: float, color: str, word: str, count: int) -> str:
    width = min(width, 2 * math.pi - 1e-6)  # an arc cannot join a point to itself
    large = int(width > math.pi)
    a, b, c, d = (
        _at(r, t) for r, t in ((outer, start), (outer, start + width), (inner, start + width), (inner, start))
    )
    path = f"M{a}A{outer} {outer} 0 {large} 1 {b}L{c}A{inner} {inner} 0 {large} 0 {d}Z"
    shape = f'<path d="{path}" fill="{color}" stroke="white"><title>{escape(word)}: {count}</title></path>'
    if width < _MIN_LABELED_ANGLE:
        return shape
    middle = start + width / 2
    degrees = math.degrees(middle) - 90
    turned = degrees + 180 if math.sin(middle) < 0 else degrees  # never upside down
    x, y = _at((inner + outer) / 2, middle).split(" ")
    label = (
        f'<text transform="translate({x} {y}) rotate({turned:.1f})" text-anchor="middle" dy="4">{escape(word)}</text>'
    )
    return shape + label


def _at(radius: float, angle: float) -> str:
    """The point of a circle at an angle, clockwise from the top."""
    return f"{radius * math.sin(angle):.2f} {-radius * math.cos(angle):.2f}"
