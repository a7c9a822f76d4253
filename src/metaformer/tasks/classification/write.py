"""Class predictions to files: JSON lines, CSV, drawn images."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from metaformer.storage import atomic_text
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.classification.draw import annotate
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.outputs import (
    LINES,
    Output,
    Prediction,
    Writer,
    drawn_output,
    jsonl_writer,
    write_outputs,
)


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
        ConfigError: `draw` without a place.
        OutputError: the place cannot be written to.
    """

    def outputs(place: Path) -> list[Output]:
        lone = place.suffix.lower() in (".jsonl", ".csv")
        lines, table = (place, place) if lone else (place / LINES, place / "predictions.csv")
        chosen = []
        if lines.suffix.lower() == ".jsonl":
            chosen.append(Output(jsonl_writer(lines), "predictions", lines))
        if table.suffix.lower() == ".csv":
            chosen.append(Output(csv_writer(table), "predictions", table))
        if draw:
            chosen.append(drawn_output(place.parent if lone else place, _drawn))
        return chosen

    return write_outputs(predictions, out, outputs, needs_folder={"draw": draw}, suffixes=(".jsonl", ".csv"))


@contextmanager
def csv_writer(file: Path) -> Iterator[Writer[Classification]]:
    """Write one row an image: path, label, score, then the further classes with theirs.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_text(file) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        head = False

        def write(name: str, prediction: Prediction[Classification]) -> None:
            nonlocal head
            result = prediction.result
            if not head:
                further = range(2, len(result.labels) + 1)
                rest = [f"{column}_{i}" for i in further for column in ("label", "score")]
                rows.writerow(["path", "label", "score", *rest])
                head = True
            pairs = zip(result.labels, result.scores, strict=True)
            cells: list[Any] = [cell for label, score in pairs for cell in (label, f"{score:.6f}")]
            rows.writerow([result.path, *cells])

        yield write


def _drawn(prediction: Prediction[Classification], moving: bool) -> Image.Image:
    return annotate(prediction.pixels(), prediction.result)
