"""Building blocks of a report page: tables, confusion matrices and example images; they know no task."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from PIL import Image

ROWS = 30
"""Rows of a table before the rest is folded."""
MAX_MATRIX = 30
"""Classes up to which a confusion matrix is drawn."""
MAX_BESIDE = 13
"""Classes up to which the list of confusions fits beside the matrix."""
LONG_NAME = 18
"""Letters of a class name up to which two of them fit in a row beside the matrix."""
CONFUSIONS = 12
"""Length of the list of confusions."""


class Link(NamedTuple):
    """Text that leads to a file beside the page."""

    text: str
    href: str

    def __str__(self) -> str:
        return self.text


class Row(NamedTuple):
    """Row of a table."""

    cells: Sequence[str | Link]
    color: str = ""
    """CSS color of the box before the first cell."""


@dataclass(frozen=True)
class Table:
    """Table whose rows after the first ROWS are folded."""

    kind: ClassVar = "table"
    columns: Sequence[str]
    rows: Sequence[Row]
    bar: int | None = None
    """Column of percentages that are also drawn as bars."""
    left: int = 1
    """Number of columns that are aligned left, the others right."""

    @property
    def shown(self) -> Sequence[Row]:
        """The first rows."""
        return self.rows[:ROWS]

    @property
    def folded(self) -> Sequence[Row]:
        """The remaining rows."""
        return self.rows[ROWS:]


class Cell(NamedTuple):
    """Cell of a confusion matrix."""

    text: str
    title: str
    share: float
    """Of the row's total; decides the background."""


@dataclass(frozen=True)
class Matrix:
    """Confusion matrix: true classes in rows, predicted classes in columns."""

    kind: ClassVar = "matrix"
    names: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str
    """Small print."""


@dataclass(frozen=True)
class Example:
    """An image with its prediction, as one or several panels."""

    panels: Mapping[str, str | None]
    """Data URI of each panel by its caption; None where the image file is gone."""
    value: str
    """Predicted class, or score of the image."""
    text: str = ""
    """What stands beside the value."""
    note: str = ""
    """Small print: the true class, or the path."""
    title: str = ""
    """Tooltip."""
    correct: bool | None = None
    legend: Sequence[tuple[str, str]] = ()
    """Names and CSS colors."""
    more: int = 0
    """Entries that the legend leaves out."""


@dataclass(frozen=True)
class Examples:
    """Titled grid of examples."""

    kind: ClassVar = "examples"
    title: str
    examples: Sequence[Example]
    large: bool = False
    """Each as wide as the page."""

    @property
    def panels(self) -> int:
        """Panels of an example, at most."""
        return max(len(example.panels) for example in self.examples)


@dataclass(frozen=True)
class Note:
    """Line in small print."""

    kind: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Listing:
    """Sentences, each with a dot before it."""

    kind: ClassVar = "list"
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text of a file, as it is."""

    kind: ClassVar = "code"
    text: str


class Figure(NamedTuple):
    """A chart with its title."""

    title: str
    key: Sequence[str]
    """Names of its lines, where there are several."""
    svg: str


@dataclass(frozen=True)
class Figures:
    """Charts, two in a row."""

    kind: ClassVar = "figures"
    figures: Sequence[Figure]
    key: Sequence[str] = ()
    """Names of the lines of all of them."""


Block = Table | Matrix | Examples | Note | Listing | Code | Figures


@dataclass(frozen=True)
class Section:
    """Titled section of the page; left out if it has no blocks."""

    title: str
    blocks: Sequence[Block]
    beside: Sequence[Block] = ()
    """Blocks of a second column."""
    wide: bool = False
    """Put the second column below the first."""
    note: str = ""
    """Small print at the end."""


def worst_and_best(
    examples: Sequence[dict[str, Any]], score: str, build: Callable[[dict[str, Any]], Example]
) -> list[Examples]:
    """The worse half of the examples by their score, and the better half from the best on."""
    ordered = sorted(examples, key=lambda example: float(example[score]))
    half = -(-len(ordered) // 2)
    groups = (("Worst", ordered[:half]), ("Best", ordered[half:][::-1]))
    return [Examples(title, [build(example) for example in group]) for title, group in groups if group]


def confusion_section(evaluation: Mapping[str, Any], unit: str, percent: bool = False) -> Section:
    """Confusion matrix, if there are few classes, and the most frequent confusions.

    Args:
        evaluation: `per_class` with `name` of each class; `confusion` (K, K) or the non-zero
            `confusion_entries`, true class before predicted one.
        unit: what was counted, `images` or `pixels`.
        percent: show percentages of the true class instead of counts.
    """
    names = [row["name"] for row in evaluation.get("per_class", [])]
    counts = evaluation.get("confusion", [])
    entries = evaluation.get("confusion_entries") or [
        (true, predicted, count) for true, row in enumerate(counts) for predicted, count in enumerate(row)
    ]
    totals = dict.fromkeys(range(len(names)), 0)
    for true, _, count in entries:
        totals[true] += count
    wrong = [(-count, names[true], names[predicted], totals[true]) for true, predicted, count in entries
             if true != predicted and count]  # fmt: skip
    rows = [
        Row([true, predicted, f"{-count:,}", f"{-count / total:.1%}"])
        for count, true, predicted, total in sorted(wrong)[:CONFUSIONS]
    ]
    table = Table(("true class", "predicted", unit, "of the class"), rows, left=2)
    if not 0 < len(counts) <= MAX_MATRIX:
        return Section("Confusion", [table])
    shown = f"Percent of the class's {unit}" if percent else f"Numbers of {unit}"
    cells = [[_cell(count, sum(row), unit, percent) for count in row] for row in counts]
    wide = len(counts) > MAX_BESIDE or max(map(len, names)) > LONG_NAME
    matrix = Matrix(names, cells, f"{shown}. Rows: true class. Columns: predicted class.")
    return Section("Confusion", [matrix], [table], wide=wide)


def _cell(count: int, total: int, unit: str, percent: bool) -> Cell:
    share = count / max(total, 1)
    text = str(count or "")
    if percent and count:
        text = f"{share * 100:.0f}" if share >= 0.005 else "·"
    return Cell(text, f"{count:,} {unit}", share)


def data_uri(image: Image.Image, quality: int = 88) -> str:
    """JPEG data URI, which needs no file beside the page."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0 if quality > 90 else -1)  # thin lines keep hues
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def css_color(color: Sequence[int]) -> str:
    """RGB color in CSS."""
    return f"rgb({color[0]} {color[1]} {color[2]})"


def percentage(share: float | None, decimals: int = 1) -> str:
    """Percentage; a dash for None."""
    return "–" if share is None else f"{share:.{decimals}%}"
