"""Preprocessing of images."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalize, Preprocess
from metaformer.data.resize_preprocess import DensePreprocess, fit_size
from metaformer.errors import ConfigError


def test_survives_json() -> None:
    original = Preprocess(64, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert Preprocess.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    assert Preprocess.from_dict({}) == Preprocess()


@pytest.mark.parametrize(
    ("size", "crop", "edge"), [(224, 0.9, 248), (224, 0.95, 235), (224, 0.875, 256), (384, 1.0, 384)]
)
def test_shorter_edge_is_rounded_down_as_the_authors_do(size: int, crop: float, edge: int) -> None:
    assert Preprocess(size, crop).resize == edge


def test_reads_timms_words() -> None:
    cfg = {
        "input_size": (3, 384, 384),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    assert Preprocess.from_pretrained_cfg(cfg) == Preprocess(384, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert Preprocess.from_pretrained_cfg({}) == Preprocess()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"size": 3}, "size"),
        ({"image_size": "big"}, "big"),
        ({"mean": [0.5]}, "mean"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean"),
        ({"std": ["a", "b", "c"]}, "std"),
        ({"crop": float("nan")}, "crop"),
        ({"crop": 1e-9}, "7071 pixels"),
        ({"image_size": 999999999}, "image_size: 999999999"),
    ],
)
def test_damaged_records(values: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Preprocess.from_dict(values)


@pytest.mark.parametrize("mean", [IMAGENET_MEAN, (0, 0, 1)])
def test_normalizing_is_torchvisions_bit_for_bit(mean: tuple[float, float, float]) -> None:
    from torchvision import transforms

    values = np.arange(256, dtype=np.uint8)
    every = np.stack([values, values[::-1], np.roll(values, 99)], axis=1).reshape(8, 32, 3)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, IMAGENET_STD)])
    image = Image.fromarray(every)
    ours = Normalize(mean, IMAGENET_STD)(image)
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    assert torch.equal(ours, theirs(image))


def image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "fitted", "final"),
    [
        ((683, 512), (683, 512), (704, 512)),
        ((512, 683), (512, 683), (512, 704)),
        ((1024, 1024), (512, 512), (512, 512)),
        ((4096, 512), (2048, 256), (2048, 256)),
        ((300, 200), (768, 512), (768, 512)),
        ((1, 1), (512, 512), (512, 512)),
        ((1, 5000), (1, 2048), (32, 2048)),
    ],
)
def test_sizes_are_those_of_the_published_test_pipeline(
    size: tuple[int, int], fitted: tuple[int, int], final: tuple[int, int]
) -> None:
    preprocess = DensePreprocess()
    assert preprocess.fitted_size(*size) == fitted
    assert preprocess.size(*size) == final
    assert DensePreprocess(size_divisor=1).size(*size) == fitted


def test_transform_normalizes() -> None:
    preprocess = DensePreprocess(None, None, size_divisor=1)
    x = image(9, 7)
    tensor = preprocess.transform()(x)
    assert tensor.shape == (3, 7, 9) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    pixels = torch.from_numpy(np.array(x)).permute(2, 0, 1).double() / 255
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (preprocess.mean, preprocess.std)
    )
    assert torch.allclose(tensor.double(), (pixels - mean) / std, atol=2e-6)
    assert torch.equal(preprocess.to_tensor(preprocess.resize(x)), tensor)


def test_two_resizes_in_sequence() -> None:
    x = image(50, 37)
    preprocess = DensePreprocess(96, 64)
    once = x.resize(preprocess.fitted_size(50, 37), Image.Resampling.BILINEAR)
    assert once.size == (86, 64)
    twice = once.resize((96, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(np.array(preprocess.resize(x)), np.array(twice))
    assert preprocess.transform()(x).shape == (3, 64, 96)


def test_scales_of_box_or_image() -> None:
    assert DensePreprocess().scaled(1.75).size(683, 512) == (1216, 896)
    assert DensePreprocess().scaled(0.5).scaled(2.0) == DensePreprocess()
    assert DensePreprocess(None, None, size_divisor=1).scaled(0.5).size(101, 40) == (51, 20)
    assert DensePreprocess(None, None, size_divisor=32).size(33, 32) == (64, 32)


@settings(deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 3000), st.integers(1, 3000))
def test_a_fitted_image_fits(width: int, height: int, one: int, other: int) -> None:
    fitted, box = sorted(fit_size(width, height, (one, other))), sorted((one, other))
    assert 1 <= fitted[0] <= box[0] and 1 <= fitted[1] <= box[1]
    assert fitted[0] == box[0] or fitted[1] == box[1]


def test_json_round_trip() -> None:
    for preprocess in (DensePreprocess(), DensePreprocess(None, None, 1, std=(1.0, 2.0, 3.0), scale=0.5)):
        assert DensePreprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    with pytest.raises(ConfigError, match="crop"):
        DensePreprocess.from_dict({"crop": 0.9})
    with pytest.raises(ConfigError, match="size_divisor"):
        DensePreprocess.from_dict({"size_divisor": "x"})


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"long_side": None}, "short_side 512"),
        ({"short_side": 0}, "short_side: 0"),
        ({"long_side": 10**6}, "long_side: 1000000"),
        ({"size_divisor": 0}, "size_divisor: 0"),
        ({"scale": 0.0}, "scale: 0.0"),
        ({"scale": float("nan")}, "scale: nan"),
        ({"std": (0.0, 1.0, 1.0)}, "std:"),
        ({"mean": (1.0, 2.0)}, "mean:"),
    ],
)
def test_invalid_fields(fields: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        DensePreprocess(**fields)  # type: ignore[arg-type]


def test_scale_is_bounded() -> None:
    with pytest.raises(ConfigError, match="scale: 1000000000"):
        DensePreprocess().scaled(1e9)
    with pytest.raises(ConfigError, match=r"scale: 100.*30000x20000"):
        DensePreprocess(None, None).scaled(100).resize(image(300, 200))


@pytest.mark.parametrize("crops", [1, 5])
@pytest.mark.parametrize("size", [(300, 40), (40, 300), (50, 50)])
def test_crops_of_long_images_are_those_of_others(
    size: tuple[int, int], crops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Image.radial_gradient("L").convert("RGB").resize(size)
    transform = Preprocess(32, 0.9, mean=(0, 0, 0), std=(1, 1, 1)).transform(crops)
    expected = transform(whole)
    monkeypatch.setattr("metaformer.data.preprocess.MAX_PIXELS", 0)
    torch.testing.assert_close(transform(whole), expected, rtol=0, atol=2 / 255)


@pytest.mark.parametrize("size", [(1, 10_000_000), (10_000_000, 1)])
def test_a_strip_is_not_resized_beyond_its_crop(size: tuple[int, int]) -> None:
    """Resized as a whole it would have 500 gigapixels, which no memory holds."""
    strip = Image.new("RGB", size, (255, 0, 0))
    x = Preprocess(224, mean=(0, 0, 0), std=(1, 1, 1)).transform()(strip)
    assert x.shape == (3, 224, 224) and x[0].min() == 1 and x[1:].max() == 0
