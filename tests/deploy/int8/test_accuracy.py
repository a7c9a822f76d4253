"""The comparison of a network with its int8 form, and the report's text and JSON."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.deploy.int8.accuracy import Accuracy, QuantizeReport, compare
from metaformer.tasks.classification.evaluate import ClassificationEvaluation

REPORT = QuantizeReport(
    name="poolformer_n",
    directory="out",
    calibrated=300,
    images=355,
    float32=Accuracy(0.98028, 0.17703, 8_280_000),
    int8=Accuracy(0.9775, 0.1857, 2_490_000),
    agreement=0.9972,
    mean_difference=0.07,
    largest_difference=0.802,
    largest_logit=5.942,
    products=30,
    float_products=tuple(f"stages.0.blocks.{i}.token_mixer" for i in range(8)),
    rest="bfloat16",
)


def original(images: Tensor) -> Tensor:
    """Logits of dark, medium and bright."""
    gray = images.mean((1, 2, 3))
    return torch.stack([0.235 - gray, torch.zeros_like(gray), gray - 0.51], dim=1)


def biased(images: Tensor) -> Tensor:
    """Another class for one of the seven images."""
    return original(images) + torch.tensor([0.0, 0.1, 0.0])


def test_a_comparison_counts_classes_and_differences(folder: ImageFolder) -> None:
    preprocess = Preprocess(8, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    evaluation = ClassificationEvaluation(folder, preprocess, batch_size=2)
    found = compare(evaluation, original, biased)
    assert (found.original.top1, found.quantized.top1, found.agreement) == (1.0, *[pytest.approx(6 / 7)] * 2)
    assert found.mean_difference == pytest.approx(0.1 / 3)
    assert found.largest_difference == pytest.approx(0.1)
    assert found.largest_logit == pytest.approx(0.51)  # of the black image
    same = compare(evaluation, original, original)
    assert (same.agreement, same.mean_difference, same.largest_difference) == (1.0, 0.0, 0.0)
    assert same.original.loss == same.quantized.loss


def test_text() -> None:
    lines = REPORT.text().splitlines()
    assert lines[1].split() == ["top-1", "98.03%", "97.75%"]
    assert lines[2].split() == ["loss", "0.1770", "0.1857"]
    assert lines[3].split() == ["megabytes", "8.28", "2.49"]
    assert "99.72% of 355 images" in REPORT.text()
    products = next(line for line in lines if line.startswith("int8 "))
    assert "22 of 30 products; not stages.0.blocks.0.token_mixer, " in products
    assert products.endswith("stages.0.blocks.5.token_mixer and 2 more (all in the JSON)")


def test_json(tmp_path: Path) -> None:
    values = json.loads(REPORT.save(tmp_path / "report.json").read_text())
    assert values["int8"] == {"top1": 0.9775, "loss": 0.1857, "bytes": 2_490_000}
    assert len(values["float_products"]) == 8
