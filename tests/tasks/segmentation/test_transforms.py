import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metaformer.errors import ConfigError
from metaformer.tasks.segmentation.transforms import train_transform

PLAIN: dict[str, Any] = {"photometric": False, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OWN_SIZE: dict[str, Any] = {**PLAIN, "resize": None}


def run(transform: Callable[..., Any], image: Image.Image, labels: np.ndarray, seed: int = 0) -> Any:
    random.seed(seed)
    return transform(image, labels)


def colored_by_label(labels: np.ndarray) -> Image.Image:
    """An image whose red channel is the label."""
    return Image.fromarray(np.stack([labels, labels // 2, 255 - labels], axis=-1).astype(np.uint8))


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 24),
    st.integers(0, 2**32),
    st.floats(0, 1),
)
def test_image_and_labels_stay_aligned_and_padding_is_ignored(
    width: int, height: int, crop: int, seed: int, ratio: float
) -> None:
    labels = np.random.RandomState(seed % 97).randint(0, 9, (height, width)).astype(np.uint8)
    transform = train_transform(crop, scale=(1.0, 1.0), cat_max_ratio=ratio, hflip=0.5, **OWN_SIZE)
    image, target = run(transform, colored_by_label(labels), labels, seed)
    assert image.shape == (3, crop, crop) and target.shape == (crop, crop)
    inside = target != 255
    assert inside.sum() == min(crop, width) * min(crop, height)
    assert inside[: min(crop, height), : min(crop, width)].all()
    red = (image[0] * 255).round().to(torch.uint8)
    assert torch.equal(red[inside], target[inside])
    assert not image[:, ~inside].any()


@settings(deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)),
    st.one_of(st.none(), st.tuples(st.integers(1, 100), st.integers(1, 100))),
    st.integers(0, 2**32),
)
def test_labels_are_never_interpolated(
    width: int,
    height: int,
    scale: tuple[float, float],
    resize: tuple[int, int] | None,
    seed: int,
) -> None:
    draw = np.random.RandomState(seed % 89)
    labels = draw.choice([3, 70, 149, 255], (height, width)).astype(np.uint8)
    image = colored_by_label(labels)
    transform = train_transform(32, resize, (min(scale), max(scale)))
    x, target = run(transform, image, labels, seed)
    assert set(target.unique().tolist()) <= {*np.unique(labels).tolist(), 255}
    assert x.isfinite().all() and x.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 3.0), st.integers(0, 2**32))
def test_edges_of_image_and_labels_coincide_after_a_resize(scale: float, seed: int) -> None:
    """Black and class 0 left of an edge, white and class 1 right of it."""
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[:, 23:] = 1
    image = Image.fromarray(np.repeat(labels[..., None] * np.uint8(255), 3, axis=-1))
    transform = train_transform(200, scale=(scale, scale), cat_max_ratio=1.0, hflip=0.5, **OWN_SIZE)
    x, target = run(transform, image, labels, seed)
    inside = target != 255
    disagree = ((x[0] > 0.5) != (target == 1)) & inside
    assert int(disagree.any(dim=0).sum()) <= 1
    for certain, label in ((x[0] < 0.02, 0), (x[0] > 0.98, 1)):
        assert (target[certain & inside] == label).all()


def test_crop_equals_resize_then_crop() -> None:
    draw = np.random.RandomState(0)
    image = Image.fromarray(draw.randint(0, 256, (90, 120, 3), dtype=np.uint8))
    labels = draw.randint(0, 9, (90, 120)).astype(np.uint8)
    options = {"resize": (200, 100), "scale": (0.5, 2.0), "cat_max_ratio": 1.0, "hflip": 0.0, **PLAIN}
    for seed in range(12):
        x, target = run(train_transform(32, **options), image, labels, seed)
        whole, resized = run(train_transform(270, **options), image, labels, seed)
        crops = np.lib.stride_tricks.sliding_window_view(resized.numpy(), (32, 32))
        ((top, left),) = np.argwhere((crops == target.numpy()).all((2, 3)))
        difference = (whole[:, top : top + 32, left : left + 32] - x).abs().max()
        assert difference < 3 / 255  # the box of the crop is rounded differently


