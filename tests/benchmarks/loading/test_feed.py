"""The loaders: that they do the same work."""

from pathlib import Path

import pytest
import torch

from benchmarks.loading.feed import FEEDS, Feed
from benchmarks.loading.settings import PIPELINES, LoadingConfig, training
from metaformer.data.dataset import AugmentedDataset
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import PureSampler
from metaformer.tasks.classification.task import augmentation

CPU = torch.device("cpu")
CONFIG = LoadingConfig(images=8, batch=4, size=64, workers=0)

# timm leaves files open, and torchvision's decoder is to leave for another package
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
]


def built(name: str, pipeline: str, images: Path) -> Feed:
    return FEEDS[name](pipeline, images, CONFIG, CPU)


def test_all_evaluate_on_the_same_pixels(images: Path) -> None:
    tensors = {name: built(name, "evaluation", images).first() for name in FEEDS}
    ours = tensors["ours"]
    assert ours.shape == (4, 3, 64, 64)
    assert torch.equal(tensors["torchvision"], ours)
    torch.testing.assert_close(tensors["timm"], ours, rtol=1e-5, atol=1e-5)
    # its resize rounds otherwise than Pillow's
    gray = (tensors["torchvision tensors"] - ours).abs() * 0.225 * 255
    assert gray.max() < 4 and gray.mean() < 0.5


@pytest.mark.parametrize("pipeline", ["train", "plain"])
@pytest.mark.parametrize("name", FEEDS)
def test_all_train_on_normalized_crops(name: str, pipeline: str, images: Path) -> None:
    feed = built(name, pipeline, images)
    tensors = feed.first()
    assert tensors.shape == (4, 3, 64, 64) and tensors.dtype == torch.float32
    assert tensors.isfinite().all() and tensors.min() < -0.5 and tensors.max() < 6
    assert feed.epoch(1) == 8


def test_ours_is_what_training_sees(images: Path) -> None:
    source = ImageFolder(images, "train")
    data = AugmentedDataset(source, augmentation(training("train", 64)))
    sampler = PureSampler(len(source), batch_size=4)
    wanted = torch.stack([data[sample][0] for sample in next(iter(sampler))])
    assert torch.equal(built("ours", "train", images).first(), wanted)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_timm_survives_pillow(pipeline: str, images: Path) -> None:
    """Its Posterize asks for no bits at all now and then, which Pillow refuses."""
    feed = built("timm", pipeline, images)
    assert sum(feed.epoch(turn) for turn in range(12)) == 96
