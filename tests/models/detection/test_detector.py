"""What all detectors have in common: backbones, checked arguments, crowds, and timm's interface."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.feature_info import FeatureInfo
from metaformer.errors import ConfigError, SizeError
from metaformer.models.detection.build import build_detector
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.structures import Targets

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=12, box_fc_dim=8)
TARGETS = Targets(torch.tensor([[3.0, 4, 40, 50], [20, 10, 60, 60]]), torch.tensor([2, 6]))


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return build_detector(replace(CONFIG, kind=request.param))


def targets_of(model: Detector, *targets: Targets) -> list[Targets]:
    masks = [torch.ones(len(one), 64, 64, dtype=torch.bool) if model.has_masks else None for one in targets]
    return [replace(one, masks=own) for one, own in zip(targets, masks, strict=True)]


NONE = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("objects", [(TARGETS, NONE), (NONE, NONE)], ids=["some", "none"])
def test_losses_are_finite_and_gradients_reach_every_parameter(
    model: Detector, objects: tuple[Targets, ...]
) -> None:
    losses = model.train()(torch.randn(2, 3, 64, 64), targets_of(model, *objects))
    assert losses["loss"].item() == pytest.approx(sum(v.item() for k, v in losses.items() if k != "loss"))
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert name.startswith("backbone.norms.0.") and model.config.kind == "retinanet"


def test_crowds_teach_nothing(model: Detector) -> None:
    image = torch.randn(1, 3, 64, 64)
    crowd = replace(TARGETS, crowd=torch.tensor([False, True]))
    alone = Targets(TARGETS.boxes[:1], TARGETS.labels[:1])
    values = []
    for one in (crowd, alone):
        torch.manual_seed(0)
        values.append(model(image, targets_of(model, one))["loss"])
    assert torch.equal(*values)


def test_images_with_nothing_in_them(model: Detector) -> None:
    for size in ((64, 64), (3, 3), (5, 200)):
        found = model.eval()(torch.zeros(2, 3, *size))
        assert len(found) == 2 and all(one.scores.dtype == torch.float32 for one in found)
    assert len(model.decode(model.raw(torch.zeros(1, 3, 64, 64)), [(1, 1)], [(1, 1)])) == 1
    with pytest.raises(SizeError, match="at least 3×3"):
        model(torch.zeros(1, 3, 2, 2))


def test_arguments_that_do_not_fit_are_told(model: Detector) -> None:
    image = torch.zeros(2, 3, 64, 64)
    with pytest.raises(ConfigError, match="of 1 images for a batch of 2"):
        model(image, targets_of(model, TARGETS))
    with pytest.raises(ConfigError, match="for a batch of 0"):
        model(image[:0], [])
    with pytest.raises(ConfigError, match="label is not below 7"):
        model(image, targets_of(model, NONE, Targets(TARGETS.boxes, torch.tensor([0, 7]))))
    with pytest.raises(ConfigError, match="1 sizes for a batch of 2"):
        model(image, None, [(64, 64)])
    for size in ((65, 64), (0, 4)):
        with pytest.raises(ConfigError, match="does not lie inside the batch's 64×64"):
            model(image, targets_of(model, NONE, NONE), [(64, 64), size])


class Pyramid(nn.Module):
    """Somebody else's backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = FeatureInfo([{"num_chs": 5, "reduction": 8}, {"num_chs": 6, "reduction": 16}])
        self.convs = nn.ModuleList([nn.Conv2d(3, 5, 8, 8), nn.Conv2d(5, 6, 2, 2)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self.convs[0](x)
        return [first, self.convs[1](first)]


def test_foreign_backbones() -> None:
    config = replace(CONFIG, backbone=None)
    model = build_detector(config, Pyramid()).eval()
    assert model.strides == [16, 32, 64] and model.min_size == 1
    assert len(model(torch.randn(1, 3, 64, 80))) == 1
    assert build_detector(replace(config, kind="faster_rcnn"), Pyramid()).strides == [8, 16, 32]

    single = Pyramid()
    single.feature_info = FeatureInfo([{"num_chs": 5, "reduction": 8}])
    with pytest.raises(ConfigError, match="1 maps are too few for retinanet"):
        build_detector(config, single)


def test_deeper_parts_learn_faster_with_layer_wise_decay() -> None:
    from timm.models import group_parameters

    model = build_detector(CONFIG)
    depths = group_parameters(model, model.group_matcher(), reverse=True)
    assert depths["backbone.stem.conv.weight"] < depths["backbone.stages.3.blocks.0.mlp.fc1.weight"]
    assert depths["neck.laterals.0.weight"] == max(depths.values())
    assert model.no_weight_decay() == set()
