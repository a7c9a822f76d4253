"""torchvision's Faster R-CNN and Mask R-CNN on this library's backbones."""

from collections import OrderedDict
from collections.abc import Sequence
from math import log2
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from metaformer.detection.config import DetectorConfig
from metaformer.detection.detector import check_finite
from metaformer.detection.mask_head import masks_of
from metaformer.detection.results import Detections, Size, Targets
from metaformer.detection.torchvision_compat import RATIOS, TorchvisionDetector, in_float32, named, told


class AnchoredPyramid(NamedTuple):
    """What a torchvision network of two stages gives before anything is chosen, for each level."""

    maps: tuple[Tensor, ...]
    """(B, fpn_dim, H_i, W_i)."""
    objectness: tuple[Tensor, ...]
    """(B, 3, H_i, W_i)."""
    deltas: tuple[Tensor, ...]
    """(B, 12, H_i, W_i)."""
    anchors: tuple[Tensor, ...]
    """(H_i·W_i·3, 4)."""


class TorchvisionRCNN(TorchvisionDetector):
    """torchvision's Faster R-CNN or Mask R-CNN; see `Detector`."""

    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        dim, classes = config.fpn_dim, config.num_classes + 1
        sizes = tuple((stride * config.anchor_size,) for stride in self.strides)
        options: dict[str, Any] = {
            "rpn_anchor_generator": AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            "rpn_pre_nms_top_n_train": config.train_candidates,
            "rpn_pre_nms_top_n_test": config.nms_candidates,
            "rpn_post_nms_top_n_train": config.proposals,
            "rpn_post_nms_top_n_test": config.proposals,
            "rpn_nms_thresh": config.rpn_nms_threshold,
            "rpn_batch_size_per_image": config.rpn_samples,
            "rpn_positive_fraction": config.rpn_positive,
            "box_roi_pool": self._pool(7),
            "box_head": TwoMLPHead(dim * 7**2, config.box_fc_dim),
            "box_predictor": FastRCNNPredictor(config.box_fc_dim, classes),
            "box_score_thresh": config.score_threshold,
            "box_nms_thresh": config.nms_threshold,
            "box_detections_per_img": config.max_detections,
            "box_batch_size_per_image": config.box_samples,
            "box_positive_fraction": config.box_positive,
        }
        if config.has_masks:
            layer = config.head_channels
            options["mask_roi_pool"] = self._pool(14)
            options["mask_head"] = MaskRCNNHeads(dim, (layer,) * 4, 1)
            options["mask_predictor"] = MaskRCNNPredictor(layer, layer, classes)
        whole = (MaskRCNN if config.has_masks else FasterRCNN)(self.stand_in(), **options)
        self.rpn, second = whole.rpn, whole.roi_heads
        self.box_head, self.box_predictor = second.box_head, second.box_predictor
        self.mask_head, self.mask_predictor = second.mask_head, second.mask_predictor
        for part in (self.rpn.head, self.box_predictor, self.mask_predictor):
            if part is not None:
                part.register_forward_hook(in_float32)
        self._second = (second,)  # in a tuple, so that its parameters are not counted twice

    def raw(self, x: Tensor) -> AnchoredPyramid:
        """Map images (B, 3, H, W) to the pyramid and what the first stage says of it."""
        maps = self.pyramid(x)
        objectness, deltas = self.rpn.head(maps)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
        anchors = self.all_anchors(x, maps, self.rpn.anchor_generator).split(counts)
        return AnchoredPyramid(tuple(maps), tuple(objectness), tuple(deltas), anchors)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def decode(
        self, raw: AnchoredPyramid, image_sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        second, sizes = self._stages(training=False), list(image_sizes)
        objectness, deltas = concat_box_prediction_layers(list(raw.objectness), list(raw.deltas))
        boxes = self.rpn.box_coder.decode(deltas, [torch.cat(raw.anchors)] * len(sizes))
        proposals, _ = self.rpn.filter_proposals(
            boxes.view(len(sizes), -1, 4), objectness, sizes, [len(level) for level in raw.anchors]
        )
        with self.box_predictor.register_forward_hook(lambda module, inputs, answer: check_finite(*answer)):
            found, _ = second(_by_name(raw.maps), proposals, sizes)
        for one in found:
            one["labels"] = one["labels"] - 1  # the background is first there
        return told(found, sizes, original_sizes)

    def parts(self, x: Tensor, targets: Sequence[Targets], image_sizes: Sequence[Size]) -> dict[str, Tensor]:
        """Losses of the proposals, of the boxes and, for `mask_rcnn`, of the masks.

        Raises:
            ConfigError: masks are learned, and there are none.
        """
        return self._losses(x, self.pyramid(x), targets, list(image_sizes))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _losses(
        self, x: Tensor, maps: list[Tensor], targets: Sequence[Targets], sizes: list[Size]
    ) -> dict[str, Tensor]:
        second, levels = self._stages(training=True), _by_name(maps)
        asked = [{"boxes": one.boxes, "labels": one.labels + 1} for one in targets]
        if self.has_masks:
            for one, target in zip(asked, targets, strict=True):
                one["masks"] = masks_of(target)
        proposals, first = self.rpn(ImageList(x, sizes), levels, asked)
        _, losses = second(levels, proposals, sizes, asked)
        return named(first | losses)

    def _stages(self, training: bool) -> nn.Module:
        """The second stage, once both are told what to give: there the mode decides."""
        self.rpn.training = self._second[0].training = training
        return self._second[0]

    def _pool(self, side: int) -> MultiScaleRoIAlign:
        """Pooling by the strides; torchvision guesses them from the first pictures that it sees."""
        strides = self.strides[: -self.neck.added]
        pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], side, sampling_ratio=2)
        pool.scales = [1 / stride for stride in strides]
        pool.map_levels = LevelMapper(int(log2(strides[0])), int(log2(strides[-1])))
        return pool


def _by_name(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((str(i), level) for i, level in enumerate(maps))
