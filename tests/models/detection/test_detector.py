"""Detectors, their configuration and pyramid."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import FeatureInfo
from metaformer.errors import ConfigError, SizeError
from metaformer.models.build import build_network
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.retinanet import RetinaNet
from metaformer.models.detection.structures import Targets
from metaformer.models.fpn import DetectionPyramid

VALID = DetectorConfig(kind="mask_rcnn", backbone=MetaFormerConfig(), num_classes=3, score_threshold=0.3)


def test_defaults_depend_on_the_kind() -> None:
    assert replace(VALID, kind="retinanet").anchor_size == 4 and VALID.anchor_size == 8
    assert replace(VALID, anchor_scale=2).anchor_size == 2
    assert VALID.head_channels == 256 and replace(VALID, head_dim=32).head_channels == 32
    assert VALID.has_masks and not replace(VALID, kind="faster_rcnn").has_masks


def test_json_and_back() -> None:
    assert DetectorConfig.from_dict(json.loads(json.dumps(VALID.to_dict()))) == VALID


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "yolo", "kind 'yolo'"),
        ("backbone", "poolformer_s12", "backbone"),
        ("num_classes", 0, "num_classes: 0"),
        ("fpn_dim", None, "fpn_dim: None"),
        ("head_dim", True, "head_dim: True"),
        ("rpn_post_nms_topk", 1.5, "rpn_post_nms_topk: 1.5"),
        ("score_threshold", 1.1, "from 0 to 1"),
        ("nms_threshold", "0.5", "from 0 to 1"),
        ("anchor_scale", 0, "above 0"),
        ("anchor_scale", float("nan"), "anchor_scale"),
    ],
)
def test_wrong_values_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(VALID, **{field: value})


def test_unknown_fields_and_a_missing_backbone() -> None:
    with pytest.raises(ConfigError, match="anchor_scale"):
        DetectorConfig.from_dict({**VALID.to_dict(), "anchor_scales": 3})
    with pytest.raises(ConfigError, match=r"^backbone: "):
        DetectorConfig.from_dict({"kind": "retinanet"})
    with pytest.raises(ConfigError, match="cannot be saved"):
        DetectorConfig().to_dict()


FEATURES = [torch.randn(2, dim, side, side + 3) for dim, side in ((5, 13), (6, 7), (8, 4))]


def test_an_extra_level_by_subsampling() -> None:
    pyramid = DetectionPyramid((5, 6, 8), 12)
    levels = pyramid(FEATURES)
    assert pyramid.extra_levels == 1 and [tuple(level.shape[1:]) for level in levels] == [
        (12, 13, 16), (12, 7, 10), (12, 4, 7), (12, 2, 4),
    ]  # fmt: skip
    assert torch.equal(levels[-1], levels[-2][..., ::2, ::2])


def test_extra_convolutions_on_the_backbones_last_features() -> None:
    pyramid = DetectionPyramid((5, 6, 8), 12, convs=True)
    *_, p6, p7 = pyramid(FEATURES)
    assert pyramid.extra_levels == 2 and p6.shape == (2, 12, 2, 4) and p7.shape == (2, 12, 1, 2)
    assert pyramid.extra is not None
    assert torch.equal(p6, pyramid.extra.p6(FEATURES[-1])) and torch.equal(p7, pyramid.extra.p7(p6))


def test_one_position_is_enough() -> None:
    for convs in (False, True):
        levels = DetectionPyramid((4,), 4, convs=convs)([torch.randn(1, 4, 1, 1)])
        assert all(level.shape == (1, 4, 1, 1) for level in levels)


TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = DetectorConfig(
    backbone=TINY, num_classes=7, fpn_dim=12, box_fc_dim=8, rpn_post_nms_topk=50, rpn_batch_size=1_000_000,
    roi_batch_size=1_000_000,
)  # fmt: skip
SIZE = (64, 96)
LOSSES = {"loss", "loss_cls", "loss_bbox"}
RCNN_LOSSES = LOSSES | {"loss_rpn_cls", "loss_rpn_bbox"}


def build(kind: str, **options: Any) -> Detector:
    """A detector that finds something with random weights."""
    torch.manual_seed(0)
    model = build_network(replace(CONFIG, kind=kind, **options))
    if isinstance(model, RetinaNet):
        logits = model.head.classification_head.cls_logits
        nn.init.constant_(logits.bias, -2.0)
        nn.init.normal_(logits.weight, std=0.3)
    return model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Detector:
    return build(request.param)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def targets(boxes: list[list[float]], labels: list[int], **fields: Any) -> Targets:
    """Objects whose masks fill their boxes."""
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(corners, torch.tensor(labels, dtype=torch.int64), masks, **fields)


TWO = targets([[3.0, 4, 40, 50], [20, 10, 60, 60]], [2, 6])
NONE = targets([], [])


def test_detections_lie_in_their_images_best_first(model: Detector) -> None:
    sizes = [(60, 96), (41, 90)]
    model.config = replace(model.config, max_detections=7)
    for found, (height, width) in zip(model.eval()(images(), image_sizes=sizes), sizes, strict=True):
        assert len(found) == 7 and not found.boxes.requires_grad
        assert (found.scores[:-1] >= found.scores[1:]).all() and found.scores[-1] > 0.05
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all() and (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert found.labels.min() >= 0 and found.labels.max() < 7
        assert (found.masks is not None) == model.has_masks == (model.config.kind == "mask_rcnn")
        if found.masks is not None:
            assert found.masks.shape == (7, 28, 28) and found.paste((height, width)).any()


def test_a_batch_gives_the_results_of_its_images(model: Detector) -> None:
    for together, image in zip(model.eval()(images()), images(), strict=True):
        (alone,) = model(image[None])
        assert torch.equal(together.labels, alone.labels)
        assert torch.allclose(together.boxes, alone.boxes, atol=1e-3)
        if together.masks is not None:
            assert torch.allclose(together.masks, alone.masks, atol=1e-4)


def test_original_sizes_scale_boxes_and_leave_masks(model: Detector) -> None:
    outputs = model.eval().forward_head(images(1))
    (here,), (there,) = model.decode(outputs, [SIZE]), model.decode(outputs, [SIZE], [(32, 192)])
    assert torch.allclose(there.boxes, here.boxes * torch.tensor([2, 0.5, 2, 0.5]))
    assert here.masks is None or torch.equal(here.masks, there.masks)
    (predicted,) = model.predict(images(1), original_sizes=[(32, 192)])
    assert torch.equal(predicted.boxes, there.boxes)


@pytest.mark.parametrize("objects", [(TWO, NONE), (NONE, NONE)], ids=["some", "none"])
def test_losses_are_finite_and_gradients_reach_every_parameter(
    model: Detector, objects: tuple[Targets, ...]
) -> None:
    losses = model.train()(images(), objects)
    names = {"retinanet": LOSSES, "faster_rcnn": RCNN_LOSSES, "mask_rcnn": RCNN_LOSSES | {"loss_mask"}}
    assert set(losses) == names[model.config.kind]
    assert losses["loss"].item() == pytest.approx(sum(v.item() for k, v in losses.items() if k != "loss"))
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert name.startswith("backbone.norms.0.") and model.config.kind == "retinanet"


def test_crowds_are_not_trained(model: Detector) -> None:
    crowd = targets(
        [[3, 4, 40, 50], [0, 0, 96, 64], [20, 10, 60, 60]], [2, 0, 6], crowd=torch.tensor([0, 1, 0]).bool()
    )
    assert model(images(1), [crowd]) == model(images(1), [TWO])


def test_empty_and_small_images(model: Detector) -> None:
    for size in (SIZE, (3, 3), (5, 200)):
        found = model.eval()(torch.zeros(2, 3, *size))
        assert len(found) == 2 and all(one.scores.dtype == torch.float32 for one in found)
    assert len(model.decode(model.forward_head(torch.zeros(1, 3, *SIZE)), [(1, 1)], [(1, 1)])) == 1
    with pytest.raises(SizeError, match="at least 3×3"):
        model(torch.zeros(1, 3, 2, 2))


def test_one_class_and_boxes_of_a_pixel() -> None:
    small = targets([[5, 5, 6, 6], [80, 50, 81.5, 51], [0, 0, 0.25, 0.25]], [0] * 3)
    for kind in KINDS:
        model = build(kind, num_classes=1)
        losses = model(images(), [small, replace(TWO, labels=TWO.labels * 0)])
        losses["loss"].backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert all((one.labels == 0).all() for one in model.eval()(images()))


@pytest.mark.parametrize("sizes", [[SIZE], [SIZE, (65, 64)], [(0, 4), SIZE]])
def test_image_sizes_are_checked(model: Detector, sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="image_sizes"):
        model(images(), None, sizes)
    with pytest.raises(ConfigError, match="image_sizes"):
        model(images(), [NONE, NONE], sizes)


@pytest.mark.parametrize(
    ("count", "wrong", "error"),
    [
        (2, [TWO], "1 images for a batch of 2"),
        (0, [], "batch of 0"),
        (1, [replace(TWO, labels=torch.tensor([0, 7]))], "label"),
    ],
)
def test_targets_are_checked(model: Detector, count: int, wrong: list[Targets], error: str) -> None:
    with pytest.raises(ConfigError, match=f"targets: .*{error}"):
        model(images(count), wrong)


def test_missing_masks_name_the_remedy() -> None:
    boxes = Targets(TWO.boxes, TWO.labels)
    with pytest.raises(ConfigError, match="masks=True"):
        build("mask_rcnn")(images(1), [boxes])
    assert build("faster_rcnn")(images(1), [boxes])["loss"].isfinite()


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_may_end_before_decoding(model: Detector, inside: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images(), [TWO, NONE])
        outputs = model.forward_head(images())
        assert outputs.deltas[0].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        found = model.decode(outputs, [SIZE] * 2)
    losses["loss"].backward()
    exact = model(images(), [TWO, NONE])
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact[name].item(), rel=0.1)
    assert all(one.boxes.dtype == one.scores.dtype == torch.float32 for one in found)
    assert all(one.masks is None or one.masks.dtype == torch.float32 for one in found)


class Exported(nn.Module):
    """What is exported: tensors alone."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model.forward_head(x)


