"""What segmentation and detection share: backbone, classes and colors of a network, examples of a report."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.config import ModelConfig, TrainConfig
from metaformer.data.class_lists import Palette, class_list, palette, palette_for, read_names, read_palette
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.distributed import all_gather_list
from metaformer.errors import ConfigError, DataError
from metaformer.factory import create_network, model_config
from metaformer.models.base import DenseNetwork
from metaformer.models.build import build_network
from metaformer.serialize import Text, decode
from metaformer.tasks.base import LoadedModel, TaskSpec, check_num_classes, model_fields

UNUSED: Mapping[str, Any] = {
    "data.balanced_sampling": False,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.erase": 0.0,
    "augment.vflip": 0.0,
    "augment.aug_splits": 1,
    "evaluate.crops": 1,
    "evaluate.real_labels": None,
    "evaluate.class_subset": None,
    "model.head_dropout": 0.0,
}
"""Fields of shared sections that dense tasks do not use, with the value that switches each off."""
EXAMPLES = 6
"""Images in a report: this many of the worst, and of the best."""

THUMBNAIL = 256
"""Longest side of a report's label maps and masks, in pixels."""
LARGEST_SIDE = 640
"""Longer side, in pixels, that images are reduced to in runs whose sizes fit the data."""
SAMPLED = 64
"""Images whose sizes are read for that."""
SIDE_UNIT = 32
"""Sides are multiples of the stride of the coarsest feature level."""
X = TypeVar("X")


class Split(Protocol):
    """A split of a data set."""

    @property
    def folder(self) -> Path: ...

    @property
    def classes(self) -> Sequence[str]: ...


def backbone_config(network: ModelConfig, **defaults: Any) -> MetaFormerConfig:
    """Configuration of the backbone of a run's network; overrides take precedence over `defaults`.

    Raises:
        ConfigError: an unknown model or field, or a value that does not fit.
    """
    return model_config(network.name, **model_fields(network, **defaults))


def check_split_classes(config: TrainConfig, train: Split, val: Split) -> None:
    """Compare the classes of a run's splits with each other and with `model.num_classes`.

    Raises:
        DataError: the splits have different classes.
        ConfigError: `model.num_classes` is another number.
    """
    classes = len(train.classes)
    if train.classes != val.classes:
        raise DataError(f"{val.folder}: {len(val.classes)} classes, but {train.folder} has {classes} others")
    check_num_classes(config, classes, train.folder)


def typical_size(size: Callable[[int], tuple[int, int]], count: int) -> tuple[int, int]:
    """Longer and shorter side to resize images to: of the median image, in multiples of 32, at most 640.

    Args:
        size: width and height of an image.
        count: number of images, at least one.
    """
    indices = np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int))
    sides = np.median(np.sort([size(int(index)) for index in indices], axis=1), axis=0)
    shorter, longer = sides * min(1.0, LARGEST_SIDE / sides[1])
    return _next_unit(longer), _next_unit(shorter)


def _next_unit(side: float) -> int:
    return max(1, math.ceil(side / SIDE_UNIT)) * SIDE_UNIT


