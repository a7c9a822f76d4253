"""Training transform, preprocessing and padding of images with objects."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.models.detection.structures import Targets
from metaformer.tasks.detection.transforms import (
    DetectionPreprocess,
    pad_images,
    pad_targets,
    train_transform,
)

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
Box = tuple[int, int, int, int]


def scene(width: int, height: int, boxes: list[Box], masks: bool = True) -> tuple[Image.Image, Targets]:
    """Rectangles, later ones on top, whose red says which they are; each third one is a crowd."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = (10 * number + 10, 255, 0)
    visible = np.stack(
        [pixels[..., 0] == 10 * number + 10 for number in range(len(boxes))] or [pixels[..., 0] > 0]
    )
    count = len(boxes)
    return Image.fromarray(pixels), Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(count),
        torch.from_numpy(visible[:count]) if masks else None,
        torch.arange(count) % 3 == 2,
    )


def bounds(mask: Tensor) -> list[int]:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, list[Box]]:
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))))
    return width, height, boxes


@settings(deadline=None)
@given(scenes(), st.integers(1, 48), st.integers(0, 2**32))
def test_crops_and_flips_keep_image_masks_and_boxes_together(
    spec: tuple[int, int, list[Box]], crop: int, seed: int
) -> None:
    image, targets = scene(*spec)
    size = max(image.size)
    transform = train_transform(jitter=(size / crop, size / crop), crop=crop, **PLAIN)  # its own size
    random.seed(seed)
    x, found = transform(image, targets)
    assert x.shape == (3, crop, crop) and found.masks is not None
    red = (x[0] * 255).round()
    for box, label, mask, crowd in zip(found.boxes, found.labels, found.masks, found.crowd, strict=True):
        assert torch.equal(mask, red == 10 * label + 10)
        assert bool(crowd) == (int(label) % 3 == 2)
        left, top, right, bottom = box.tolist()
        inner = bounds(mask)
        assert 0 <= left <= inner[0] and 0 <= top <= inner[1]
        assert inner[2] <= right <= crop and inner[3] <= bottom <= crop
        old = targets.boxes[label]
        assert right - left <= old[2] - old[0] and bottom - top <= old[3] - old[1]
    shown = set(red.unique().tolist()) - {0.0}
    assert shown == {10.0 * label + 10 for label in found.labels.tolist()}


def test_a_cropped_box_shrinks_to_its_mask() -> None:
    image, targets = scene(20, 10, [(0, 0, 20, 10)])
    assert targets.masks is not None
    targets.masks[0, :, 2:] = False
    targets.masks[0, 5:, :18] = True  # an L, of which the right part reaches down only
    without = Targets(targets.boxes, targets.labels)
    transform = train_transform(jitter=(2.0, 2.0), crop=10, hflip=0.0, **PLAIN)
    tight = set()
    for seed in range(60):
        random.seed(seed)
        _, found = transform(image, targets)
        random.seed(seed)
        _, loose = transform(image, without)
        assert found.masks is not None
        assert loose.boxes.tolist() == [[0, 0, 10, 10]]
        assert found.boxes.tolist() == [bounds(found.masks[0])]
        tight.add(tuple(found.boxes[0].tolist()))
    assert len(tight) > 1


