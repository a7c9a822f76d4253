"""Charts as inline SVG, colored by the page's style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate, pairwise
from typing import Final, Literal

Text = Callable[[float], str]
"""How numbers are written."""
Pixel = tuple[float, float]
Tone = Literal["good", "bad", "even", "open"]
"""Color of what is better, worse, as good, or not known."""
WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
COLORS: Final = 8
"""Colors of series in the style sheet; later series have them again, dashed."""
_LARGEST = 1e100  # of what is drawn; beyond it scales have no numbers
_NAMES, _ROW, _LONGEST = 132, 26, 20  # width and height of a row's name, and its letters
_LETTER, _LINE = 6.0, 12  # width and height of text, nearly
_DECADES = 3  # ratio of values from which an axis of ratios has numbers enough


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Mark each point."""
    mark: float | None = None
    """x of a point to mark with a ring."""


@dataclass(frozen=True)
class Effect:
    """Row of a forest plot."""

    name: str
    value: float
    low: float
    high: float
    tone: Tone


@dataclass(frozen=True)
class Point:
    """Point of a scatter plot."""

    name: str
    x: float
    y: float
    faint: bool = False
    """It is there for reference, and not on the front."""


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` at pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ratios: bool = False
    """Equal distances are equal ratios."""

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        low, high, value = (math.log(v) if self.ratios else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis; the only value of one without length."""
        if self.low == self.high:
            return [self.low]
        if self.ratios and self.high >= _DECADES * self.low:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1,)):
                values = [float(f"{m}e{power}") for power in powers for m in steps]
                found = [v for v in values if self.low * 0.999 <= v <= self.high * 1.001]
                if len(found) <= 7:
                    break
            return found
        return [value for value in ticks(self.low, self.high) if self.low <= value <= self.high]


def line_chart(
    lines: Sequence[Line], x_label: str, *, percent: bool = False, label: str = "", ratios: bool = False
) -> str:
    """SVG of series over a common x axis; points that are not finite are left out.

    Args:
        lines: the series.
        x_label: what x is.
        percent: y are shares.
        label: what the chart shows, for those who cannot see it.
        ratios: equal distances of x are equal ratios; all x are above 0.
    """
    series = [replace(line, points=[p for p in line.points if abs(p[1]) < _LARGEST]) for line in lines]
    points = [point for line in series for point in line.points]
    if not points:
        return "<p class=note>nothing logged</p>"
    ys = ticks(*_range([y for _, y in points]))
    x_axis = Axis(min(p[0] for p in points), max(p[0] for p in points), LEFT, WIDTH - RIGHT, ratios)
    y_axis = Axis(ys[0], ys[-1], HEIGHT - BOTTOM, TOP)

    def text(y: float) -> str:
        return f"{y:.0%}" if percent and (ys[1] - ys[0]) >= 0.01 else f"{y:.1%}" if percent else f"{y:.4g}"

    xs = x_axis.ticks() if ratios else ticks(*_range([x for x, _ in points]))
    parts = [_open(HEIGHT, label), *_levels(y_axis, ys, text)]
    xs = [x for x in xs if x_axis.low <= x <= x_axis.high]
    parts += [*_marks(x_axis, xs, HEIGHT - BOTTOM, "{:g}".format), _caption(x_label, LEFT, HEIGHT)]
    for number, line in enumerate(series):
        parts.append(_path(line, number, [(x_axis(x), y_axis(y)) for x, y in line.points]))
    return "".join(parts) + "</svg>"


def forest_chart(rows: Sequence[Effect], x_label: str, zone: float, *, label: str = "") -> str:
    """SVG of differences with their intervals, a row each, around 0.

    Args:
        rows: the differences.
        x_label: what they are.
        zone: differences up to this size, either way, are shaded.
        label: what the chart shows, for those who cannot see it.
    """
    ends = [-zone, zone, *(end for row in rows for end in (row.low, row.high))]
    axis, parts = _rows([row.name for row in rows], ends, x_label, label, signed)
    bottom = TOP + _ROW * len(rows)
    shade = f'x="{axis(-zone):.1f}" width="{axis(zone) - axis(-zone):.1f}" y="{TOP}" height="{bottom - TOP}"'
    parts.insert(1, f'<rect class="zone" {shade}/>')
    parts.append(f'<line class="zero" x1="{axis(0):.1f}" x2="{axis(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
    for top, row in zip(_middles(rows), rows, strict=True):
        value, low, high = (signed(round(v, 2)) for v in (row.value, row.low, row.high))
        title = f"<title>{escape(row.name)} {value}, {low} to {high}</title>"
        across = f'x1="{axis(row.low):.1f}" x2="{axis(row.high):.1f}" y1="{top}" y2="{top}"'
        parts.append(f'<g class="effect {row.tone}">{title}<line {across}/>')
        parts.append(f'<circle cx="{axis(row.value):.1f}" cy="{top}" r="4.5"/></g>')
    return "".join(parts) + "</svg>"


def dot_chart(rows: Sequence[tuple[str, Sequence[float]]], x_label: str, *, label: str = "") -> str:
    """SVG of values as dots, a row for each name, with a stroke at their mean; a row may be empty."""
    values = [value for _, row in rows for value in row]
    if not values:
        return "<p class=note>nothing yet</p>"
    axis, parts = _rows([name for name, _ in rows], values, x_label, label, "{:.4g}".format)
    for top, (name, row) in zip(_middles(rows), rows, strict=True):
        for value in row:
            title = f"<title>{escape(name)} {value:.2f}</title>"
            parts.append(f'<circle class="seed" cx="{axis(value):.1f}" cy="{top}" r="4">{title}</circle>')
        if row:
            mean = axis(sum(row) / len(row))
            parts.append(
                f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="{top - 9}" y2="{top + 9}"/>'
            )
    return "".join(parts) + "</svg>"


def scatter_chart(points: Sequence[Point], x_label: str, *, label: str = "") -> str:
    """SVG of named points and their Pareto front, where no other point has a higher y at the same or lower x.

    Args:
        points: the points, with x above 0.
        x_label: what x is, which is better the lower it is.
        label: what the chart shows, for those who cannot see it.
    """
    if not points:
        return "<p class=note>nothing yet</p>"
    low, high = min(p.x for p in points), max(p.x for p in points)
    pad = max((high / low) ** 0.08, 1.05)  # equal costs are not to look different
    x_axis = Axis(low / pad, high * pad, LEFT, WIDTH - RIGHT, ratios=True)
    ys = ticks(*_range([p.y for p in points]))
    y_axis = Axis(ys[0], ys[-1], HEIGHT - BOTTOM, TOP)
    places = [(x_axis(p.x), y_axis(p.y)) for p in points]
    parts = [_open(HEIGHT, label), *_levels(y_axis, ys, "{:.4g}".format)]
    parts += _marks(x_axis, x_axis.ticks(), HEIGHT - BOTTOM, "{:g}".format)
    parts.append(_caption(x_label, LEFT, HEIGHT))
    corners = _stairs([(x_axis(p.x), y_axis(p.y)) for p in front(points)])
    parts.append(f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}"/>')
    names = _labels([point.name for point in points], places, corners)
    for point, (left, top), (x, y) in zip(points, places, names, strict=True):
        kind = "reference" if point.faint else "c0"
        title = f"<title>{escape(point.name)} {point.y:.4g} at {point.x:.4g}</title>"
        parts.append(f'<circle class="{kind}" cx="{left:.1f}" cy="{top:.1f}" r="4.5">{title}</circle>')
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}">{escape(_short(point.name))}</text>')
    return "".join(parts) + "</svg>"


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, from the lowest x on: points that are not faint and exceed all before them."""
    ordered = sorted((p for p in points if not p.faint), key=lambda p: (p.x, -p.y))
    best = accumulate((p.y for p in ordered), max, initial=-math.inf)
    return [point for point, before in zip(ordered, best, strict=False) if point.y > before]


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values that span a range, 1, 2 or 5 times a power of ten apart, in at most `count` steps."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def line_class(number: int) -> str:
    """CSS classes of a series, by its place."""
    return f"c{number % COLORS}" + " again" * (number >= COLORS)


def signed(value: float) -> str:
    """A number with its sign, as typeset."""
    return f"{value:+.4g}".replace("-", "−") if value else "0"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = abs(low) * 0.1 or 1.0
    return (low, high) if high > low else (low - margin, high + margin)


def _open(height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'


def _levels(axis: Axis, values: Sequence[float], text: Text) -> list[str]:
    """Horizontal lines with their values on the left."""
    parts = []
    for value in values:
        top = axis(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{top + 4:.1f}" text-anchor="end">{text(value)}</text>')
    return parts


def _marks(axis: Axis, values: Sequence[float], bottom: float, text: Text) -> list[str]:
    """Values below an axis."""
    return [
        f'<text x="{axis(x):.1f}" y="{bottom + 17}" text-anchor="middle">{text(x)}</text>' for x in values
    ]


def _caption(text: str, left: float, height: float) -> str:
    middle = (left + WIDTH - RIGHT) / 2
    return f'<text x="{middle}" y="{height - 3}" text-anchor="middle">{escape(text)}</text>'


def _rows(
    names: Sequence[str], values: Sequence[float], x_label: str, label: str, text: Text
) -> tuple[Axis, list[str]]:
    """Axis and frame of a chart with a row for each name, as high as it needs to be."""
    bottom = TOP + _ROW * len(names)
    xs = ticks(*_range(values), 5)
    axis = Axis(xs[0], xs[-1], _NAMES, WIDTH - RIGHT - 8)
    parts = [_open(bottom + BOTTOM, label)]
    for x in xs:
        ends = f'x1="{axis(x):.1f}" x2="{axis(x):.1f}" y1="{TOP}" y2="{bottom}"'
        parts.append(f'<line class="grid" {ends}/>')
    parts += [*_marks(axis, xs, bottom, text), _caption(x_label, _NAMES, bottom + BOTTOM)]
    for top, name in zip(_middles(names), names, strict=True):
        title = f"<title>{escape(name)}</title>{escape(_short(name))}"
        parts.append(f'<text class="name" x="{_NAMES - 10}" y="{top + 4}" text-anchor="end">{title}</text>')
    return axis, parts


def _middles(rows: Sequence[object]) -> list[float]:
    return [TOP + _ROW * (i + 0.5) for i in range(len(rows))]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _stairs(places: Sequence[Pixel]) -> list[Pixel]:
    """Corners of a line that is level up to each place, and after the last."""
    corners = list(places[:1])
    for x, y in places[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, *((WIDTH - RIGHT, y) for _, y in corners[-1:])]


def _labels(names: Sequence[str], places: Sequence[Pixel], line: Sequence[Pixel]) -> list[Pixel]:
    """Left end and baseline of each point's name: beside, above or below it, where nothing else is."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for (x0, y0), (x1, y1) in pairwise(line):
        taken.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
    found = []
    for name, (x, y) in zip(names, places, strict=True):
        width = _LETTER * len(_short(name))
        sides = [(x + 8, y + 4), (x - 8 - width, y + 4)]
        for away in range(10, 60, _LINE):
            sides += [
                (left, y + up) for up in (-away, away + 8) for left in (x - width / 2, x + 4, x - width - 4)
            ]
        boxes = [(left, base - 9, left + width, base + 2) for left, base in sides]
        free = next((i for i, box in enumerate(boxes) if _inside(box) and not _touches(box, taken)), 0)
        taken.append(boxes[free])
        found.append(sides[free])
    return found


def _inside(box: tuple[float, float, float, float]) -> bool:
    return box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM + 4


def _touches(
    box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]
) -> bool:
    return any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in others
    )


def _path(line: Line, number: int, pixels: Sequence[tuple[float, float]]) -> str:
    color = f"c{number % COLORS}"
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    path = f'<polyline class="line {line_class(number)}" points="{corners}"/>'
    for (left, top), (x, y) in zip(pixels, line.points, strict=True):
        place = f'cx="{left:.1f}" cy="{top:.1f}"'
        title = f"<title>{escape(line.name)} {y:.4g} at {x:g}</title>"
        if line.dots or len(pixels) == 1:
            path += f'<circle class="{color}" {place} r="3">{title}</circle>'
        if x == line.mark:
            path += f'<circle class="ring {color}" {place} r="6.5">{title}</circle>'
    return path
