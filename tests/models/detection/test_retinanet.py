"""RetinaNet: focal loss, assigned targets, outputs that are not finite; test_detector has the contract."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import VARIANTS
from metaformer.models.build import build_network
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.matcher import IGNORED
from metaformer.models.detection.retinanet import RetinaNet, RetinaNetOutputs, focal_loss
from metaformer.models.detection.structures import Targets, level_shapes

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
TARGETS = [
    Targets(torch.tensor([[3.0, 4, 40, 50], [20, 10, 21, 11]]), torch.tensor([2, 6])),
    Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


@pytest.mark.parametrize(("variant", "millions"), [("s12", 21.7), ("s24", 31.1), ("s36", 40.6)])
def test_published_sizes(variant: str, millions: float) -> None:
    backbone = replace(VARIANTS[f"poolformer_{variant}"], feature_norm="fresh")
    with torch.device("meta"):
        model = build_network(DetectorConfig(backbone=backbone))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@torch.no_grad()
def test_outputs_that_are_not_finite_decode_to_nothing() -> None:
    model, image = RetinaNet(replace(CONFIG, score_threshold=0.001)).eval(), torch.randn(1, 3, 64, 96)
    outputs = model.forward_head(image)
    assert len(model.decode(outputs, [(64, 96)])[0]) > 0
    for worst in (torch.nan, torch.inf, -torch.inf):
        deltas = tuple(torch.full_like(level, worst) for level in outputs.deltas)
        broken = RetinaNetOutputs(outputs.logits, deltas)
        assert len(model.decode(broken, [(64, 96)])[0]) == 0
    logits = tuple(torch.full_like(level, torch.nan) for level in outputs.logits)
    assert len(model.decode(RetinaNetOutputs(logits, outputs.deltas), [(64, 96)])[0]) == 0


def test_anchors_beyond_an_images_padding_are_ignored() -> None:
    model = RetinaNet(CONFIG)
    shapes = level_shapes(model.forward_head(torch.randn(2, 3, 64, 96)).logits)
    assigned = model.assign_targets(shapes, TARGETS[::-1], [(64, 96), (30, 32)])
    fine = assigned.labels[0].view(2, *shapes[0], 9)
    assert not (fine[0] == IGNORED).any()
    assert (fine[1, 4:] == IGNORED).all() and (fine[1, :, 4:] == IGNORED).all()
    assert not (fine[1, :4, :4] == IGNORED).all() and assigned.images.all()


def test_training_reduces_the_loss() -> None:
    torch.manual_seed(0)
    model = RetinaNet(replace(CONFIG, head_dim=None)).train()
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(12):
        loss = model(image, TARGETS)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


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
