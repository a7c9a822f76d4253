"""Report of a segmentation run: images with ground truth and prediction, classes and confusions."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.errors import BadImage
from metaformer.report.blocks import (
    Example,
    Row,
    Section,
    Table,
    confusion_section,
    css_color,
    data_uri,
    percentage,
    worst_and_best,
)
from metaformer.report.page import TaskReport
from metaformer.tasks.report import Maps, no_maps
from metaformer.tasks.segmentation.draw import colored, name_regions, overlay
from metaformer.visualize.canvas import Color, upscale_factor

MAX_LEGEND = 10
"""Classes in an image's legend."""
WIDTH = 384
"""Smallest width of an image on the page, in pixels."""
OPACITY = 0.65
"""Opacity of the class color."""
METRICS = {"miou": "mIoU", "aacc": "pixel accuracy", "macc": "mean class accuracy"}
PYTHON = """from metaformer import Predictor

predictor = Predictor("BEST")
for result in predictor("IMAGES"):
    print(result.path, [(result.classes[label], share) for label, share in result.shares])
    result.image().save("labels.png")"""


def build_report(state: Mapping[str, Any], config: TrainConfig, maps: Maps = no_maps) -> TaskReport:
    """The report of a best checkpoint's state."""
    evaluation, crop = state["evaluation"], config.data.image_size
    palette = [(int(red), int(green), int(blue)) for red, green, blue in evaluation["palette"]]
    names = [row["name"] for row in evaluation["per_class"]]
    examples = worst_and_best(
        evaluation["examples"],
        "miou",
        lambda example: _example(example, names, palette, config.data.background_color, maps),
    )
    note = "mIoU of one image, over the classes in it or predicted there. Unlabeled pixels are not colored."
    return TaskReport(
        metrics=METRICS,
        counts={"images": evaluation["images"]},
        sections=[
            Section("Validation images", examples, note=note),
            _classes(evaluation["per_class"], palette),
            confusion_section(evaluation, "pixels", percent=True),
        ],
        preprocess=_describe(state["card"]["preprocess"]),
        commands="metaformer predict BEST IMAGES --out FOLDER --draw\n"
        "metaformer evaluate BEST --data FOLDER --flip --scales 0.75,1,1.25",
        python=PYTHON,
        input_size=f", crops of {crop}×{crop} pixels",
    )


def _example(
    example: dict[str, Any],
    names: Sequence[str],
    palette: Sequence[Color],
    background: Color | None,
    maps: Maps,
) -> Example:
    truth, predicted = (
        Image.open(io.BytesIO(base64.b64decode(example[key]))) for key in ("truth", "predicted")
    )
    magnify = upscale_factor(truth.size, WIDTH)
    size = (truth.width * magnify, truth.height * magnify)
    shown: Mapping[str, str] = {}
    try:
        image = read_image(example["path"], background=background)
        shown = maps(example, image)
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    except BadImage:  # gone since the evaluation
        image = None
    labels = example["labels"]
    return Example(
        panels={
            "image": None if image is None else data_uri(image),
            "ground truth": data_uri(_draw(truth, image, names, palette, size), 92),
            "prediction": data_uri(_draw(predicted, image, names, palette, size), 92),
            **shown,
        },
        value=percentage(example["miou"]),
        text="mIoU",
        note=example["path"],
        legend=[_entry(names[label], palette[label]) for label in labels[:MAX_LEGEND]],
        more=max(0, len(labels) - MAX_LEGEND),
    )


def _entry(name: str, color: Color) -> tuple[str, str]:
    """Entry of a legend; black classes are not painted."""
    return (name, css_color(color)) if any(color) else (f"{name} (not painted)", "transparent")


def _draw(
    labels: Image.Image,
    image: Image.Image | None,
    names: Sequence[str],
    palette: Sequence[Color],
    size: tuple[int, int],
) -> Image.Image:
    """A label map over its image in gray, so that hues are the legend's alone, with the names of regions.

    Alone if the image is gone or the map is stored in colors.
    """
    larger = labels.resize(size, Image.Resampling.NEAREST)
    if labels.mode != "P":
        return larger.convert("RGB")
    label_map = np.asarray(larger)
    if image is None:
        return colored(label_map, palette)
    drawn = overlay(image.convert("L"), label_map, palette, opacity=OPACITY)
    name_regions(drawn, label_map, names, palette)
    return drawn


def _classes(per_class: Sequence[dict[str, Any]], palette: Sequence[Color]) -> Section:
    """IoU of the classes that are there or predicted, lowest first."""
    total = max(sum(row["pixels"] for row in per_class), 1)
    present = [(row, color) for row, color in zip(per_class, palette, strict=True) if row["iou"] is not None]
    rows = [
        Row(
            [row["name"], f"{row['pixels'] / total:.1%}"]
            + [percentage(row[key]) for key in ("iou", "accuracy", "precision")],
            css_color(color),
        )
        for row, color in sorted(present, key=lambda pair: (pair[0]["iou"], pair[0]["name"]))
    ]
    table = Table(("class", "share of pixels", "IoU", "recall", "precision"), rows, bar=2)
    absent = len(per_class) - len(rows)
    note = f"{absent} classes are neither present nor predicted, and so are in no mean."
    return Section("Classes", [table], note=note if absent else "")


def _describe(preprocess: dict[str, Any]) -> str:
    size = (
        "at their own size"
        if preprocess["long_side"] is None
        else f"fitted into {preprocess['long_side']}×{preprocess['short_side']} pixels"
    )
    return f"images {size}, sides multiples of {preprocess['size_divisor']}"
