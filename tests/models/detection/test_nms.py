"""Top-k and NMS: order, ties, thresholds and classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from metaformer.models.detection import nms as suppression
from metaformer.models.detection.nms import batched_nms, nonempty, stable_topk, topk_logits


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 30), st.integers(0, 1000), st.sampled_from([None, 0.0, 0.3, 0.5]))
def test_topk_is_that_of_a_stable_sort(count: int, limit: int, seed: int, threshold: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (count, 3), generator=generator).float()  # with ties
    scores, indices = topk_logits(logits, limit, threshold)
    every = logits.flatten().sigmoid()
    order = [i for i in every.argsort(descending=True, stable=True).tolist() if every[i] > (threshold or 0)]
    assert indices.tolist() == order[:limit]
    assert torch.equal(scores, every[indices])


def test_a_threshold_is_exceeded_and_nan_left_out() -> None:
    logits = torch.tensor([0.0, torch.nan, 1e-3, -torch.inf, torch.inf])
    assert topk_logits(logits, 5, 0.5)[1].tolist() == [4, 2]
    assert topk_logits(logits.bfloat16(), 1, 0.5)[0].dtype == torch.float32
    assert topk_logits(logits, 5, 1.0)[1].tolist() == []


def test_ties_stay_in_order() -> None:
    assert stable_topk(torch.tensor([1.0, 2, 1, 2, 1]), 3).tolist() == [1, 3, 0]


@pytest.mark.parametrize("shifted", [0, 10_000])
def test_classes_do_not_suppress_each_other(shifted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "SHIFTED", shifted)
    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(2, 300, 2, generator=generator) * 50
    boxes, scores = torch.cat([corner, corner + size], 1), torch.rand(300, generator=generator)
    labels = torch.randint(0, 4, (300,), generator=generator)
    kept = batched_nms(boxes, scores, labels, 0.5, 1000)
    assert torch.equal(kept, ops.batched_nms(boxes, scores, labels, 0.5))
    assert torch.equal(batched_nms(boxes, scores, labels, 0.5, 7), kept[:7])


def test_nms_of_nothing() -> None:
    none = torch.zeros(0, 4)
    assert batched_nms(none, none[:, 0], none[:, 0].long(), 0.5, 10).tolist() == []


def test_nonempty_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 2, 1, 1], [0, 0, torch.nan, 1]])
    assert nonempty(boxes).tolist() == [True, False, False, False]
