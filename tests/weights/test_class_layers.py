"""Where classes show, on networks of every kind."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.factory import create_detector, create_segmenter
from metaformer.weights.class_layers import class_count, class_layers, compat_of

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 8, 8, 16), num_classes=5)
SIZES: dict[str, Any] = {"backbone": TINY, "fpn_dim": 8, "box_fc_dim": 8}
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn")


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(DETECTORS), st.integers(1, 5), st.sampled_from(["mmdet", "torchvision"]))
def test_detectors_tell_their_classes_and_whose_they_are(kind: str, classes: int, compat: str) -> None:
    state = create_detector(kind, num_classes=classes, compat=compat, **SIZES).state_dict()
    if compat == "mmdet":
        assert class_count(state) == classes
    assert compat_of(state) == compat


def test_other_networks() -> None:
    assert class_count(MetaFormer(TINY).state_dict()) == 5
    segmenter = create_segmenter("upernet", backbone=TINY, num_classes=6, head_dim=8).state_dict()
    assert class_count(segmenter) == 6
    assert class_count({}) == 0 and compat_of(segmenter) is None and compat_of({}) is None


def test_a_pyramid_as_wide_as_the_last_map_does_not_tell() -> None:
    state = create_detector("retinanet", num_classes=2, **{**SIZES, "fpn_dim": 16}).state_dict()
    assert compat_of(state) is None


@pytest.mark.parametrize("kind", DETECTORS)
def test_layers_are_those_that_depend_on_the_number_of_classes(kind: str) -> None:
    one, two = (create_detector(kind, num_classes=k, **SIZES).state_dict() for k in (1, 2))
    differing = {name for name, value in one.items() if value.shape != two[name].shape}
    assert set(class_layers(one, two)) == differing and differing
    assert class_layers(one, {}) == []
