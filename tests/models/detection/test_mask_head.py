"""Masks of pooled regions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from metaformer.models.detection.mask_head import (
    BITMAPS_AT_ONCE,
    MaskHead,
    MaskPredictor,
    mask_loss,
    mask_targets,
)

UNITS = load_file(Path(__file__).parents[2] / "golden_dense" / "units.safetensors")


def test_targets_are_mmdetections() -> None:
    """Fact 27: boxes clipped to the masks, aligned, and binary."""
    found = mask_targets(
        UNITS["masktarget.masks"].bool(), UNITS["masktarget.boxes"], UNITS["masktarget.gt_index"]
    )
    assert torch.equal(found.byte(), UNITS["masktarget.targets"])


def test_many_objects_are_cut_in_parts() -> None:
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


@pytest.mark.parametrize("objects", [0, 2])
def test_targets_without_a_box(objects: int) -> None:
    masks = torch.zeros(objects, 20, 30, dtype=torch.bool)
    assert mask_targets(masks, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)


def test_each_region_has_its_own_labels_mask() -> None:
    predictor = MaskPredictor(8, 5)
    x, labels = torch.randn(3, 8, 14, 14), torch.tensor([4, 0, 4])
    every = predictor(x)
    assert every.shape == (3, 5, 28, 28)
    assert torch.equal(predictor.own(x, labels), torch.stack([every[0, 4], every[1, 0], every[2, 4]]))


def test_loss_is_the_mean_over_positions() -> None:
    torch.manual_seed(0)
    logits, wanted = torch.randn(3, 28, 28), (torch.rand(3, 28, 28) > 0.5).float()
    assert mask_loss(logits, wanted) == pytest.approx(F.binary_cross_entropy_with_logits(logits, wanted))


def test_every_parameter_has_a_gradient_without_a_region() -> None:
    head, predictor = MaskHead(4, 8), MaskPredictor(8, 5)
    logits = predictor.own(head(torch.zeros(0, 4, 14, 14)), torch.zeros(0, dtype=torch.int64))
    loss = mask_loss(logits, torch.zeros(0, 28, 28))
    loss.backward()
    assert loss.item() == 0
    for parameter in (*head.parameters(), *predictor.parameters()):
        assert parameter.grad is not None and not parameter.grad.any()
