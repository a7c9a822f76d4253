"""Explanations of networks of every task, on images."""

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.factory import create_model
from metaformer.inference.explain import Explainer
from metaformer.inference.model import describe_network

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 255, (96, 150, 3), np.uint8))


@pytest.fixture(scope="module")
def classifier() -> Explainer:
    torch.manual_seed(0)
    return Explainer(describe_network(create_model("poolformer_n", num_classes=3, **TINY)))


def test_heat_lies_on_the_image_where_the_classifier_looks(classifier: Explainer, noise: Image.Image) -> None:
    heats = [classifier.heat(noise, index) for index in range(3)]
    for heat in heats:
        assert heat.shape == (96, 150) and heat.dtype == np.float32
        assert heat.min() == 0 and heat.max() in (0, 1)
        assert not heat[:, :31].any() and not heat[:, -31:].any(), "beyond the crop the network sees nothing"
    assert max(heat.max() for heat in heats) == 1
