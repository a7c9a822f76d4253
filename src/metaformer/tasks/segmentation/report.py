"""What a run's page shows of segmentation: images, truth and prediction, classes, confusions."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.errors import BadImage
from metaformer.report.page import Log, address, charts, rate, rgb
from metaformer.tasks.segmentation.draw import colored, overlay
from metaformer.visualize.text import Color, magnification

LARGEST_MATRIX = 24
"""Classes up to which the confusion matrix is drawn."""
ROWS = 30
"""Classes of the table, the weakest first, that are not folded away."""
PAIRS = 12
"""Confusions in the list."""
ENTRIES = 10
"""Classes in an image's legend."""
WIDTH = 256
"""Pixels that images on the page are at least wide."""
STRENGTH = 0.65
"""Share of the class color in a pixel."""
NAMES = {"miou": "mIoU", "aacc": "pixel accuracy", "macc": "mean class accuracy"}
"""What people call the figures."""


def segment_content(state: dict[str, Any], config: TrainConfig, log: Log) -> dict[str, Any]:
    """The page's values, from what the best checkpoint says and the log."""
    card, evaluation = state["card"], state["evaluation"]
    palette = [(int(red), int(green), int(blue)) for red, green, blue in evaluation["palette"]]
    rows = _rows(evaluation["per_class"], palette)
    crop, steps = config.data.image_size, config.schedule.steps
    return {
        "subtitle": f"{card['name']} on {config.data.root}: {len(card['classes'])} classes, "
        f"crops of {crop}×{crop} pixels",
        "figures": _figures(state, evaluation, log),
        "charts": charts(log, state["metric"], NAMES[state["metric"]], "epoch" if steps is None else "step"),
        "triples": _triples(evaluation, palette),
        "matrix": _matrix(evaluation),
        "pairs": _pairs(evaluation),
        "classes": rows[:ROWS],
        "folded": rows[ROWS:],
        "absent": len(evaluation["per_class"]) - len(rows),
        "preprocess": _look(card["preprocess"]),
    }


def _figures(state: dict[str, Any], evaluation: dict[str, Any], log: Log) -> list[tuple[str, str]]:
    figures = [
        (f"{value:.2%}", f"held-out {NAMES.get(name, name)}") for name, value in state["metrics"].items()
    ]
    step = (f"{state['step']:,}", "step of the best weights")
    return [*figures, *rate(log), (f"{evaluation['images']:,}", "held-out images"), step]


def _triples(evaluation: dict[str, Any], palette: Sequence[Color]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The worst images and the best, each with truth and prediction."""
    names = [row["name"] for row in evaluation["per_class"]]
    examples = sorted(evaluation["examples"], key=lambda example: example["miou"])
    worst, best = examples[: -(-len(examples) // 2)], examples[-(-len(examples) // 2) :][::-1]
    return [
        (title, [_triple(example, names, palette) for example in chosen])
        for title, chosen in (("Worst", worst), ("Best", best))
        if chosen
    ]


def _triple(example: dict[str, Any], names: list[str], palette: Sequence[Color]) -> dict[str, Any]:
    truth, predicted = (
        Image.open(io.BytesIO(base64.b64decode(example[key]))) for key in ("truth", "predicted")
    )
    magnify = magnification(truth.size, WIDTH)
    larger = (truth.width * magnify, truth.height * magnify)
    image = _image(example["path"], larger)
    maps = [_drawn(labels, image, palette, larger) for labels in (truth, predicted)]
    return {
        "path": example["path"],
        "miou": f"{example['miou']:.1%}",
        "image": None if image is None else address(image),
        "truth": address(maps[0], 92),
        "predicted": address(maps[1], 92),
        "legend": [(names[label], rgb(palette[label])) for label in example["labels"][:ENTRIES]],
        "more": max(0, len(example["labels"]) - ENTRIES),
    }


def _image(path: str, size: tuple[int, int]) -> Image.Image | None:
    """An image made as large as its label map is drawn; None where it is gone since the evaluation."""
    try:
        return read_image(path).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    except BadImage:
        return None


def _drawn(
    labels: Image.Image, image: Image.Image | None, palette: Sequence[Color], size: tuple[int, int]
) -> Image.Image:
    """A label map over its image, or alone where that is gone, or where only its colors were kept."""
    larger = labels.resize(size, Image.Resampling.NEAREST)
    if labels.mode != "P":
        return larger.convert("RGB")
    label_map = np.asarray(larger)
    if image is None:
        return colored(label_map, palette)
    return overlay(image, label_map, palette, strength=STRENGTH)


def _matrix(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Shares of each class's pixels, in per cent."""
    counts = evaluation.get("confusion")
    if not counts or len(counts) > LARGEST_MATRIX:
        return None
    names = [row["name"] for row in evaluation["per_class"]]
    rows = [
        (name, [_cell(count, sum(line)) for count in line]) for name, line in zip(names, counts, strict=True)
    ]
    return {"names": names, "rows": rows}


def _cell(count: int, whole: int) -> dict[str, Any]:
    share = count / max(whole, 1)
    return {
        "count": f"{share:.0%}".removesuffix("%") if share >= 0.005 else "·" if count else "",
        "share": f"{max(0.05, share):.2f}" if count else "0.03",
        "look": "strong" if share > 0.5 else "",
        "title": f"{count:,} pixels",
    }


def _pairs(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The confusions that the most pixels suffer."""
    table = evaluation["per_class"]
    entries = evaluation.get("confusion_entries") or [
        (true, said, count)
        for true, line in enumerate(evaluation.get("confusion", []))
        for said, count in enumerate(line)
    ]
    wrong = sorted((entry for entry in entries if entry[0] != entry[1] and entry[2]), key=lambda e: -e[2])
    return [
        {
            "true": table[true]["name"],
            "said": table[said]["name"],
            "pixels": f"{count:,}",
            "share": f"{count / max(table[true]['pixels'], 1):.1%}",
        }
        for true, said, count in wrong[:PAIRS]
    ]


def _rows(table: Sequence[dict[str, Any]], palette: Sequence[Color]) -> list[dict[str, Any]]:
    """The classes that are there or predicted, weakest first."""
    whole = max(sum(row["pixels"] for row in table), 1)
    there = [(row, color) for row, color in zip(table, palette, strict=True) if row["iou"] is not None]
    return [
        {
            "name": row["name"],
            "color": rgb(color),
            "pixels": f"{row['pixels'] / whole:.1%}",
            **{key: _percent(row[key]) for key in ("iou", "accuracy", "precision")},
        }
        for row, color in sorted(there, key=lambda pair: (pair[0]["iou"], pair[0]["name"]))
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _look(preprocess: dict[str, Any]) -> str:
    size = (
        "at their own size"
        if preprocess["long_side"] is None
        else f"fitted into {preprocess['long_side']}×{preprocess['short_side']} pixels"
    )
    return f"images {size}, sides multiples of {preprocess['size_divisor']}"
