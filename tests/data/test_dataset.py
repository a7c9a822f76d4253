import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.data.dataset import AugmentedDataset, seeded
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import Sample
from metaformer.errors import BadImage
from metaformer.models.detection.structures import Targets
from metaformer.tasks.classification.transforms import train_transform
from metaformer.tasks.detection.dataset import DetectionDataset, open_detection
from metaformer.tasks.detection.transforms import train_transform as detection_transform
from metaformer.tasks.segmentation.dataset import SegmentationDataset, open_segmentation
from metaformer.tasks.segmentation.transforms import train_transform as segmentation_transform

PIPELINES = {
    "paper": {},
    "plain": {"auto_augment": None, "erase": 0.0, "interpolation": "bicubic"},
    "augmix": {"auto_augment": "augmix-m5-w4-d2", "aug_splits": 3},
    "autoaugment": {"auto_augment": "original", "erase_mode": "rand", "erase": 1.0, "vflip": 0.5},
}


def augmented(own_pets: Path, seed: int = 0, **options: object) -> AugmentedDataset:
    return AugmentedDataset(ImageFolder(own_pets, "train"), train_transform(32, **options), seed)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_sample_is_a_function_of_seed_and_place(own_pets: Path, name: str) -> None:
    data = augmented(own_pets, **PIPELINES[name])
    wanted = [Sample(epoch, index, repeat) for epoch in (0, 1) for index in (0, 7) for repeat in (0, 1)]
    first = {sample: data[sample][0] for sample in wanted}
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = augmented(own_pets, **PIPELINES[name])
    for sample in reversed(wanted):
        assert torch.equal(again[sample][0], first[sample])
    tensors = list(first.values())
    for i, one in enumerate(tensors):
        assert not any(torch.equal(one, other) for other in tensors[:i])
    other_seed = augmented(own_pets, seed=1, **PIPELINES[name])
    assert not torch.equal(other_seed[wanted[0]][0], first[wanted[0]])


def test_label_and_index_come_along(own_pets: Path) -> None:
    data = augmented(own_pets)
    assert len(data) == 12
    assert [data[Sample(0, i)][1:] for i in range(12)] == [(i // 4, i) for i in range(12)]


def test_making_a_sample_leaves_the_runs_random_streams_alone(own_pets: Path) -> None:
    data = augmented(own_pets)

    def draws() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws(), draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = draws()
    data[Sample(0, 0)]
    assert (before, draws()) == expected


def test_seeded_is_pure_and_reaches_all_three() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        with seeded(seed):
            return random.random(), np.random.rand(), torch.rand(()).item()

    assert draws(1) == draws(1)
    assert all(a != b for a, b in zip(draws(1), draws(2**64 - 1), strict=True))
    assert all(a != b for a, b in zip(draws(1), draws(1 + (1 << 40)), strict=True))


def test_streams_come_back_after_an_error(own_pets: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), seeded(5):
        1 / 0  # noqa: B018
    assert torch.equal(torch.rand(()), expected)


def test_a_bad_image_is_named(own_pets: Path) -> None:
    bad = own_pets / "train/bee/1.png"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(BadImage, match=str(bad)):
        augmented(own_pets)[Sample(0, 5)]


def pairs(labeled: Path, seed: int = 0) -> SegmentationDataset:
    return SegmentationDataset(
        open_segmentation(labeled, "train"), segmentation_transform(16, (40, 24)), seed
    )


def test_a_pair_is_a_function_of_seed_and_place(labeled: Path) -> None:
    data = pairs(labeled)
    wanted = [Sample(epoch, index, repeat) for epoch in (0, 1) for index in (0, 3) for repeat in (0, 1)]
    first = {sample: data[sample] for sample in wanted}
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = pairs(labeled)
    for sample in reversed(wanted):
        image, labels, index = again[sample]
        assert torch.equal(image, first[sample][0]) and torch.equal(labels, first[sample][1])
        assert index == sample.index and labels.dtype == torch.uint8
    images = [image for image, _, _ in first.values()]
    for i, one in enumerate(images):
        assert not any(torch.equal(one, other) for other in images[:i])
    assert not torch.equal(pairs(labeled, seed=1)[wanted[0]][0], images[0])


def test_a_pair_leaves_the_runs_random_streams_alone(labeled: Path) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    pairs(labeled)[Sample(0, 0)]
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_a_label_map_of_another_size_is_named(labeled: Path) -> None:
    bad = labeled / "annotations/train/2.png"
    Image.new("L", (24, 21)).save(bad)
    with pytest.raises(BadImage, match=r"2\.png: is 24x21 and its image .*images/train/2\.png 24x22"):
        pairs(labeled)[Sample(0, 2)]


def scenes(objects: Path, seed: int = 0, masks: bool = True) -> DetectionDataset:
    transform = detection_transform(jitter=(0.5, 2.0), crop=24, photometric=True)
    return DetectionDataset(open_detection(objects, "train", masks=masks), transform, seed, masks=masks)


def test_a_scene_is_a_function_of_seed_and_place(objects: Path) -> None:
    data = scenes(objects)
    wanted = [Sample(epoch, index, repeat) for epoch in (0, 1) for index in (0, 3) for repeat in (0, 1)]
    first = {sample: data[sample] for sample in wanted}
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = scenes(objects)
    for sample in reversed(wanted):
        image, targets, index = again[sample]
        old = first[sample][1]
        assert isinstance(targets, Targets) and isinstance(old, Targets)
        assert torch.equal(image, first[sample][0]) and index == sample.index
        for name in ("boxes", "labels", "masks", "crowd"):
            assert torch.equal(getattr(targets, name), getattr(old, name))
    images = [image for image, _, _ in first.values()]
    for i, one in enumerate(images):
        assert not any(torch.equal(one, other) for other in images[:i])
    assert not torch.equal(scenes(objects, seed=1)[wanted[0]][0], images[0])


def test_a_scene_leaves_the_runs_random_streams_alone_and_has_masks_where_wanted(objects: Path) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    for masks in (False, True):
        targets = scenes(objects, masks=masks)[Sample(0, 0)][1]
        assert isinstance(targets, Targets) and (targets.masks is not None) == masks
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_a_scene_of_another_size_than_its_annotations_say_is_named(objects: Path) -> None:
    Image.new("RGB", (24, 17)).save(objects / "train2017/1.png")
    with pytest.raises(BadImage, match=r"1\.png"):
        scenes(objects)[Sample(0, 0)]
