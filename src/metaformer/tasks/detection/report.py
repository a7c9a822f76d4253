"""What a run's page shows of detection: images with truth and prediction, and classes."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.errors import BadImage
from metaformer.report.page import Log, address, charts, rate, rgb
from metaformer.tasks.detection.draw import Shape, drawn
from metaformer.tasks.detection.evaluate import SCORE
from metaformer.visualize.text import Color

ROWS = 30
"""Classes of the table, the weakest first, that are not folded away."""
WIDTH = 320
"""Pixels that images on the page are at least wide."""
NAMES = {
    "ap": "box AP",
    "ap50": "box AP50",
    "ap75": "box AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
}
"""What people call the figures that stand at the top."""

COUNTS = {"images": "images", "objects": "objects"}


def detect_content(state: dict[str, Any], config: TrainConfig, log: Log) -> dict[str, Any]:
    """The page's values, from what the best checkpoint says and the log."""
    card, evaluation = state["card"], state["evaluation"]
    palette = [(int(red), int(green), int(blue)) for red, green, blue in evaluation["palette"]]
    rows = _rows(evaluation["figures"], palette)
    by = "epoch" if config.schedule.steps is None else "step"
    return {
        "subtitle": f"{card['name']} on {config.data.root}: {len(card['classes'])} classes",
        "figures": _figures(state, evaluation, log),
        "charts": charts(log, state["metric"], NAMES[state["metric"]], by),
        "pairs": _pairs(evaluation, palette),
        "score": SCORE,
        "masks": "segm" in evaluation["figures"],
        "classes": rows[:ROWS],
        "folded": rows[ROWS:],
        "absent": len(palette) - len(rows),
        "preprocess": _look(card["preprocess"]),
    }


def _figures(state: dict[str, Any], evaluation: dict[str, Any], log: Log) -> list[tuple[str, str]]:
    metrics = state["metrics"]
    figures = [
        (f"{metrics[name]:.2%}", f"held-out {told}") for name, told in NAMES.items() if name in metrics
    ]
    counts = [(f"{evaluation[name]:,}", f"held-out {told}") for name, told in COUNTS.items()]
    return [*figures, *rate(log), *counts, (f"{state['step']:,}", "step of the best weights")]


def _pairs(evaluation: dict[str, Any], palette: Sequence[Color]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The worst images and the best, each with truth and prediction."""
    names = evaluation["classes"]
    examples = sorted(evaluation["examples"], key=lambda example: example["f1"])
    worst, best = examples[: -(-len(examples) // 2)], examples[-(-len(examples) // 2) :][::-1]
    return [
        (title, [_pair(example, names, palette) for example in chosen])
        for title, chosen in (("Worst", worst), ("Best", best))
        if chosen
    ]


def _pair(example: dict[str, Any], names: Sequence[str], palette: Sequence[Color]) -> dict[str, Any]:
    try:
        image = read_image(example["path"])
    except BadImage:  # gone since the evaluation
        image = Image.new("RGB", tuple(example["size"]), (128, 128, 128))
    sides = {
        side: address(drawn(image, [_shape(one, names, palette) for one in example[side]], WIDTH))
        for side in ("truth", "predicted")
    }
    return {"path": example["path"], "f1": f"{example['f1']:.0%}", **sides}


def _shape(one: dict[str, Any], names: Sequence[str], palette: Sequence[Color]) -> Shape:
    left, top, right, bottom = one["box"]
    score = "" if one["score"] is None else f" {one['score']:.2f}"
    text = f"{'crowd ' if one['crowd'] else ''}{names[one['label']]}{score}"
    return Shape((left, top, right, bottom), text, palette[one["label"]], one["mask"])


def _rows(figures: dict[str, Any], palette: Sequence[Color]) -> list[dict[str, Any]]:
    """The classes of which there are objects, weakest first."""
    boxes = figures["bbox"]["per_class"]
    masks = figures.get("segm", {}).get("per_class", boxes)
    there = [row for row in zip(boxes, masks, palette, strict=True) if row[0]["ap"] is not None]
    return [
        {
            "name": box["name"],
            "color": rgb(color),
            "objects": f"{box['objects']:,}",
            **{key: _percent(box[key]) for key in ("ap", "ap50", "ap75", "ar")},
            **{f"mask_{key}": _percent(mask[key]) for key in ("ap", "ap50")},
        }
        for box, mask, color in sorted(there, key=lambda row: (row[0]["ap"], row[0]["name"]))
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _look(preprocess: dict[str, Any]) -> str:
    if preprocess["long_side"] is None:
        return "images at their own size"
    return f"images fitted into {preprocess['long_side']}×{preprocess['short_side']} pixels"
