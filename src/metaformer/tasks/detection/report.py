"""Report of a detection run: images with ground truth and predictions, and average precision by class."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.errors import BadImage
from metaformer.report.blocks import (
    Example,
    Row,
    Section,
    Table,
    css_color,
    data_uri,
    percentage,
    worst_and_best,
)
from metaformer.report.page import TaskReport
from metaformer.tasks.detection.draw import Shape, brighten, draw_shapes
from metaformer.tasks.report import Maps, no_maps
from metaformer.visualize.canvas import Color

WIDTH = 384
"""Smallest width of an image on the page, in pixels."""
METRICS = {
    "ap": "box AP",
    "ap50": "box AP50",
    "ap75": "box AP75",
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "mask_ap75": "mask AP75",
}
PYTHON = """from metaformer import Predictor

predictor = Predictor("BEST", class_agnostic_nms=True)
for result in predictor("IMAGES"):
    for label, score, box in zip(result.labels, result.scores, result.boxes):
        print(result.path, result.classes[label], score, box)"""


def build_report(state: Mapping[str, Any], config: TrainConfig, maps: Maps = no_maps) -> TaskReport:
    """The report of a best checkpoint's state."""
    evaluation = state["evaluation"]
    palette = [(int(red), int(green), int(blue)) for red, green, blue in evaluation["palette"]]
    examples = worst_and_best(
        evaluation["examples"],
        "f1",
        lambda example: _example(example, evaluation["classes"], palette, config.data.background_color, maps),
    )
    note = (
        f"Boxes from a score of {evaluation['score']:g} on, where the F1 over all images is best "
        f"({evaluation['f1']:.1%} at an IoU of 0.5); of overlapping boxes the best, whatever its class. "
        "Beside each image its own F1."
    )
    return TaskReport(
        metrics=METRICS,
        counts={name: evaluation[name] for name in ("images", "objects")},
        sections=[
            Section("Validation images", examples, note=note),
            _classes(evaluation["figures"], palette),
        ],
        preprocess=_describe(state["card"]["preprocess"]),
        commands="metaformer predict BEST IMAGES --out FOLDER --draw --coco\n"
        "metaformer evaluate BEST --data FOLDER",
        python=PYTHON,
    )


def _example(
    example: dict[str, Any],
    names: Sequence[str],
    palette: Sequence[Color],
    background: Color | None,
    maps: Maps,
) -> Example:
    shown: Mapping[str, str] = {}
    try:
        image = read_image(example["path"], background=background)
        shown = maps(example, image)
    except BadImage:  # gone since the evaluation
        image = Image.new("RGB", tuple(example["size"]), (128, 128, 128))
    panels = {
        caption: data_uri(draw_shapes(image, [_shape(item, names, palette) for item in example[key]], WIDTH))
        for caption, key in (("ground truth", "truth"), ("prediction", "predicted"))
    }
    return Example({**panels, **shown}, value=f"{example['f1']:.0%}", text="F1", note=example["path"])


def _shape(item: dict[str, Any], names: Sequence[str], palette: Sequence[Color]) -> Shape:
    left, top, right, bottom = item["box"]
    score = "" if item["score"] is None else f" {item['score']:.2f}"
    text = f"{'crowd ' if item['crowd'] else ''}{names[item['label']]}{score}"
    return Shape((left, top, right, bottom), text, palette[item["label"]], item["mask"])


def _classes(figures: dict[str, Any], palette: Sequence[Color]) -> Section:
    """Average precision of the classes that have objects, lowest first."""
    boxes, masks = figures["bbox"]["per_class"], figures.get("segm", {}).get("per_class")
    columns = ["class", "objects", "AP", "AP50", "AP75", "recall"]
    columns += [] if masks is None else ["mask AP", "mask AP50"]
    present = [row for row in zip(boxes, masks or boxes, palette, strict=True) if row[0]["ap"] is not None]
    rows = []
    for box, mask, color in sorted(present, key=lambda row: (row[0]["ap"], row[0]["name"])):
        values = [box[key] for key in ("ap", "ap50", "ap75", "ar")]
        values += [] if masks is None else [mask[key] for key in ("ap", "ap50")]
        cells = [box["name"], f"{box['objects']:,}", *map(percentage, values)]
        rows.append(Row(cells, css_color(brighten(color))))  # as it is drawn
    absent = len(palette) - len(rows)
    note = f"{absent} classes have no objects, and so are in no mean." if absent else ""
    return Section("Classes", [Table(columns, rows, bar=2)], note=note)


def _describe(preprocess: dict[str, Any]) -> str:
    if preprocess["long_side"] is None:
        return "images at their own size"
    return f"images fitted into {preprocess['long_side']}×{preprocess['short_side']} pixels"
