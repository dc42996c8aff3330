# SPDX-License-Identifier: MIT
"""Bars and lines as SVG, with nothing but text."""

import math
from xml.sax.saxutils import escape

from .figures import number

COLORS = ["#2563a8", "#c2571a", "#5a8f3c", "#8a5aa8", "#777777"]
FONT = 'font-family="sans-serif" font-size="12"'


def _text(x, y, words, anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT} {extra}>{escape(words)}</text>'


def _page(width, height, parts):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def bars(title, unit, sides):
    """sides: [(label, median, least, largest)]; a bar each, with a line from least to largest."""
    left, width, step = 230, 760, 34
    top = 44
    room = width - left - 110
    largest = max([high for _, _, _, high in sides] + [1e-12])
    parts = [_text(12, 24, title, extra='font-weight="bold"')]
    for at, (label, middle, low, high) in enumerate(sides):
        y = top + at * step
        end, a, b = (left + room * v / largest for v in (middle, low, high))
        parts += [
            _text(left - 8, y + 16, label, "end"),
            f'<rect x="{left}" y="{y}" width="{max(end - left, 0):.1f}" height="22" '
            f'fill="{COLORS[at % len(COLORS)]}"/>',
            f'<path d="M{a:.1f} {y + 11}H{b:.1f}M{a:.1f} {y + 6}v10M{b:.1f} {y + 6}v10" '
            'stroke="black" fill="none"/>',
            _text(max(end, b) + 8, y + 16, f"{number(middle)} {unit}".strip()),
        ]
    return _page(width, top + len(sides) * step + 12, parts)


def lines(title, x_label, y_label, x_names, series):
    """series: [(label, [a value or None for each of x_names])]; y is logarithmic."""
    width, height, left, top, right, bottom = 760, 360, 70, 44, 20, 60
    values = [v for _, ys in series for v in ys if v is not None and v > 0]
    low = 10 ** math.floor(math.log10(min(values))) if values else 1
    high = 10 ** math.ceil(math.log10(max(values))) if values else 10
    if high <= low:
        high = low * 10
    steps = max(len(x_names) - 1, 1)

    def x_of(at):
        return left + (width - left - right) * at / steps

    def y_of(value):
        part = math.log10(max(value, low) / low) / math.log10(high / low)
        return height - bottom - (height - bottom - top) * part

    parts = [_text(12, 24, title, extra='font-weight="bold"'),
             _text(width / 2, height - 8, x_label, "middle"), _text(12, top - 6, y_label)]
    tick = low
    while tick <= high * 1.0001:
        y = y_of(tick)
        parts += [f'<path d="M{left} {y:.1f}H{width - right}" stroke="#dddddd"/>',
                  _text(left - 6, y + 4, number(tick), "end")]
        tick *= 10
    every = max(1, len(x_names) // 12)
    parts += [_text(x_of(at), height - bottom + 18, str(name), "middle")
              for at, name in enumerate(x_names) if at % every == 0]
    for at, (label, ys) in enumerate(series):
        color = COLORS[at % len(COLORS)]
        points = " ".join(f"{x_of(i):.1f},{y_of(v):.1f}"
                          for i, v in enumerate(ys) if v is not None and v > 0)
        parts += [f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>',
                  _text(left + 10 + at * 170, height - bottom + 36, label,
                        extra=f'fill="{color}" font-weight="bold"')]
    return _page(width, height, parts)