@torch.no_grad()
def test_forward_head_compiles_whole_and_exports_with_dynamic_sizes(model: Detector) -> None:
    torch.compiler.reset()
    example = torch.randn(2, 3, 256, 320)
    dims = {0: torch.export.Dim("batch", min=1, max=8), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(Exported(model.eval()), (example,), dynamic_shapes=(dims,)).module()
    compiled = torch.compile(model.forward_head, backend="aot_eager", fullgraph=True)
    for run, image in ((exported, torch.randn(3, 3, 400, 288)), (compiled, example)):
        for ours, expected in zip(run(image), model.forward_head(image), strict=True):
            assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(ours, expected, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of dynamo, behind a graph break
def test_training_and_prediction_compile(model: Detector) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model.train(), backend="aot_eager")
    losses = compiled(images(), [TWO, NONE])
    assert losses["loss"].item() == pytest.approx(model(images(), [TWO, NONE])["loss"].item(), rel=1e-5)
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    for ours, expected in zip(compiled(images()), model(images()), strict=True):
        assert torch.equal(ours.labels, expected.labels)


@pytest.mark.gpu
def test_a_device_gives_the_same(model: Detector) -> None:
    (expected, _), losses = model.eval()(images()), model(images(), [TWO, NONE])
    model.cuda()
    (found, _), there = (
        model(images().cuda()), model(images().cuda(), [TWO.to("cuda"), NONE.to("cuda")])
    )  # fmt: skip
    assert torch.allclose(found.boxes[:10].cpu(), expected.boxes[:10], atol=0.1)
    for name, loss in losses.items():
        assert there[name].item() == pytest.approx(loss.item(), rel=1e-2), name


def test_a_copy_has_parameters_of_its_own(model: Detector) -> None:
    twin = copy.deepcopy(model)
    nn.init.zeros_(model.neck.laterals[0].weight)  # type: ignore[arg-type]
    assert twin.neck.laterals[0].weight.any()  # type: ignore[operator, union-attr]


class Pyramid(nn.Module):
    """A backbone from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = FeatureInfo([{"num_chs": 5, "reduction": 8}, {"num_chs": 6, "reduction": 16}])
        self.convs = nn.ModuleList([nn.Conv2d(3, 5, 8, 8), nn.Conv2d(5, 6, 2, 2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.convs[0](x)
        return [first, self.convs[1](first)]


def test_foreign_backbones() -> None:
    config = replace(CONFIG, backbone=None)
    model = build_network(config, Pyramid()).eval()
    assert model.strides == [16, 32, 64] and model.min_size == 1
    assert len(model(torch.randn(1, 3, 64, 80))) == 1
    assert build_network(replace(config, kind="faster_rcnn"), Pyramid()).strides == [8, 16, 32]

    single = Pyramid()
    single.feature_info = FeatureInfo([{"num_chs": 5, "reduction": 8}])
    with pytest.raises(ConfigError, match="backbone: 1 levels"):
        build_network(config, single)


def test_layer_wise_decay_goes_by_depth() -> None:
    from timm.models import group_parameters

    model = build_network(CONFIG)
    depths = group_parameters(model, model.group_matcher(), reverse=True)
    assert depths["backbone.stem.conv.weight"] < depths["backbone.stages.3.blocks.0.mlp.fc1.weight"]
    assert depths["neck.laterals.0.weight"] == max(depths.values())
    assert model.no_weight_decay() == set()
