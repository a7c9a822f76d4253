"""Classes and boxes of pooled regions."""

import pytest
import torch
import torch.nn.functional as F

from metaformer.models.detection.box_head import BoxHead, BoxPredictor, box_losses, candidates


def test_shapes_and_names() -> None:
    head, predictor = BoxHead(4, 7, 16), BoxPredictor(16, 5)
    logits, deltas = predictor(head(torch.randn(3, 4, 7, 7)))
    assert logits.shape == (3, 6) and deltas.shape == (3, 5, 4)
    assert set(head.state_dict()) == {"fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"}
    assert set(dict(predictor.named_modules())) == {"", "cls_score", "bbox_pred"}


def test_the_fourth_numbers_of_a_class_are_its_deltas() -> None:
    """Fact 23: channel k*4+j."""
    predictor = BoxPredictor(16, 5)
    x = torch.randn(3, 16)
    assert torch.equal(predictor(x)[1][:, 2], predictor.bbox_pred(x)[:, 8:12])


def test_losses_are_divided_by_all_sampled_regions() -> None:
    """Fact 26: the boxes' too, though only objects have one."""
    torch.manual_seed(0)
    logits, deltas, wanted = torch.randn(6, 4), torch.randn(6, 3, 4), torch.randn(2, 4)
    labels = torch.tensor([2, 0, 3, 3, 3, 3])
    classes, boxes = box_losses(logits, deltas, labels, wanted)
    assert classes == pytest.approx(F.cross_entropy(logits, labels))
    expected = (deltas[0, 2] - wanted[0]).abs().sum() + (deltas[1, 0] - wanted[1]).abs().sum()
    assert boxes == pytest.approx(expected / 6)


@pytest.mark.parametrize("regions", [0, 3])
def test_every_parameter_has_a_gradient_without_an_object(regions: int) -> None:
    head, predictor = BoxHead(4, 7, 16), BoxPredictor(16, 5)
    logits, deltas = predictor(head(torch.randn(regions, 4, 7, 7)))
    losses = box_losses(logits, deltas, torch.full((regions,), 5), torch.zeros(0, 4))
    sum(losses).backward()
    for parameter in (*head.parameters(), *predictor.parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_a_region_may_be_of_several_classes_but_not_of_the_background() -> None:
    logits = torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 9.0]])
    regions, labels, scores = candidates(logits, 0.05)
    assert regions.tolist() == [0, 0] and labels.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([0.4683105] * 2)


def test_a_score_at_the_threshold_is_not_above_it() -> None:
    assert len(candidates(torch.zeros(1, 2), 0.5)[0]) == 0
