import json

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalize, Preprocess
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
