"""Line charts as inline SVG, colored by the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
_LARGEST = 1e100  # of what is drawn; beyond it scales have no numbers


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Mark each point."""


def line_chart(lines: Sequence[Line], x_label: str, *, percent: bool = False, label: str = "") -> str:
    """SVG of series over a common x axis; points that are not finite are left out."""
    series = [Line(line.name, [p for p in line.points if abs(p[1]) < _LARGEST], line.dots) for line in lines]
    points = [point for line in series for point in line.points]
    if not points:
        return "<p class=note>nothing logged</p>"
    xs, ys = ticks(*_range([x for x, _ in points])), ticks(*_range([y for _, y in points]))
    x_min, x_max = min(p[0] for p in points), max(p[0] for p in points)
    y_min, y_max = ys[0], ys[-1]

    def pixel(x: float, y: float) -> tuple[float, float]:
        right = (x - x_min) / ((x_max - x_min) or 1) * (WIDTH - LEFT - RIGHT)
        up = (y - y_min) / ((y_max - y_min) or 1) * (HEIGHT - TOP - BOTTOM)
        return LEFT + right, HEIGHT - BOTTOM - up

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for y in ys:
        _, top = pixel(x_min, y)
        text = f"{y:.0%}" if percent and (ys[1] - ys[0]) >= 0.01 else f"{y:.1%}" if percent else f"{y:.4g}"
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top:.1f}" y2="{top:.1f}"'
        parts.append(f'<line class="grid" {ends}/>')
        parts.append(f'<text x="{LEFT - 7}" y="{top + 4:.1f}" text-anchor="end">{text}</text>')
    for x in (x for x in xs if x_min <= x <= x_max):
        left, _ = pixel(x, y_min)
        parts.append(f'<text x="{left:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    for number, line in enumerate(series):
        parts.append(_path(line, number, [pixel(x, y) for x, y in line.points]))
    return "".join(parts) + "</svg>"


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values that span a range, 1, 2 or 5 times a power of ten apart, in at most `count` steps."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = abs(low) * 0.1 or 1.0
    return (low, high) if high > low else (low - margin, high + margin)


def _path(line: Line, number: int, pixels: Sequence[tuple[float, float]]) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    path = f'<polyline class="line c{number}" points="{corners}"/>'
    if line.dots or len(pixels) == 1:
        for (left, top), (x, y) in zip(pixels, line.points, strict=True):
            title = f"<title>{escape(line.name)} {y:.4g} at {x:g}</title>"
            path += f'<circle class="c{number}" cx="{left:.1f}" cy="{top:.1f}" r="3">{title}</circle>'
    return path