@settings(deadline=None)
@given(scenes(), st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32))
def test_boxes_and_masks_follow_any_size(
    spec: tuple[int, int, list[Box]], side: int, long: int, seed: int
) -> None:
    image, targets = scene(*spec)
    random.seed(seed)
    x, found = train_transform((side,), long, hflip=0.0, **PLAIN)(image, targets)
    _, height, width = x.shape
    assert (width, height) == DetectionPreprocess(long, side).size(*image.size)
    assert found.masks is not None and found.masks.shape[1:] == (height, width)
    across, down = width / image.width, height / image.height
    for box, label, mask in zip(found.boxes, found.labels, found.masks, strict=True):
        wanted = targets.boxes[label] * torch.tensor([across, down, across, down])
        assert torch.allclose(box, wanted, atol=1e-4)
        drawn = torch.tensor(bounds(mask))
        assert (drawn[:2] >= box[:2] - 0.51).all() and (drawn[2:] <= box[2:] + 0.51).all()
        assert targets.masks is not None
        rows, columns = mask.nonzero().unbind(1)
        # nearest neighbors of the new centers; a center between two may have either, as torchvision rounds
        neighbors = [
            targets.masks[label][
                ((2 * rows + 1) * image.height - above) // (2 * height),
                ((2 * columns + 1) * image.width - left) // (2 * width),
            ]
            for above, left in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        assert torch.stack(neighbors).any(dim=0).all()


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 1), (2000, 100), (33, 500)])
def test_images_are_resized_as_in_evaluation(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (*size[::-1], 3), dtype=np.uint8))
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    x, found = train_transform((80,), 133, hflip=0.0)(image, nothing)
    assert torch.equal(x, DetectionPreprocess(133, 80).transform()(image)) and len(found) == 0
    own, _ = train_transform((80,), None, hflip=0.0)(image, nothing)
    assert own.shape[1:] == size[::-1]
    mirrored, _ = train_transform((80,), None, hflip=1.0)(image, nothing)
    assert torch.equal(mirrored, own.flip(2))


def test_sides_flips_and_factors_are_random() -> None:
    image, targets = scene(64, 48, [(4, 8, 20, 40)], masks=False)
    random.seed(0)
    transform = train_transform((24, 48, 96), 1333)
    results = [transform(image, targets) for _ in range(60)]
    assert {x.shape[1] for x, _ in results} == {24, 48, 96}
    places = {tuple((found.boxes[0] * 48 / x.shape[1]).tolist()) for x, found in results}
    assert places == {(4.0, 8.0, 20.0, 40.0), (44.0, 8.0, 60.0, 40.0)}
    transform = train_transform(jitter=(0.1, 2.0), crop=64)
    results = [transform(image, targets) for _ in range(60)]
    assert all(x.shape == (3, 64, 64) for x, _ in results)
    sides = [float(found.boxes[0, 2] - found.boxes[0, 0]) for _, found in results if len(found)]
    assert min(sides) < 4 and max(sides) > 28


def test_objects_that_are_too_small_are_left_out() -> None:
    image, targets = scene(100, 50, [(0, 0, 60, 40), (50, 10, 52, 40), (70, 10, 90, 13)])
    random.seed(0)
    _, found = train_transform((25,), 50, hflip=0.0)(image, targets)
    assert found.labels.tolist() == [0, 1, 2]
    _, found = train_transform((25,), 50, hflip=0.0, min_box=1.2)(image, targets)
    assert found.labels.tolist() == [0, 2] and found.crowd.tolist() == [False, True]
    assert found.masks is not None and len(found.masks) == 2
    _, found = train_transform((10,), 20, hflip=0.0)(image, targets)
    assert found.labels.tolist() == [0]
    assert targets.masks is not None
    targets.masks[0] = False
    _, found = train_transform((25,), 50, hflip=0.0)(image, targets)
    assert found.labels.tolist() == [1, 2]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("options", [{}, {"jitter": (0.1, 2.0), "crop": 32}, {"photometric": True}])
def test_images_without_objects_and_of_one_pixel(options: dict[str, Any], masks: bool) -> None:
    for size in ((40, 30), (1, 1), (1, 50)):
        image, found = train_transform((64,), 96, **options)(*scene(*size, [], masks=masks))
        assert image.isfinite().all() and len(found) == 0
        assert (found.masks is not None) == masks
        if found.masks is not None:
            assert found.masks.shape == (0, *image.shape[1:])
    image, found = train_transform((64,), 96)(*scene(1, 1, [(0, 0, 1, 1)], masks=masks))
    assert image.shape == (3, 64, 64) and found.boxes.tolist() == [[0, 0, 64, 64]]


