"""Scenes of small objects on crops of scikit-learn's two photographs; its handwritten digits as objects."""

import colorsys
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from metaformer.data.sampler import hash64
from metaformer.errors import ConfigError, MissingPackage

SPLITS: Final = ("train", "val")
_SAMPLES: Final = 10
"""Images of a data set that an overview shows."""
_SAMPLE_STEP: Final = 13
"""From one of them to the next: neighbors may show the same digit."""
_SCENE_SIZE: Final = 128
"""Height and width of the scenes, in pixels."""
_ATTEMPTS: Final = 60
"""Random positions tried for an object before a crowded scene goes without it."""
_OPAQUE: Final = 0.4
"""Opacity from which on a pixel is an object's."""
Square = tuple[int, int, int]
"""Left, top and side, in pixels."""


@dataclass(frozen=True)
class SceneObject:
    """One object in a scene."""

    label: int
    """Index of its class."""
    source: int
    """Index of the drawing that it is made from."""
    mask: NDArray[np.bool_]
    """Visible pixels, (H, W)."""

    @property
    def box(self) -> list[int]:
        """Left, top, width and height of the mask."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


@dataclass(frozen=True)
class Scene:
    """An image and the objects in it."""

    image: Image.Image
    objects: list[SceneObject]


@dataclass(frozen=True)
class DemoSize:
    """How many images the demo data sets have."""

    copies: int = 4
    """Images per training digit in data sets of single digits; validation digits are used once."""
    scenes: tuple[int, int] = (600, 150)
    """Training and validation images of data sets of scenes."""

    def __post_init__(self) -> None:
        if self.copies < 1 or min(self.scenes) < 1:
            raise ConfigError(f"copies {self.copies}, scenes {self.scenes}: counts must be at least 1")


class SceneGenerator(ABC):
    """Random scenes of objects; a drawing appears in scenes of one split only.

    Args:
        seed: the scenes are a pure function of it.
        labels: class of each drawing.
        sources: indices of the drawings by split.

    Raises:
        ConfigError: a seed out of range.
        MissingPackage: scikit-learn is not installed.
    """

    classes: Sequence[str]
    """Class names."""
    kind: str
    """What an object is, such as `digit`."""
    about: str
    """Description of the data set."""

    def __init__(self, seed: int, labels: Sequence[int], sources: Mapping[str, Sequence[int]]) -> None:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed is {seed}: it must lie between 0 and 2**32 - 1")
        self.seed, self.labels, self.sources = seed, labels, sources
        photos = _sklearn_datasets().load_sample_images().images
        self.photos = [Image.fromarray(photo) for photo in photos]

    @abstractmethod
    def paint(
        self, source: int, box: Square, size: int, random: np.random.RandomState
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Opacity of a drawing on the canvas, (size, size), 0 ... 1, and its color, 0 ... 255.

        Args:
            source: index of the drawing.
            box: where it lies.
            size: height and width of the canvas, in pixels.
            random: the random stream.
        """

    def random(self, *key: int) -> np.random.RandomState:
        """A random stream that is a function of the seed and `key`."""
        return np.random.RandomState(hash64(self.seed, *key) & 0xFFFFFFFF)

    def scenes(self, split: str, count: int, stream: int) -> Iterator[Scene]:
        """Scenes of one to five objects of a split, 128×128 pixels; each `stream` gives others."""
        for index in range(count):
            random = self.random(stream, SPLITS.index(split), index)
            own = self.sources[split]
            sources = random.choice(own, min(random.randint(1, 6), len(own)), replace=False).tolist()
            yield self.compose(sources, _SCENE_SIZE, (28, 52), random)

    def compose(
        self, sources: Sequence[int], size: int, object_size: tuple[int, int], random: np.random.RandomState
    ) -> Scene:
        """Paste bright objects side by side on a dark crop of a photograph.

        Args:
            sources: indices of the drawings.
            size: height and width, in pixels.
            object_size: smallest and largest object, in pixels.
            random: the random stream.
        """
        canvas = self._background(size, random)
        boxes: list[Square] = []
        objects: list[SceneObject] = []
        for source in sources:
            box = _free_square(boxes, size, object_size, random)
            if box is None:
                continue
            boxes.append(box)
            alpha, color = self.paint(source, box, size, random)
            canvas += alpha[..., None] * (color - canvas)
            objects.append(SceneObject(self.labels[source], source, alpha > _OPAQUE))
        return Scene(Image.fromarray(np.round(canvas).astype(np.uint8)), _occluded(objects))

    def _background(self, size: int, random: np.random.RandomState) -> NDArray[np.float64]:
        photo = self.photos[random.randint(len(self.photos))]
        side = random.randint(size, min(photo.size) + 1)
        left, top = random.randint(photo.width - side + 1), random.randint(photo.height - side + 1)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return np.asarray(crop, dtype=np.float64) * (0.2 + 0.3 * random.rand())


