"""What mmdetection computes: its units one by one, and RetinaNet on PoolFormer, through the public loader."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.models.detection.anchors import Anchors, BoxCoder
from metaformer.models.detection.build import build_detector
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.matcher import IGNORED, Matcher, iou
from metaformer.models.detection.nms import batched_nms
from metaformer.models.detection.retinanet import SCALES_PER_OCTAVE, RetinaNet, focal_loss
from metaformer.models.detection.structures import Detections, Targets
from metaformer.weights.keymap import to_ours
from metaformer.weights.load import load_weights

GOLDEN = Path(__file__).parent / "golden_dense"
UNITS = load_file(GOLDEN / "units.safetensors")
VECTORS = load_file(GOLDEN / "retinanet_tiny.safetensors")
LOSSES: dict[str, Any] = json.loads((GOLDEN / "retinanet_tiny.losses.json").read_text())
STATE = GOLDEN / "retinanet_tiny.state.safetensors"
TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), feature_norm="fresh")
CONFIG = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=32)
SIZE = (256, 320)
IMAGE, SECOND = (
    torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (256320, 8)
)
SCALES = [4 * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALES_PER_OCTAVE)]
ANCHORS = {
    "retina": Anchors((8, 16, 32, 64, 128), SCALES),
    "rpn": Anchors((4, 8, 16, 32, 64), (8,)),
}
FIVE = Targets(VECTORS["loss.gt5_boxes"], VECTORS["loss.gt5_labels"])
TWO = Targets(FIVE.boxes[:2], FIVE.labels[:2])
NONE = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def tiny(**options: Any) -> RetinaNet:
    model = build_detector(DetectorConfig(**{**vars(CONFIG), **options})).eval()
    load_weights(model, STATE)
    assert isinstance(model, RetinaNet)
    return model


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
    levels = model.features(IMAGE)
    anchors = model.anchors.per_level([(level.shape[2], level.shape[3]) for level in levels])
    for i, level in enumerate(levels):
        close(level, VECTORS[f"neck.{i}"], f"level {i}")
        close(outputs.logits[i], VECTORS[f"cls.{i}"], f"logits {i}")
        close(outputs.deltas[i], VECTORS[f"reg.{i}"], f"deltas {i}")
        assert torch.equal(anchors[i][:30], VECTORS[f"anchors.{i}.first30"])
        assert torch.equal(anchors[i].double().sum(0), VECTORS[f"anchors.{i}.sum"])
        assert len(anchors[i]) == int(VECTORS[f"anchors.{i}.count"])


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("det", {}, {"image_sizes": [SIZE]}),
        ("det_img250x310_rescaleFalse", {}, {"image_sizes": [(250, 310)]}),
        (
            "det_img250x310_rescaleTrue",
            {},
            {"image_sizes": [(250, 310)], "original_sizes": [(125, 155)]},
        ),
        ("det_nmspre50", {"rpn_pre_nms_topk": 50, "max_detections": 1000}, {"image_sizes": [SIZE]}),
    ],
)
@torch.no_grad()
def test_detections(name: str, options: dict[str, int], sizes: dict[str, Any]) -> None:
    (found,) = tiny(**options).predict(IMAGE, **sizes)
    assert torch.equal(found.labels, VECTORS[f"{name}.labels"])
    close(found.scores, VECTORS[f"{name}.scores"], "scores")
    assert float((found.boxes - VECTORS[f"{name}.boxes"]).abs().max()) < 2e-3


def test_targets() -> None:
    model = tiny()
    shapes = [(int(size[2]), int(size[3])) for size in (VECTORS[f"cls.{i}"].shape for i in range(5))]
    assigned = model.assign_targets(shapes, [TWO], [SIZE])
    assert torch.equal(assigned.anchors, VECTORS["target.pos_anchor_index"]) and not assigned.images.any()
    labels = torch.cat(assigned.labels, 1)[0]
    assert torch.equal(labels[assigned.anchors], VECTORS["target.pos_label"])
    close(assigned.deltas, VECTORS["target.pos_delta"], "deltas")
    assert torch.equal((labels == IGNORED).nonzero()[:, 0], VECTORS["target.ignored_anchor_index"])
    labels = torch.cat(model.assign_targets(shapes, [FIVE], [SIZE]).labels, 1)[0]
    expected = torch.where(labels >= 0, labels, 7).to(torch.uint8)  # mmdetection's background
    assert torch.equal(expected, VECTORS["target.gt5.labels"])
    assert torch.equal((labels != IGNORED).to(torch.uint8), VECTORS["target.gt5.weights"])


@pytest.mark.parametrize(
    ("name", "images", "targets"),
    [
        ("loss", IMAGE, [TWO]),
        ("loss_gt5", IMAGE, [FIVE]),
        ("loss_batch2", torch.cat([IMAGE, SECOND]), [TWO, Targets(TWO.boxes[:1], torch.tensor([1]))]),
        ("loss_no_gt", IMAGE, [NONE]),
    ],
)
@torch.no_grad()
def test_losses(name: str, images: Tensor, targets: list[Targets]) -> None:
    losses = tiny()(images, targets)
    for part, per_level in LOSSES[name].items():
        assert losses[part].item() == pytest.approx(sum(per_level), rel=TOLERANCE), part
    assert losses["loss"].item() == pytest.approx(sum(map(sum, LOSSES[name].values())), rel=TOLERANCE)


def test_gradients() -> None:
    """Norm, sum and first numbers of each; the recorded stack freezes the stem (fact 3)."""
    model = tiny()
    model(IMAGE, [TWO])["loss"].backward()
    origin = to_ours(load_file(STATE)).origin
    for name, parameter in model.named_parameters():
        if origin[name] not in LOSSES["grads"]:
            assert name.startswith(("backbone.stem.", "backbone.norms.0."))
            continue
        figures, gradient = LOSSES["grads"][origin[name]], parameter.grad
        assert gradient is not None, name
        allowed = GRADIENT_TOLERANCE * max(1e-3, figures["l2"])
        first = torch.tensor(figures["first"])
        assert float((gradient.flatten()[: len(first)] - first).abs().max()) <= allowed, name
        assert abs(float(gradient.double().norm()) - figures["l2"]) <= allowed, name
        assert abs(float(gradient.double().sum()) - figures["sum"]) <= allowed * gradient.numel() ** 0.5, name
