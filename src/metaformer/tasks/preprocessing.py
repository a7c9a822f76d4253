"""How pictures become the tensors that a model expects."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """Resize so that the centre crop keeps its share, crop, normalise."""

    image_size: int = 224
    """Height and width of the network's input, in pixels."""
    crop: float = 0.9
    """Share of the resized picture that the crop keeps."""
    interpolation: str = "bicubic"
    """Resampling: bicubic or bilinear."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Per-channel mean that is subtracted (RGB in 0 … 1)."""
    std: Triple = (0.229, 0.224, 0.225)
    """Per-channel standard deviation that is divided by."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as saved in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Read what `to_dict` gave."""
        mean, std = (_triple(values[name]) for name in ("mean", "std"))
        return cls(int(values["image_size"]), float(values["crop"]), str(values["interpolation"]), mean, std)

    @classmethod
    def published(cls, card: Mapping[str, Any]) -> "Preprocessing":
        """Read timm's form, as models carry it in `pretrained_cfg`; what it lacks stays at the default."""
        own = cls()
        return cls(
            int(tuple(card.get("input_size") or (3, own.image_size))[-1]),
            float(card.get("crop_pct") or own.crop),
            str(card.get("interpolation") or own.interpolation),
            _triple(card.get("mean") or own.mean),
            _triple(card.get("std") or own.std),
        )


def _triple(values: Any) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
