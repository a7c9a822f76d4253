import random

import numpy as np
from PIL import Image

from metaformer.data.photometric import photometric_distortion


def colors(color: tuple[int, int, int], count: int) -> list[np.ndarray]:
    image = Image.new("RGB", (4, 4), color)
    random.seed(0)
    return [np.array(photometric_distortion(image))[0, 0].astype(int) for _ in range(count)]


def test_brightness_and_contrast_are_bounded() -> None:
    values = colors((128, 128, 128), 400)
    assert all(np.ptp(value) <= 1 for value in values)  # gray stays gray
    levels = [value[0] for value in values]
    assert 40 <= min(levels) < 80 and 200 < max(levels) <= 245
    assert 0.15 < np.mean([level == 128 for level in levels]) < 0.35  # neither brightness nor contrast


def test_hue_is_bounded() -> None:
    values = colors((200, 40, 40), 200)
    assert len({tuple(value) for value in values}) > 100
    assert all(red >= max(green, blue) for red, green, blue in values)  # 36 degrees at most: red leads
