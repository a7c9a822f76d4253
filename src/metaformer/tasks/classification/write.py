"""Class predictions to files: JSON lines, CSV, drawn images."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metaformer.tasks.base import LoadedModel
from metaformer.tasks.classification.draw import annotate
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.outputs import Prediction, write_rows


def write_classifications(
    predictions: Iterable[Prediction[Classification]],
    out: str | Path | None,
    model: LoadedModel | None = None,
    *,
    draw: bool = False,
) -> Iterator[str]:
    """Write class predictions; yields the lines to print.

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


def csv_row(result: Classification) -> dict[str, Any]:
    """Path, label and score, then the further classes with theirs as `label_2`, `score_2` and so on."""
    row: dict[str, Any] = {"path": result.path}
    for rank, (label, score) in enumerate(zip(result.labels, result.scores, strict=True), start=1):
        suffix = f"_{rank}" if rank > 1 else ""
        row |= {f"label{suffix}": label, f"score{suffix}": f"{score:.6f}"}
    return row
