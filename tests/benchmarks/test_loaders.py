"""Loaders: they do the same work, on generated or linked images."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.loaders import FEEDS, PIPELINES, SIZE, Feed, LoadingConfig, train_config, write_image_folder
from metaformer.config import AugmentConfig
from metaformer.data.dataset import AugmentedDataset
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import TrainSampler
from metaformer.errors import ConfigError, DataError
from metaformer.process import cores
from metaformer.recipes.poolformer import COMMON
from metaformer.tasks.classifier import augmentation

CPU = torch.device("cpu")
CONFIG = LoadingConfig(images=8, batch=4, size=64, workers=0)


def built(name: str, pipeline: str, images: Path) -> Feed:
    return FEEDS[name](pipeline, images, CONFIG, CPU)


def test_all_evaluate_on_the_same_pixels(images: Path) -> None:
    tensors = {name: built(name, "evaluation", images).first() for name in FEEDS}
    ours = tensors["ours"]
    assert ours.shape == (4, 3, 64, 64)
    assert torch.equal(tensors["torchvision"], ours)
    torch.testing.assert_close(tensors["timm"], ours, rtol=1e-5, atol=1e-5)
    # its resize rounds differently from Pillow's
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


def test_ours_is_the_loader_of_training(images: Path) -> None:
    source = ImageFolder(images, "train")
    data = AugmentedDataset(source, augmentation(train_config("train", 64)))
    sampler = TrainSampler(len(source), batch_size=4)
    expected = torch.stack([data[sample][0] for sample in next(iter(sampler))])
    assert torch.equal(built("ours", "train", images).first(), expected)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_timm_survives_pillow(pipeline: str, images: Path) -> None:
    """Its Posterize requests 0 bits now and then, which Pillow refuses."""
    feed = built("timm", pipeline, images)
    assert sum(feed.epoch(turn) for turn in range(12)) == 96


def test_generated_images_have_imagenets_size(images: Path) -> None:
    found = ImageFolder(images, "train")
    assert len(found) == 8 and len(found.classes) == 4
    assert {found.image(i).size for i in range(8)} == {SIZE}
    assert all(20_000 < path.stat().st_size < 200_000 for path in found.paths)
    assert len({path.read_bytes() for path in found.paths}) == 8


def test_links_to_images_at_any_depth(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "a/b").mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / ("a/b" if number % 2 else "a") / f"{number}.png")
    (root / "notes.txt").write_text("no image")
    (tmp_path / "linked").mkdir()
    assert write_image_folder(tmp_path / "linked", 5, root) == 5
    found = ImageFolder(tmp_path / "linked", "train")
    assert len({found.image(i).tobytes() for i in range(len(found))}) == 5
    (tmp_path / "all").mkdir()
    assert write_image_folder(tmp_path / "all", 100, root) == 9


def test_too_few_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    with pytest.raises(DataError, match="empty"):
        write_image_folder(tmp_path / "linked", 5, tmp_path / "empty")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rounds", 0), ("workers", 10_000), ("images", 63), ("model_speed", 0.0), ("pipelines", ("trian",))],
)
def test_values_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field.removesuffix("s")):
        LoadingConfig(**{field: value})  # type: ignore[arg-type]


def test_a_worker_for_each_core() -> None:
    assert LoadingConfig().processes == cores()
    assert LoadingConfig(workers=0).processes == 0


def test_the_recipes_augmentation() -> None:
    assert train_config("train", 224).augment == COMMON.augment
    assert train_config("plain", 32).augment != AugmentConfig()
    assert train_config("plain", 32).data.image_size == 32
