"""Report of a classification run: example images, classes and confusions."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.data.split import Split, open_split
from metaformer.errors import MetaFormerError
from metaformer.report.blocks import (
    Example,
    Examples,
    Row,
    Section,
    Table,
    confusion_section,
    percentage,
)
from metaformer.report.page import TaskReport
from metaformer.tasks.classifier import task_report
from metaformer.tasks.report import Maps, example_grids, no_maps, thumbnail

THUMBNAIL = 320
"""Longer side of an image on the page, in pixels."""
IMAGES = 12
"""Images of each kind."""
PYTHON = """from metaformer import Predictor

predictor = Predictor("BEST")
for result in predictor("IMAGES"):
    print(result.path, result.label, result.score)"""


def build_report(state: Mapping[str, Any], config: TrainConfig, maps: Maps = no_maps) -> TaskReport:
    """The report of a best checkpoint's state."""
    evaluation = state["evaluation"]
    columns = ("class", "images", "recall", "precision")
    table = [
        Row([row["name"], f"{row['images']:,}", percentage(row["accuracy"]), percentage(row["precision"])])
        for row in sorted(evaluation.get("per_class", []), key=lambda row: (row["accuracy"], row["name"]))
    ]
    sections = [
        Section("Validation images", _examples(evaluation.get("examples", []), config, maps)),
        Section("Classes", [Table(columns, table, bar=2)]),
        confusion_section(evaluation, "images"),
    ]
    return task_report(state, sections, PYTHON)


def _examples(examples: Sequence[dict[str, Any]], config: TrainConfig, maps: Maps) -> list[Examples]:
    """The most confident errors, and correct predictions of every class; without images that are gone."""
    images = EvaluatedImages(config, examples)
    wrong = [example for example in examples if example["label"] != example["predicted"]]
    right = [example for example in examples if example["label"] == example["predicted"]]
    groups = [("Most confident errors", wrong[:IMAGES]), ("Correct", _spread(right)[:IMAGES])]
    return example_grids(groups, lambda example: _example(example, images, maps))


def _example(example: dict[str, Any], images: "EvaluatedImages", maps: Maps) -> Example | None:
    image, right = images.read(example), example["label"] == example["predicted"]
    if image is None:
        return None
    shown = maps(example, image)
    return Example(
        panels={"image": thumbnail(image, THUMBNAIL), **shown},
        value=example["predicted"],
        text=f"{example['score']:.0%}",
        note="" if right else f"is {example['label']}",
        title=example["path"],
        correct=right,
    )


def _spread(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reorder so that every class comes once before one comes twice."""
    counts: dict[str, int] = {}
    ranked = []
    for example in examples:
        counts[example["label"]] = counts.get(example["label"], 0) + 1
        ranked.append((counts[example["label"]], example))
    return [example for _, example in sorted(ranked, key=lambda pair: pair[0])]


class EvaluatedImages:
    """Images of an evaluation, from files or from shards."""

    def __init__(self, config: TrainConfig, examples: Sequence[dict[str, Any]]) -> None:
        self.split: Split | None = None
        self.background = config.data.background_color
        if any(not Path(example["path"]).is_file() for example in examples):
            with suppress(MetaFormerError):  # gone since the evaluation: the page has no images then
                self.split = open_split(config.data.root, config.data.val)

    def read(self, example: dict[str, Any]) -> Image.Image | None:
        """The image; None where it is gone since the evaluation."""
        path, index = example["path"], example.get("index", -1)
        with suppress(MetaFormerError):
            if self.split is None or Path(path).is_file():
                return read_image(path, background=self.background)
            if 0 <= index < len(self.split) and str(self.split.path(index)) == path:
                return self.split.image(index, self.background)
        return None
