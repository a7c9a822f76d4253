"""Segmentation losses against formulas written out by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.models.segmentation.loss import SegmentationLoss

CLASSES = 5


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, CLASSES, (2, 6, 7))
    labels[0, :3] = 255
    return torch.randn(2, CLASSES, 6, 7) * 3, labels


def loss(batch: tuple[Tensor, Tensor], **options: Any) -> float:
    return SegmentationLoss(**options)(*batch)["loss"].item()


def test_valid_is_the_mean_over_labeled_pixels(batch: tuple[Tensor, Tensor]) -> None:
    assert loss(batch) == pytest.approx(F.cross_entropy(*batch, ignore_index=255).item(), rel=1e-6)


def test_all_divides_by_every_pixel(batch: tuple[Tensor, Tensor]) -> None:
    expected = F.cross_entropy(*batch, ignore_index=255, reduction="sum").item() / (2 * 6 * 7)
    assert loss(batch, reduction="all") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    assert loss((batch[0], batch[1].to(dtype))) == loss(batch)


def test_other_ignore_index(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    moved = torch.where(labels == 255, 65535, labels).int()
    assert loss((logits, moved), ignore_index=65535, dice=1.0) == loss(batch, dice=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "all"},
        {"ohem": 0.7},
        {"dice": 1.0},
        {"class_weights": [1.0] * CLASSES},
        {"ohem": 0.7, "min_kept": 3, "dice": 0.5, "class_weights": [0.0] * CLASSES},
    ],
    ids=str,
)
def test_ignored_pixels_have_zero_loss_and_gradient(options: dict[str, Any]) -> None:
    logits = torch.randn(2, CLASSES, 6, 7, requires_grad=True)
    labels = torch.full((2, 6, 7), 255, dtype=torch.uint8)
    criterion = SegmentationLoss(**options)
    losses = criterion(logits, labels, auxiliary=logits * 2)
    assert losses["loss"].item() == 0.0
    losses["loss"].backward()
    assert logits.grad is not None and not logits.grad.any()


def test_class_weights_are_pytorchs(batch: tuple[Tensor, Tensor]) -> None:
    weights = [0.5, 2.0, 0.0, 1.0, 3.0]
    expected = F.cross_entropy(*batch, weight=torch.tensor(weights), ignore_index=255).item()
    assert loss(batch, class_weights=weights) == pytest.approx(expected, rel=1e-6)


def test_ohem_keeps_pixels_below_the_probability_and_at_least_min_kept(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    valid = labels != 255
    truth = labels.where(valid, 0)
    right = logits.softmax(1).gather(1, truth[:, None])[:, 0]
    losses = F.cross_entropy(logits, truth, reduction="none")
    below = losses[valid & (right < 0.3)]
    assert loss(batch, ohem=0.3, min_kept=0) == pytest.approx(below.mean().item(), rel=1e-5)
    worst = losses[valid].sort(descending=True).values
    assert len(below) < 60 < len(worst)
    assert loss(batch, ohem=0.3, min_kept=30) == pytest.approx(worst[:60].mean().item(), rel=1e-5)
    assert loss(batch, ohem=1e-6, min_kept=5) == pytest.approx(worst[:10].mean().item(), rel=1e-5)
    # more than there are: all that count, as without
    assert loss(batch, ohem=0.3) == pytest.approx(loss(batch), rel=1e-5)
    assert loss(batch, ohem=0.3, min_kept=0, reduction="all") == pytest.approx(
        below.sum().item() / labels.numel(), rel=1e-5
    )


def test_dice_over_the_classes_present(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    labels = labels.where(labels != 2, 1)  # class 2 is nowhere
    valid = labels != 255
    shares = []
    probabilities = logits.softmax(1).permute(0, 2, 3, 1)[valid]
    for k in (0, 1, 3, 4):
        truth = (labels[valid] == k).float()
        shares.append(2 * (probabilities[:, k] * truth).sum() / (probabilities[:, k].sum() + truth.sum()))
    losses = SegmentationLoss(dice=0.5)(logits, labels)
    assert losses["dice"].item() == pytest.approx(1 - torch.stack(shares).mean().item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["ce"].item() + 0.5 * losses["dice"].item(), rel=1e-6)
    certain = F.one_hot(labels.where(valid, 0), CLASSES).permute(0, 3, 1, 2) * 1e4
    assert SegmentationLoss(dice=1.0)(certain.float(), labels)["loss"].item() == pytest.approx(0, abs=1e-6)


def test_auxiliary_weight_and_no_ohem(batch: tuple[Tensor, Tensor]) -> None:
    other = torch.randn_like(batch[0])
    losses = SegmentationLoss(ohem=0.5, min_kept=0)(*batch, auxiliary=other)
    assert losses["auxiliary"].item() == pytest.approx(loss((other, batch[1])), rel=1e-6)
    assert losses["loss"].item() == pytest.approx(
        losses["ce"].item() + 0.4 * losses["auxiliary"].item(), rel=1e-6
    )
    assert not losses["ce"].requires_grad


def test_half_precision_is_summed_in_float32(batch: tuple[Tensor, Tensor]) -> None:
    logits = batch[0].bfloat16()
    assert loss((logits, batch[1]), dice=1.0) == loss((logits.float(), batch[1]), dice=1.0)


def test_class_weights_move_with_the_module_but_are_not_saved() -> None:
    criterion = SegmentationLoss(class_weights=[1.0, 2.0])
    assert not criterion.state_dict()
    moved = criterion.to("meta").weights
    assert moved is not None and moved.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"reduction": "mean"}, "reduction"),
        ({"ohem": 1.0}, "ohem"),
        ({"dice": -1.0}, "dice"),
        ({"min_kept": -1}, "min_kept"),
        ({"auxiliary": -0.1}, "auxiliary"),
        ({"class_weights": []}, "class_weights"),
        ({"class_weights": [1.0, -1.0]}, "class_weights"),
    ],
)
def test_wrong_values_name_the_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        SegmentationLoss(**options)


def test_number_of_class_weights(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"class_weights: 3 .* 5 classes"):
        loss(batch, class_weights=[1.0] * 3)
