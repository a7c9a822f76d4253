"""Heads of detectors."""

from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import roi_align, sigmoid_focal_loss

from metaformer.backbones.config import MetaFormerConfig
from metaformer.models.detection.anchors import Anchors
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.matcher import IGNORED, Sampler
from metaformer.models.detection.rcnn import RCNN
from metaformer.models.detection.retinanet import RetinaNet, RetinaNetOutputs, focal_loss
from metaformer.models.detection.roi_heads import (
    BITMAPS_AT_ONCE,
    BoxHead,
    BoxPredictor,
    MaskHead,
    MaskPredictor,
    assign_levels,
    box_losses,
    mask_loss,
    mask_targets,
    pyramid_roi_align,
    score_candidates,
    to_rois,
)
from metaformer.models.detection.rpn import RPN
from metaformer.models.detection.structures import Targets, level_shapes

STRIDES, DIM = (4, 8, 16), 6
BOXES = torch.tensor([[10.0, 10, 50, 40], [30, 20, 40, 60]])
NONE = torch.zeros(0, 4)


def rpn(size: int = 1_000_000) -> RPN:
    torch.manual_seed(0)
    return RPN(DIM, Anchors(STRIDES, [8]), Sampler(size, 0.5))


def proposals(*outputs: Any, pre: int, post: int) -> list[Tensor]:
    return rpn().proposals(*outputs, pre_nms_topk=pre, post_nms_topk=post, iou_threshold=0.7)


