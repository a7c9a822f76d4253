import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaformer.config import TrainConfig
from metaformer.report.blocks import Examples, Matrix, Table
from metaformer.tasks.segmentation.metrics import figures
from metaformer.tasks.segmentation.report import build_report
from metaformer.tasks.segmentation.results import SegmentationReport, SegmentExample, thumbnail
from metaformer.training.train import train, write_report

Configure = Callable[..., TrainConfig]


def test_report_shows_images_ground_truth_and_predictions(
    configure_segment: Configure, patches: Path, tmp_path: Path
) -> None:
    root = tmp_path / "patches"
    shutil.copytree(patches, root)
    run = train(configure_segment(data={"root": str(root)}), tmp_path / "run").run
    text = (run / "report.html").read_text()
    assert [text.count(f'alt="{word}"') for word in ("image", "ground truth", "prediction")] == [5, 5, 5]
    assert text.count("<svg") == 3 and ">validation</" not in text  # the losses have one line only
    state = json.loads((run / "best" / "state.json").read_text())
    assert f"{state['metrics']['miou']:.2%}" in text and "validation mIoU" in text
    assert "metaformer predict" in text and "cat_max_ratio" in text and "distill" not in text
    shutil.rmtree(root)  # without the data, label maps are drawn alone
    text = write_report(run).read_text()
    assert [text.count(f'alt="{word}"') for word in ("image", "ground truth", "prediction")] == [0, 5, 5]
    assert text.count(">gone<") == 5


def state(classes: int, confusion: torch.Tensor, examples: tuple[SegmentExample, ...] = ()) -> dict[str, Any]:
    names = ["<b>", *(f"class {i}" for i in range(1, classes))]
    palette = tuple((i % 256, 7, 9) for i in range(classes))
    report = SegmentationReport(len(examples), figures(confusion, names), confusion, palette, examples)
    preprocess = {"long_side": 2048, "short_side": 512, "size_divisor": 32}
    card = {"task": "segment", "name": "net", "classes": names, "preprocess": preprocess}
    return {
        "card": card, "evaluation": json.loads(json.dumps(report.to_dict())), "metrics": report.metrics,
        "metric": "miou", "step": 1200,
    }  # fmt: skip


def test_classes_are_listed_by_iou() -> None:
    report = build_report(state(3, torch.tensor([[90, 10, 0], [60, 40, 0], [0, 0, 0]])), TrainConfig())
    images, classes, confusion = report.sections
    (table,), (matrix,) = classes.blocks, confusion.blocks
    assert isinstance(table, Table) and isinstance(matrix, Matrix) and not images.blocks
    assert [(row.cells[0], row.cells[2]) for row in table.rows] == [("class 1", "36.4%"), ("<b>", "56.2%")]
    assert table.rows[0].color == "rgb(1 7 9)" and classes.note.startswith("1 classes are neither present")
    assert [cell.text for cell in matrix.rows[1]] == ["60", "40", ""]
    assert report.preprocess.startswith("images fitted into 2048×512")


@pytest.mark.parametrize("classes", [4, 300])
def test_examples_have_panels_and_a_legend(classes: int, tmp_path: Path) -> None:
    palette = tuple((i % 256, 7, 9) for i in range(classes))
    truth = np.array([[0, 1, 255 if classes < 256 else 299]] * 2, np.uint16 if classes > 255 else np.uint8)
    png = thumbnail(truth, palette)
    examples = tuple(
        SegmentExample(str(tmp_path / f"{i}.png"), i, i / 10, png, png, tuple(range(classes))[:12])
        for i in (1, 0)
    )
    found = build_report(state(classes, torch.ones(classes, classes).long(), examples), TrainConfig())
    worst, _ = found.sections[0].blocks
    assert isinstance(worst, Examples)
    (first,) = worst.examples
    assert (first.value, first.text, first.panels["image"]) == ("0.0%", "mIoU", None)
    assert str(first.panels["ground truth"]).startswith("data:image/jpeg;base64,")
    assert len(first.legend) == min(classes, 10) and first.more == (2 if classes > 10 else 0)
