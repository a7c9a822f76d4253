"""Reports of evaluations: metrics, tables and the examples that a page shows."""

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from metaformer.process import one_line
from metaformer.report.blocks import Example, Examples, data_uri
from metaformer.report.readable import Readable
from metaformer.storage import write_text

LARGEST_MATRIX = 200
"""Classes up to which a confusion matrix is written whole; beyond, its non-zero entries."""


Maps = Callable[[Mapping[str, Any], Image.Image], Mapping[str, str]]
"""Maps of what the network looked at, of an example of an evaluation and its image, by their captions."""


def no_maps(example: Mapping[str, Any], image: Image.Image) -> dict[str, str]:
    """`Maps` of a report without any."""
    return {}


class Report(Readable):
    """Result of an evaluation."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Metrics by their names in logs."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

    @abstractmethod
    def text(self, rows: int = 20) -> str:
        """The metrics, and a table of at most this many classes, weakest first."""

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as a JSON file.

        Raises:
            OutputError: it cannot be written.
        """
        write_text(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return Path(path)


def class_table(columns: Sequence[str], classes: Sequence[Sequence[str]], rows: int) -> list[str]:
    """Lines of a table of classes, the first column aligned left, after which the others are counted."""
    shown = [[one_line(cell) for cell in line] for line in (columns, *classes[:rows])]
    widths = [max(len(line[i]) for line in shown) for i in range(len(columns))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in shown]
    if len(classes) > rows:
        lines.append(f"… and {len(classes) - rows} classes that do better (all of them are in the JSON)")
    return lines


def confusion_values(confusion: Tensor) -> dict[str, Any]:
    """Confusion matrix (K, K) for a report's JSON: its rows, or for many classes its non-zero entries."""
    if len(confusion) <= LARGEST_MATRIX:
        return {"confusion": confusion.tolist()}
    rows, columns = confusion.nonzero(as_tuple=True)
    entries = zip(rows.tolist(), columns.tolist(), confusion[rows, columns].tolist(), strict=True)
    return {"confusion_entries": [list(entry) for entry in entries]}


def thumbnail(image: Image.Image, side: int) -> str:
    """Data URI of an image whose longer side is reduced to this many pixels."""
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return data_uri(image)


def example_grids(
    groups: Iterable[tuple[str, Sequence[dict[str, Any]]]], build: Callable[[dict[str, Any]], Example | None]
) -> list[Examples]:
    """Grids of examples by their titles, without those that cannot be built since their image is gone."""
    grids = [
        (title, [shown for shown in map(build, examples) if shown is not None]) for title, examples in groups
    ]
    return [Examples(title, shown) for title, shown in grids if shown]
