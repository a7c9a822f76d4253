"""Base class of detectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError, TrainingError
from metaformer.layers.init import init_part
from metaformer.models.base import DenseNetwork
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.structures import Detections, Size, Targets
from metaformer.models.fpn import DetectionPyramid


class Candidates(NamedTuple):
    """Where one class may be in one image, before non-maximum suppression."""

    boxes: Tensor
    """(N, 4), float32, in pixels of the input; without a gradient."""
    logits: Tensor
    """(N,), with a gradient."""
    scores: Tensor
    """Probabilities (N,)."""


class Detector(DenseNetwork, ABC):
    """Object detection or instance segmentation network.

    Args:
        config: kind, backbone and sizes.
        backbone: a module that returns a list of features, finest first, with `feature_info.channels()`; used
            in place of `config.backbone`.

    Raises:
        ConfigError: no backbone, a module without `feature_info`, or too few features.
    """

    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config.backbone, backbone)
        self.config = config
        self.num_classes = config.num_classes
        channels, reductions = self.levels()
        one_stage = config.kind == "retinanet"
        if len(channels) < 1 + one_stage:
            raise ConfigError(f"backbone: {len(channels)} levels are too few for {config.kind}")
        self.first_level = int(one_stage)
        """RetinaNet does without the finest features, https://arxiv.org/abs/1708.02002, section 4."""
        norms: Any = getattr(self.backbone, "norms", {})
        if one_stage and "0" in norms:  # published weights have it; DDP must not wait for its gradient
            norms["0"].requires_grad_(False)
        levels = channels[self.first_level :]
        self.neck = init_part("neck", DetectionPyramid, levels, config.fpn_dim, convs=one_stage)
        strides = reductions[self.first_level :]
        self.strides = strides + [strides[-1] << (i + 1) for i in range(self.neck.extra_levels)]

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return self.config.has_masks

    def forward(
        self,
        x: Tensor,
        targets: Sequence[Targets] | None = None,
        image_sizes: Sequence[Size] | None = None,
    ) -> Any:
        """Map images (B, 3, H, W) to a list of `Detections`; with targets, to losses."""
        if targets is not None:
            return self.compute_losses(x, targets, image_sizes)
        return self.predict(x, image_sizes)

    def features(self, x: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to the levels of the pyramid (B, fpn_dim, H_i, W_i)."""
        return self.neck(self.backbone(x)[self.first_level :])

    def predict(
        self,
        x: Tensor,
        image_sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
    ) -> list[Detections]:
        """Map images (B, 3, H, W) to detections, one value per image; see `decode`.

        Raises:
            TrainingError: the outputs are not finite.
        """
        outputs = self.forward_head(x)
        for name in ("logits", "objectness", "deltas"):
            check_finite(*getattr(outputs, name, ()))
        return self.decode(outputs, _check_sizes(x, image_sizes), original_sizes)

    def compute_losses(
        self, x: Tensor, targets: Sequence[Targets], image_sizes: Sequence[Size] | None = None
    ) -> dict[str, Tensor]:
        """Losses of images (B, 3, H, W) by name; `loss` is their sum, to be minimized. Crowds are left out.

        Args:
            x: the images.
            targets: the objects of each image.
            image_sizes: height and width of each image inside the padded batch; the whole by default.

        Raises:
            ConfigError: images and targets do not fit each other, or there are none.
        """
        if not len(x) or len(targets) != len(x):
            raise ConfigError(f"targets: of {len(targets)} images for a batch of {len(x)}")
        for target in targets:
            if target.labels.is_cpu and (target.labels >= self.num_classes).any():
                raise ConfigError(f"targets: a label is not below {self.num_classes}, the number of classes")
        losses = self.head_losses(
            self.forward_head(x), [target.without_crowd() for target in targets], _check_sizes(x, image_sizes)
        )
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **{name: loss.detach() for name, loss in losses.items()},
        }

    @abstractmethod
    def class_candidates(self, outputs: Any, image_size: Size, label: int) -> Candidates:
        """Candidates of one class in the first image, of this height and width inside the padded batch.

        Args:
            outputs: outputs of `forward_head`.
            image_size: height and width of the image.
            label: the class.
        """

    @abstractmethod
    def head_losses(
        self, outputs: Any, targets: Sequence[Targets], image_sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """Losses by name of the outputs of `forward_head`, for targets without crowds."""


def check_finite(*tensors: Tensor) -> None:
    """Refuse outputs with NaN: no score would exceed a threshold, as if the images were empty.

    Raises:
        TrainingError: one of the tensors is not finite.
    """
    # A sum is finite only if all terms are: one pass over each tensor, and one synchronization for all.
    if tensors and not torch.stack([one.sum(dtype=torch.float32) for one in tensors]).isfinite().all():
        raise TrainingError("the network's outputs are not finite: its weights may be damaged")


def _check_sizes(x: Tensor, image_sizes: Sequence[Size] | None) -> Sequence[Size]:
    """Sizes of the images inside the batch, checked; the batch's own by default."""
    height, width = x.shape[2], x.shape[3]
    if image_sizes is None:
        return [(height, width)] * len(x)
    if len(image_sizes) != len(x):
        raise ConfigError(f"image_sizes: {len(image_sizes)} sizes for a batch of {len(x)}")
    for size in image_sizes:
        if not (1 <= size[0] <= height and 1 <= size[1] <= width):
            raise ConfigError(f"image_sizes: {tuple(size)} does not lie inside the batch's {height}×{width}")
    return image_sizes
