import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaformer.checkpoint.checkpoint import read_checkpoint, write_checkpoint
from metaformer.config import TrainConfig
from metaformer.tasks.segmentation.metrics import figures
from metaformer.tasks.segmentation.report import segment_content
from metaformer.tasks.segmentation.results import SegmentationReport, SegmentExample, thumbnail
from metaformer.training.report import write_report
from metaformer.training.train import train

Configure = Callable[..., TrainConfig]


def test_the_page_shows_images_truth_and_predictions(
    configure_segment: Configure, patches: Path, tmp_path: Path
) -> None:
    root = tmp_path / "patches"
    shutil.copytree(patches, root)
    run = train(configure_segment(data={"root": str(root)}), tmp_path / "run").run
    text = (run / "report.html").read_text()
    assert [text.count(f'alt="{word}"') for word in ("image", "truth", "prediction")] == [5, 5, 5]
    assert text.count("<svg") == 3 and "held out</" not in text  # the losses have one line only
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text  # nothing from elsewhere
    state = json.loads((run / "best" / "state.json").read_text())
    assert f"{state['metrics']['miou']:.2%}" in text and "held-out mIoU" in text
    assert "metaformer predict" in text and "cat_max_ratio" in text and "distill" not in text
    shutil.rmtree(root)  # without the data truth and predictions are shown alone
    text = write_report(run).read_text()
    assert [text.count(f'alt="{word}"') for word in ("image", "truth", "prediction")] == [0, 5, 5]
    assert text.count(">gone<") == 5


def state(classes: int, confusion: torch.Tensor, examples: tuple[SegmentExample, ...] = ()) -> dict[str, Any]:
    names = ["<b>", *(f"class {i}" for i in range(1, classes))]
    palette = tuple((i % 256, 7, 9) for i in range(classes))
    report = SegmentationReport(len(examples), figures(confusion, names), confusion, palette, examples)
    look = {"long_side": 2048, "short_side": 512, "size_divisor": 32}
    card = {"task": "segment", "name": "net", "classes": names, "preprocess": look}
    return {
        "card": card, "evaluation": json.loads(json.dumps(report.to_dict())), "metrics": report.metrics,
        "metric": "miou", "step": 1200,
    }  # fmt: skip


def test_few_classes_have_a_matrix_and_many_a_list() -> None:
    confusion = torch.tensor([[90, 10, 0], [60, 40, 0], [0, 0, 0]])
    few = segment_content(state(3, confusion), TrainConfig(task="segment"), [])
    assert [cell["count"] for cell in few["matrix"]["rows"][1][1]] == ["60", "40", ""]
    assert few["pairs"][0] == {"true": "class 1", "said": "<b>", "pixels": "60", "share": "60.0%"}
    assert few["absent"] == 1 and few["preprocess"].startswith("images fitted into 2048×512")
    assert [(row["name"], row["iou"]) for row in few["classes"]] == [("class 1", "36.4%"), ("<b>", "56.2%")]
    many = torch.eye(300, dtype=torch.int64) * 50
    many[7, 9] = 5
    content = segment_content(state(300, many), TrainConfig(task="segment"), [])
    assert content["matrix"] is None and content["pairs"][0]["share"] == "9.1%"
    assert (len(content["classes"]), len(content["folded"])) == (30, 270)
    assert [row["name"] for row in content["classes"][:2]] == ["class 7", "class 9"]


@pytest.mark.parametrize("classes", [4, 300])
def test_examples_are_the_worst_and_the_best(classes: int, tmp_path: Path) -> None:
    palette = tuple((i % 256, 7, 9) for i in range(classes))
    truth = np.array([[0, 1, 255 if classes < 256 else 299]] * 2, np.uint16 if classes > 255 else np.uint8)
    made = thumbnail(truth, palette)
    examples = tuple(
        SegmentExample(str(tmp_path / f"{i}.png"), i, i / 10, made, made, tuple(range(classes))[:12])
        for i in (3, 0, 4, 1, 2)
    )
    content = segment_content(
        state(classes, torch.ones(classes, classes).long(), examples), TrainConfig(), []
    )
    shown = [(title, [one["miou"] for one in chosen]) for title, chosen in content["triples"]]
    assert shown == [("Worst", ["0.0%", "10.0%", "20.0%"]), ("Best", ["40.0%", "30.0%"])]
    first = content["triples"][0][1][0]
    assert first["image"] is None and first["truth"].startswith("data:image/jpeg;base64,")
    assert len(first["legend"]) == min(classes, 10) and first["more"] == (2 if classes > 10 else 0)


def test_names_of_classes_cannot_break_the_page(configure_segment: Configure, tmp_path: Path) -> None:
    run = train(configure_segment(schedule={"epochs": 1}), tmp_path / "run").run
    saved = read_checkpoint(run / "best")
    values = {key: value for key, value in saved.state.items() if key != "format"}
    for row in values["evaluation"]["per_class"]:
        row["name"] = "<script>alert(1)</script>"
    tensors = {name: tensor.clone() for name, tensor in saved.tensors("model").items()}
    write_checkpoint(run / "best", {"model": tensors}, values)
    text = write_report(run).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
