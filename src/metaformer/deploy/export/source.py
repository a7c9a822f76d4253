"""A network that is to be exported, with what its file says of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from metaformer.backbones.metaformer import MetaFormerFeatures, Trunk
from metaformer.data.preprocess import Preprocess
from metaformer.deploy.export.features import FeaturesExport
from metaformer.errors import ConfigError
from metaformer.inference.model import describe_network
from metaformer.serialize import POSITIVE_INT
from metaformer.tasks.base import LoadedModel, numbered_classes
from metaformer.tasks.exported import ExportedNetwork, ExportOptions, TaskExport

SIDE: Final = 224
"""Height and width to trace and compare with where images may have any."""


@dataclass(frozen=True)
class ExportSource:
    """A network with what its file says of it."""

    network: nn.Module
    forward: Callable[..., Any]
    """Its results for normalized images (B, 3, H, W), and their sizes where the task takes them."""
    task: TaskExport
    task_name: str | None
    name: str
    preprocess: Any
    num_classes: int = 0
    classes: tuple[str, ...] | None = None
    metadata: Any = None
    root: str | Path | None = None
    """Folder of the run's data."""

    def limited(self, options: ExportOptions) -> "ExportSource":
        """The same with results as far as a file with these options gives them."""
        task, forward = self.task, self.forward
        return replace(self, forward=lambda *inputs: task.limited(forward(*inputs), options))

    @classmethod
    def of_network(cls, network: nn.Module) -> "ExportSource":
        """A network as `create_model` and its like give it, or a backbone, whose file gives features.

        Raises:
            ConfigError: another module.
        """
        if not isinstance(network, MetaFormerFeatures):
            return cls.of_model(describe_network(network))
        backbone = copy.deepcopy(network).cpu().eval()
        cfg: dict[str, Any] = backbone.pretrained_cfg
        name = str(cfg.get("architecture") or type(backbone).__name__)
        return cls(backbone, backbone, FeaturesExport(), None, name, Preprocess.from_pretrained_cfg(cfg))

    @classmethod
    def of_model(cls, model: LoadedModel) -> "ExportSource":
        """A network with a task.

        Raises:
            ConfigError: it is an exported file.
        """
        if isinstance(model.model, ExportedNetwork):
            raise ConfigError(f"{model.name}: is an exported file: export the run that it was made from")
        model, spec = model.to(torch.device("cpu"), "none"), model.spec
        root = None if model.config is None else model.config.data.root
        classes = model.classes
        if classes is None and model.class_names != numbered_classes(model.num_classes):
            classes = model.class_names  # such as ImageNet's 1000
        own = (model.preprocess, model.num_classes, classes, model.metadata, root)
        return cls(model.model, model.forward, spec.export, spec.name, model.name, *own)

    @property
    def side(self) -> int:
        """Usual height and width of the input."""
        return min(self.preprocess.image_size, SIDE) if isinstance(self.preprocess, Preprocess) else SIDE


def sized(
    source: ExportSource, image_size: int | tuple[int, int] | None
) -> tuple[ExportSource, tuple[int, int] | None]:
    """The network for an input of this size, and the size that the file is fixed to, if it is.

    Raises:
        ConfigError: a size out of range, or of which the network's parts are not.
    """
    config = trunk_of(source.network).config
    fixed = config.image_size if config.fixed_size else None
    if image_size is None:
        return source, fixed
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(side in POSITIVE_INT for side in size):
        raise ConfigError(f"image_size is {image_size}: give a height and a width, at least 1")
    if fixed not in (None, size):
        raise ConfigError(f"image_size is {size}: {source.name} takes {fixed} alone")
    if isinstance(source.preprocess, Preprocess):
        if size[0] != size[1]:
            raise ConfigError(f"image_size is {size}: {source.name} takes square images")
        source = replace(source, preprocess=replace(source.preprocess, image_size=size[0]))
    return source, size


def trunk_of(network: nn.Module) -> Trunk:
    """The backbone of a network.

    Raises:
        ConfigError: it has none of this library.
    """
    trunk = next((module for module in network.modules() if isinstance(module, Trunk)), None)
    if trunk is None:
        raise ConfigError(f"{type(network).__name__}: has no backbone of this library to export")
    return trunk