def random_outputs(images: int = 1, side: int = 128) -> tuple[list[Tensor], list[Tensor]]:
    """Random logits and deltas."""
    shapes = [(images, side // stride, side // stride) for stride in STRIDES]
    return (
        [torch.randn(b, 3, h, w, requires_grad=True) for b, h, w in shapes],
        [torch.randn(b, 12, h, w, requires_grad=True) for b, h, w in shapes],
    )


def test_parameters_are_torchvisions() -> None:
    assert set(rpn().state_dict()) == {
        f"head.{layer}.{kind}"
        for layer in ("conv.0.0", "cls_logits", "bbox_pred")
        for kind in ("weight", "bias")
    }


@given(
    seed=st.integers(0, 99),
    sizes=st.lists(st.tuples(st.integers(1, 128), st.integers(1, 128)), min_size=1, max_size=3),
    pre=st.integers(1, 300),
    post=st.integers(1, 200),
)
def test_proposals_lie_in_their_image_and_have_area(
    seed: int, sizes: list[tuple[int, int]], pre: int, post: int
) -> None:
    torch.manual_seed(seed)
    found = rpn().proposals(
        *random_outputs(len(sizes)), sizes, pre_nms_topk=pre, post_nms_topk=post, iou_threshold=0.7
    )
    assert len(found) == len(sizes)
    for boxes, (height, width) in zip(found, sizes, strict=True):
        assert len(boxes) <= min(post, pre * len(STRIDES))
        assert (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()


def test_the_best_come_first_and_levels_do_not_suppress_each_other() -> None:
    objectness, deltas = ([torch.zeros_like(level) for level in levels] for levels in random_outputs())
    anchors = rpn().anchors.per_level([(level.shape[2], level.shape[3]) for level in objectness])
    best = [(0, 700, 3.0), (0, 1800, 5.0), (1, 300, 4.0)]
    for level, place, logit in best:
        cell, kind = divmod(place, 3)
        objectness[level][0, kind].view(-1)[cell] = logit
    (found,) = rpn().proposals(
        objectness, deltas, [(128, 128)], pre_nms_topk=2, post_nms_topk=3, iou_threshold=0.7
    )
    expected = torch.stack([anchors[level][place] for level, place, _ in (best[1], best[2], best[0])])
    assert torch.allclose(found, expected.clamp(0, 128))
    moved = [torch.zeros_like(level) for level in deltas]
    (one,) = proposals(objectness, moved, [(1, 1)], pre=2, post=9)
    assert len(one) <= len(STRIDES)  # all are the same box, of which each level keeps one


def test_losses_are_divided_by_all_sampled_anchors_of_the_batch() -> None:
    """Fact 20: at zero logits, each anchor costs log 2, and an image without objects divides too."""
    objectness, deltas = ([torch.zeros_like(level) for level in levels] for levels in random_outputs(2))
    classes, boxes = rpn(256).losses(objectness, deltas, [BOXES, NONE], [(128, 128)] * 2)
    negatives, divisor = 256, 256 + 256 + 1  # the image without objects counts one for its positives
    assert classes.item() == pytest.approx(log(2) * (256 + negatives) / divisor, rel=1e-5)
    assert boxes.item() > 0


def test_anchors_in_the_padding_are_ignored() -> None:
    """Fact 13: an image of 40 pixels counts as padded to 64, in a batch of 128."""
    torch.manual_seed(1)
    (objectness, deltas), sizes = random_outputs(), [(40, 64)]
    before = rpn().losses(objectness, deltas, [BOXES], sizes)
    for levels in (objectness, deltas):
        for level, stride in zip(levels, STRIDES, strict=True):
            level.data[:, :, 64 // stride :] += 5
            level.data[:, :, :, 64 // stride :] += 5
    assert rpn().losses(objectness, deltas, [BOXES], sizes) == before
    assert rpn().losses(objectness, deltas, [BOXES], [(40, 65)]) != before


@pytest.mark.parametrize("size", [0, 256])
def test_all_levels_have_a_gradient_without_objects(size: int) -> None:
    objectness, deltas = random_outputs()
    classes, boxes = rpn(size).losses(objectness, deltas, [NONE], [(128, 128)])
    (classes + boxes).backward()
    assert boxes.item() == 0 and classes.isfinite()
    for level in (*objectness, *deltas):
        assert level.grad is not None and level.grad.isfinite().all()


def test_losses_and_proposals_are_float32() -> None:
    objectness, deltas = ([level.bfloat16() for level in levels] for levels in random_outputs())
    losses = rpn().losses(objectness, deltas, [BOXES], [(128, 128)])
    (found,) = rpn().proposals(
        objectness, deltas, [(128, 128)], pre_nms_topk=50, post_nms_topk=50, iou_threshold=0.7
    )
    assert found.dtype == torch.float32 and all(loss.dtype == torch.float32 for loss in losses)


UNITS = load_file(Path(__file__).parents[2] / "golden_dense" / "units.safetensors")
ROI_STRIDES = (4, 8, 16, 32)


def pyramid(images: int = 2, dim: int = 3, side: int = 64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(images, dim, side >> i, side >> i, requires_grad=True) for i in range(4)]


def test_levels_are_mmdetections() -> None:
    """Fact 21: also just below a doubling, where torchvision takes the next level."""
    side = UNITS["levels.side"]
    boxes = torch.stack([torch.zeros_like(side), torch.zeros_like(side), side, side], dim=1)
    assert torch.equal(assign_levels(boxes, 4), UNITS["levels.level"])


@pytest.mark.parametrize("side", [7, 14])
def test_roi_align_is_mmdetections(side: int) -> None:
    rois, features = UNITS["roialign.rois"], UNITS["roialign.feat"]
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    order = torch.cat([(rois[:, 0] == i).nonzero()[:, 0] for i in range(2)])
    ours = pyramid_roi_align([features], boxes, [4], side)
    assert torch.equal(ours, UNITS[f"roialign.out{side}.scale0.25"][order])


def test_each_box_is_pooled_from_its_own_image_and_level() -> None:
    features = pyramid()
    torch.manual_seed(1)
    corner, size = torch.rand(20, 2) * 100, torch.rand(20, 2) * 500 + 1
    both = torch.cat([corner, corner + size], dim=1)
    boxes = [both[:12], both[12:]]
    found = pyramid_roi_align(features, boxes, ROI_STRIDES, 7)
    levels = assign_levels(both, 4)
    assert len(levels.unique()) > 2
    for i, roi in enumerate(to_rois(boxes)):
        level = int(levels[i])
        alone = roi_align(
            features[level], roi[None], 7, 1 / ROI_STRIDES[level], sampling_ratio=0, aligned=True
        )
        assert torch.equal(found[i], alone[0])


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_a_box(counts: tuple[int, int]) -> None:
    features = pyramid()
    boxes = [torch.tensor([[0.0, 0, 9, 9]]).expand(n, 4) for n in counts]
    found = pyramid_roi_align(features, boxes, ROI_STRIDES, 7)
    assert found.shape == (sum(counts), 3, 7, 7)
    found.sum().backward()
    assert all(level.grad is not None for level in features)


def test_empty_boxes_give_finite_features() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [0, 0, 1e-4, 300], [255, 255, 256, 256]])
    assert pyramid_roi_align(pyramid(1), [boxes], ROI_STRIDES, 7).isfinite().all()


def test_features_in_half_precision_do_not_round_the_boxes() -> None:
    features = [level.detach().bfloat16() for level in pyramid(1)]
    boxes = [torch.tensor([[200.3, 100.7, 230.1, 140.9]])]
    found = pyramid_roi_align(features, boxes, ROI_STRIDES, 7)
    assert found.dtype == torch.float32
    assert torch.equal(found, pyramid_roi_align([level.float() for level in features], boxes, ROI_STRIDES, 7))


def test_shapes_and_names_of_the_box_head() -> None:
    head, predictor = BoxHead(4, 7, 16), BoxPredictor(16, 5)
    logits, deltas = predictor(head(torch.randn(3, 4, 7, 7)))
    assert logits.shape == (3, 6) and deltas.shape == (3, 5, 4)
    assert set(head.state_dict()) == {"fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"}
    assert set(dict(predictor.named_modules())) == {"", "cls_score", "bbox_pred"}


def test_deltas_of_a_class_are_four_consecutive_outputs() -> None:
    """Fact 23: channel k*4+j."""
    predictor = BoxPredictor(16, 5)
    x = torch.randn(3, 16)
    assert torch.equal(predictor(x)[1][:, 2], predictor.bbox_pred(x)[:, 8:12])


def test_box_losses_are_divided_by_all_sampled_regions() -> None:
    """Fact 26: that of the deltas too, though only positives have one."""
    torch.manual_seed(0)
    logits, deltas, targets = torch.randn(6, 4), torch.randn(6, 3, 4), torch.randn(2, 4)
    labels = torch.tensor([2, 0, 3, 3, 3, 3])
    loss_cls, loss_bbox = box_losses(logits, deltas, labels, targets)
    assert loss_cls == pytest.approx(F.cross_entropy(logits, labels))
    expected = (deltas[0, 2] - targets[0]).abs().sum() + (deltas[1, 0] - targets[1]).abs().sum()
    assert loss_bbox == pytest.approx(expected / 6)


@pytest.mark.parametrize("regions", [0, 3])
def test_the_box_head_has_gradients_without_an_object(regions: int) -> None:
    head, predictor = BoxHead(4, 7, 16), BoxPredictor(16, 5)
    logits, deltas = predictor(head(torch.randn(regions, 4, 7, 7)))
    sum(box_losses(logits, deltas, torch.full((regions,), 5), torch.zeros(0, 4))).backward()
    for parameter in (*head.parameters(), *predictor.parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_a_region_may_be_of_several_classes_but_not_of_the_background() -> None:
    logits = torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 9.0]])
    regions, labels, scores = score_candidates(logits, 0.05)
    assert regions.tolist() == [0, 0] and labels.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([0.4683105] * 2)
    assert len(score_candidates(torch.zeros(1, 2), 0.5)[0]) == 0, "a score at the threshold is not above"


def test_mask_targets_are_mmdetections() -> None:
    """Fact 27: boxes clipped to the masks, aligned, and binary."""
    found = mask_targets(
        UNITS["masktarget.masks"].bool(), UNITS["masktarget.boxes"], UNITS["masktarget.gt_index"]
    )
    assert torch.equal(found.byte(), UNITS["masktarget.targets"])


def test_mask_targets_of_many_objects_are_cropped_in_parts() -> None:
    torch.manual_seed(0)
    count = 2 * BITMAPS_AT_ONCE + 3
    masks = torch.rand(count, 20, 30) > 0.5
    objects = torch.randint(count, (50,))
    boxes = torch.tensor([[2.0, 3, 12, 15], [0, 0, 30, 20]]).repeat(25, 1)
    together = mask_targets(masks, boxes, objects)
    assert together.mean() > 0.1
    for i, k in enumerate(objects.tolist()):
        alone = mask_targets(masks[k : k + 1], boxes[i : i + 1], torch.tensor([0]))
        assert torch.equal(together[i], alone[0])
    for none in (0, 2):
        empty = torch.zeros(none, 20, 30, dtype=torch.bool)
        assert mask_targets(empty, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)


def test_each_region_has_the_mask_of_its_class() -> None:
    predictor = MaskPredictor(8, 5)
    x, labels = torch.randn(3, 8, 14, 14), torch.tensor([4, 0, 4])
    all_classes = predictor(x)
    assert all_classes.shape == (3, 5, 28, 28)
    expected = torch.stack([all_classes[0, 4], all_classes[1, 0], all_classes[2, 4]])
    assert torch.equal(predictor.forward_class(x, labels), expected)


def test_the_mask_loss_is_the_mean_and_has_gradients_without_a_region() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 28, 28), (torch.rand(3, 28, 28) > 0.5).float()
    assert mask_loss(logits, targets) == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets))
    head, predictor = MaskHead(4, 8), MaskPredictor(8, 5)
    none = predictor.forward_class(head(torch.zeros(0, 4, 14, 14)), torch.zeros(0, dtype=torch.int64))
    loss = mask_loss(none, torch.zeros(0, 28, 28))
    loss.backward()
    assert loss.item() == 0
    for parameter in (*head.parameters(), *predictor.parameters()):
        assert parameter.grad is not None and not parameter.grad.any()


TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
RETINA_CONFIG = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
TARGETS = [
    Targets(torch.tensor([[3.0, 4, 40, 50], [20, 10, 21, 11]]), torch.tensor([2, 6])),
    Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


@torch.no_grad()
def test_outputs_that_are_not_finite_decode_to_nothing() -> None:
    model, image = RetinaNet(replace(RETINA_CONFIG, score_threshold=0.001)).eval(), torch.randn(1, 3, 64, 96)
    outputs = model.forward_head(image)
    assert len(model.decode(outputs, [(64, 96)])[0]) > 0
    for worst in (torch.nan, torch.inf, -torch.inf):
        deltas = tuple(torch.full_like(level, worst) for level in outputs.deltas)
        broken = RetinaNetOutputs(outputs.logits, deltas)
        assert len(model.decode(broken, [(64, 96)])[0]) == 0
    logits = tuple(torch.full_like(level, torch.nan) for level in outputs.logits)
    assert len(model.decode(RetinaNetOutputs(logits, outputs.deltas), [(64, 96)])[0]) == 0


def test_anchors_beyond_an_images_padding_are_ignored() -> None:
    model = RetinaNet(RETINA_CONFIG)
    shapes = level_shapes(model.forward_head(torch.randn(2, 3, 64, 96)).logits)
    assigned = model.assign_targets(shapes, TARGETS[::-1], [(64, 96), (30, 32)])
    fine = assigned.labels[0].view(2, *shapes[0], 9)
    assert not (fine[0] == IGNORED).any()
    assert (fine[1, 4:] == IGNORED).all() and (fine[1, :, 4:] == IGNORED).all()
    assert not (fine[1, :4, :4] == IGNORED).all() and assigned.images.all()


@pytest.mark.parametrize("lowest", [-2, -1, 4], ids=["mixed", "counted", "objects"])
def test_focal_loss_and_gradient_are_torchvisions(lowest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 30, 5, generator=generator) * 4).requires_grad_()
    labels = torch.randint(lowest, 5, (2, 30), generator=generator)
    targets = F.one_hot(labels.clamp(min=0), 5).float() * (labels >= 0)[..., None]
    theirs = sigmoid_focal_loss(logits, targets)[labels != IGNORED].sum()
    ours = focal_loss(logits, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_ignored_anchors_have_no_loss() -> None:
    logits = torch.randn(1, 4, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = focal_loss(logits, torch.full((1, 4), IGNORED))
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32
    assert logits.grad is not None and not logits.grad.any()


SIZE = (96, 128)
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
TWO = Targets(
    torch.tensor([[10.0, 20, 60, 80], [50.5, 30, 120, 90.25]]),
    torch.tensor([0, 0]),
    torch.ones(2, *SIZE, dtype=torch.bool),
)
NO_BOXES = Targets(
    torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *SIZE, dtype=torch.bool)
)


def tiny(**options: float) -> RCNN:
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "fpn_dim": 16, "box_fc_dim": 24, "rpn_post_nms_topk": 50}
    return RCNN(DetectorConfig(kind="mask_rcnn", backbone=TINY, **{**sizes, **options}))  # type: ignore[arg-type]


