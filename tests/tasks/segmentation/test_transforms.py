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
from metaformer.tasks.segmentation.transforms import distorted, train_transform

PLAIN: dict[str, Any] = {
    "resize": None,
    "photometric": False,
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
}


def run(transform: Callable[..., Any], image: Image.Image, labels: np.ndarray, seed: int = 0) -> Any:
    random.seed(seed)
    x, target = transform(image, labels)
    return x, target


def colored_by_label(labels: np.ndarray) -> Image.Image:
    """An image whose red says the label."""
    return Image.fromarray(np.stack([labels, labels // 2, 255 - labels], axis=-1).astype(np.uint8))


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 24),
    st.integers(0, 2**32),
    st.floats(0, 1),
)
def test_image_and_labels_stay_together_and_only_ignored_is_added(
    width: int, height: int, crop: int, seed: int, ratio: float
) -> None:
    labels = np.random.RandomState(seed % 97).randint(0, 9, (height, width)).astype(np.uint8)
    transform = train_transform(crop, scale=(1.0, 1.0), cat_max_ratio=ratio, hflip=0.5, **PLAIN)
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
def test_no_label_is_invented_at_any_size(
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
def test_edges_lie_at_the_same_place_in_both_after_a_resize(scale: float, seed: int) -> None:
    """Left of an edge black and class 0, right of it white and class 1; bilinear grays straddle the edge."""
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[:, 23:] = 1
    image = Image.fromarray(np.repeat(labels[..., None] * np.uint8(255), 3, axis=-1))
    transform = train_transform(200, scale=(scale, scale), cat_max_ratio=1.0, hflip=0.5, **PLAIN)
    x, target = run(transform, image, labels, seed)
    inside = target != 255
    disagree = ((x[0] > 0.5) != (target == 1)) & inside
    assert int(disagree.any(dim=0).sum()) <= 1
    for sure, label in ((x[0] < 0.02, 0), (x[0] > 0.98, 1)):
        assert (target[sure & inside] == label).all()


def test_a_crop_of_the_resized_image_is_what_a_resize_and_then_a_crop_would_give() -> None:
    draw = np.random.RandomState(0)
    image = Image.fromarray(draw.randint(0, 256, (90, 120, 3), dtype=np.uint8))
    labels = draw.randint(0, 9, (90, 120)).astype(np.uint8)
    for seed in range(12):
        small = train_transform(
            32, (200, 100), (0.5, 2.0), cat_max_ratio=1.0, hflip=0.0, **without(PLAIN, "resize")
        )
        large = train_transform(
            999, (200, 100), (0.5, 2.0), cat_max_ratio=1.0, hflip=0.0, **without(PLAIN, "resize")
        )
        x, target = run(small, image, labels, seed)
        whole, everything = run(large, image, labels, seed)
        found = [
            (top, left)
            for top in range(260)
            for left in range(260)
            if torch.equal(everything[top : top + 32, left : left + 32], target)
        ]
        assert len(found) == 1
        top, left = found[0]
        difference = (whole[:, top : top + 32, left : left + 32] - x).abs().max()
        assert difference < 3 / 255  # the box is rounded otherwise


def without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def test_crops_of_one_class_are_drawn_anew() -> None:
    labels = np.zeros((40, 400), dtype=np.uint8)
    labels[:, 180:220] = np.arange(40)[None] % 2 + 1
    image = colored_by_label(labels)

    def monotonous(ratio: float) -> int:
        transform = train_transform(40, scale=(1.0, 1.0), cat_max_ratio=ratio, hflip=0.0, **PLAIN)
        return sum(len(run(transform, image, labels, seed)[1].unique()) == 1 for seed in range(100))

    assert monotonous(1.0) > 60
    assert 5 < monotonous(0.75) < 50  # ten more tries of which each finds the middle one time in seven


@pytest.mark.parametrize(("second", "crops"), [(2, 1), (1, 11)])
def test_the_share_is_of_the_pixels_that_count(
    second: int, crops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.full((20, 20), 255, dtype=np.uint8)
    labels[0, :4], labels[1, :second] = 1, 2  # 4 of 6 is less than 0.75, 4 of 5 is more
    drawn = []
    monkeypatch.setattr(
        "metaformer.tasks.segmentation.transforms.random.randint", lambda low, high: drawn.append(1) or low
    )
    run(train_transform(20, scale=(1.0, 1.0), cat_max_ratio=0.75, **PLAIN), colored_by_label(labels), labels)
    assert len(drawn) == 2 * crops


@pytest.mark.parametrize("resize", [None, (2048, 512)])
def test_one_pixel_and_nothing_but_ignored(resize: tuple[int, int] | None) -> None:
    transform = train_transform(64, resize)
    image, target = run(transform, Image.new("RGB", (1, 1), (9, 8, 7)), np.array([[4]], dtype=np.uint8))
    assert image.shape == (3, 64, 64) and set(target.unique().tolist()) <= {4, 255}
    blank = np.full((50, 70), 255, dtype=np.uint8)
    image, target = run(transform, Image.new("RGB", (70, 50)), blank)
    assert (target == 255).all() and image.isfinite().all()
    long = np.zeros((1, 5000), dtype=np.uint8)
    image, target = run(transform, Image.new("RGB", (5000, 1)), long)
    assert set(target.unique().tolist()) <= {0, 255}


def test_more_than_255_classes_come_as_int32() -> None:
    labels = np.array([[0, 300], [65535, 70]], dtype=np.uint16)
    transform = train_transform(4, scale=(1.0, 1.0), hflip=0.0, ignore_index=65535, **PLAIN)
    _, target = run(transform, Image.new("RGB", (2, 2)), labels)
    assert target.dtype == torch.int32
    assert target[:2, :2].tolist() == labels.tolist() and target[3, 3] == 65535


def test_sizes_are_drawn_between_the_factors_and_mirroring_happens() -> None:
    labels = np.arange(200, dtype=np.uint8)[None].repeat(100, axis=0)
    sizes, mirrored = [], 0
    for seed in range(60):
        transform = train_transform(500, (200, 100), (0.5, 2.0), **without(PLAIN, "resize"))
        _, target = run(transform, colored_by_label(labels), labels, seed)
        rows = target[:, 0] != 255
        sizes.append(int(rows.sum()))
        mirrored += bool(target[0, 0] > target[0, 5])
    assert 50 <= min(sizes) < 70 and 180 < max(sizes) <= 200
    assert 15 < mirrored < 45


def test_colors_are_distorted_within_bounds() -> None:
    gray = Image.new("RGB", (4, 4), (128, 128, 128))
    random.seed(0)
    values = [np.array(distorted(gray))[0, 0] for _ in range(400)]
    assert all(value.max() - value.min() <= 1 for value in values)  # gray stays gray
    levels = [int(value[0]) for value in values]
    assert 40 <= min(levels) < 80 and 200 < max(levels) <= 245
    assert 0.15 < np.mean([level == 128 for level in levels]) < 0.35  # neither brightness nor contrast
    red = Image.new("RGB", (2, 2), (200, 40, 40))
    seen = {tuple(np.array(distorted(red))[0, 0].tolist()) for _ in range(200)}
    assert len(seen) > 100
    assert all(r >= max(g, b) for r, g, b in seen)  # a tenth of the circle either way: red leads


def test_distortion_leaves_black_and_labels_alone() -> None:
    labels = np.random.RandomState(0).randint(0, 5, (30, 30)).astype(np.uint8)
    image = colored_by_label(labels)
    one = run(train_transform(30, None, photometric=True), image, labels, 5)
    other = run(train_transform(30, None, photometric=False), image, labels, 5)
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"crop": 0}, "crop is 0"),
        ({"resize": (0, 5)}, "at least 1 pixel"),
        ({"scale": (2.0, 0.5)}, "scale is"),
        ({"scale": (0.0, 0.5)}, "scale is"),
        ({"cat_max_ratio": 1.5}, "cat_max_ratio is 1.5"),
        ({"hflip": -0.1}, "hflip is -0.1"),
    ],
)
def test_impossible_values(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        train_transform(**options)
