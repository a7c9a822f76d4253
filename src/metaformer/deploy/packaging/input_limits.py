"""Which images a package takes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from metaformer.backbones.feature_info import FeatureInfo
from metaformer.backbones.metaformer import Trunk
from metaformer.errors import ConfigError, SizeError

Range = tuple[int, int]
"""Smallest and largest value, both allowed."""
Sizes = Range | Literal["dynamic"] | None
LARGEST_SIDE: Final = 4096
"""Pixels that `size="dynamic"` goes up to."""


@dataclass(frozen=True)
class InputLimits:
    """What images (B, channels, H, W) may be."""

    batch: Range
    """Images at once."""
    channels: int
    height: Range
    """In pixels."""
    width: Range
    dtype: str
    """PyTorch's name of the type, such as `float32`."""
    device: str
    """Kind of device, such as `cpu`."""

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ConfigError(
                    f"{name} is {least} … {most}: give the smallest, at least 1, then the largest"
                )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same type as PyTorch has it."""
        kind = getattr(torch, self.dtype, None)
        if not isinstance(kind, torch.dtype):
            raise ConfigError(f"dtype is {self.dtype!r}: no type of PyTorch")
        return kind

    def check(self, images: Tensor) -> None:
        """Refuse images that the compiled code would read wrongly: it looks at no shape itself.

        Raises:
            SizeError: too many or too few images, or another size or number of channels.
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

    def to_dict(self) -> dict[str, Any]:
        """Give the fields, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InputLimits":
        """Read what `to_dict` gave."""
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**given)


def limits_for(network: nn.Module, batch: Range, size: Sizes, sample: Tensor | None) -> InputLimits:
    """Limits that a network can have; `size` as `metaformer.package` takes it.

    Raises:
        ConfigError: sizes that vary and begin too small, or a range that is none.
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
                "the coarsest map has two positions a side"
            )
    first = next(network.parameters())
    dtype = str(first.dtype).removeprefix("torch.")
    return InputLimits(batch, trunk.config.in_chans, *sides, dtype, first.device.type)


def smallest_varying(network: nn.Module, trunk: Trunk) -> int:
    """The smallest side that leaves the coarsest map two positions; a graph takes one for a constant."""
    strides = getattr(network, "strides", None) or FeatureInfo.of(trunk.config).reduction()
    return trunk.min_size + int(max(strides))


def _span(limits: Range) -> str:
    least, most = limits
    return str(least) if least == most else f"{least}…{most}"
