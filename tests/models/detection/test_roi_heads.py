"""RoI align, box head and mask head; numbers of mmdetection and of plain loops."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

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

UNITS = load_file(Path(__file__).parents[2] / "golden_dense" / "units.safetensors")
STRIDES = (4, 8, 16, 32)


def pyramid(images: int = 2, dim: int = 3, side: int = 64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(images, dim, side >> i, side >> i, requires_grad=True) for i in range(4)]


def test_levels_are_mmdetections() -> None:
    """Fact 21: also just below a doubling, where torchvision takes the next level."""
    side = UNITS["levels.side"]
    boxes = torch.stack([torch.zeros_like(side), torch.zeros_like(side), side, side], dim=1)
    assert torch.equal(assign_levels(boxes, 4), UNITS["levels.level"])
    assert not torch.equal(LevelMapper(2, 5)([boxes]), UNITS["levels.level"])


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
    found = pyramid_roi_align(features, boxes, STRIDES, 7)
    levels = assign_levels(both, 4)
    assert len(levels.unique()) > 2
    for i, roi in enumerate(to_rois(boxes)):
        level = int(levels[i])
        alone = roi_align(features[level], roi[None], 7, 1 / STRIDES[level], sampling_ratio=0, aligned=True)
        assert torch.equal(found[i], alone[0])


def test_torchvisions_roi_align_with_its_settings_differs() -> None:
    """Fact 22."""
    features, boxes = pyramid(1), [torch.tensor([[10.0, 20, 60, 50]])]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    other = theirs({str(i): level for i, level in enumerate(features)}, boxes, [(256, 256)])
    assert not torch.allclose(pyramid_roi_align(features, boxes, STRIDES, 7), other, atol=1e-2)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_a_box(counts: tuple[int, int]) -> None:
    features = pyramid()
    boxes = [torch.tensor([[0.0, 0, 9, 9]]).expand(n, 4) for n in counts]
    found = pyramid_roi_align(features, boxes, STRIDES, 7)
    assert found.shape == (sum(counts), 3, 7, 7)
    found.sum().backward()
    assert all(level.grad is not None for level in features)


def test_empty_boxes_give_finite_features() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [0, 0, 1e-4, 300], [255, 255, 256, 256]])
    assert pyramid_roi_align(pyramid(1), [boxes], STRIDES, 7).isfinite().all()


def test_features_in_half_precision_do_not_round_the_boxes() -> None:
    features = [level.detach().bfloat16() for level in pyramid(1)]
    boxes = [torch.tensor([[200.3, 100.7, 230.1, 140.9]])]
    found = pyramid_roi_align(features, boxes, STRIDES, 7)
    assert found.dtype == torch.float32
    assert torch.equal(found, pyramid_roi_align([level.float() for level in features], boxes, STRIDES, 7))


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
