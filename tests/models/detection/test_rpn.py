"""Region proposal network: proposals and losses."""

from math import log
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metaformer.models.detection.anchors import Anchors
from metaformer.models.detection.matcher import Sampler
from metaformer.models.detection.rpn import RPN

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
