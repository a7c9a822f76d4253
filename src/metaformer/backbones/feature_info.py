"""What a pyramid's consumer needs to know about each level."""

from collections.abc import Sequence
from typing import Any

from metaformer.backbones.config import MetaFormerConfig


class FeatureInfo(list[dict[str, Any]]):
    """One entry per level: `num_chs`, `reduction` (input pixels per position) and `module`, as in timm."""

    @classmethod
    def of(cls, config: MetaFormerConfig) -> "FeatureInfo":
        """Describe all stages of a network."""
        info, reduction = cls(), 1
        for stage, dim in enumerate(config.dims):
            if config.downsampled(stage):
                reduction *= config.down_stride if stage else config.stem_stride
            info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{stage}"})
        return info

    def pick(self, indices: Sequence[int]) -> "FeatureInfo":
        """Keep some of the levels."""
        return FeatureInfo(self[i] for i in indices)

    def channels(self) -> list[int]:
        """Channels of each level."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Input pixels per position, of each level."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """The module that yields each level."""
        return [level["module"] for level in self]
