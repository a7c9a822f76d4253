"""Limits of a package's input images."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import torch
from torch import Tensor, nn

from metaformer.backbones.metaformer import FeatureInfo, Trunk
from metaformer.errors import ConfigError, SizeError
from metaformer.serialize import POSITIVE_INT, Serializable

Range = tuple[int, int]
"""Smallest and largest value, both allowed."""
Sizes = Range | Literal["dynamic"] | None
LARGEST_SIDE: Final = 4096
"""Pixels that `size="dynamic"` goes up to."""


@dataclass(frozen=True)
class InputLimits(Serializable):
    """Images (B, channels, H, W) that a package takes."""

    batch: Range
    """Batch sizes."""
    channels: Annotated[int, POSITIVE_INT]
    height: Range
    """In pixels."""
    width: Range
    dtype: str
    """PyTorch's name of a type, such as `float32`."""
    device: str
    """Kind of device, such as `cpu`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.torch_dtype  # noqa: B018 - raises for any other text
        for name in ("batch", "height", "width"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ConfigError(
                    f"{name} is {least} … {most}: give the smallest, at least 1, then the largest"
                )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as a PyTorch type."""
        kind = getattr(torch, self.dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ConfigError(f"dtype is {self.dtype!r}: not a type of PyTorch")
        return kind

    def check(self, images: Tensor) -> None:
        """Refuse images that the compiled code would misread: it checks no shapes itself.

        Raises:
            SizeError: a batch size, height, width or number of channels outside the limits.
            ConfigError: another type, or on another kind of device.
        """
        if images.ndim != 4 or images.shape[1] != self.channels:
            shape = tuple(images.shape)
            raise SizeError(
                f"expected images (B, {self.channels}, H, W), got {shape}; the package takes {self}"
            )
        for name, axis in (("batch", 0), ("height", 2), ("width", 3)):
            least, most = getattr(self, name)
            if not least <= images.shape[axis] <= most:
                raise SizeError(f"{name} of {images.shape[axis]}: the package takes {self}")
        if images.dtype != self.torch_dtype or images.device.type != self.device:
            raise ConfigError(f"images of {images.dtype} on {images.device}: the package takes {self}")

    def __str__(self) -> str:
        size = f"{_span(self.height)}×{_span(self.width)} pixels"
        return f"{_span(self.batch)} images of {size}, {self.dtype} on {self.device}"


def limits_for(network: nn.Module, batch: Range, size: Sizes, sample: Tensor | None) -> InputLimits:
    """Limits of a network; `size` as `metaformer.package` takes it.

    Raises:
        ConfigError: an invalid range, or varying sizes that begin below what the network takes.
    """
    trunk = next(module for module in network.modules() if isinstance(module, Trunk))
    sides: tuple[Range, Range]
    if size is None:
        height, width = trunk.config.image_size if sample is None else sample.shape[2:]
        sides = (height, height), (width, width)
    else:
        least = smallest_varying(network, trunk)
        sides = ((least, LARGEST_SIDE),) * 2 if size == "dynamic" else (size, size)
        if sides[0][0] < least and sides[0][0] != sides[0][1]:
            raise ConfigError(
                f"size {sides[0][0]} … {sides[0][1]}: sizes that vary must begin at {least} pixels, where "
                "the coarsest features are 2×2"
            )
    first = next(network.parameters())
    dtype = str(first.dtype).removeprefix("torch.")
    return InputLimits(batch, trunk.config.in_chans, *sides, dtype, first.device.type)


def smallest_varying(network: nn.Module, trunk: Trunk) -> int:
    """The smallest side whose coarsest features are 2×2: export takes a dimension of 1 for a constant."""
    strides = getattr(network, "strides", None) or FeatureInfo.of(trunk.config).reduction()
    return trunk.min_size + int(max(strides))


def _span(limits: Range) -> str:
    least, most = limits
    return str(least) if least == most else f"{least}…{most}"
