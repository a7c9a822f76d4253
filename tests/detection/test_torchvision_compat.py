"""torchvision's detectors in this library's interface are torchvision's."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from metaformer.backbones.config import MetaFormerConfig
from metaformer.detection.config import KINDS, DetectorConfig
from metaformer.detection.detector import Detector, build_detector
from metaformer.detection.results import Targets
from metaformer.detection.torchvision_compat import PARTS

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CLASSES, DIM, SIZE = 5, 16, (192, 256)
OPTIONS: dict[str, Any] = {"fpn_dim": DIM, "box_fc_dim": 32, "proposals": 200, "score_threshold": 0.1}


def ours(kind: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    model = build_detector(
        DetectorConfig(
            kind=kind, backbone=TINY, num_classes=CLASSES, compat="torchvision", **(OPTIONS | options)
        )
    )
    with torch.no_grad():  # a network that says something
        for name, parameter in model.named_parameters():
            if name.startswith("head.") and name.endswith("weight"):
                parameter.mul_(10)
            if name.endswith("classification_head.cls_logits.bias"):
                parameter.fill_(-2)
    return model


class Levels(nn.Module):
    """A backbone as torchvision wants it."""

    out_channels = DIM

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), level) for i, level in enumerate(self.model.maps(x)))


def theirs(model: Detector) -> nn.Module:
    """The same network built by torchvision's classes alone, which takes pictures as they are."""
    whole: Any
    shared = {"image_mean": (0, 0, 0), "image_std": (1, 1, 1), "box_detections_per_img": 100}
    if model.config.kind == "retinanet":
        del shared["box_detections_per_img"]
        whole = RetinaNet(Levels(model), CLASSES, score_thresh=0.1, detections_per_img=100, **shared)
        whole.head.load_state_dict(model.head.state_dict())
    else:
        shared |= {
            "box_score_thresh": 0.1,
            "rpn_post_nms_top_n_train": 200,
            "rpn_post_nms_top_n_test": 200,
            "box_head": TwoMLPHead(DIM * 49, 32),
            "box_predictor": FastRCNNPredictor(32, CLASSES + 1),
        }
        build: Any = FasterRCNN
        if model.has_masks:
            build = MaskRCNN
            shared["mask_head"] = MaskRCNNHeads(DIM, (DIM,) * 4, 1)
            shared["mask_predictor"] = MaskRCNNPredictor(DIM, DIM, CLASSES + 1)
        whole = build(Levels(model), **shared)
        whole.rpn.load_state_dict(model.rpn.state_dict())
        for name in ("box_head", "box_predictor", "mask_head", "mask_predictor"):
            if getattr(model, name) is not None:
                getattr(whole.roi_heads, name).load_state_dict(getattr(model, name).state_dict())
    whole.transform.resize = lambda image, target=None: (image, target)
    return whole.train(model.training)


