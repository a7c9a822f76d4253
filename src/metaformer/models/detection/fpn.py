"""Feature pyramids of detectors: those of https://arxiv.org/abs/1612.03144 with coarser levels added."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.models.segmentation.fpn import FeaturePyramid


class ExtraConvs(nn.Module):
    """Two coarser levels by convolutions, as RetinaNet has them.

    torchvision's class always has a ReLU, and looks at the pyramid's last level or the backbone's by whether
    their channels are equal.

    Args:
        in_dim: channels of the map that the first convolution looks at.
        dim: channels of the pyramid.
        relu: set negative values to zero between the two, as torchvision does.
    """

    def __init__(self, in_dim: int, dim: int, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.p6 = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(dim, dim, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            assert conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, in_dim, H, W) to two maps of half and a quarter of the size."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


class DetectionPyramid(FeaturePyramid):
    """A pyramid with levels added on top.

    Args:
        in_dims: channels of the backbone's maps, finest first.
        dim: channels of all levels.
        convs: add two levels by convolutions; otherwise one, every other position of the last.
        on_output: the convolutions look at the pyramid's last level and not at the backbone's.
        relu: see `ExtraConvs`.
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        dim: int,
        *,
        convs: bool = False,
        on_output: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__(in_dims, dim)
        self.on_output = on_output
        self.extra = ExtraConvs(dim if on_output else in_dims[-1], dim, relu) if convs else None

    @property
    def added(self) -> int:
        """Levels more than the backbone's."""
        return 2 if self.extra else 1

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, C_i, H_i, W_i), finest first, to (B, dim, H_i, W_i) and coarser ones."""
        levels = super().forward(maps)
        if self.extra is None:
            return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]
        return levels + self.extra(levels[-1] if self.on_output else maps[-1])
