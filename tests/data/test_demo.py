import numpy as np
import pytest

from metaformer.data.demo import SPLITS, Scene, SceneGenerator
from metaformer.errors import ConfigError


@pytest.fixture(scope="module")
def generator() -> SceneGenerator:
    return SceneGenerator()


def compose(generator: SceneGenerator, sources: list[int], seed: int) -> Scene:
    return generator.compose(sources, 128, (28, 52), np.random.RandomState(seed))


def test_each_digit_is_in_one_split(generator: SceneGenerator) -> None:
    train, val = (set(generator.sources[split]) for split in SPLITS)
    assert not train & val
    assert train | val == set(range(1797))
    for label in range(10):
        own = [i for i in range(1797) if generator.labels[i] == label]
        assert len(set(own) & val) == len(own) // 5
    assert set(SceneGenerator(1).sources["val"]) != val


def test_digits_are_bright_on_dark(generator: SceneGenerator) -> None:
    for source in range(0, 1797, 60):
        scene = generator.compose([source], 64, (40, 60), np.random.RandomState(source))
        (digit,) = scene.digits
        assert (digit.label, digit.source) == (generator.labels[source], source)
        gray = np.asarray(scene.image.convert("L")).astype(float)
        # the middle of the strokes against the photograph
        assert np.quantile(gray[digit.mask], 0.75) - np.quantile(gray[~digit.mask], 0.75) > 40
        rows = np.flatnonzero(digit.mask.any(1))
        assert 30 <= rows[-1] - rows[0] + 1 <= 60


def test_masks_of_crowded_scenes_do_not_overlap(generator: SceneGenerator) -> None:
    for seed in range(20):
        scene = compose(generator, [seed * 7 + i for i in range(6)], seed)
        masks = np.stack([digit.mask for digit in scene.digits])
        assert masks.sum(0).max() == 1
        assert masks.sum((1, 2)).min() > 50
        assert len(scene.digits) >= 3


def test_scenes_are_functions_of_their_randomness(generator: SceneGenerator) -> None:
    images = [compose(generator, [5, 6], seed).image.tobytes() for seed in (1, 1, 2)]
    assert images[0] == images[1] != images[2]
    streams = [next(generator.scenes("val", 1, stream)).image.tobytes() for stream in (1, 1, 2)]
    assert streams[0] == streams[1] != streams[2]


@pytest.mark.parametrize(("field", "value"), [("seed", -1), ("seed", 2**32), ("per_class", 4)])
def test_values_out_of_range(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=field):
        SceneGenerator(**{field: value})
