"""Segmenters and detectors of other libraries: the same backbone, weights and work."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.suite.contender import build, prepare
from benchmarks.suite.dense import DETECTIONS, scores
from benchmarks.suite.measuring import measure_row
from benchmarks.suite.rows import DENSE_ON_CPU, Claim
from metaformer.errors import ConfigError

SEGMENTER, DETECTOR = (replace(row, size=96, width=128) for row in DENSE_ON_CPU)


@pytest.mark.parametrize("name", ["ours optimized", "smp channels_last", "smp_published eager"])
def test_segmenters_give_logits_of_one_shape(name: str) -> None:
    ready = prepare(name, SEGMENTER)
    assert ready.difference is not None and ready.difference < 1e-3
    with torch.inference_mode():
        assert ready.module(ready.images).shape == (1, 150, 96, 128)


def test_the_published_form_has_a_convolution_more_on_each_level() -> None:
    plain, published = (build(side, SEGMENTER.model, 96) for side in ("smp", "smp_published"))
    more = [value.shape for value in published.parameters()]
    for value in plain.parameters():
        more.remove(value.shape)
    assert more == [(256, 256, 3, 3), (256,)] * 4


@pytest.mark.parametrize("name", ["ours optimized", "torchvision channels_last"])
def test_detectors_give_as_many_detections(name: str) -> None:
    ready = prepare(name, DETECTOR)
    with torch.inference_mode():
        found = ready.module(ready.images)
    assert scores(found).shape == (1, DETECTIONS) and ready.difference is not None and ready.difference < 1e-3
    masks = found[0]["masks"][:, 0] if isinstance(found[0], dict) else found[0].masks
    assert masks.shape == (DETECTIONS, 28, 28)


def test_torchvisions_weights_are_ours() -> None:
    ours, theirs = (build(side, DETECTOR.model, 96).eval() for side in ("ours", "torchvision"))
    images = torch.randn(1, 3, 96, 128)
    objectness: list[Tensor] = []
    network = theirs.network
    network.rpn.head.register_forward_hook(lambda module, args, out: objectness.extend(out[0]))  # type: ignore[union-attr]
    with torch.inference_mode():
        outputs = ours.forward_head(images)  # type: ignore[operator]
        theirs(images)
        levels = network.backbone(images).values()  # type: ignore[operator, union-attr]
        for level, other in zip(outputs.features, levels, strict=True):
            torch.testing.assert_close(level, other)
        for logits, other in zip(outputs.objectness, objectness, strict=True):
            torch.testing.assert_close(logits, other)
        x = torch.randn(5, 256, 7, 7)
        classes, boxes = ours.box_predictor(ours.box_head(x))  # type: ignore[operator]
        heads = network.roi_heads  # type: ignore[union-attr]
        other_classes, other_boxes = heads.box_predictor(heads.box_head(x))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(classes.roll(1, 1), other_classes)
        torch.testing.assert_close(boxes.flatten(1), other_boxes[:, 4:])


def test_other_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 detections"):
        scores([{"scores": torch.ones(3)}])


def test_missing_packages_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no mask_rcnn"):
        build("smp", DETECTOR.model, 96)
    with pytest.raises(ConfigError, match="no Mask R-CNN"):
        build("torchvision", "retinanet_poolformer_s12", 96)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    row = replace(SEGMENTER, claims=(Claim("any", ("ours eager",), ("smp eager",)),))
    result = measure_row(row, 1, ceilings=False)
    assert "pip install segmentation-models-pytorch" in result["smp eager"].failure
    assert result["ours eager"].timing is not None and result["ours eager"].work is None