def targets(masks: bool, empty: bool = False) -> list[Targets]:
    boxes = torch.tensor([[10.0, 20, 90, 120], [60, 30, 200, 100], [100, 50, 130, 90]])
    drawn = torch.zeros(3, *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(drawn, boxes.int().tolist(), strict=True):
        mask[top : bottom - 10, left : right - 5] = True
    both = []
    for chosen in (slice(0, 3), slice(0, 0) if empty else slice(1, 2)):
        labels = torch.tensor([0, 4, 2])[chosen]
        both.append(Targets(boxes[chosen], labels, drawn[chosen] if masks else None))
    return both


def as_theirs(target: Targets, shift: int) -> dict[str, Tensor]:
    masks = {} if target.masks is None else {"masks": target.masks.byte()}
    return {"boxes": target.boxes, "labels": target.labels + shift, **masks}


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "a picture without one"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_theirs(kind: str, empty: bool) -> None:
    model = ours(kind).train()
    direct, wanted = theirs(model), targets(model.has_masks, empty)
    torch.manual_seed(1)
    images = torch.randn(2, 3, *SIZE)
    torch.manual_seed(2)
    found = model(images, wanted)
    torch.manual_seed(2)
    expected = direct(list(images), [as_theirs(one, int(kind != "retinanet")) for one in wanted])
    assert set(found) == {"loss", *(PARTS[name] for name in expected)}
    for name, loss in expected.items():
        assert loss.item() > 0 and found[PARTS[name]].item() == loss.item(), name
    assert found["loss"].item() == pytest.approx(sum(expected.values()).item(), rel=1e-6)
    found["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_detections_are_theirs_in_pictures_of_several_sizes(kind: str) -> None:
    model = ours(kind).eval()
    direct, sizes = theirs(model), [(192, 200), (150, 256)]
    torch.manual_seed(1)
    images = torch.zeros(2, 3, *SIZE)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    found = model(images, image_sizes=sizes)
    cut = [image[:, :height, :width] for image, (height, width) in zip(images, sizes, strict=True)]
    for one, other, size in zip(found, direct(cut), sizes, strict=True):
        assert len(one) > 10
        assert torch.equal(one.boxes, other["boxes"]) and torch.equal(one.scores, other["scores"])
        assert torch.equal(one.labels, other["labels"] - int(kind != "retinanet"))
        if model.has_masks:
            assert one.masks is not None
            pasted = paste_masks_in_image(one.masks[:, None], one.boxes, size)
            assert torch.equal(pasted, other["masks"])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_boxes_are_told_in_the_original_pictures_pixels(kind: str) -> None:
    model = ours(kind).eval()
    image = torch.randn(1, 3, *SIZE)
    (there,) = model.detect(image, [SIZE])
    (here,) = model.detect(image, [SIZE], [(96, 512)])
    assert torch.allclose(here.boxes, there.boxes * torch.tensor([2, 0.5, 2, 0.5]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mode_changes_neither_losses_nor_detections(kind: str) -> None:
    """There, the mode decides which of the two are given, and how many proposals there are."""
    model, images = ours(kind), torch.randn(2, 3, *SIZE)
    results = []
    for training in (True, False):
        model.train(training)
        torch.manual_seed(0)
        losses = model(images, targets(model.has_masks))
        results.append((losses["loss"].item(), [one.boxes for one in model(images)]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_other_compats_names(kind: str) -> None:
    other = build_detector(DetectorConfig(kind=kind, backbone=TINY, num_classes=CLASSES, **OPTIONS))
    assert set(ours(kind).state_dict()) == set(other.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_float32_under_autocast(kind: str) -> None:
    model, images = ours(kind), torch.randn(2, 3, *SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, targets(model.has_masks))
        raw = model.raw(images)
        inside = model.decode(raw, [SIZE] * 2)
    losses["loss"].backward()
    outside = model.decode(raw, [SIZE] * 2)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert all(anchors.dtype == torch.float32 for anchors in raw.anchors)
    for found in (*inside, *outside):
        assert found.boxes.dtype == found.scores.dtype == torch.float32


class Raw(nn.Module):
    """What is exported: tensors alone."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model.raw(x)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_raw_gives_can_be_exported(kind: str) -> None:
    model, image = ours(kind).eval(), torch.randn(1, 3, *SIZE)
    exported = torch.export.export(Raw(model), (image,)).module()
    (one,), (other,) = model.decode(exported(image), [SIZE]), model.decode(model.raw(image), [SIZE])
    assert len(one) and torch.equal(one.labels, other.labels)
    assert torch.allclose(one.boxes, other.boxes, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of dynamo, behind a graph's break
@pytest.mark.parametrize("kind", KINDS)
def test_training_comes_out_of_torch_compile(kind: str) -> None:
    torch.compiler.reset()
    model, images = ours(kind).train(), torch.randn(2, 3, *SIZE)
    losses = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        torch.manual_seed(0)
        losses.append(run(images, targets(model.has_masks))["loss"])
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    losses[1].backward()
