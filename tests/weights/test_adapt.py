"""Fitting tensors to other classes and grids."""

import pytest
import torch

from metaformer.errors import WeightsError
from metaformer.weights.adapt import class_map_21k, map_21k_to_1k, resample_grid


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
