"""Panels of curves as one SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from spintune.report.figures import HEIGHT, WIDTH, Series, draw

COLORS = ("#1f5fa8", "#c2571a", "#2b8a57", "#8a3fa0", "#8a6d00", "#444444", "#b0305c")
DASHES = ("none", "7 3", "2 3", "8 3 2 3", "12 4", "3 6", "1 2")
STYLE = """text { font: 11px sans-serif; fill: #555 } .title { font: bold 13px sans-serif; fill: #222 }
.grid { stroke: #ddd } .line { fill: none; stroke-width: 2 } .error { stroke-width: 1.5 } .told { fill: transparent }
.level { stroke: #888; stroke-dasharray: 4 3 }
"""


@dataclass(frozen=True)
class Panel:
    """Lines over named places; a place without a number is None. ``level`` is drawn dashed: the start."""

    title: str
    lines: Mapping[str, Sequence[float | None]]
    names: Sequence[str]
    level: float
    unit: str = "share of right answers"


def figure(panels: Sequence[Panel]) -> str:
    """Two panels a row, one legend below."""
    gap, margin, top = 30, 12, 34
    slots = {name: slot for slot, name in enumerate(dict.fromkeys(name for panel in panels for name in panel.lines))}
    parts = []
    for number, panel in enumerate(panels):
        series = [
            Series(name, [(float(at), value) for at, value in enumerate(values) if value is not None], slots[name])
            for name, values in panel.lines.items()
        ]
        drawn = draw(panel.title, panel.unit, series, names=panel.names, level=panel.level)
        if drawn is None:
            raise SystemExit(f"{panel.title}: nothing to draw")
        x, y = margin + number % 2 * (WIDTH + gap), number // 2 * (HEIGHT + top)
        parts.append(f'<text class="title" x="{x}" y="{y + 20}">{escape(panel.title)}</text>')
        placed = f'<svg x="{x}" y="{y + top}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(str(drawn.svg).replace("<svg ", placed, 1))
    below = (len(panels) + 1) // 2 * (HEIGHT + top) + 18
    rules = STYLE
    for name, slot in slots.items():
        color, dash = COLORS[slot % len(COLORS)], DASHES[slot % len(DASHES)]
        rules += f".s{slot} {{ stroke: {color} }} .line.s{slot} {{ stroke-dasharray: {dash} }} "
        rules += f".dot.s{slot} {{ fill: {color} }}\n"
        x, y = margin + slot % 2 * (WIDTH + gap), below + 18 * (slot // 2)
        parts.append(f'<line class="line s{slot}" x1="{x}" x2="{x + 28}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text x="{x + 34}" y="{y}">{escape(name)}</text>')
    width, height = 2 * margin + 2 * WIDTH + gap, below + 18 * (1 + len(slots) // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{rules}</style><rect width="{width}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )
