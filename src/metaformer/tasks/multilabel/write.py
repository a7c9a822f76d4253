"""Multi-label predictions to files: JSON lines, CSV, drawn images."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metaformer.tasks.base import LoadedModel
from metaformer.tasks.multilabel.draw import annotate
from metaformer.tasks.multilabel.results import MultilabelResult
from metaformer.tasks.outputs import Prediction, write_rows


def write_multilabel(
    predictions: Iterable[Prediction[MultilabelResult]],
    out: str | Path | None,
    model: LoadedModel | None = None,
    *,
    draw: bool = False,
) -> Iterator[str]:
    """Write multi-label predictions; yields the lines to print.

    Args:
        predictions: what is written.
        out: a file that ends in .jsonl or .csv, or a folder for both; None yields JSON lines.
        model: the network.
        draw: also write the images with the predictions drawn on them, in the folder `images`.

    Raises:
        ConfigError: `draw` without `out`.
        OutputError: `out` cannot be written to.
    """
    return write_rows(predictions, out, csv_row, annotate, draw)


def csv_row(result: MultilabelResult) -> dict[str, Any]:
    """Path, labels, and the score of each class; a semicolon separates labels where one holds a space."""
    separator = ";" if any(" " in name for name in result.classes) else " "
    scores = {name: f"{score:.6f}" for name, score in zip(result.classes, result.scores, strict=True)}
    return {"path": result.path, "labels": separator.join(result.labels), **scores}
