"""Predictions to files: JSON lines, CSV, annotated pictures."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from metaformer.data.image import read_image
from metaformer.engine.whole_file import check_place, whole_file
from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.results import Classification

SMALLEST_WIDTH = 320
"""Annotated pictures are enlarged to this many pixels, so that the text can be read."""


def write_predictions(
    results: Iterable[Classification], out: str | Path | None, pictures: bool = False
) -> Iterator[str]:
    """Write results where and as `out` says, and yield what there is to print.

    Args:
        results: the predictions.
        out: None yields the JSON lines themselves; a name ending in .jsonl or .csv is that file; another
            is a folder for both.
        pictures: also write annotated pictures, to the folder `pictures` there.

    Raises:
        OutputError: a place that cannot be written to.
        ConfigError: pictures without a place for them.
    """
    if out is None:
        if pictures:
            raise ConfigError("annotated pictures need a place: give the output file or folder")
        yield from (json.dumps(result.to_dict(), ensure_ascii=False) for result in results)
        return
    place = Path(out)
    lone = {".jsonl": write_jsonl, ".csv": write_csv}.get(place.suffix.lower())
    check_place(place if lone is not None else place / "predictions.jsonl")
    found = list(results)
    if lone is not None:
        yield f"{len(found)} predictions: {lone(found, place)}"
    else:
        yield f"{len(found)} predictions: {write_jsonl(found, place / 'predictions.jsonl')}"
        yield f"{len(found)} predictions: {write_csv(found, place / 'predictions.csv')}"
    if pictures:
        folder = (place.parent if lone is not None else place) / "pictures"
        write_pictures(found, folder)
        yield f"{len(found)} annotated pictures: {folder}"


def write_jsonl(results: Iterable[Classification], path: str | Path) -> Path:
    """Write one JSON object per picture and line: path, labels, scores, indices.

    Raises:
        OutputError: the file cannot be written.
    """
    with whole_file(Path(path)) as stream:
        for result in results:
            stream.write(json.dumps(result.to_dict(), ensure_ascii=False) + "\n")
    return Path(path)


def write_csv(results: Iterable[Classification], path: str | Path) -> Path:
    """Write one row per picture: path, label, score, then the further classes with theirs.

    Raises:
        OutputError: the file cannot be written.
    """
    with whole_file(Path(path)) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        head: list[str] = []
        for result in results:
            if not head:
                rest = [
                    f"{word}_{i}" for i in range(2, len(result.labels) + 1) for word in ("label", "score")
                ]
                head = ["path", "label", "score", *rest]
                writer.writerow(head)
            pairs = zip(result.labels, result.scores, strict=True)
            writer.writerow(
                [result.path, *(cell for label, score in pairs for cell in (label, f"{score:.6f}"))]
            )
    return Path(path)


def write_pictures(results: Iterable[Classification], folder: str | Path) -> list[Path]:
    """Write each picture with its classes drawn below, as JPEG files in a folder.

    Raises:
        OutputError: the folder cannot be written to.
        ConfigError: a result of an image in memory, which has no file.
    """
    place, written, taken = Path(folder), [], set[str]()
    for result in results:
        if not result.path:
            raise ConfigError("an image in memory has no file: use annotate(image, result)")
        stem, number = Path(result.path).stem, 1
        name = stem
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        try:
            place.mkdir(parents=True, exist_ok=True)
            annotate(read_image(result.path), result).save(place / f"{name}.jpg", quality=92)
        except OSError as error:
            raise OutputError(f"{place / name}.jpg: cannot write ({error.strerror or error})") from error
        written.append(place / f"{name}.jpg")
    return written


def annotate(image: Image.Image, result: Classification, rows: int = 3) -> Image.Image:
    """Draw the best classes, each with a bar for its probability, below a picture."""
    scale = max(1, -(-SMALLEST_WIDTH // image.width))
    nearest = Image.Resampling.NEAREST
    image = image.convert("RGB").resize((image.width * scale, image.height * scale), nearest)
    size = max(14, image.width // 24)
    line, pad = round(size * 1.9), size // 2
    rows = min(rows, len(result.labels))
    canvas = Image.new("RGB", (image.width, image.height + rows * line + pad), (24, 26, 32))
    canvas.paste(image, (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    for row, (label, score) in enumerate(zip(result.labels[:rows], result.scores, strict=False)):
        top = image.height + pad + row * line
        full = image.width - 2 * pad
        colour = (64, 140, 255) if row == 0 else (88, 96, 112)
        draw.rectangle((pad, top, pad + full, top + line - pad), fill=(40, 44, 52))
        draw.rectangle((pad, top, pad + round(full * score), top + line - pad), fill=colour)
        middle = top + (line - pad) / 2
        number = f"{score:.1%}"
        room = full - draw.textlength(number, font) - 3 * pad
        draw.text((2 * pad, middle), _fitted(label, room, draw, font), (255, 255, 255), font, anchor="lm")
        draw.text((pad + full - pad, middle), number, (255, 255, 255), font, anchor="rm")
    return canvas


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _fitted(label: str, room: float, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """The label, cut so that it takes no more than this many pixels."""
    if draw.textlength(label, font) <= room:
        return label
    while label and draw.textlength(label + "…", font) > room:
        label = label[:-1]
    return label + "…"
