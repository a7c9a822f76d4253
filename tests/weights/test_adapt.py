"""Adapting tensors to other classes and grids, and the layers that depend on the classes."""

from typing import Any

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import WeightsError
from metaformer.models.build import DENSE_KINDS, DETECTOR, build_network
from metaformer.weights.adapt import (
    class_count,
    class_layers,
    class_map_21k,
    map_21k_to_1k,
    refuse_torchvision,
    resample_grid,
)
from metaformer.weights.keymap import from_ours
from toys import torchvision_state


def test_the_class_map_is_the_authors() -> None:
    """First, middle and last entries as in misc/in21k_to_1k_class_map.json of sail-sg/metaformer."""
    rows = class_map_21k()
    known = [row for row in rows if row is not None]
    assert len(rows) == 1000 and [i for i, row in enumerate(rows) if row is None] == [850]
    assert rows[:6] == [359, 368, 460, 475, 486, 492] and rows[-3:] == [21198, 21367, 21815]
    assert (rows[849], rows[851]) == (11136, 11167)
    assert len(set(known)) == 999


def test_a_classifier_is_mapped_by_class_and_850_gets_the_mean() -> None:
    weight = torch.randn(21841, 4)
    mapped = map_21k_to_1k(weight)
    assert mapped.shape == (1000, 4)
    assert torch.equal(mapped[0], weight[359]) and torch.equal(mapped[999], weight[21815])
    assert torch.allclose(mapped[850], weight.mean(0))
    assert map_21k_to_1k(weight[:, 0]).shape == (1000,)
    with pytest.raises(WeightsError, match="1000 classes"):
        map_21k_to_1k(mapped)


def test_what_is_no_grid_is_left() -> None:
    assert resample_grid(torch.ones(5, 5), torch.Size((4, 4)), (2, 2)) is None
    assert resample_grid(torch.ones(4, 9), torch.Size((4, 4)), (2, 2)) is None


def test_a_resampled_average_is_an_average() -> None:
    """Rows that sum to one go on summing to one, whatever the grid."""
    matrix = torch.rand(9, 9).softmax(-1)
    larger = resample_grid(matrix, torch.Size((20, 20)), (4, 5))
    assert larger is not None and larger.shape == (20, 20)
    assert torch.allclose(larger.sum(1), torch.ones(20), atol=1e-5)


TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 8, 8, 16))
HEADS = {head: kind for kind in DENSE_KINDS for head in kind.heads}


def network(head: str, classes: int, **options: Any) -> Any:
    small = {"fpn_dim": 8, "head_dim": 8, **({"box_fc_dim": 8} if HEADS[head] is DETECTOR else {}), **options}
    return build_network(HEADS[head].config(kind=head, backbone=TINY, num_classes=classes, **small))


@pytest.mark.parametrize("head", HEADS)
def test_layers_and_count_of_classes(head: str) -> None:
    one, two, five = (network(head, classes).state_dict() for classes in (1, 2, 5))
    differing = {name for name, value in one.items() if value.shape != two[name].shape}
    assert set(class_layers(one, two)) == differing and differing
    assert class_layers(one, {}) == []
    assert [class_count(state) for state in (one, two, five)] == [1, 2, 5]
    assert class_count(MetaFormer(TINY).state_dict()) == 1000 and class_count({}) == 0


@pytest.mark.parametrize("head", HEADS)
def test_only_torchvisions_arithmetic_is_refused(head: str) -> None:
    model = network(head, 2)
    for state in (model.state_dict(), network(head, 2, fpn_dim=16).state_dict(), {}):
        refuse_torchvision(state)
    if HEADS[head] is DETECTOR:
        theirs = torchvision_state(model)
        for refuse in (refuse_torchvision, lambda state: from_ours(state, "mmdetection")):
            with pytest.raises(WeightsError, match="torchvision"):
                refuse(theirs)
