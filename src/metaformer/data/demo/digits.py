"""Made images from real material: scikit-learn's handwritten digits on its two photographs."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.errors import MissingPackage

_TRIES = 60
"""Places tried for a digit before a crowded scene goes without it."""


@dataclass(frozen=True)
class Digit:
    """One digit in a scene."""

    label: int
    """0 ... 9."""
    source: int
    """Its number in scikit-learn's `load_digits`."""
    mask: NDArray[np.bool_]
    """(H, W): its visible pixels."""


@dataclass(frozen=True)
class Scene:
    """An image and what is in it."""

    image: Image.Image
    digits: list[Digit]


class Material:
    """The 1,797 digits, a fifth of each class set aside for validation, and the photographs.

    Args:
        seed: decides which digits are set aside.
        per_class: digits of each class that are used at all; all when not given.

    Raises:
        MissingPackage: scikit-learn is not installed.
    """

    def __init__(self, seed: int, per_class: int | None = None) -> None:
        try:
            from sklearn.datasets import load_digits, load_sample_images
        except ImportError as error:
            raise MissingPackage("scikit-learn", "demo", "demo data") from error
        digits = load_digits()
        self.labels: list[int] = [int(label) for label in digits.target]
        self.glyphs = np.pad(digits.images / 16.0, ((0, 0), (1, 1), (1, 1)))  # (N, 10, 10)
        self.photos = [Image.fromarray(photo) for photo in load_sample_images().images]
        self.sources: dict[str, list[int]] = {"train": [], "val": []}
        draw = np.random.RandomState(seed)
        for label in range(10):
            order = draw.permutation(np.flatnonzero(digits.target == label)).tolist()[:per_class]
            held_out = len(order) // 5
            self.sources["val"] += order[:held_out]
            self.sources["train"] += order[held_out:]

    def scene(
        self, sources: Sequence[int], size: int, digit_size: tuple[int, int], draw: np.random.RandomState
    ) -> Scene:
        """Paste bright digits on a dark crop of a photograph, next to each other.

        Args:
            sources: which digits, from `self.sources`.
            size: height and width, in pixels.
            digit_size: smallest and largest digit, in pixels.
            draw: where everything random comes from.
        """
        canvas = self._background(size, draw)
        boxes: list[tuple[int, int, int]] = []
        digits: list[Digit] = []
        for source in sources:
            box = _free_place(boxes, size, digit_size, draw)
            if box is None:
                continue
            boxes.append(box)
            cover = self._cover(source, box, size)
            color = 255 * np.array(
                colorsys.hsv_to_rgb(draw.rand(), 0.45 * draw.rand(), 0.9 + 0.1 * draw.rand())
            )
            canvas += cover[..., None] * (color - canvas)
            digits.append(Digit(self.labels[source], source, cover > 0.4))
        return Scene(Image.fromarray(np.round(canvas).astype(np.uint8)), _visible(digits))

    def _background(self, size: int, draw: np.random.RandomState) -> NDArray[np.float64]:
        photo = self.photos[draw.randint(len(self.photos))]
        side = draw.randint(size, min(photo.size) + 1)
        left, top = draw.randint(photo.width - side + 1), draw.randint(photo.height - side + 1)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return np.asarray(crop, dtype=np.float64) * (0.2 + 0.3 * draw.rand())

    def _cover(self, source: int, box: tuple[int, int, int], size: int) -> NDArray[np.float64]:
        """Give a digit's opacity on the canvas (size, size), 0 ... 1."""
        left, top, side = box
        edge = round(side * 10 / 8)  # the glyph has a margin of one of its own 8 pixels
        glyph = Image.fromarray((255 * self.glyphs[source]).astype(np.uint8))
        large = np.asarray(glyph.resize((edge, edge), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        margin = (edge - side) // 2
        cover = np.zeros((size, size))
        inner = large[margin : margin + side, margin : margin + side]
        cover[top : top + side, left : left + side] = np.clip((inner - 0.25) / 0.4, 0, 1)
        return cover


def _free_place(
    boxes: Sequence[tuple[int, int, int]], size: int, digit_size: tuple[int, int], draw: np.random.RandomState
) -> tuple[int, int, int] | None:
    """Find left, top and side of a square that covers at most a tenth of any other."""
    for _ in range(_TRIES):
        side = int(draw.randint(digit_size[0], digit_size[1] + 1))
        left, top = (int(draw.randint(size - side + 1)) for _ in range(2))
        if all(_overlap((left, top, side), box) <= 0.1 * min(side, box[2]) ** 2 for box in boxes):
            return left, top, side
    return None


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    width, height = (min(a[i] + a[2], b[i] + b[2]) - max(a[i], b[i]) for i in range(2))
    return max(width, 0) * max(height, 0)


def _visible(digits: list[Digit]) -> list[Digit]:
    """Take from each mask what later digits cover."""
    covered = np.zeros_like(digits[0].mask)
    seen: list[Digit] = []
    for digit in reversed(digits):
        seen.append(Digit(digit.label, digit.source, digit.mask & ~covered))
        covered |= digit.mask
    return seen[::-1]
