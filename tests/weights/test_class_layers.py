"""Where classes show, on networks of every kind."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import WeightsError
from metaformer.factory import create_detector, create_segmenter
from metaformer.models.detection.config import KINDS
from metaformer.weights.class_layers import class_count, class_layers, refuse_torchvision
from metaformer.weights.keymap import from_ours
from toys import torchvision_state

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 8, 8, 16), num_classes=5)
SIZES: dict[str, Any] = {"backbone": TINY, "fpn_dim": 8, "box_fc_dim": 8}


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 5))
def test_detectors_have_a_class_count_and_one_arithmetic(kind: str, classes: int) -> None:
    model = create_detector(kind, num_classes=classes, **SIZES)
    assert class_count(model.state_dict()) == classes
    refuse_torchvision(model.state_dict())
    theirs = torchvision_state(model)
    with pytest.raises(WeightsError, match="torchvision"):
        refuse_torchvision(theirs)
    with pytest.raises(WeightsError, match="torchvision"):
        from_ours(theirs, "mmdetection")


def test_other_networks() -> None:
    assert class_count(MetaFormer(TINY).state_dict()) == 5
    segmenter = create_segmenter("upernet", backbone=TINY, num_classes=6, head_dim=8).state_dict()
    assert class_count(segmenter) == 6
    assert class_count({}) == 0
    for state in ({}, segmenter):
        refuse_torchvision(state)


def test_a_pyramid_as_wide_as_the_last_map_does_not_tell() -> None:
    state = create_detector("retinanet", num_classes=2, **{**SIZES, "fpn_dim": 16}).state_dict()
    refuse_torchvision(state)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_that_depend_on_the_number_of_classes(kind: str) -> None:
    one, two = (create_detector(kind, num_classes=k, **SIZES).state_dict() for k in (1, 2))
    differing = {name for name, value in one.items() if value.shape != two[name].shape}
    assert set(class_layers(one, two)) == differing and differing
    assert class_layers(one, {}) == []
