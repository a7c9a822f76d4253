"""Exported detectors: images to a fixed number of objects each, non-maximum suppression included.

No shape in the graph depends on what is in the images: candidates are a fixed number, those that do not count
have the score `NONE`, and objects beyond the last have class −1 and a box of zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import custom_op

from metaformer.data.class_lists import read_palette
from metaformer.models.detection.anchors import Anchors, BoxCoder, level_anchors, rescale_boxes
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.heads import by_anchor
from metaformer.models.detection.matcher import iou
from metaformer.models.detection.nms import batched_nms, stable_topk
from metaformer.models.detection.rcnn import BOX_ROI_SIDE, MASK_ROI_SIDE, RCNN
from metaformer.models.detection.retinanet import RetinaNet
from metaformer.models.detection.roi_heads import MASK_SIDE, assign_levels
from metaformer.models.detection.structures import Detections, Size, level_shapes
from metaformer.tasks.detection.metadata import DetectionMetadata, read_ids, read_score
from metaformer.tasks.detection.predict import DEFAULT_SCORE
from metaformer.tasks.detection.transforms import DetectionPreprocess
from metaformer.tasks.exported import ExportedNetwork, ExportGraph, ExportOptions, TaskExport, pixels_of

NONE: Final = torch.finfo(torch.float32).min
"""Score of a candidate that does not count."""


@custom_op("metaformer::top_candidates", mutates_args=())
def top_candidates(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest of scores (B, N) and their indices, both (B, count), ties in order; N at least `count`."""
    indices = torch.stack([stable_topk(row, count) for row in scores])
    return scores.gather(1, indices), indices