def test_crops_of_one_class_are_redrawn() -> None:
    labels = np.zeros((40, 400), dtype=np.uint8)
    labels[:, 180:220] = np.arange(40)[None] % 2 + 1
    image = colored_by_label(labels)

    def single_class_crops(ratio: float) -> int:
        transform = train_transform(40, scale=(1.0, 1.0), cat_max_ratio=ratio, hflip=0.0, **OWN_SIZE)
        return sum(len(run(transform, image, labels, seed)[1].unique()) == 1 for seed in range(100))

    assert single_class_crops(1.0) > 60
    assert 5 < single_class_crops(0.75) < 50  # each of ten more tries finds the middle in one of seven


@pytest.mark.parametrize(("second", "crops"), [(2, 1), (1, 11)])
def test_cat_max_ratio_is_of_labeled_pixels(second: int, crops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.full((20, 20), 255, dtype=np.uint8)
    labels[0, :4], labels[1, :second] = 1, 2  # 4 of 6 is less than 0.75, 4 of 5 is more
    drawn = []
    monkeypatch.setattr(
        "metaformer.tasks.segmentation.transforms.random.randint", lambda low, high: drawn.append(1) or low
    )
    run(
        train_transform(20, scale=(1.0, 1.0), cat_max_ratio=0.75, **OWN_SIZE),
        colored_by_label(labels),
        labels,
    )
    assert len(drawn) == 2 * crops


@pytest.mark.parametrize("resize", [None, (2048, 512)])
def test_tiny_blank_and_long_images(resize: tuple[int, int] | None) -> None:
    transform = train_transform(64, resize)
    image, target = run(transform, Image.new("RGB", (1, 1), (9, 8, 7)), np.array([[4]], dtype=np.uint8))
    assert image.shape == (3, 64, 64) and set(target.unique().tolist()) <= {4, 255}
    blank = np.full((50, 70), 255, dtype=np.uint8)
    image, target = run(transform, Image.new("RGB", (70, 50)), blank)
    assert (target == 255).all() and image.isfinite().all()
    long = np.zeros((1, 5000), dtype=np.uint8)
    image, target = run(transform, Image.new("RGB", (5000, 1)), long)
    assert set(target.unique().tolist()) <= {0, 255}


def test_more_than_255_classes_are_int32() -> None:
    labels = np.array([[0, 300], [65535, 70]], dtype=np.uint16)
    transform = train_transform(4, scale=(1.0, 1.0), hflip=0.0, ignore_index=65535, **OWN_SIZE)
    _, target = run(transform, Image.new("RGB", (2, 2)), labels)
    assert target.dtype == torch.int32
    assert target[:2, :2].tolist() == labels.tolist() and target[3, 3] == 65535


def test_random_sizes_and_flips() -> None:
    labels = np.arange(200, dtype=np.uint8)[None].repeat(100, axis=0)
    sizes, mirrored = [], 0
    for seed in range(60):
        transform = train_transform(500, (200, 100), (0.5, 2.0), **PLAIN)
        _, target = run(transform, colored_by_label(labels), labels, seed)
        rows = target[:, 0] != 255
        sizes.append(int(rows.sum()))
        mirrored += bool(target[0, 0] > target[0, 5])
    assert 50 <= min(sizes) < 70 and 180 < max(sizes) <= 200
    assert 15 < mirrored < 45


def test_photometric_distortion_changes_the_image_alone() -> None:
    labels = np.random.RandomState(0).randint(0, 5, (30, 30)).astype(np.uint8)
    image = colored_by_label(labels)
    one = run(train_transform(30, None, photometric=True), image, labels, 5)
    other = run(train_transform(30, None, photometric=False), image, labels, 5)
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"crop": 0}, "crop is 0"),
        ({"resize": (0, 5)}, "resize"),
        ({"scale": (2.0, 0.5)}, "scale is"),
        ({"scale": (0.0, 0.5)}, "scale is"),
        ({"cat_max_ratio": 1.5}, "cat_max_ratio is 1.5"),
        ({"hflip": -0.1}, "hflip is -0.1"),
    ],
)
def test_invalid_options(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        train_transform(**options)
