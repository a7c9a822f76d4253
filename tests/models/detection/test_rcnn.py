"""Faster and Mask R-CNN: no proposals, thresholds, sampling; test_detector has the contract."""

import pytest
import torch
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.rcnn import RCNN
from metaformer.models.detection.structures import Targets

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
SIZE = (96, 128)
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
TWO = Targets(
    torch.tensor([[10.0, 20, 60, 80], [50.5, 30, 120, 90.25]]),
    torch.tensor([0, 0]),
    torch.ones(2, *SIZE, dtype=torch.bool),
)
NONE = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *SIZE, dtype=torch.bool))


def tiny(**options: float) -> RCNN:
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "fpn_dim": 16, "box_fc_dim": 24, "rpn_post_nms_topk": 50}
    return RCNN(DetectorConfig(kind="mask_rcnn", backbone=TINY, **{**sizes, **options}))  # type: ignore[arg-type]


def test_without_proposals_nothing_is_detected_and_the_objects_are_trained() -> None:
    model = tiny()
    nn.init.constant_(model.rpn.head.bbox_pred.bias, -1e4)  # all boxes lie beyond the corner
    for one in model.eval()(IMAGES):
        assert len(one) == 0 and one.masks.shape == (0, 28, 28)
    for targets in ([TWO, NONE], [NONE, NONE]):
        model.zero_grad()
        losses = model.train()(IMAGES, targets)
        assert all(loss.isfinite() for loss in losses.values())
        losses["loss"].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_is_above_the_threshold() -> None:
    for one in tiny(score_threshold=0.99).eval()(IMAGES):
        assert len(one) == 0 and one.paste(SIZE).shape == (0, *SIZE)


def test_samples_follow_torchs_generator() -> None:
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
