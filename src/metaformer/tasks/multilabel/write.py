"""Multi-label predictions to files: JSON lines, CSV, drawn images."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from metaformer.storage import atomic_text
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.multilabel.draw import annotate
from metaformer.tasks.multilabel.results import MultilabelResult
from metaformer.tasks.outputs import (
    LINES,
    Output,
    Prediction,
    Writer,
    drawn_output,
    jsonl_writer,
    write_outputs,
)


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
        ConfigError: `draw` without a place.
        OutputError: the place cannot be written to.
    """

    def outputs(place: Path) -> list[Output]:
        lone = place.suffix.lower()
        chosen = []
        if lone != ".csv":
            lines = place if lone else place / LINES
            chosen.append(Output(jsonl_writer(lines), "predictions", lines))
        if lone != ".jsonl":
            table = place if lone else place / "predictions.csv"
            chosen.append(Output(csv_writer(table), "predictions", table))
        if draw:
            chosen.append(drawn_output(place.parent if lone else place, _drawn))
        return chosen

    return write_outputs(predictions, out, outputs, needs_folder={"draw": draw}, suffixes=(".jsonl", ".csv"))


@contextmanager
def csv_writer(file: Path) -> Iterator[Writer[MultilabelResult]]:
    """Write one row an image: path, labels, then the score of each class.

    Labels are separated by a space, or by a semicolon where a class name holds a space.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_text(file) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        head: list[str] = []

        def write(name: str, prediction: Prediction[MultilabelResult]) -> None:
            result = prediction.result
            if not head:
                head.extend(["path", "labels", *result.classes])
                rows.writerow(head)
            separator = ";" if any(" " in one for one in result.classes) else " "
            rows.writerow(
                [result.path, separator.join(result.labels), *(f"{score:.6f}" for score in result.scores)]
            )

        yield write


def _drawn(prediction: Prediction[MultilabelResult], moving: bool) -> Image.Image:
    return annotate(prediction.pixels(), prediction.result)
