"""The loaders: that they do the same work."""

from pathlib import Path

import pytest
import torch

from benchmarks.loading.feed import FEEDS, Feed
from benchmarks.loading.settings import PIPELINES, LoadingConfig, training
from metaformer.data.dataset import Augmented
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import PureSampler
from metaformer.tasks.classification.task import augmentation

CPU = torch.device("cpu")
CONFIG = LoadingConfig(pictures=8, batch=4, size=64, workers=0)

# timm leaves files open, and torchvision's decoder is to leave for another package
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
]


def built(name: str, pipeline: str, pictures: Path) -> Feed:
    return FEEDS[name](pipeline, pictures, CONFIG, CPU)


def test_all_evaluate_on_the_same_pixels(pictures: Path) -> None:
    images = {name: built(name, "evaluation", pictures).first() for name in FEEDS}
    ours = images["ours"]
    assert ours.shape == (4, 3, 64, 64)
    assert torch.equal(images["torchvision"], ours)
    torch.testing.assert_close(images["timm"], ours, rtol=1e-5, atol=1e-5)
    # its resize rounds otherwise than Pillow's
    grey = (images["torchvision tensors"] - ours).abs() * 0.225 * 255
    assert grey.max() < 4 and grey.mean() < 0.5


@pytest.mark.parametrize("pipeline", ["train", "plain"])
@pytest.mark.parametrize("name", FEEDS)
def test_all_train_on_normalised_crops(name: str, pipeline: str, pictures: Path) -> None:
    feed = built(name, pipeline, pictures)
    images = feed.first()
    assert images.shape == (4, 3, 64, 64) and images.dtype == torch.float32
    assert images.isfinite().all() and images.min() < -0.5 and images.max() < 6
    assert feed.epoch(1) == 8


def test_ours_is_what_training_sees(pictures: Path) -> None:
    source = ImageFolder(pictures, "train")
    data = Augmented(source, augmentation(training("train", 64)))
    sampler = PureSampler(len(source), batch_size=4)
    wanted = torch.stack([data[sample][0] for sample in next(iter(sampler))])
    assert torch.equal(built("ours", "train", pictures).first(), wanted)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_timm_survives_pillow(pipeline: str, pictures: Path) -> None:
    """Its Posterize asks for no bits at all now and then, which Pillow refuses."""
    feed = built("timm", pipeline, pictures)
    assert sum(feed.epoch(turn) for turn in range(12)) == 96