def test_without_proposals_nothing_is_detected_and_the_objects_are_trained() -> None:
    model = tiny()
    nn.init.constant_(model.rpn.head.bbox_pred.bias, -1e4)  # all boxes lie beyond the corner
    for one in model.eval()(IMAGES):
        assert len(one) == 0 and one.masks.shape == (0, 28, 28)
    for targets in ([TWO, NO_BOXES], [NO_BOXES, NO_BOXES]):
        model.zero_grad()
        losses = model.train()(IMAGES, targets)
        assert all(loss.isfinite() for loss in losses.values())
        losses["loss"].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_is_above_the_threshold() -> None:
    for one in tiny(score_threshold=0.99).eval()(IMAGES):
        assert len(one) == 0 and one.paste(SIZE).shape == (0, *SIZE)


def test_samples_of_a_detector_follow_torchs_generator() -> None:
    model = tiny(roi_batch_size=8, rpn_batch_size=8)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(IMAGES, [TWO, TWO])["loss"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_names_of_parameters(kind: str) -> None:
    """Published files are converted to these names."""
    model = RCNN(DetectorConfig(kind=kind, backbone=TINY, fpn_dim=16, box_fc_dim=8))
    parts = {"backbone", "neck", "rpn", "box_head", "box_predictor"}
    parts |= {"mask_head", "mask_predictor"} if kind == "mask_rcnn" else set()
    assert {name.partition(".")[0] for name in model.state_dict()} == parts
