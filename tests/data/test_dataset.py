import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metaformer.data.augment import train_transform
from metaformer.data.dataset import AugmentedDataset, Item, seeded
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import Sample
from metaformer.errors import BadImage
from metaformer.models.detection.structures import Targets
from metaformer.tasks.detection.dataset import DetectionDataset, open_detection
from metaformer.tasks.detection.transforms import train_transform as detection_transform
from metaformer.tasks.segmentation.dataset import SegmentationDataset, open_segmentation
from metaformer.tasks.segmentation.transforms import train_transform as segmentation_transform

PIPELINES: dict[str, dict[str, Any]] = {
    "paper": {},
    "plain": {"auto_augment": None, "erase": 0.0, "interpolation": "bicubic"},
    "augmix": {"auto_augment": "augmix-m5-w4-d2", "aug_splits": 3},
    "autoaugment": {"auto_augment": "original", "erase_mode": "rand", "erase": 1.0, "vflip": 0.5},
}


Open = Callable[[int], AugmentedDataset]


def pets_dataset(own_pets: Path, seed: int = 0, **options: object) -> AugmentedDataset:
    return AugmentedDataset(ImageFolder(own_pets, "train"), train_transform(32, **options), seed)


def pairs_dataset(labeled: Path, seed: int = 0) -> SegmentationDataset:
    transform = segmentation_transform(16, (40, 24))
    return SegmentationDataset(open_segmentation(labeled, "train"), transform, seed)


def scenes_dataset(objects: Path, seed: int = 0, masks: bool = True) -> DetectionDataset:
    transform = detection_transform(jitter=(0.5, 2.0), crop=24, photometric=True)
    return DetectionDataset(open_detection(objects, "train", masks=masks), transform, seed, masks=masks)


@pytest.fixture(params=[*PIPELINES, "segmentation", "detection", "boxes"])
def open_dataset(request: pytest.FixtureRequest) -> Open:
    """Open the training data of each task with a seed."""
    match request.param:
        case "segmentation":
            return partial(pairs_dataset, request.getfixturevalue("labeled"))
        case "detection" | "boxes" as kind:
            return partial(scenes_dataset, request.getfixturevalue("objects"), masks=kind == "detection")
        case name:
            return partial(pets_dataset, request.getfixturevalue("own_pets"), **PIPELINES[name])


def tensors(item: Item) -> list[Tensor]:
    image, target, _ = item
    if isinstance(target, Targets):
        return [image, *(value for value in vars(target).values() if value is not None)]
    return [image, torch.as_tensor(target)]


def equal(item: Item, other: Item) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(item), tensors(other), strict=True))


def test_a_sample_is_a_function_of_seed_and_key(open_dataset: Open) -> None:
    data = open_dataset(0)
    keys = [Sample(epoch, index, repeat) for epoch in (0, 1) for index in (0, 3) for repeat in (0, 1)]
    first = {key: data[key] for key in keys}
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = open_dataset(0)
    for key in reversed(keys):
        assert equal(again[key], first[key]) and again[key][2] == key.index
    items = list(first.values())
    for i, one in enumerate(items):
        assert not any(torch.equal(one[0], other[0]) for other in items[:i])
    assert not torch.equal(open_dataset(1)[keys[0]][0], items[0][0])


def test_the_runs_random_streams_are_left_alone(open_dataset: Open) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws(), draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = draws()
    open_dataset(0)[Sample(0, 0)]
    assert (before, draws()) == expected


def test_a_sample_has_label_and_index(own_pets: Path) -> None:
    data = pets_dataset(own_pets)
    assert len(data) == 12
    assert [data[Sample(0, i)][1:] for i in range(12)] == [(i // 4, i) for i in range(12)]


def test_masks_are_optional(objects: Path) -> None:
    for masks in (False, True):
        targets = scenes_dataset(objects, masks=masks)[Sample(0, 0)][1]
        assert isinstance(targets, Targets) and (targets.masks is not None) == masks


def test_seeded_is_pure_and_reaches_all_three() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        with seeded(seed):
            return random.random(), np.random.rand(), torch.rand(()).item()

    assert draws(1) == draws(1)
    assert all(a != b for a, b in zip(draws(1), draws(2**64 - 1), strict=True))
    assert all(a != b for a, b in zip(draws(1), draws(1 + (1 << 40)), strict=True))


def test_streams_come_back_after_an_error() -> None:
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), seeded(5):
        1 / 0  # noqa: B018
    assert torch.equal(torch.rand(()), expected)


def test_a_bad_image_is_named(own_pets: Path, labeled: Path, objects: Path) -> None:
    bad = own_pets / "train/bee/1.png"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(BadImage, match=str(bad)):
        pets_dataset(own_pets)[Sample(0, 5)]
    Image.new("L", (24, 21)).save(labeled / "annotations/train/2.png")
    with pytest.raises(BadImage, match=r"2\.png: is 24x21 and its image .*images/train/2\.png 24x22"):
        pairs_dataset(labeled)[Sample(0, 2)]
    Image.new("RGB", (24, 17)).save(objects / "train2017/1.png")
    with pytest.raises(BadImage, match=r"1\.png"):
        scenes_dataset(objects)[Sample(0, 0)]