def fitting_batch(config: TrainConfig, images: int) -> int | str:
    """The run's batch, or the largest that this many training images fill on its devices."""
    asked = config.data.batch_size
    if isinstance(asked, str) or images >= asked:
        return asked
    unit = config.optim.accumulate * int(os.environ.get("WORLD_SIZE", "1"))
    return max(unit, images // unit * unit)


def load(
    spec: TaskSpec, card: Mapping[str, Any], config: type[Any], preprocess: type[DensePreprocess]
) -> LoadedModel:
    """A network from a checkpoint's card, its weights random; the metadata are the classes' colors.

    Args:
        spec: its task.
        card: the card.
        config: class of the network's configuration.
        preprocess: class of its preprocessing.
    """
    model = build_network(config.from_dict(card["model"]))
    classes = read_names(card["classes"], model.num_classes)
    return LoadedModel(
        spec,
        decode(Text, card["name"], "name"),
        model,
        preprocess.from_dict(card["preprocess"]),
        classes,
        read_palette(card["palette"], len(classes)),
    )


def create(
    is_known: Callable[[str], bool],
    name: str,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    data: tuple[str | Path, str] | None = None,
    ema: bool | None = None,
) -> nn.Module | None:
    """A network by name; None where `is_known` says that the task has none of this name."""
    if not is_known(name):
        return None
    return create_network(
        name, num_classes, pretrained=checkpoint is None, checkpoint_path=checkpoint, ema=ema
    )


def describe(spec: TaskSpec, model: nn.Module, name: str, preprocess: type[DensePreprocess]) -> LoadedModel:
    """A network with what its `pretrained_cfg` says of it; the metadata are the classes' colors.

    Args:
        spec: its task.
        model: the network.
        name: its name.
        preprocess: class of its preprocessing.
    """
    assert isinstance(model, DenseNetwork)
    classes, colors = _published_classes(model)
    own = preprocess.from_dict(model.pretrained_cfg.get("preprocess", {}))
    return LoadedModel(spec, name, model, own, classes, colors)


def _published_classes(model: DenseNetwork) -> tuple[tuple[str, ...] | None, Palette]:
    """Class names, where `pretrained_cfg` or the published data set has them, and a color for each class."""
    cfg, count = model.pretrained_cfg, model.num_classes
    classes = read_names(cfg["label_names"], count) if cfg.get("label_names") else None
    if classes is None and "data" in cfg:  # published: the data set's, unless trained for others
        names = class_list(str(cfg["data"])).names
        classes = names if len(names) == count else None
    if "palette" in cfg:
        return classes, read_palette(cfg["palette"], count)
    return classes, palette_for(classes) if classes else palette(count)


@dataclass(frozen=True, kw_only=True)
class MultiScaleFlip:
    """Test-time augmentation; the default is none."""

    scales: tuple[float, ...] = (1.0,)
    """Factors of the input's size."""
    flip: bool = False
    """Each scale also mirrored left to right."""

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ConfigError(f"scales is {self.scales}: it must be one or more numbers above 0")

    @property
    def flips(self) -> tuple[bool, ...]:
        """Which views there are of each scale: mirrored or not."""
        return (False, True) if self.flip else (False,)

    def changed(self, scales: Sequence[float] | None, flip: bool) -> Self:
        """The same at other scales, where some are given, and mirrored, where that is asked for."""
        return replace(self, flip=self.flip or flip, scales=self.scales if scales is None else tuple(scales))

    def inputs(
        self,
        image: Image.Image | Tensor,
        preprocess: DensePreprocess | None,
        of_image: Callable[[Image.Image, DensePreprocess], X],
        of_tensor: Callable[[Tensor], X],
    ) -> Iterator[X]:
        """The network's input at each scale, made of an RGB image or of a preprocessed tensor (3, h, w).

        Raises:
            ConfigError: several scales of a tensor, or an image without preprocessing.
        """
        if isinstance(image, Tensor):
            if self.scales != (1.0,):
                raise ConfigError(f"scales is {self.scales}: a tensor has one size: give the image")
            yield of_tensor(image)
            return
        if preprocess is None:
            raise ConfigError("preprocess: an image needs preprocessing, only a tensor needs none")
        for scale in self.scales:
            yield of_image(image, preprocess.scaled(scale))


def shrink(pixels: NDArray[Any]) -> NDArray[Any]:
    """Label map or mask (H, W), reduced by nearest neighbor to sides of at most 256 pixels."""
    share = max(1.0, max(pixels.shape) / THUMBNAIL)
    fewer = [max(1, round(side / share)) for side in pixels.shape]
    rows, columns = (  # the pixels under the centers of the new ones
        (np.arange(new) * 2 + 1) * old // (2 * new) for old, new in zip(pixels.shape, fewer, strict=True)
    )
    reduced: NDArray[Any] = pixels[rows[:, None], columns]
    return reduced


class Example(Protocol):
    """An evaluated image in a report."""

    @property
    def index(self) -> int: ...


E = TypeVar("E", bound=Example)
_RANK = itemgetter(0)


class WorstAndBest(Generic[E]):
    """The images with the lowest and with the highest scores, equal ones by their paths."""

    def __init__(self) -> None:
        self._worst: list[tuple[tuple[float, str], E]] = []
        self._best: list[tuple[tuple[float, str], E]] = []

    def update(self, score: float, path: str, build: Callable[[], E]) -> None:
        """Add an image of this rank; its example is built if it is among the worst or best so far."""
        rank = (score, path)
        if len(self._worst) < EXAMPLES or rank < self._worst[-1][0] or rank > self._best[0][0]:
            entry = (rank, build())
            self._worst = sorted([*self._worst, entry], key=_RANK)[:EXAMPLES]
            self._best = sorted([*self._best, entry], key=_RANK)[-EXAMPLES:]

    def result(self) -> tuple[E, ...]:
        """The worst images of all ranks, then the best, each once."""
        worst = sorted(all_gather_list(self._worst), key=_RANK)[:EXAMPLES]
        best = sorted(all_gather_list(self._best), key=_RANK, reverse=True)[:EXAMPLES]
        shown = {example.index for _, example in worst}
        return (*(example for _, example in worst), *(one for _, one in best if one.index not in shown))
