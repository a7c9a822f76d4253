"""What segmentation and detection share: classes and colors of a network, classes of a run's splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from metaformer.config import TrainConfig
from metaformer.data.class_lists import Palette, class_list, palette, palette_for, read_names, read_palette
from metaformer.errors import ConfigError, DataError
from metaformer.models.base import DenseNetwork


class Split(Protocol):
    """A split of a data set."""

    @property
    def folder(self) -> Path: ...

    @property
    def classes(self) -> Sequence[str]: ...


def published_classes(model: DenseNetwork) -> tuple[tuple[str, ...] | None, Palette]:
    """Class names, where `pretrained_cfg` or the published data set has them, and a color for each class."""
    cfg, count = model.pretrained_cfg, model.num_classes
    classes = read_names(cfg["label_names"], count) if cfg.get("label_names") else None
    if classes is None and "data" in cfg:  # published: the data set's, unless trained for others
        names = class_list(str(cfg["data"])).names
        classes = names if len(names) == count else None
    if "palette" in cfg:
        return classes, read_palette(cfg["palette"], count)
    return classes, palette_for(classes) if classes else palette(count)


def check_split_classes(config: TrainConfig, train: Split, val: Split) -> None:
    """Compare the classes of a run's splits with each other and with `model.num_classes`.

    Raises:
        DataError: the splits have different classes.
        ConfigError: `model.num_classes` is another number.
    """
    classes = len(train.classes)
    if train.classes != val.classes:
        raise DataError(f"{val.folder}: {len(val.classes)} classes, but {train.folder} has {classes} others")
    if config.model.num_classes not in (None, classes):
        raise ConfigError(
            f"model.num_classes is {config.model.num_classes}, {train.folder} holds {classes} classes: "
            "leave the field out"
        )
