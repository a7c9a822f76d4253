"""Photometric distortion of mmsegmentation and mmdetection, after SSD, https://arxiv.org/abs/1512.02325."""

import random
from typing import Final

from PIL import Image

_BRIGHTNESS: Final = 32
"""Largest shift of the pixel values."""
_FACTORS: Final = (0.5, 1.5)
"""Range of the factors of contrast and saturation."""
_HUE: Final = 18
"""Largest shift of the hue, of 180."""


def photometric_distortion(image: Image.Image) -> Image.Image:
    """Change brightness, contrast, saturation and hue of an RGB image, each with probability 0.5.

    Contrast changes before or after saturation and hue. Everything random comes from `random`.
    """
    if random.random() < 0.5:
        delta = random.uniform(-_BRIGHTNESS, _BRIGHTNESS)
        image = image.point(_lookup(1.0, delta) * 3)
    contrast_first = random.random() < 0.5
    contrast = random.uniform(*_FACTORS) if random.random() < 0.5 else 1.0
    if contrast_first:
        image = _change_contrast(image, contrast)
    image = _change_color(image)
    return image if contrast_first else _change_contrast(image, contrast)


def _change_contrast(image: Image.Image, factor: float) -> Image.Image:
    return image if factor == 1 else image.point(_lookup(factor, 0.0) * 3)


def _change_color(image: Image.Image) -> Image.Image:
    saturation = random.uniform(*_FACTORS) if random.random() < 0.5 else 1.0
    shift = random.randint(-_HUE, _HUE - 1) if random.random() < 0.5 else 0
    if saturation == 1 and shift == 0:
        return image
    hue = [(value + round(shift * 256 / 180)) % 256 for value in range(256)]
    return image.convert("HSV").point(hue + _lookup(saturation, 0.0) + list(range(256))).convert("RGB")


def _lookup(factor: float, shift: float) -> list[int]:
    """Lookup table of `value * factor + shift`, clipped to 0 … 255."""
    return [min(255, max(0, round(value * factor + shift))) for value in range(256)]
