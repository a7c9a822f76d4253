"""What all detectors have in common, and which there are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError, TrainingError
from metaformer.models.base import DenseNetwork
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.fpn import DetectionPyramid
from metaformer.models.detection.structures import Detections, Size, Targets


class Detector(DenseNetwork, ABC):
    """Tell which objects are in an image, and where; everything about it is in `config`.

    Args:
        config: kind, backbone and sizes.
        backbone: a module that gives a list of maps, finest first, and whose `feature_info.channels()` tells
            their channels, in place of `config.backbone`.

    Raises:
        ConfigError: no backbone, or a module that does not say what it gives.
    """

    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config.backbone, backbone)
        self.config = config
        self.num_classes = config.num_classes
        channels, reductions = self.levels()
        single = config.kind == "retinanet"
        if len(channels) < 1 + single:
            raise ConfigError(f"backbone: {len(channels)} maps are too few for {config.kind}")
        self.first_map = int(single)
        """RetinaNet leaves out the finest map, https://arxiv.org/abs/1708.02002, section 4."""
        norms: Any = getattr(self.backbone, "norms", {})
        if single and "0" in norms:  # published weights hold it; no gradient must be waited for
            norms["0"].requires_grad_(False)
        self.neck = DetectionPyramid(channels[self.first_map :], config.fpn_dim, convs=single)
        own = reductions[self.first_map :]
        self.strides = own + [own[-1] << (i + 1) for i in range(self.neck.added)]

    @property
    def has_masks(self) -> bool:
        """Whether results come with masks."""
        return self.config.has_masks

    def forward(
        self,
        x: Tensor,
        targets: Sequence[Targets] | None = None,
        image_sizes: Sequence[Size] | None = None,
    ) -> Any:
        """Map images (B, 3, H, W) to a list of `Detections`; with targets to losses."""
        if targets is not None:
            return self.losses(x, targets, image_sizes)
        return self.detect(x, image_sizes)

    def detect(
        self,
        x: Tensor,
        image_sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
    ) -> list[Detections]:
        """Map images (B, 3, H, W) to what is found in each; see `decode`.

        Raises:
            TrainingError: the network's answer is not finite.
        """
        raw = self.raw(x)
        for part in ("logits", "objectness", "deltas"):
            check_finite(*getattr(raw, part, ()))
        return self.decode(raw, _sizes(x, image_sizes), original_sizes)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to the pyramid's levels (B, fpn_dim, H_i, W_i)."""
        return self.neck(self.backbone(x)[self.first_map :])

    @abstractmethod
    def raw(self, x: Tensor) -> Any:
        """Map images (B, 3, H, W) to tensors alone, whose sizes depend on the images' sizes alone."""

    @abstractmethod
    def decode(
        self, raw: Any, image_sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Turn what `raw` gave into results, one per image.

        Args:
            raw: what `raw` gave.
            image_sizes: height and width of each image inside the padded batch.
            original_sizes: height and width of the images in whose pixels boxes are told; those of the
                images when not given.
        """

    def losses(
        self, x: Tensor, targets: Sequence[Targets], image_sizes: Sequence[Size] | None = None
    ) -> dict[str, Tensor]:
        """Losses of images (B, 3, H, W); `loss`, the sum of the others, is what is minimized.

        Boxes of many objects that nobody told apart teach nothing.

        Args:
            x: the images.
            targets: the objects in each.
            image_sizes: height and width of each image inside the padded batch; the whole when not given.

        Raises:
            ConfigError: images and targets do not fit each other, or there are none.
        """
        if not len(x) or len(targets) != len(x):
            raise ConfigError(f"targets: of {len(targets)} images for a batch of {len(x)}")
        for one in targets:
            if one.labels.is_cpu and (one.labels >= self.num_classes).any():
                raise ConfigError(f"targets: a label is not below {self.num_classes}, the number of classes")
        parts = self.parts(x, [one.without_crowd() for one in targets], _sizes(x, image_sizes))
        return {
            "loss": torch.stack(list(parts.values())).sum(),
            **{name: part.detach() for name, part in parts.items()},
        }

    @abstractmethod
    def parts(self, x: Tensor, targets: Sequence[Targets], image_sizes: Sequence[Size]) -> dict[str, Tensor]:
        """The losses that are summed, by name; what `losses` calls with checked arguments, without crowds."""


def check_finite(*parts: Tensor) -> None:
    """Refuse an answer that is no number: no score of it is above any threshold, as if nothing were there.

    Raises:
        TrainingError: one of these is not finite.
    """
    # one pass over each, and one wait for the device; finite only if all of it is
    if parts and not torch.stack([part.sum(dtype=torch.float32) for part in parts]).isfinite().all():
        raise TrainingError("the network's answer is not finite: its weights may be damaged")


def _sizes(x: Tensor, image_sizes: Sequence[Size] | None) -> Sequence[Size]:
    """The images' sizes, checked, or the batch's for each."""
    height, width = x.shape[2], x.shape[3]
    if image_sizes is None:
        return [(height, width)] * len(x)
    if len(image_sizes) != len(x):
        raise ConfigError(f"image_sizes: {len(image_sizes)} sizes for a batch of {len(x)}")
    for size in image_sizes:
        if not (1 <= size[0] <= height and 1 <= size[1] <= width):
            raise ConfigError(f"image_sizes: {tuple(size)} does not lie inside the batch's {height}×{width}")
    return image_sizes
