"""What mmdetection computes with Mask R-CNN on PoolFormer, through the public loader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.factory import create_detector
from metaformer.models.detection.matcher import Sampler
from metaformer.models.detection.rcnn import BOX_ROI_SIDE, MASK_ROI_SIDE, RCNN, RPNOutputs
from metaformer.models.detection.roi_heads import assign_levels, mask_targets, pyramid_roi_align
from metaformer.models.detection.structures import Targets
from metaformer.weights.keymap import to_ours
from metaformer.weights.load import load_weights

GOLDEN = Path(__file__).parent / "golden_dense"
VECTORS = load_file(GOLDEN / "maskrcnn_tiny.safetensors")
LOSSES: dict[str, Any] = json.loads((GOLDEN / "maskrcnn_tiny.losses.json").read_text())
STATE = GOLDEN / "maskrcnn_tiny.state.safetensors"
TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28))
SIZE = (256, 320)
IMAGE = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(256320))
SECOND = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(8))
EVERY = {"rpn_batch_size": 1_000_000, "roi_batch_size": 1_000_000}
TOLERANCE, SECOND_STAGE_TOLERANCE, PIXELS = 1e-5, 5e-5, 2e-3
GRADIENT_TOLERANCE, NO_GRADIENT = 1e-4, 1e-2


def unpacked(name: str, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(VECTORS[name].numpy(), axis=-1, count=width)).bool()


def truth(name: str, count: int = 99) -> Targets:
    return Targets(
        VECTORS[f"loss.{name}_boxes"][:count],
        VECTORS[f"loss.{name}_labels"][:count],
        unpacked(f"loss.{name}_masks_packbits", SIZE[1])[:count],
    )


TWO, FIVE = truth("gt"), truth("gt5")


def tiny(**options: Any) -> RCNN:
    model = create_detector(
        "mask_rcnn",
        backbone=TINY,
        num_classes=7,
        fpn_dim=32,
        box_fc_dim=64,
        checkpoint_path=STATE,
        **options,
    ).eval()
    assert isinstance(model, RCNN)
    return model


def close(ours: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == expected.shape, what
    error = float((ours - expected).abs().max())
    assert error <= tolerance * float(expected.abs().max()), f"{what}: {error}"


def proposals(model: RCNN, outputs: RPNOutputs, pre_nms_topk: int = 1000) -> Tensor:
    (boxes,) = model.rpn.proposals(
        outputs.objectness,
        outputs.deltas,
        [SIZE],
        pre_nms_topk=pre_nms_topk,
        post_nms_topk=1000,
        iou_threshold=0.7,
    )
    return boxes


def test_the_whole_file_is_loaded() -> None:
    model = tiny()
    report = load_weights(model, STATE)
    assert report.format == "mmdetection" and report.complete and report.fraction == 1.0
    assert not report.fresh and not report.dropped and not report.adapted
    assert sum(parameter.numel() for parameter in model.parameters()) == LOSSES["params"]


@torch.no_grad()
def test_features_and_anchors() -> None:
    model = tiny()
    outputs = model.forward_head(IMAGE)
    for i, level in enumerate(model.backbone(IMAGE)):
        close(level, VECTORS[f"backbone.{i}"], f"features {i}")
    anchors = model.rpn.anchors.per_level([(level.shape[2], level.shape[3]) for level in outputs.features])
    for i, level in enumerate(outputs.features):
        close(level, VECTORS[f"neck.{i}"], f"level {i}")
        close(outputs.objectness[i], VECTORS[f"rpn_cls.{i}"], f"logits {i}")
        close(outputs.deltas[i], VECTORS[f"rpn_reg.{i}"], f"deltas {i}")
        assert torch.equal(anchors[i][:30], VECTORS[f"anchors.{i}.first30"])
        assert torch.equal(anchors[i].double().sum(0), VECTORS[f"anchors.{i}.sum"])


@torch.no_grad()
def test_proposals() -> None:
    model = tiny()
    outputs = model.forward_head(IMAGE)
    for candidates, name in ((1000, "proposals.all_boxes"), (100, "proposals_nmspre100.boxes")):
        ours, expected = proposals(model, outputs, candidates), VECTORS[name]
        assert ours.shape == expected.shape and float((ours - expected).abs().max()) < PIXELS


@torch.no_grad()
def test_the_second_stage() -> None:
    model = tiny()
    outputs = model.forward_head(IMAGE)
    boxes = proposals(model, outputs)
    levels = assign_levels(boxes, 4)
    assert torch.equal(levels[:50], VECTORS["roi.levels"])
    assert torch.bincount(levels, minlength=4).tolist() == LOSSES["roi_level_histogram"]
    pooled = pyramid_roi_align(outputs.features[:4], [boxes], model.strides[:4], BOX_ROI_SIDE)
    close(pooled[:4], VECTORS["roi.bbox_feats.first4"], "features")
    logits, deltas = model.box_predictor(model.box_head(pooled))
    close(logits[:10], VECTORS["roi.cls_score.first10"], "logits", SECOND_STAGE_TOLERANCE)
    close(deltas[:10].flatten(1), VECTORS["roi.bbox_pred.first10"], "deltas", SECOND_STAGE_TOLERANCE)
    assert int((logits.softmax(-1)[:, :-1] > 0.05).sum()) == LOSSES["over_thr"]


@pytest.mark.parametrize(
    ("name", "image", "original"),
    [
        ("det", SIZE, SIZE),
        ("det_img250x310_rescaleFalse", (250, 310), (250, 310)),
        ("det_img250x310_rescaleTrue", (250, 310), (125, 155)),
    ],
)
@torch.no_grad()
def test_detections(name: str, image: tuple[int, int], original: tuple[int, int]) -> None:
    (found,) = tiny().predict(IMAGE, [image], [original])
    assert torch.equal(found.labels, VECTORS[f"{name}.labels"])
    close(found.scores, VECTORS[f"{name}.scores"], "scores", SECOND_STAGE_TOLERANCE)
    assert float((found.boxes - VECTORS[f"{name}.boxes"]).abs().max()) < PIXELS
    masks = "mask.pasted_packbits" if name == "det" else f"{name}.masks_packbits"
    other = found[:10].paste(original) != unpacked(masks, original[1])
    assert int(other.sum()) <= 2  # of which places exactly at one half decide
    if name == "det":
        area = found.paste(SIZE).sum((1, 2)) - VECTORS["mask.pasted_area"]
        assert int(area.abs().sum()) <= 5


@torch.no_grad()
def test_masks() -> None:
    model = tiny()
    outputs = model.forward_head(IMAGE)
    (found,) = model.decode(outputs, [SIZE])
    assert found.masks is not None and model.mask_head is not None and model.mask_predictor is not None
    close(found.masks[:10], VECTORS["mask.probs_selected"], "probabilities", SECOND_STAGE_TOLERANCE)
    boxes = found.boxes[:10]
    assert torch.equal(assign_levels(boxes, 4), VECTORS["mask.roi_levels"])
    pooled = pyramid_roi_align(outputs.features[:4], [boxes], model.strides[:4], MASK_ROI_SIDE)
    close(pooled[:2], VECTORS["mask.roi_feats.first2"], "features", SECOND_STAGE_TOLERANCE)
    features = model.mask_head(pooled)
    logits, own = (
        model.mask_predictor(features),
        model.mask_predictor.forward_class(features, found.labels[:10]),
    )
    close(logits[:2], VECTORS["mask.logits_all_classes.first2"], "all classes", SECOND_STAGE_TOLERANCE)
    close(own, VECTORS["mask.logits_selected"], "logits", SECOND_STAGE_TOLERANCE)


class Spy:
    """A sampler that records what it chose."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.chosen, self.objects = sampler, [Tensor()] * 2, Tensor()

    def __call__(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        positives, negatives = self.sampler(matches)
        self.chosen, self.objects = [positives, negatives], matches[positives]
        return positives, negatives


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "counts", "targets"), [("all", "loss_all_counts", TWO), ("gt5", "loss_all_gt5_counts", FIVE)]
)
def test_targets(name: str, counts: str, targets: Targets) -> None:
    model = tiny(**EVERY)
    rpn, second = Spy(model.rpn.sampler), Spy(model.sampler)
    model.rpn.sampler, model.sampler = rpn, second
    model(IMAGE, [targets])
    figures = LOSSES[counts]
    assert [len(chosen) for chosen in rpn.chosen] == [figures["rpn_pos"], figures["rpn_neg"]]
    assert [len(chosen) for chosen in second.chosen] == [figures["rcnn_pos"], figures["rcnn_neg"]]
    assert torch.equal(rpn.chosen[0], VECTORS[f"loss.{name}.rpn_pos_inds"])
    assert torch.equal(second.objects, VECTORS[f"loss.{name}.rcnn_pos_gt_index"])
    candidates = torch.cat([targets.boxes, proposals(model, model.forward_head(IMAGE), 2000)])
    boxes = candidates[torch.cat(second.chosen)]
    expected = VECTORS[f"loss.{name}.rcnn_priors" if name == "all" else f"loss.{name}.rcnn_pos_priors"]
    assert float((boxes[: len(expected)] - expected).abs().max()) < PIXELS
    assert targets.masks is not None
    masks = mask_targets(targets.masks, boxes[: len(second.objects)], second.objects)
    assert torch.equal(masks.byte(), VECTORS[f"loss.{name}.mask_targets"])


