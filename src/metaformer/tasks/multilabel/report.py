"""Report of a multi-label run: images with errors, and the classes, the weakest first."""

from collections.abc import Mapping, Sequence
from typing import Any

from metaformer.color import Color
from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.errors import MetaFormerError
from metaformer.report.blocks import Example, Examples, Row, Section, Table, percentage
from metaformer.report.page import TaskReport
from metaformer.tasks.classifier import task_report
from metaformer.tasks.report import Maps, example_grids, no_maps, thumbnail

THUMBNAIL = 320
"""Longer side of an image on the page, in pixels."""
NAMES = {"map": "mAP", "f1_micro": "F1 (micro)", "f1_macro": "F1 (macro)", "loss": "loss"}
PYTHON = """from metaformer import Predictor

predictor = Predictor("BEST")
for result in predictor("IMAGES"):
    print(result.path, result.labels)"""
NOTE = (
    "AP: area under the precision-recall curve. F1, precision and recall: at the threshold, which is the one "
    "with the highest F1 on these images unless the run sets it."
)


def build_report(state: Mapping[str, Any], config: TrainConfig, maps: Maps = no_maps) -> TaskReport:
    """The report of a best checkpoint's state."""
    evaluation = state["evaluation"]
    sections = [
        Section("Validation images", _examples(evaluation["examples"], config.data.background_color, maps)),
        Section("Classes, the weakest first", [_table(evaluation["per_class"])], note=NOTE),
    ]
    return task_report(state, sections, PYTHON, NAMES)


def _table(classes: Sequence[dict[str, Any]]) -> Table:
    columns = ("class", "images", "AP", "F1", "precision", "recall", "threshold")
    rows = [
        Row(
            [
                row["name"],
                f"{row['images']:,}",
                *(percentage(row[name]) for name in ("ap", "f1", "precision", "recall")),
                f"{row['threshold']:.2f}",
            ]
        )
        for row in sorted(classes, key=lambda row: (row["ap"] is None, row["ap"] or 0.0, row["name"]))
    ]
    return Table(columns, rows, bar=2)


def _examples(examples: Sequence[dict[str, Any]], background: Color | None, maps: Maps) -> list[Examples]:
    """The images with the highest loss, and some without an error; without images that are gone."""
    right = [one for one in examples if set(one["labels"]) == set(one["predicted"])]
    wrong = [one for one in examples if one not in right]
    groups = [("Highest loss", wrong), ("Without an error", right)]
    return example_grids(groups, lambda example: _example(example, background, maps))


def _example(example: dict[str, Any], background: Color | None, maps: Maps) -> Example | None:
    try:
        image = read_image(example["path"], background=background)
    except MetaFormerError:  # gone since the evaluation
        return None
    labels, predicted = set(example["labels"]), set(example["predicted"])
    missed, extra = ", ".join(sorted(labels - predicted)), ", ".join(sorted(predicted - labels))
    notes = [f"missed {missed}"] if missed else []
    notes += [f"wrong {extra}"] if extra else []
    shown = maps(example, image)
    return Example(
        panels={"image": thumbnail(image, THUMBNAIL), **shown},
        value=", ".join(sorted(labels & predicted)) or "–",
        note="; ".join(notes),
        title=example["path"],
        correct=not notes,
    )
