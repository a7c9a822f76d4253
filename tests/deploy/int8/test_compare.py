from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metaformer.data.folder import ImageFolder
from metaformer.data.preprocess import Preprocess
from metaformer.deploy.int8.report import compare
from metaformer.tasks.classification.evaluate import ClassificationEvaluation


@pytest.fixture
def evaluation(tmp_path: Path) -> ClassificationEvaluation:
    """Five images of two classes, in batches of two: gray ones, from dark to bright."""
    for name, grays in (("dark", (0, 60, 100)), ("light", (160, 255))):
        (tmp_path / "val" / name).mkdir(parents=True)
        for gray in grays:
            pixels = np.full((8, 8, 3), gray, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{gray}.png")
    look = Preprocess(8, 1.0, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    return ClassificationEvaluation(ImageFolder(tmp_path, "val"), look, batch_size=2)


def original(images: Tensor) -> Tensor:
    light = images.mean((1, 2, 3))
    return torch.stack([-light, light], dim=1)


def copy(images: Tensor) -> Tensor:
    """The same, but what is nearly gray is light."""
    return original(images) + torch.tensor([0.0, 0.25])


def test_figures(evaluation: ClassificationEvaluation) -> None:
    found = compare(evaluation, original, copy)
    assert (found.original.top1, found.copy.top1, found.agreement) == (1.0, 0.8, 0.8)
    assert found.mean_difference == pytest.approx(0.125)
    assert found.largest_difference == pytest.approx(0.25)
    assert found.largest_logit == pytest.approx(0.5)


def test_a_network_equals_itself(evaluation: ClassificationEvaluation) -> None:
    found = compare(evaluation, original, original)
    assert (found.agreement, found.mean_difference, found.largest_difference) == (1.0, 0.0, 0.0)
    assert found.original.loss == found.copy.loss
