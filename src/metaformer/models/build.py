"""Networks by configuration: one table of the kinds that stand on a backbone."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from metaformer.backbones.block import Block
from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, Trunk
from metaformer.errors import ConfigError
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.segmentation.config import HEAD_DIMS, SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.process import memory

_LEAST = 32
"""Bytes that the name, type and shape of a tensor take in a file, at least."""
NetworkConfig = MetaFormerConfig | SegmenterConfig | DetectorConfig


@dataclass(frozen=True)
class NetworkKind:
    """Networks of one task on any backbone."""

    task: str
    """The task in their cards."""
    title: str
    """What errors call them."""
    pipeline: str
    """What the Hugging Face Hub calls the task."""
    heads: tuple[str, ...]
    """First parts of their names, which the backbone's name follows."""
    config: type[Any]
    build: Callable[[Any, nn.Module | None], Any]


def _build_detector(config: DetectorConfig, backbone: nn.Module | None) -> nn.Module:
    from metaformer.models.detection.rcnn import RCNN  # imports torchvision
    from metaformer.models.detection.retinanet import RetinaNet

    return (RetinaNet if config.kind == "retinanet" else RCNN)(config, backbone)


SEGMENTER = NetworkKind(
    "segment",
    "segmenter",
    "image-segmentation",
    tuple(HEAD_DIMS),
    SegmenterConfig,
    lambda config, backbone: Segmenter(config, backbone=backbone),
)
DETECTOR = NetworkKind("detect", "detector", "object-detection", KINDS, DetectorConfig, _build_detector)
DENSE_KINDS = (SEGMENTER, DETECTOR)


def kind_of(config: NetworkConfig) -> NetworkKind | None:
    """The kind of network that a configuration describes; None for a classifier or backbone."""
    return next((kind for kind in DENSE_KINDS if isinstance(config, kind.config)), None)


def build_network(config: NetworkConfig, backbone: nn.Module | None = None) -> Any:
    """The network that a configuration describes, its weights still random.

    Args:
        config: of a classifier or of a network on a backbone.
        backbone: a module in place of the configuration's backbone.

    Raises:
        ConfigError: a network that cannot be, or for which there is not enough memory.
    """
    if torch.get_default_device().type != "meta":
        check_memory(lambda: build_network(config, backbone))
    kind = kind_of(config)
    if kind is not None:
        return kind.build(config, backbone)
    assert isinstance(config, MetaFormerConfig)
    return MetaFormer(config)


def check_memory(build: Callable[[], nn.Module], stored: int | None = None) -> None:
    """Refuse a network that is too large, before anything is allocated.

    Args:
        build: builds it; it is called on the meta device, where tensors have shapes alone.
        stored: bytes of the file that its weights will be read from.

    Raises:
        ConfigError: it needs more memory than there is, or has more parameters than the file has bytes.
    """
    network = on_meta(build)
    if network is None:
        return
    tensors = [*network.parameters(), *network.buffers()]
    count = sum(tensor.numel() for tensor in tensors)
    needed, there = sum(tensor.numel() * tensor.element_size() for tensor in tensors), memory()
    saved = network.state_dict().values()
    if stored is not None and sum(value.numel() + _LEAST for value in saved) > stored:
        raise ConfigError(
            f"describes a network of {count:,} numbers in {len(saved):,} tensors, but the file of its "
            f"weights has {stored:,} bytes: one is of another model"
        )
    if needed > there:
        raise ConfigError(
            f"a network of {count:,} numbers needs {_gigabytes(needed)} of memory, and there are "
            f"{_gigabytes(there)}: choose smaller depths, dims, image_size or heads"
        )


def check_pass(network: nn.Module, size: tuple[int, int]) -> None:
    """Refuse an input size whose features do not fit into memory, before anything is allocated.

    Args:
        network: of this library; others are not checked.
        size: height and width of the input.

    Raises:
        ConfigError: one image needs more memory than there is.
    """
    config = getattr(network, "config", None)
    config = getattr(config, "backbone", config)
    if not isinstance(config, MetaFormerConfig):
        return
    trunk = next((module for module in network.modules() if isinstance(module, Trunk)), None)
    numbers = 0.0
    for stage, (dim, ratio) in enumerate(zip(config.dims, config.mlp_ratios, strict=True)):
        height, width = replace(config, image_size=size).grid(stage)
        own = () if trunk is None else trunk.stages[stage : stage + 1]  # a backbone of features may end early
        hidden = max([dim * ratio, *(_mixer_width(part, dim) for part in own)])
        numbers = max(numbers, height * width * (2 * dim + hidden))
    needed, there = 4 * (numbers + config.in_chans * size[0] * size[1]), memory()
    if needed > there:
        raise ConfigError(
            f"image_size: {size[0]:,}×{size[1]:,} pixels need {_gigabytes(needed)} of memory for one image, "
            f"and there are {_gigabytes(there)}: choose a smaller one"
        )


def _mixer_width(stage: nn.Module, dim: int) -> int:
    """Channels that the token mixers of a stage expand to, at most: outputs of layers over its channels."""
    mixers = (block.token_mixer for block in stage.modules() if isinstance(block, Block))
    layers = (layer for mixer in mixers for layer in mixer.modules())
    weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    return max((weight.shape[0] for weight in weights if weight.shape[1] == dim), default=0)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module | None:
    """A network on the meta device; None where a mixer of its own needs numbers when it is built.

    Raises:
        ConfigError: sizes that no tensor can have.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build()
    except NotImplementedError:
        return None
    except (RuntimeError, TypeError, OverflowError) as error:
        if not re.search("overflow|too large|unpack|negative dim", str(error), re.IGNORECASE):
            raise
        raise ConfigError(
            "a network of these sizes cannot be: choose smaller depths, dims, image_size or heads "
            f"({str(error).partition(' with error')[0]:.200})"
        ) from error


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GB"