@top_candidates.register_fake
def _(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = scores.shape[0], count
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


@custom_op("metaformer::select_boxes", mutates_args=())
def select_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Non-maximum suppression within each class: indices (B, limit) of the boxes that remain, then −1.

    Args:
        boxes: (B, N, 4), zeros where they do not count.
        scores: (B, N), `NONE` where they do not count.
        labels: classes, or pyramid levels (B, N).
        iou_threshold: of two boxes of a class with a greater IoU the worse one is removed.
        limit: how many remain at most.
    """
    selected = labels.new_full((len(boxes), limit), -1)
    for i, row in enumerate(selected):
        valid = (scores[i] > NONE).nonzero()[:, 0]
        kept = batched_nms(boxes[i][valid], scores[i][valid], labels[i][valid], iou_threshold, limit)
        row[: len(kept)] = valid[kept]
    return selected


@select_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return labels.new_empty(boxes.shape[0], limit)


class _Candidates:
    """Candidates of the levels of a pyramid, a fixed number of each, for a batch."""

    def __init__(self, anchors: Anchors, coder: BoxCoder, count: int) -> None:
        self.anchors, self.coder, self.count = anchors, coder, count
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, scores: Tensor, deltas: Tensor, shape: Size, classes: int) -> None:
        """Add a level's best.

        Args:
            scores: (B, H·W·A, classes), `NONE` where they do not count.
            deltas: (B, A·4, H, W).
            shape: height and width of the level.
            classes: 1 for objectness; labels are then the number of the level.
        """
        level, moves = len(self._parts), by_anchor(deltas, 4).float()
        flat = F.pad(scores.flatten(1), (0, self.count), value=NONE)  # never fewer than asked for
        best, index = top_candidates(flat, self.count)
        # what was padded is beyond the last row
        rows = (index // classes).clamp(max=moves.shape[1] - 1)
        labels = index % classes if classes > 1 else torch.full_like(index, level)
        anchors = level_anchors(
            self.anchors.strides[level], self.anchors.scales, self.anchors.ratios, shape, scores.device
        )
        self._parts.append((best, labels, _rows(moves, rows), anchors[rows]))

    def boxes(self, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, N, 4) inside the images, scores and labels (B, N) of all levels."""
        scores, labels, moves, anchors = (torch.cat(parts, 1) for parts in zip(*self._parts, strict=True))
        boxes = _clipped(self.coder.decode(moves, anchors), sizes)
        valid = (scores > NONE) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        return torch.where(valid[..., None], boxes, 0.0), torch.where(valid, scores, NONE), labels


class DetectionGraph(ExportGraph):
    """Images to `boxes` (B, K, 4) in pixels of each image, `scores` and `classes` (B, K), `count` (B,).

    Args:
        network: a detector.
        pixels: as `ExportGraph` takes it.
        limit: objects of an image, at most.
    """

    outputs: tuple[str, ...] = ("boxes", "scores", "classes", "count")  # type: ignore[misc]
    takes_sizes = True
    network: Any

    def __init__(self, network: Detector, pixels: Any, limit: int) -> None:
        super().__init__(network, pixels)
        self.limit = limit


class RetinaNetGraph(DetectionGraph):
    """RetinaNet with its decoding."""

    network: RetinaNet

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        net, config = self.network, self.network.config
        outputs = net.forward_head(self.normalized(images, sizes))
        candidates = _Candidates(net.anchors, net.coder, config.rpn_pre_nms_topk)
        for logits, deltas in zip(outputs.logits, outputs.deltas, strict=True):
            scores = by_anchor(logits, net.num_classes).float().sigmoid()
            scores = torch.where(scores > config.score_threshold, scores, NONE)
            (shape,) = level_shapes([logits])
            candidates.add(scores, deltas, shape, net.num_classes)
        return _selected(*candidates.boxes(sizes), config.nms_threshold, self.limit)


class RCNNGraph(DetectionGraph):
    """Faster R-CNN with both its stages; Mask R-CNN also gives `masks` (B, K, 28, 28)."""

    network: RCNN

    def __init__(self, network: RCNN, pixels: Any, limit: int) -> None:
        super().__init__(network, pixels, limit)
        self.outputs = (*type(self).outputs, "masks") if network.has_masks else type(self).outputs

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        net, config = self.network, self.network.config
        outputs = net.forward_head(self.normalized(images, sizes))
        candidates = _Candidates(net.rpn.anchors, net.rpn.coder, config.rpn_pre_nms_topk)
        for logits, deltas in zip(outputs.objectness, outputs.deltas, strict=True):
            (shape,) = level_shapes([logits])
            candidates.add(by_anchor(logits, 1).float(), deltas, shape, 1)
        post, iou = config.rpn_post_nms_topk, config.rpn_nms_threshold
        proposals, _, found, _ = _selected(*candidates.boxes(sizes), iou, post)
        levels = outputs.features[: len(outputs.features) - net.neck.extra_levels]
        boxes, scores, labels = self._classified(levels, proposals, found >= 0, sizes)
        objects = _selected(boxes, scores, labels, config.nms_threshold, self.limit)
        if not net.has_masks:
            return objects
        return *objects, self._masks(levels, objects[0], objects[2])

    def _classified(
        self, levels: Sequence[Tensor], proposals: Tensor, there: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, P·K, 4), scores and labels (B, P·K) of each class at each of the proposals (B, P, 4)."""
        net, classes = self.network, self.network.num_classes
        logits, deltas = net.box_predictor(net.box_head(self._pooled(levels, proposals, BOX_ROI_SIDE)))
        scores = logits.softmax(-1)[:, :-1].unflatten(0, there.shape)  # (B, P, K)
        counts = (scores > net.config.score_threshold) & there[..., None]
        boxes = _clipped(net.coder.decode(deltas.unflatten(0, there.shape), proposals[:, :, None]), sizes)
        boxes = torch.where(counts[..., None], boxes, 0.0).flatten(1, 2)
        labels = torch.arange(classes, device=boxes.device).expand_as(scores).flatten(1)
        return boxes, torch.where(counts, scores, NONE).flatten(1), labels

    def _masks(self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities (B, K, 28, 28), zero where there is no object."""
        net = self.network
        assert net.mask_head is not None and net.mask_predictor is not None
        features = net.mask_head(self._pooled(levels, boxes, MASK_ROI_SIDE))
        of_classes = (
            net.mask_predictor(features).float().unflatten(0, labels.shape)
        )  # (B, K, classes, 28, 28)
        index = labels.clamp(min=0)[:, :, None, None, None].expand(-1, -1, 1, MASK_SIDE, MASK_SIDE)
        masks = of_classes.gather(2, index)[:, :, 0].sigmoid()
        return torch.where((labels >= 0)[..., None, None], masks, 0.0)

    def _pooled(self, levels: Sequence[Tensor], boxes: Tensor, side: int) -> Tensor:
        """RoI features (B·N, C, side, side) of boxes (B, N, 4), each on the level of its size.

        All boxes are pooled on all levels, as no shape may depend on their sizes: on the wrong ones as empty
        boxes, which have no samples and so cost nothing.
        """
        from torchvision.ops import roi_align

        flat = boxes.flatten(0, 1)
        own = assign_levels(flat, len(levels))
        images = (
            torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(boxes.shape[:2]).reshape(-1, 1)
        )
        pooled: Tensor | None = None
        for i, (level, stride) in enumerate(zip(levels, self.network.strides, strict=False)):
            here = (own == i)[:, None]
            rois = torch.cat([images.reshape(-1, 1).to(flat), torch.where(here, flat, 0.0)], 1)
            x = roi_align(level.float(), rois, side, 1 / stride, sampling_ratio=0, aligned=True)
            x = torch.where(here[..., None, None], x, 0.0)
            pooled = x if pooled is None else pooled + x
        assert pooled is not None
        return pooled.to(self.dtype)


def _selected(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The candidates that remain after NMS: boxes (B, limit, 4), scores and labels (B, limit), count (B,)."""
    kept = select_boxes(boxes, scores, labels, iou_threshold, limit)
    there, index = kept >= 0, kept.clamp(min=0)
    return (
        torch.where(there[..., None], _rows(boxes, index), 0.0),
        torch.where(there, scores.gather(1, index), 0.0),
        torch.where(there, labels.gather(1, index), -1),
        there.sum(1),
    )


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, C) by their indices (B, M)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, …, 4) inside images of heights and widths (B, 2)."""
    limits = sizes.flip(1).to(boxes).repeat(1, 2)
    return boxes.clamp(min=0).minimum(limits.view(-1, *[1] * (boxes.ndim - 2), 4))


class ExportedDetector(ExportedNetwork):
    """Images to the objects in each."""

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return "masks" in self.card.outputs

    def predict(
        self,
        x: Tensor,
        image_sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
    ) -> list[Detections]:
        """Objects of images (B, 3, H, W), as `Detector.predict` gives them."""
        sizes = [(x.shape[2], x.shape[3])] * len(x) if image_sizes is None else image_sizes
        found = self.compute(x, sizes)
        results = []
        for i, (size, original) in enumerate(zip(sizes, original_sizes or sizes, strict=True)):
            fields = {
                name: values[i, : int(found["count"][i])] for name, values in found.items() if name != "count"
            }
            boxes = rescale_boxes(fields["boxes"], size, original)
            results.append(Detections(boxes, fields["scores"], fields["classes"], fields.get("masks")))
        return results


class DetectorExport(TaskExport):
    """How detectors are exported."""

    network = ExportedDetector
    options = frozenset({"max_objects"})
    outputs: Mapping[str, str] = {
        "boxes": "(N, M, 4)",
        "scores": "(N, M)",
        "classes": "(N, M)",
        "count": "(N,)",
        "masks": "(N, M, 28, 28), of Mask R-CNN",
    }
    model_info: Mapping[str, str] = {"model_type": "MaskRCNN"}
    takes_sizes = True
    tolerances: Mapping[str, tuple[float, float]] = {
        "objects": (0.0, 0.1),
        "boxes": (0.01, 1.0),
        "scores": (1e-4, 2e-2),
        "masks": (1e-3, 0.1),
    }
    forward_takes_sizes = True

    def graph(self, network: nn.Module, preprocess: Any, options: ExportOptions) -> ExportGraph:
        assert isinstance(network, RetinaNet | RCNN)
        limit = options.max_objects or network.config.max_detections
        pixels = pixels_of(preprocess, options)
        if isinstance(network, RetinaNet):
            return RetinaNetGraph(network, pixels, limit)
        return RCNNGraph(network, pixels, limit)

    def resize(self, preprocess: DetectionPreprocess) -> dict[str, Any]:
        return {
            "rule": "scale to fit into a box of these sides, in either orientation, sides rounded to the "
            "nearest; pad on the right and below so that both are multiples of the divisor",
            "long_side": preprocess.long_side,
            "short_side": preprocess.short_side,
            "size_divisor": preprocess.size_divisor,
            "interpolation": "bilinear",
            "antialias": True,
        }

    def read_preprocess(self, values: Mapping[str, Any]) -> DetectionPreprocess:
        return DetectionPreprocess.from_dict(values)

    def metadata(self, values: Any) -> dict[str, Any]:
        palette, ids, score = values
        return {"palette": [list(color) for color in palette], "category_ids": list(ids), "score": score}

    def read_metadata(self, values: Mapping[str, Any], count: int) -> DetectionMetadata:
        return DetectionMetadata(
            read_palette(values["palette"], count),
            read_ids(values["category_ids"], count) if values["category_ids"] else (),
            read_score(values.get("score")),
        )

    def limited(self, results: list[Detections], options: ExportOptions) -> list[Detections]:
        return [found[: options.max_objects] for found in results]

    def compare(self, expected: list[Detections], found: list[Detections]) -> dict[str, float]:
        """Share of objects without a counterpart of the same class nearby; differences of the others.

        Objects with nearly equal scores may come in another order.
        """
        worst, missing, total = dict.fromkeys(self.tolerances, 0.0), 0, 0
        for theirs, ours in zip(expected, found, strict=True):
            total += max(len(theirs), len(ours))
            missing += abs(len(theirs) - len(ours))
            for i in range(min(len(theirs), len(ours))):
                near = self._differences(theirs, i, ours)
                if near is None:
                    missing += 1
                    continue
                worst = {name: max(worst[name], near.get(name, 0.0)) for name in worst}
        return {**worst, "objects": missing / max(1, total)}

    def agreement(self, expected: list[Detections], found: list[Detections]) -> float:
        """Share of the objects shown that have a counterpart of the same class and an IoU of at least 0.5."""
        total = same = 0
        for theirs, ours in zip(expected, found, strict=True):
            for some, others in ((theirs, ours), (ours, theirs)):
                shown = some[some.scores >= DEFAULT_SCORE]
                near = iou(shown.boxes, others.boxes) >= 0.5
                same += int((near & (shown.labels[:, None] == others.labels)).any(1).sum())
                total += len(shown)
        return same / total if total else 1.0

    def _differences(self, theirs: Detections, i: int, ours: Detections) -> dict[str, float] | None:
        """Those of one object and the nearest of its class; None where it has none."""
        boxes = (ours.boxes - theirs.boxes[i]).abs().amax(1)
        distance = torch.where(ours.labels == theirs.labels[i], boxes, torch.inf)
        j = int(distance.argmin())
        if not distance[j] < 1:
            return None
        values = {"boxes": distance[j], "scores": (ours.scores[j] - theirs.scores[i]).abs()}
        if theirs.masks is not None and ours.masks is not None:
            values["masks"] = (ours.masks[j] - theirs.masks[i]).abs().max()
        return {name: value.item() for name, value in values.items()}
