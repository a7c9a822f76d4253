"""mmdetection's numbers: single functions, and RetinaNet and Mask R-CNN from converted files."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.factory import create_detector
from metaformer.models.detection.anchors import Anchors, BoxCoder
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.matcher import IGNORED, Matcher, Sampler, iou
from metaformer.models.detection.nms import batched_nms
from metaformer.models.detection.rcnn import BOX_ROI_SIDE, MASK_ROI_SIDE, RCNN, RPNOutputs
from metaformer.models.detection.retinanet import SCALES_PER_OCTAVE, RetinaNet, focal_loss
from metaformer.models.detection.roi_heads import assign_levels, mask_targets, pyramid_roi_align
from metaformer.models.detection.structures import Detections, Targets, level_shapes
from metaformer.weights.keymap import to_ours
from metaformer.weights.load import load_weights

GOLDEN = Path(__file__).parent / "golden_dense"
UNITS = load_file(GOLDEN / "units.safetensors")
TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28))
SIZE = (256, 320)
IMAGE, SECOND = (
    torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (256320, 8)
)
SCALES = [4 * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALES_PER_OCTAVE)]
ANCHORS = {
    "retina": Anchors((8, 16, 32, 64, 128), SCALES),
    "rpn": Anchors((4, 8, 16, 32, 64), (8,)),
}
TOLERANCE, SECOND_STAGE_TOLERANCE, GRADIENT_TOLERANCE, PIXELS = 1e-5, 5e-5, 1e-4, 2e-3
EVERY = {"rpn_batch_size": 1_000_000, "roi_batch_size": 1_000_000}
"""Options without random sampling."""


class Golden(NamedTuple):
    """What mmdetection recorded of one network."""

    vectors: dict[str, Tensor]
    losses: dict[str, Any]
    state: Path
    small_gradient: float
    """Norm below which errors of a gradient are not relative to it."""
    score_tolerance: float


def golden(name: str, small_gradient: float, score_tolerance: float) -> Golden:
    losses = json.loads((GOLDEN / f"{name}_tiny.losses.json").read_text())
    state = GOLDEN / f"{name}_tiny.state.safetensors"
    return Golden(
        load_file(GOLDEN / f"{name}_tiny.safetensors"), losses, state, small_gradient, score_tolerance
    )


RETINANET = golden("retinanet", 1e-3, TOLERANCE)
MASK_RCNN = golden("maskrcnn", 1e-2, SECOND_STAGE_TOLERANCE)
NETWORKS = {"retinanet": RETINANET, "mask_rcnn": MASK_RCNN}


def retinanet(**options: Any) -> RetinaNet:
    model = tiny("retinanet", **options)
    assert isinstance(model, RetinaNet)
    return model


def mask_rcnn(**options: Any) -> RCNN:
    model = tiny("mask_rcnn", **options)
    assert isinstance(model, RCNN)
    return model


def tiny(kind: str, **options: Any) -> Detector:
    sizes = {"num_classes": 7, "fpn_dim": 32, "box_fc_dim": 64}
    return create_detector(kind, TINY, checkpoint_path=NETWORKS[kind].state, **sizes, **options).eval()


def unpacked(name: str, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(MASK_RCNN.vectors[name].numpy(), axis=-1, count=width)).bool()


def objects(kind: str, name: str, count: int = 99) -> Targets:
    vectors = NETWORKS[kind].vectors
    masks = unpacked(f"loss.{name}_masks_packbits", SIZE[1])[:count] if kind == "mask_rcnn" else None
    return Targets(vectors[f"loss.{name}_boxes"][:count], vectors[f"loss.{name}_labels"][:count], masks)


TWO = {kind: objects(kind, "gt5", 2) if kind == "retinanet" else objects(kind, "gt") for kind in NETWORKS}
FIVE = {kind: objects(kind, "gt5") for kind in NETWORKS}


def close(ours: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == expected.shape, what
    error = float((ours - expected).abs().max())
    assert error <= tolerance * float(expected.abs().max()), f"{what}: {error}"


@pytest.mark.parametrize("kind", ANCHORS)
def test_anchors_are_equal_on_odd_levels(kind: str) -> None:
    wanted = {
        name.split(".")[3]: value for name, value in UNITS.items() if name.startswith(f"anchors.{kind}.")
    }
    shapes = [(int(h), int(w)) for h, w in (size.split("x") for size in wanted)]
    for ours, expected in zip(ANCHORS[kind].per_level(shapes), wanted.values(), strict=True):
        assert torch.equal(ours, expected)
    for i, ours in enumerate(ANCHORS[kind].per_level([(1, 1)] * 5)):
        assert torch.equal(ours, UNITS[f"base_anchors.{kind}.{i}"])


@pytest.mark.parametrize("stds", [(1.0,) * 4, (0.1, 0.1, 0.2, 0.2)], ids=["unit", "rcnn"])
def test_coder(stds: tuple[float, ...], request: pytest.FixtureRequest) -> None:
    name, coder = f"coder.{request.node.callspec.id}", BoxCoder(stds)
    boxes, deltas = UNITS["coder.boxes"], UNITS["coder.deltas"]
    close(coder.encode(UNITS["coder.gt"], boxes), UNITS[f"{name}.encoded"], "encoded")
    close(coder.decode(deltas, boxes), UNITS[f"{name}.decoded_noclip"], "decoded", 1e-6)
    close(coder.decode(deltas, boxes, (150, 180)), UNITS[f"{name}.decoded_clip_150x180"], "clipped", 1e-6)


@pytest.mark.parametrize(
    ("name", "matcher"),
    [
        ("assign.retina", Matcher(0.5, 0.4)),
        ("assign.rpn", Matcher(0.7, 0.3, 0.3)),
        ("assign.rcnn", Matcher(0.5, 0.5, 0.5)),
        ("assign3.retina", Matcher(0.5, 0.4)),
    ],
)
def test_matcher(name: str, matcher: Matcher) -> None:
    objects = UNITS["assign.gts"] if name.startswith("assign.") else UNITS["assign.gts"][:3]
    anchors = UNITS["assign.anchors"]
    assert torch.equal(iou(objects, anchors), UNITS[name.split(".")[0] + ".iou"])
    theirs = UNITS[f"{name}.gt_inds"]
    assert torch.equal(matcher(objects, anchors), torch.where(theirs == -1, IGNORED, theirs - 1))


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_suppression(threshold: float) -> None:
    boxes, scores, classes = UNITS["nms.boxes"], UNITS["nms.scores"], UNITS["nms.idx"]
    for labels, name in ((classes, "batched_keep"), (classes * 0, "keep")):
        expected = UNITS[f"nms.{name}{threshold}"]
        assert torch.equal(batched_nms(boxes, scores, labels, threshold, 1000), expected)
        assert torch.equal(batched_nms(boxes, scores, labels, threshold, 20), expected[:20])


def test_focal_loss() -> None:
    logits, labels = UNITS["focal.logits"], UNITS["focal.labels"]
    recorded = json.loads((GOLDEN / "units.json").read_text())["focal_sum_over_avg13"]
    labels = torch.where(labels < 7, labels, -1)
    labels = torch.where(UNITS["focal.weight"] > 0, labels, IGNORED)
    assert focal_loss(logits, labels).item() / 13 == pytest.approx(recorded, rel=1e-6)


def test_paste() -> None:
    boxes, masks = UNITS["paste.boxes"], UNITS["paste.masks"]
    found = Detections(boxes, torch.ones(6), torch.zeros(6, dtype=torch.int64), masks)
    assert int((found.paste((60, 80)) != UNITS["paste.binary_cpu"].bool()).sum()) == 0


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_whole_file_is_loaded(kind: str) -> None:
    model, recorded = tiny(kind), NETWORKS[kind]
    report = load_weights(model, recorded.state)
    assert report.format == "mmdetection" and report.complete and report.fraction == 1.0
    assert not report.fresh and not report.dropped and not report.adapted
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded.losses["params"]


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_features_and_anchors(kind: str) -> None:
    model, vectors = tiny(kind), NETWORKS[kind].vectors
    outputs, names = (
        model.forward_head(IMAGE),
        ("cls", "reg") if kind == "retinanet" else ("rpn_cls", "rpn_reg"),
    )
    for i, level in enumerate(model.backbone(IMAGE)):
        close(level, vectors[f"backbone.{i}"], f"features {i}")
    levels = model.features(IMAGE)
    all_anchors = (model if isinstance(model, RetinaNet) else model.rpn).anchors  # type: ignore[union-attr]
    for i, (level, anchors) in enumerate(
        zip(levels, all_anchors.per_level(level_shapes(levels)), strict=True)
    ):
        close(level, vectors[f"neck.{i}"], f"level {i}")
        for name, values in zip(names, outputs[-2:], strict=True):
            close(values[i], vectors[f"{name}.{i}"], f"{name} {i}")
        assert torch.equal(anchors[:30], vectors[f"anchors.{i}.first30"])
        assert torch.equal(anchors.double().sum(0), vectors[f"anchors.{i}.sum"])
        assert len(anchors) == int(vectors.get(f"anchors.{i}.count", len(anchors)))


@pytest.mark.parametrize(
    ("kind", "name", "image", "original", "options"),
    [
        *((kind, "det", SIZE, SIZE, {}) for kind in NETWORKS),
        *((kind, "det_img250x310_rescaleFalse", (250, 310), (250, 310), {}) for kind in NETWORKS),
        *((kind, "det_img250x310_rescaleTrue", (250, 310), (125, 155), {}) for kind in NETWORKS),
        ("retinanet", "det_nmspre50", SIZE, SIZE, {"rpn_pre_nms_topk": 50, "max_detections": 1000}),
    ],
)
@torch.no_grad()
def test_detections(
    kind: str, name: str, image: tuple[int, int], original: tuple[int, int], options: dict[str, int]
) -> None:
    (found,), vectors = tiny(kind, **options).predict(IMAGE, [image], [original]), NETWORKS[kind].vectors
    assert torch.equal(found.labels, vectors[f"{name}.labels"])
    close(found.scores, vectors[f"{name}.scores"], "scores", NETWORKS[kind].score_tolerance)
    assert float((found.boxes - vectors[f"{name}.boxes"]).abs().max()) < PIXELS
    if kind == "mask_rcnn":
        masks = "mask.pasted_packbits" if name == "det" else f"{name}.masks_packbits"
        other = found[:10].paste(original) != unpacked(masks, original[1])
        assert int(other.sum()) <= 2  # cells of exactly one half decide otherwise
        if name == "det":
            area = found.paste(SIZE).sum((1, 2)) - vectors["mask.pasted_area"]
            assert int(area.abs().sum()) <= 5


def check_losses(losses: dict[str, Tensor], expected: dict[str, Any]) -> None:
    figures = {name: sum(value) if isinstance(value, list) else value for name, value in expected.items()}
    figures.pop("acc", None)
    assert set(losses) == {"loss", *figures}
    for part, value in figures.items():
        assert losses[part].item() == pytest.approx(value, rel=TOLERANCE, abs=1e-7), part
    assert losses["loss"].item() == pytest.approx(sum(figures.values()), rel=TOLERANCE)


def check_gradients(model: Detector, expected: dict[str, dict[str, Any]]) -> None:
    """Norm, sum and first numbers of each; the recorded networks freeze the stem (fact 3)."""
    recorded = NETWORKS[model.config.kind]
    origin = to_ours(load_file(recorded.state)).origin
    for name, parameter in model.named_parameters():
        if origin[name] not in expected:
            assert name.startswith(("backbone.stem.", "backbone.norms.0."))
            continue
        figures, gradient = expected[origin[name]], parameter.grad
        assert gradient is not None, name
        allowed = GRADIENT_TOLERANCE * max(recorded.small_gradient, figures["l2"])
        first = torch.tensor(figures["first"])
        assert float((gradient.flatten()[: len(first)] - first).abs().max()) <= allowed, name
        assert abs(float(gradient.double().norm()) - figures["l2"]) <= allowed, name
        assert abs(float(gradient.double().sum()) - figures["sum"]) <= allowed * gradient.numel() ** 0.5, name


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("case", ["", "_gt5", "_batch2", "_no_gt"])
@torch.no_grad()
def test_losses(kind: str, case: str) -> None:
    two = TWO[kind]
    one = Targets(two.boxes[:1], torch.tensor([1]), None if two.masks is None else two.masks[:1])
    none = objects(kind, "gt5" if kind == "retinanet" else "gt", 0)
    targets = {"": [two], "_gt5": [FIVE[kind]], "_batch2": [two, one], "_no_gt": [none]}[case]
    images = torch.cat([IMAGE, SECOND])[: len(targets)]
    options = {} if kind == "retinanet" else EVERY
    name = f"{'loss' if kind == 'retinanet' else 'loss_all'}{case}"
    check_losses(tiny(kind, **options)(images, targets), NETWORKS[kind].losses[name])


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients(kind: str) -> None:
    model, losses = tiny(kind, **({} if kind == "retinanet" else EVERY)), NETWORKS[kind].losses
    loss = model(IMAGE, [TWO[kind]])["loss"]
    assert loss.item() == pytest.approx(losses.get("loss_all_total", loss.item()), rel=TOLERANCE)
    loss.backward()
    check_gradients(model, losses["grads" if kind == "retinanet" else "loss_all_grads"])


def test_assigned_targets_of_retinanet() -> None:
    model, vectors = retinanet(), RETINANET.vectors
    shapes = [(int(size[2]), int(size[3])) for size in (vectors[f"cls.{i}"].shape for i in range(5))]
    assigned = model.assign_targets(shapes, [TWO["retinanet"]], [SIZE])
    assert torch.equal(assigned.anchors, vectors["target.pos_anchor_index"]) and not assigned.images.any()
    labels = torch.cat(assigned.labels, 1)[0]
    assert torch.equal(labels[assigned.anchors], vectors["target.pos_label"])
    close(assigned.deltas, vectors["target.pos_delta"], "deltas")
    assert torch.equal((labels == IGNORED).nonzero()[:, 0], vectors["target.ignored_anchor_index"])
    labels = torch.cat(model.assign_targets(shapes, [FIVE["retinanet"]], [SIZE]).labels, 1)[0]
    expected = torch.where(labels >= 0, labels, 7).to(torch.uint8)  # mmdetection's background
    assert torch.equal(expected, vectors["target.gt5.labels"])
    assert torch.equal((labels != IGNORED).to(torch.uint8), vectors["target.gt5.weights"])


VECTORS, LOSSES = MASK_RCNN.vectors, MASK_RCNN.losses


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


@torch.no_grad()
def test_proposals_of_mask_rcnn() -> None:
    model = mask_rcnn()
    outputs = model.forward_head(IMAGE)
    for candidates, name in ((1000, "proposals.all_boxes"), (100, "proposals_nmspre100.boxes")):
        ours, expected = proposals(model, outputs, candidates), VECTORS[name]
        assert ours.shape == expected.shape and float((ours - expected).abs().max()) < PIXELS


@torch.no_grad()
def test_the_second_stage_of_mask_rcnn() -> None:
    model = mask_rcnn()
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


@torch.no_grad()
def test_masks_of_mask_rcnn() -> None:
    model = mask_rcnn()
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
    ("name", "counts", "targets"),
    [
        ("all", "loss_all_counts", TWO["mask_rcnn"]),
        ("gt5", "loss_all_gt5_counts", FIVE["mask_rcnn"]),
    ],
)
def test_sampled_targets_of_mask_rcnn(name: str, counts: str, targets: Targets) -> None:
    model = mask_rcnn(**EVERY)
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


def test_sampled_losses_and_gradients_of_mask_rcnn() -> None:
    """With the draw that was recorded: the divisors of the samples."""
    model = mask_rcnn()
    with torch.no_grad():
        candidates = torch.cat([TWO["mask_rcnn"].boxes, proposals(model, model.forward_head(IMAGE), 2000)])
    recorded = VECTORS["loss.seeded.rcnn_priors"]
    distance, index = (recorded[:, None] - candidates).abs().amax(2).min(1)
    assert float(distance.max()) < PIXELS and len(index.unique()) == len(index)
    positives = int(VECTORS["loss.seeded.rcnn_num_pos"])
    rpn = VECTORS["loss.seeded.rpn_pos_inds"], VECTORS["loss.seeded.rpn_neg_inds"]
    model.rpn.sampler = lambda matches: rpn
    model.sampler = lambda matches: (index[:positives], index[positives:])
    losses = model(IMAGE, [TWO["mask_rcnn"]])
    check_losses(losses, LOSSES["loss_seeded"])
    losses["loss"].backward()
    check_gradients(model, LOSSES["loss_seeded_grads"])
