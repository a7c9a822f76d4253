"""Faster R-CNN and Mask R-CNN as a whole; tests/test_golden_mask_rcnn.py has their numbers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.rcnn import PyramidMaps, TwoStage
from metaformer.models.detection.structures import Targets

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
SIZE = (96, 128)
TWO_STAGE = ("faster_rcnn", "mask_rcnn")


def tiny(kind: str = "mask_rcnn", **options: Any) -> TwoStage:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_classes": 3, "fpn_dim": 16, "box_fc_dim": 24, "proposals": 50, **options}
    return TwoStage(DetectorConfig(kind=kind, backbone=TINY, **given))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def objects(boxes: list[list[float]], **more: Any) -> Targets:
    """Targets whose masks fill their boxes; the labels are 0."""
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    places = torch.tensor(boxes).reshape(-1, 4)
    return Targets(places, torch.zeros(len(boxes), dtype=torch.int64), masks, **more)


TWO = objects([[10, 20, 60, 80], [50.5, 30, 120, 90.25]])
NONE = objects([])


@pytest.mark.parametrize("kind", TWO_STAGE)
def test_results_are_boxes_in_the_images_with_masks_if_learned(kind: str) -> None:
    model = tiny(kind, max_detections=7).eval()
    found = model(images(), image_sizes=[(80, 128), SIZE])
    for one, (height, width) in zip(found, [(80, 128), SIZE], strict=True):
        assert len(one) == 7 and not one.boxes.requires_grad
        assert (one.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (one.scores[1:] <= one.scores[:-1]).all() and set(one.labels.tolist()) <= {0, 1, 2}
        assert (one.masks is None) == (kind == "faster_rcnn")
    if kind == "mask_rcnn":
        assert found[0].masks.shape == (7, 28, 28) and found[0].paste((80, 128)).any()


def test_an_image_is_read_alike_alone_and_in_a_batch() -> None:
    model = tiny().eval()
    together = model(images())
    for i, one in enumerate(together):
        (alone,) = model(images()[i : i + 1])
        assert torch.equal(one.labels, alone.labels)
        assert torch.allclose(one.boxes, alone.boxes, atol=1e-3)
        assert torch.allclose(one.masks, alone.masks, atol=1e-4)


def test_boxes_are_told_in_the_original_images_pixels_and_masks_stay() -> None:
    model = tiny().eval()
    raw = model.raw(images(1))
    (here,), (there,) = model.decode(raw, [SIZE]), model.decode(raw, [SIZE], [(48, 256)])
    assert torch.allclose(there.boxes, here.boxes * torch.tensor([2, 0.5, 2, 0.5]))
    assert torch.equal(here.masks, there.masks)


@pytest.mark.parametrize("kind", TWO_STAGE)
@pytest.mark.parametrize(
    "targets", [[TWO, NONE], [NONE, NONE]], ids=["an image without objects", "no object"]
)
def test_every_parameter_has_a_finite_gradient(kind: str, targets: list[Targets]) -> None:
    model = tiny(kind).train()
    losses = model(images(), targets)
    losses["loss"].backward()
    assert set(losses) == {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"} | (
        {"loss_mask"} if kind == "mask_rcnn" else set()
    )
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_network_without_proposals_finds_nothing_and_learns_from_the_objects() -> None:
    model = tiny()
    nn.init.constant_(model.rpn.head.bbox_pred.bias, -1e4)  # all boxes lie beyond the corner
    for one in model.eval()(images()):
        assert len(one) == 0 and one.masks.shape == (0, 28, 28)
    for targets in ([TWO, NONE], [NONE, NONE]):
        model.zero_grad()
        losses = model.train()(images(), targets)
        assert all(loss.isfinite() for loss in losses.values())
        losses["loss"].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_is_above_the_threshold() -> None:
    for one in tiny(score_threshold=0.99).eval()(images()):
        assert len(one) == 0 and one.paste(SIZE).shape == (0, *SIZE)


def test_one_class_and_boxes_of_a_pixel() -> None:
    model = tiny(num_classes=1)
    small = objects([[5, 5, 6, 6], [100, 50, 101.5, 51], [0, 0, 0.25, 0.25]])
    losses = model(images(), [small, TWO])
    losses["loss"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all((one.labels == 0).all() for one in model.eval()(images()))


def test_crowds_teach_nothing() -> None:
    model = tiny(roi_batch_size=1_000_000, rpn_samples=1_000_000)
    crowded = objects(
        [[10, 20, 60, 80], [0, 0, 128, 96], [50.5, 30, 120, 90.25]], crowd=torch.tensor([False, True, False])
    )
    expected, found = model(images(1), [TWO]), model(images(1), [crowded])
    assert all(found[name] == loss for name, loss in expected.items())


def test_samples_follow_torchs_generator() -> None:
    model = tiny(roi_batch_size=8, rpn_samples=8)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(images(), [TWO, TWO])["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_masks_that_are_missing_are_told() -> None:
    boxes = Targets(TWO.boxes, TWO.labels)
    with pytest.raises(ConfigError, match="masks=True"):
        tiny()(images(1), [boxes])
    assert tiny("faster_rcnn")(images(1), [boxes])["loss"].isfinite()


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_may_end_before_results_are_made(inside: bool) -> None:
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images(), [TWO, NONE])
        raw = model.raw(images())
        assert raw.maps[0].dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        found = model.decode(raw, [SIZE] * 2)
    losses["loss"].backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(one.masks.dtype == one.boxes.dtype == torch.float32 for one in found)


def test_what_raw_gives_can_be_exported() -> None:
    model = tiny().eval()

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> PyramidMaps:
            return self.model.raw(x)

    exported = torch.export.export(Raw(), (images(),)).module()
    with torch.no_grad():
        given, expected = exported(images()), model.raw(images())
    (one, _), (other, _) = model.decode(given, [SIZE] * 2), model.decode(expected, [SIZE] * 2)
    assert torch.allclose(one.boxes, other.boxes, atol=1e-3) and torch.equal(one.labels, other.labels)


def test_a_copy_is_the_same_network_of_its_own() -> None:
    model = tiny().eval()
    twin = copy.deepcopy(model)
    nn.init.zeros_(model.box_predictor.cls_score.weight)
    assert twin.box_predictor.cls_score.weight.any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of dynamo, behind a graph's break
@pytest.mark.parametrize("kind", TWO_STAGE)
def test_training_and_results_come_out_of_torch_compile(kind: str) -> None:
    torch.compiler.reset()
    model = tiny(kind, roi_batch_size=1_000_000, rpn_samples=1_000_000).train()
    compiled = torch.compile(model, backend="aot_eager")
    losses = compiled(images(), [TWO, NONE])
    assert losses["loss"].item() == pytest.approx(model(images(), [TWO, NONE])["loss"].item(), rel=1e-5)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for ours, expected in zip(compiled.eval()(images()), model(images()), strict=True):
        assert torch.equal(ours.labels, expected.labels)


@pytest.mark.gpu
def test_a_device_gives_the_same() -> None:
    model = tiny(roi_batch_size=1_000_000, rpn_samples=1_000_000).eval()
    (expected, _), losses = model(images()), model(images(), [TWO, NONE])
    model.cuda()
    targets = [TWO.to("cuda"), NONE.to("cuda")]
    (found, _), there = model(images().cuda()), model(images().cuda(), targets)
    assert torch.allclose(found.boxes[:10].cpu(), expected.boxes[:10], atol=0.1)
    for name, loss in losses.items():
        assert there[name].item() == pytest.approx(loss.item(), rel=1e-2), name