class DigitScenes(SceneGenerator):
    """Scenes of scikit-learn's digits; a fifth of each class appears in validation scenes only.

    Args:
        seed: the scenes are a pure function of it.
        per_class: digits of each class that are used at all, at least 5; all, about 180, when not given.

    Raises:
        ConfigError: a seed or count out of range.
        MissingPackage: scikit-learn is not installed.
    """

    classes = tuple(map(str, range(10)))
    kind = "digit"
    about = "Handwritten digits on photographs (scikit-learn's samples)"

    def __init__(self, seed: int = 0, per_class: int | None = None) -> None:
        if per_class is not None and per_class < 5:
            raise ConfigError(f"per_class is {per_class}: a fifth is held out, so it must be at least 5")
        digits = _sklearn_datasets().load_digits()
        sources: dict[str, list[int]] = {"train": [], "val": []}
        super().__init__(seed, [int(label) for label in digits.target], sources)
        self.glyphs = np.pad(digits.images / 16.0, ((0, 0), (1, 1), (1, 1)))  # (N, 10, 10)
        random = np.random.RandomState(seed)
        for label in range(10):
            order = random.permutation(np.flatnonzero(digits.target == label)).tolist()[:per_class]
            held_out = len(order) // 5
            sources["val"] += order[:held_out]
            sources["train"] += order[held_out:]

    def paint(
        self, source: int, box: Square, size: int, random: np.random.RandomState
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        left, top, side = box
        edge = round(side * 10 / 8)  # the glyph has a margin of one of its own 8 pixels
        glyph = Image.fromarray((255 * self.glyphs[source]).astype(np.uint8))
        large = np.asarray(glyph.resize((edge, edge), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        margin = (edge - side) // 2
        alpha = np.zeros((size, size))
        inner = large[margin : margin + side, margin : margin + side]
        alpha[top : top + side, left : left + side] = np.clip((inner - 0.25) / 0.4, 0, 1)
        hue = colorsys.hsv_to_rgb(random.rand(), 0.45 * random.rand(), 0.9 + 0.1 * random.rand())
        return alpha, 255 * np.array(hue)


class DemoFolder:
    """Writer of one demo data set; a file that is there already with the same bytes is not touched.

    Args:
        root: the data set's folder.
        bar: progress bar over the images.
    """

    def __init__(self, root: Path, bar: "tqdm[Any] | None" = None) -> None:
        self.root, self.bar, self.images = root, bar, 0
        self.samples: list[Image.Image] = []
        """A few of the images, for an overview."""

    def add_image(self, name: str, image: Image.Image) -> None:
        """Write an image as JPEG or PNG, by the ending of its name, and count it."""
        self.add_file(name, encode(image, name))
        if self.images % _SAMPLE_STEP == 0 and len(self.samples) < _SAMPLES:
            self.samples.append(image)
        self.images += 1
        if self.bar is not None:
            self.bar.update()

    def add_file(self, name: str, data: bytes) -> None:
        """Write any other file."""
        path = self.root / name
        if path.is_file() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without fsync, unlike `storage`: thousands of files that writing again would mend.
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(data)
        draft.replace(path)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], side: int = _SCENE_SIZE, gap: int = 4
) -> Image.Image:
    """Images in rows, each of them `side` pixels high and wide."""
    step = side + gap
    sheet = Image.new("RGB", (step * max(map(len, rows)) + gap, step * len(rows) + gap), "white")
    for top, images in enumerate(rows):
        for left, image in enumerate(images):
            sheet.paste(image.resize((side, side)), (gap + step * left, gap + step * top))
    return sheet


WriteDemo = Callable[[DemoFolder, SceneGenerator, DemoSize], None]
"""Writes a task's demo data set."""


def encode(image: Image.Image, name: str) -> bytes:
    """An image's bytes as JPEG or PNG, by the ending of its name."""
    buffer = io.BytesIO()
    if name.endswith(".jpg"):
        image.save(buffer, "JPEG", quality=95)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _free_square(
    boxes: Sequence[Square], size: int, object_size: tuple[int, int], random: np.random.RandomState
) -> Square | None:
    """Draw a square that covers at most a tenth of any other, or of which any other covers that."""
    for _ in range(_ATTEMPTS):
        side = int(random.randint(object_size[0], object_size[1] + 1))
        left, top = (int(random.randint(size - side + 1)) for _ in range(2))
        if all(_overlap((left, top, side), box) <= 0.1 * min(side, box[2]) ** 2 for box in boxes):
            return left, top, side
    return None


def _overlap(a: Square, b: Square) -> int:
    width, height = (min(a[i] + a[2], b[i] + b[2]) - max(a[i], b[i]) for i in range(2))
    return max(width, 0) * max(height, 0)


def _occluded(objects: list[SceneObject]) -> list[SceneObject]:
    """Remove from each mask what later objects cover."""
    covered = np.zeros_like(objects[0].mask)
    visible: list[SceneObject] = []
    for one in reversed(objects):
        visible.append(replace(one, mask=one.mask & ~covered))
        covered |= one.mask
    return visible[::-1]


def _sklearn_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingPackage("scikit-learn", "demo", "demo data") from error
    return datasets
