import numpy as np
import pytest

from metaformer.data.demo.digits import Material


@pytest.fixture(scope="module")
def material() -> Material:
    return Material(0)


def test_each_digit_is_in_one_split(material: Material) -> None:
    train, val = (set(material.sources[split]) for split in ("train", "val"))
    assert not train & val
    assert train | val == set(range(1797))
    for label in range(10):
        own = [i for i in range(1797) if material.labels[i] == label]
        assert len(set(own) & val) == len(own) // 5
    assert set(Material(1).sources["val"]) != val


def test_digits_are_bright_on_dark(material: Material) -> None:
    for source in range(0, 1797, 60):
        scene = material.scene([source], 64, (40, 60), np.random.RandomState(source))
        (digit,) = scene.digits
        assert (digit.label, digit.source) == (material.labels[source], source)
        gray = np.asarray(scene.image.convert("L")).astype(float)
        # the middle of the strokes against the photograph
        assert np.quantile(gray[digit.mask], 0.75) - np.quantile(gray[~digit.mask], 0.75) > 40
        rows = np.flatnonzero(digit.mask.any(1))
        assert 30 <= rows[-1] - rows[0] + 1 <= 60


def test_masks_of_crowded_scenes_do_not_overlap(material: Material) -> None:
    for seed in range(20):
        scene = material.scene([seed * 7 + i for i in range(6)], 128, (28, 52), np.random.RandomState(seed))
        masks = np.stack([digit.mask for digit in scene.digits])
        assert masks.sum(0).max() == 1
        assert masks.sum((1, 2)).min() > 50
        assert len(scene.digits) >= 3


def test_scenes_are_functions_of_their_draws(material: Material) -> None:
    images = [
        material.scene([5, 6], 128, (28, 52), np.random.RandomState(seed)).image.tobytes()
        for seed in (1, 1, 2)
    ]
    assert images[0] == images[1] != images[2]