@pytest.mark.parametrize(
    ("name", "images", "targets"),
    [
        ("loss_all", IMAGE, [TWO]),
        ("loss_all_gt5", IMAGE, [FIVE]),
        (
            "loss_all_batch2",
            torch.cat([IMAGE, SECOND]),
            [TWO, Targets(TWO.boxes[:1], torch.tensor([1]), TWO.masks[:1])],
        ),
        ("loss_all_no_gt", IMAGE, [truth("gt", 0)]),
    ],
)
@torch.no_grad()
def test_losses(name: str, images: Tensor, targets: list[Targets]) -> None:
    check_losses(tiny(**EVERY)(images, targets), LOSSES[name])


def test_gradients() -> None:
    model = tiny(**EVERY)
    losses = model(IMAGE, [TWO])
    assert losses["loss"].item() == pytest.approx(LOSSES["loss_all_total"], rel=TOLERANCE)
    losses["loss"].backward()
    check_gradients(model, LOSSES["loss_all_grads"])


def test_sampled_losses_and_gradients() -> None:
    """With the draw that was recorded: the divisors of the samples."""
    model = tiny()
    with torch.no_grad():
        candidates = torch.cat([TWO.boxes, proposals(model, model.forward_head(IMAGE), 2000)])
    recorded = VECTORS["loss.seeded.rcnn_priors"]
    distance, index = (recorded[:, None] - candidates).abs().amax(2).min(1)
    assert float(distance.max()) < PIXELS and len(index.unique()) == len(index)
    positives = int(VECTORS["loss.seeded.rcnn_num_pos"])
    rpn = VECTORS["loss.seeded.rpn_pos_inds"], VECTORS["loss.seeded.rpn_neg_inds"]
    model.rpn.sampler = lambda matches: rpn
    model.sampler = lambda matches: (index[:positives], index[positives:])
    losses = model(IMAGE, [TWO])
    check_losses(losses, LOSSES["loss_seeded"])
    losses["loss"].backward()
    check_gradients(model, LOSSES["loss_seeded_grads"])


