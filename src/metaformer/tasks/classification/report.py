"""What a run's page shows of classification: images with their classes, confusions, the weakest classes."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from metaformer.config import TrainConfig
from metaformer.data.image import read_image
from metaformer.data.split import Split, open_split
from metaformer.errors import MetaFormerError
from metaformer.report.page import Log, address, charts, rate

THUMBNAIL = 128
"""Pixels of the larger side of an image on the page."""
LARGEST_MATRIX = 30
"""Classes up to which the confusion matrix is drawn; beyond, a list of the commonest confusions."""
ROWS = 30
"""Rows of the class table and of the list of confusions."""
IMAGES = 12
"""Images of each kind."""


def classify_content(state: dict[str, Any], config: TrainConfig, log: Log) -> dict[str, Any]:
    """The page's values, from what the best checkpoint says and the log."""
    card, evaluation = state["card"], state["evaluation"]
    look = card["preprocess"]
    classes = sorted(evaluation.get("per_class", []), key=lambda row: (row["accuracy"], row["name"]))
    return {
        "subtitle": f"{card['name']} on {config.data.root}: {len(card['classes'])} classes, "
        f"{look['image_size']}×{look['image_size']} pixels",
        "figures": _figures(state, evaluation, log),
        "charts": charts(log, state["metric"], state["metric"]),
        "groups": _images(evaluation.get("examples", []), config),
        "matrix": _matrix(evaluation),
        "confused": _confused(evaluation),
        "classes": [_row(row) for row in classes[:ROWS]],
        "left_out": max(0, len(classes) - ROWS),
        "preprocess": f"{look['image_size']} pixels, crop {look['crop']}, {look['interpolation']}",
    }


def _figures(state: dict[str, Any], evaluation: dict[str, Any], log: Log) -> list[tuple[str, str]]:
    figures = [
        (f"{value:.4f}" if name == "loss" else f"{value:.2%}", f"held-out {name}")
        for name, value in state["metrics"].items()
    ]
    images = f"{evaluation['images']:,}"
    epoch = (f"{state['epoch']}", "epoch of the best weights")
    return [*figures, *rate(log), (images, "held-out images"), epoch]


def _images(
    examples: Sequence[dict[str, Any]], config: TrainConfig
) -> list[tuple[str, list[dict[str, Any]]]]:
    data = _Data(config, any(not Path(example["path"]).is_file() for example in examples))
    wrong = [example for example in examples if example["label"] != example["predicted"]]
    right = [example for example in examples if example["label"] == example["predicted"]]
    groups = []
    for name, chosen in (("Surest mistakes", wrong), ("Right", _spread(right))):
        shown = [
            {**example, "source": source, "score": f"{example['score']:.0%}", "right": chosen is not wrong}
            for example in chosen[:IMAGES]
            if (source := data.thumbnail(example))
        ]
        if shown:
            groups.append((name, shown))
    return groups


def _spread(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reorder so that every class comes once before one comes twice."""
    seen: dict[str, int] = {}
    ranked = []
    for example in examples:
        seen[example["label"]] = seen.get(example["label"], 0) + 1
        ranked.append((seen[example["label"]], example))
    return [example for _, example in sorted(ranked, key=lambda pair: pair[0])]


class _Data:
    """The images of an evaluation: files, or what lies in shards."""

    def __init__(self, config: TrainConfig, shards: bool) -> None:
        self.split: Split | None = None
        if shards:
            with suppress(MetaFormerError):  # gone since the evaluation: a report needs no images
                self.split = open_split(config.data.root, config.data.val)

    def thumbnail(self, example: dict[str, Any]) -> str | None:
        """An image as a data address; None where it is gone since the evaluation."""
        try:
            image = self._read(example["path"], example.get("index", -1))
        except MetaFormerError:
            return None
        if image is None:
            return None
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
        return address(image)

    def _read(self, path: str, index: int) -> Image.Image | None:
        if self.split is None or Path(path).is_file():
            return read_image(path)
        there = 0 <= index < len(self.split) and str(self.split.path(index)) == path
        return self.split.image(index) if there else None


def _matrix(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    counts = evaluation.get("confusion")
    if not counts or len(counts) > LARGEST_MATRIX:
        return None
    names = [row["name"] for row in evaluation["per_class"]]
    rows = []
    for name, line in zip(names, counts, strict=True):
        whole = max(sum(line), 1)
        cells = [
            {
                "count": count,
                "share": f"{max(0.08, count / whole) if count else 0.03:.2f}",
                "look": "zero" if not count else "strong" if count / whole > 0.5 else "",
            }
            for count in line
        ]
        rows.append((name, cells))
    return {"names": names, "rows": rows}


def _confused(evaluation: dict[str, Any]) -> list[tuple[str, str, int]]:
    names = [row["name"] for row in evaluation.get("per_class", [])]
    entries = evaluation.get("confusion_entries") or [
        (true, said, count)
        for true, line in enumerate(evaluation.get("confusion", []))
        for said, count in enumerate(line)
    ]
    wrong = [(count, names[true], names[said]) for true, said, count in entries if true != said and count]
    return [(true, said, count) for count, true, said in sorted(wrong, key=lambda w: (-w[0], w))[:ROWS]]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "accuracy": f"{row['accuracy']:.1%}", "precision": f"{row['precision']:.1%}"}