def test_photometric_distortion_changes_colors_alone() -> None:
    image, targets = scene(40, 30, [(3, 4, 20, 22)])
    random.seed(3)
    plain, _ = train_transform((30,), 40, hflip=0.0)(image, targets)
    x, found = train_transform((30,), 40, hflip=0.0, photometric=True)(image, targets)
    assert not torch.equal(x, plain)
    assert torch.equal(found.boxes, targets.boxes) and targets.masks is not None and found.masks is not None
    assert torch.equal(found.masks, targets.masks)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sides": ()}, "at least one"),
        ({"sides": (800, 0)}, r"\[800, 0\]"),
        ({"long_side": 0}, "the long side 0"),
        ({"jitter": (0.1, 2.0)}, "give both, or neither"),
        ({"crop": 640}, "give both, or neither"),
        ({"jitter": (0.1, 2.0), "crop": 0}, "crop is 0"),
        ({"jitter": (2.0, 0.1), "crop": 64}, "jitter is"),
        ({"jitter": (0.1, float("inf")), "crop": 64}, "jitter is"),
        ({"min_box": 0.0}, "min_box is 0"),
        ({"hflip": 1.5}, "hflip is 1.5"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        train_transform(**options)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((640, 480), (1067, 800)),
        ((480, 640), (800, 1067)),
        ((640, 426), (1202, 800)),
        ((640, 360), (1333, 750)),
        ((500, 375), (1067, 800)),
        ((4000, 3000), (1067, 800)),
        ((1, 1), (800, 800)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_sizes_are_those_of_the_published_pipeline(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert DetectionPreprocess().size(*size) == fitted


def test_the_tensor_is_the_image_resized_once_and_normalized() -> None:
    preprocess = DetectionPreprocess(133, 80)
    given = noise(50, 37)
    tensor = preprocess.transform()(given)
    assert tensor.shape == (3, 80, 108)
    assert torch.equal(tensor, preprocess.to_tensor(given.resize((108, 80), Image.Resampling.BILINEAR)))
    assert DetectionPreprocess(None, None).transform()(given).shape == (3, 37, 50)


def test_preprocessing_is_scaled_and_saved() -> None:
    double = DetectionPreprocess().scaled(2.0)
    assert double.size(640, 480) == (2133, 1600) and isinstance(double, DetectionPreprocess)
    for preprocess in (double, DetectionPreprocess(None, None, std=(1.0, 2.0, 3.0))):
        assert DetectionPreprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4), st.booleans())
def test_batches_are_padded_on_the_right_and_below(sizes: list[tuple[int, int]], masked: bool) -> None:
    images, targets = [], []
    for number, (height, width) in enumerate(sizes):
        images.append(torch.ones(3, height, width))
        count = number % 3
        targets.append(
            Targets(
                torch.tensor([0.0, 0.0, width, height]).repeat(count, 1),
                torch.full((count,), number),
                torch.ones(count, height, width, dtype=torch.bool) if masked else None,
                torch.ones(count, dtype=torch.bool),
            )
        )
    batch = pad_images(images)
    height, width = batch.shape[2:]
    assert height % 32 == width % 32 == 0
    assert 0 <= height - max(h for h, _ in sizes) < 32 and 0 <= width - max(w for _, w in sizes) < 32
    padded = pad_targets(targets, (height, width))
    for (h, w), image, place, old, new in zip(sizes, images, batch, targets, padded, strict=True):
        assert torch.equal(place[:, :h, :w], image) and place.sum() == image.sum()
        assert torch.equal(new.boxes, old.boxes) and torch.equal(new.labels, old.labels)
        assert torch.equal(new.crowd, old.crowd)
        assert (new.masks is not None) == masked
        if new.masks is not None and old.masks is not None:
            assert new.masks.shape == (len(old), height, width)
            assert torch.equal(new.masks[:, :h, :w], old.masks) and new.masks.sum() == old.masks.sum()
    tensors = {new.boxes.untyped_storage().data_ptr() for new in padded}
    assert len(tensors) == 1


def test_a_batch_without_objects() -> None:
    none = Targets(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5, 7, dtype=torch.bool)
    )
    first, second = pad_targets([none, none], (32, 64))
    assert len(first) == len(second) == 0
    assert first.masks is not None and first.masks.shape == (0, 32, 64)