def check_losses(losses: dict[str, Tensor], expected: dict[str, Any]) -> None:
    figures = {name: sum(value) if isinstance(value, list) else value for name, value in expected.items()}
    del figures["acc"]
    assert set(losses) == {"loss", *figures}
    for part, value in figures.items():
        assert losses[part].item() == pytest.approx(value, rel=TOLERANCE, abs=1e-7), part
    assert losses["loss"].item() == pytest.approx(sum(figures.values()), rel=TOLERANCE)


def check_gradients(model: RCNN, expected: dict[str, dict[str, Any]]) -> None:
    """Norm, sum and first numbers of each; the recorded stack freezes the stem (fact 3)."""
    origin = to_ours(load_file(STATE)).origin
    for name, parameter in model.named_parameters():
        if origin[name] not in expected:
            assert name.startswith("backbone.stem.")
            continue
        figures, gradient = expected[origin[name]], parameter.grad
        assert gradient is not None, name
        allowed = GRADIENT_TOLERANCE * max(NO_GRADIENT, figures["l2"])
        first = torch.tensor(figures["first"])
        assert float((gradient.flatten()[: len(first)] - first).abs().max()) <= allowed, name
        assert abs(float(gradient.double().norm()) - figures["l2"]) <= allowed, name
        assert abs(float(gradient.double().sum()) - figures["sum"]) <= allowed * gradient.numel() ** 0.5, name
