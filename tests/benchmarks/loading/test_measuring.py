"""Measuring: real loaders, very few images."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.loading.feed import FEEDS
from benchmarks.loading.measuring import measure_loading
from benchmarks.loading.settings import LoadingConfig
from metaformer.errors import BadImage, DataError, UnknownName

# timm leaves files open, and torchvision's decoder is to leave for another package
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
]


def test_measures_every_loader_in_turn(images: Path) -> None:
    config = LoadingConfig(
        root=images,
        images=9,
        batch=4,
        size=32,
        workers=1,
        rounds=2,
        device="cpu",
        pipelines=("evaluation",),
        model_speed=1,
    )
    report = measure_loading(config)
    loaders = report.loaders["evaluation"]
    assert list(loaders) == list(FEEDS)
    for found in loaders.values():
        assert found.timing is not None and not found.failure
        assert found.timing.batch == 8, "whole batches of the nine"
        assert len(found.timing.seconds) == len(found.effort) == 2 and found.timing.minimum > 0


def test_measures_a_models_step(images: Path) -> None:
    config = LoadingConfig(
        root=images,
        images=4,
        batch=4,
        size=32,
        workers=0,
        rounds=1,
        device="cpu",
        pipelines=("train",),
        model="poolformer_n",
        step_batch=2,
    )
    report = measure_loading(config)
    assert report.model_speed > 0 and "poolformer_n trains on" in report.verdict()


def test_what_the_user_can_mend(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8 images: ask for no more"):
        measure_loading(LoadingConfig(root=images, images=12, batch=4, device="cpu"))
    with pytest.raises(UnknownName, match="unknown model 'resnet_s12'"):
        config = LoadingConfig(
            root=images, images=4, batch=4, workers=0, rounds=1, device="cpu", model="resnet_s12"
        )
        measure_loading(config)


def test_a_loader_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    """BMP is no format of torchvision's own decoder."""
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.bmp")
    config = LoadingConfig(
        root=tmp_path, images=4, batch=4, size=32, workers=0, rounds=1, device="cpu", model_speed=1
    )
    report = measure_loading(config)
    failed = report.loaders["train"]["torchvision tensors"]
    assert failed.timing is None and "RuntimeError" in failed.failure
    assert report.loaders["train"]["torchvision"].timing is not None
    assert f"torchvision tensors: {failed.failure}" in report.text()


def test_a_damaged_image_ends_it(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    config = LoadingConfig(root=tmp_path, images=4, batch=4, workers=0, device="cpu", model_speed=1)
    with pytest.raises(BadImage, match=r"\.jpg"):
        measure_loading(config)
