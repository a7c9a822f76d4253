"""Choosing among many boxes: order, ties, thresholds and classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from metaformer.models.detection import nms as suppression
from metaformer.models.detection.nms import has_area, keep, top, top_level


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 30), st.integers(0, 1000), st.sampled_from([None, 0.0, 0.3, 0.5]))
def test_a_levels_best_are_those_of_a_stable_sort(
    count: int, most: int, seed: int, threshold: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (count, 3), generator=generator).float()  # with ties
    scores, places = top_level(logits, most, threshold)
    every = logits.flatten().sigmoid()
    order = [i for i in every.argsort(descending=True, stable=True).tolist() if every[i] > (threshold or 0)]
    assert places.tolist() == order[:most]
    assert torch.equal(scores, every[places])


def test_a_threshold_is_exceeded_and_what_is_no_number_is_left_out() -> None:
    logits = torch.tensor([0.0, torch.nan, 1e-3, -torch.inf, torch.inf])
    assert top_level(logits, 5, 0.5)[1].tolist() == [4, 2]
    assert top_level(logits.bfloat16(), 1, 0.5)[0].dtype == torch.float32
    assert top_level(logits, 5, 1.0)[1].tolist() == []


def test_of_equal_scores_the_first_are_kept() -> None:
    assert top(torch.tensor([1.0, 2, 1, 2, 1]), 3).tolist() == [1, 3, 0]


@pytest.mark.parametrize("shifted", [0, 10_000])
def test_classes_do_not_suppress_each_other(shifted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "SHIFTED", shifted)
    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(2, 300, 2, generator=generator) * 50
    boxes, scores = torch.cat([corner, corner + size], 1), torch.rand(300, generator=generator)
    labels = torch.randint(0, 4, (300,), generator=generator)
    kept = keep(boxes, scores, labels, 0.5, 1000)
    assert torch.equal(kept, batched_nms(boxes, scores, labels, 0.5))
    assert torch.equal(keep(boxes, scores, labels, 0.5, 7), kept[:7])


def test_nothing_is_kept_of_nothing() -> None:
    none = torch.zeros(0, 4)
    assert keep(none, none[:, 0], none[:, 0].long(), 0.5, 10).tolist() == []


def test_boxes_without_area() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 2, 1, 1], [0, 0, torch.nan, 1]])
    assert has_area(boxes).tolist() == [True, False, False, False]
