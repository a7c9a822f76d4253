"""The focal loss is torchvision's, with places that do not count."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from metaformer.models.detection.focal import focal_loss


@pytest.mark.parametrize("lowest", [-2, -1, 4], ids=["mixed", "counted", "objects"])
def test_loss_and_gradient_are_torchvisions(lowest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 30, 5, generator=generator) * 4).requires_grad_()
    labels = torch.randint(lowest, 5, (2, 30), generator=generator)
    targets = F.one_hot(labels.clamp(min=0), 5).float() * (labels >= 0)[..., None]
    theirs = sigmoid_focal_loss(logits, targets)[labels != -2].sum()
    ours = focal_loss(logits, labels)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_nothing_to_learn_from() -> None:
    logits = torch.randn(1, 4, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = focal_loss(logits, torch.full((1, 4), -2))
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32
    assert logits.grad is not None and not logits.grad.any()
