"""Line charts as inline SVG, colored by the page's own style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Mark each point."""


def line_chart(lines: Sequence[Line], x_label: str, *, percent: bool = False, label: str = "") -> Markup:
    """Draw series over a common x axis; values that are not finite are left out."""
    kept = [Line(s.name, [p for p in s.points if math.isfinite(p[1])], s.dots) for s in lines]
    points = [point for line in kept for point in line.points]
    if not points:
        return Markup("<p class=note>nothing logged</p>")
    xs, ys = ticks(*_range([x for x, _ in points])), ticks(*_range([y for _, y in points]))
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = ys[0], ys[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)
        up = (y - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for y in ys:
        _, height = place(left, y)
        words = f"{y:.0%}" if percent and (ys[1] - ys[0]) >= 0.01 else f"{y:.1%}" if percent else f"{y:.4g}"
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"'
        parts.append(f'<line class="grid" {ends}/>')
        parts.append(f'<text x="{LEFT - 7}" y="{height + 4:.1f}" text-anchor="end">{words}</text>')
    for x in (x for x in xs if left <= x <= right):
        across, _ = place(x, low)
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    for number, line in enumerate(kept):
        parts.append(_path(line, number, [place(x, y) for x, y in line.points]))
    return Markup("".join(parts) + "</svg>")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values, 1, 2 or 5 times a power of ten apart, that span a range."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = abs(low) * 0.1 or 1.0
    return (low, high) if high > low else (low - margin, high + margin)


def _path(line: Line, number: int, places: Sequence[tuple[float, float]]) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    shown = f'<polyline class="line c{number}" points="{corners}"/>'
    if line.dots or len(places) == 1:
        for (x, y), (at, value) in zip(places, line.points, strict=True):
            told = f"<title>{escape(line.name)} {value:.4g} at {at:g}</title>"
            shown += f'<circle class="c{number}" cx="{x:.1f}" cy="{y:.1f}" r="3">{told}</circle>'
    return shown
