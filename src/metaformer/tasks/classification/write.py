"""Predictions to files: JSON lines, CSV, annotated images."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from metaformer.data.image import read_image
from metaformer.errors import ConfigError
from metaformer.storage import FileNames, check_place, whole_bytes, whole_file
from metaformer.tasks.classification.results import Classification
from metaformer.visualize.text import INK, drawable, fitted, magnification, on_panel


def write_predictions(
    results: Iterable[Classification], out: str | Path | None, images: bool = False
) -> Iterator[str]:
    """Write results where and as `out` says, and yield what there is to print.

    Args:
        results: the predictions.
        out: None yields the JSON lines themselves; a name ending in .jsonl or .csv is that file; another
            is a folder for both.
        images: also write annotated images, to the folder `images` there.

    Raises:
        OutputError: a place that cannot be written to.
        ConfigError: images without a place for them.
    """
    if out is None:
        if images:
            raise ConfigError("annotated images need a place: give the output file or folder")
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
    if images:
        folder = (place.parent if lone is not None else place) / "images"
        write_images(found, folder)
        yield f"{len(found)} annotated images: {folder}"


def write_jsonl(results: Iterable[Classification], path: str | Path) -> Path:
    """Write one JSON object per image and line: path, labels, scores, indices.

    Raises:
        OutputError: the file cannot be written.
    """
    with whole_file(Path(path)) as stream:
        for result in results:
            stream.write(json.dumps(result.to_dict(), ensure_ascii=False) + "\n")
    return Path(path)


def write_csv(results: Iterable[Classification], path: str | Path) -> Path:
    """Write one row per image: path, label, score, then the further classes with theirs.

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


def write_images(results: Iterable[Classification], folder: str | Path) -> list[Path]:
    """Write each image with its classes drawn below, as JPEG files in a folder.

    Raises:
        OutputError: the folder cannot be written to.
        ConfigError: a result of an image in memory, which has no file.
    """
    place, written, names = Path(folder), [], FileNames()
    for result in results:
        if not result.path:
            raise ConfigError("an image in memory has no file: use annotate(image, result)")
        file = place / f"{names.of(result.path)}.jpg"
        with whole_bytes(file) as stream:
            annotate(read_image(result.path), result).save(stream, "JPEG", quality=92)
        written.append(file)
    return written


def annotate(image: Image.Image, result: Classification, rows: int = 3) -> Image.Image:
    """Draw the best classes, each with a bar for its probability, below an image."""
    image = image.convert("RGB")
    if (size := drawable(image.size)) != image.size:
        image = image.resize(size)
    scale = magnification(image.size)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    rows = min(rows, len(result.labels))
    letters = max(14, image.width // 24)
    line, pad = round(letters * 1.9), letters // 2
    canvas = on_panel(image, rows * line + pad)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(letters)
    for row, (label, score) in enumerate(zip(result.labels[:rows], result.scores, strict=False)):
        top = image.height + pad + row * line
        full = canvas.width - 2 * pad
        color = (64, 140, 255) if row == 0 else (88, 96, 112)
        draw.rectangle((pad, top, pad + full, top + line - pad), fill=(40, 44, 52))
        draw.rectangle((pad, top, pad + round(full * score), top + line - pad), fill=color)
        middle = top + (line - pad) / 2
        number = f"{score:.1%}"
        room = full - draw.textlength(number, font) - 3 * pad
        draw.text((2 * pad, middle), fitted(label, room, draw, font), INK, font, anchor="lm")
        draw.text((pad + full - pad, middle), number, INK, font, anchor="rm")
    return canvas
