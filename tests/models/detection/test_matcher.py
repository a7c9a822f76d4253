"""Matching, equal to a plain loop over the objects, and sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from metaformer.models.detection import matcher as module
from metaformer.models.detection.matcher import IGNORED, NEGATIVE, Matcher, Sampler, iou


def random_boxes(count: int, seed: int) -> Tensor:
    """On a coarse grid, so that many overlap equally."""
    drawn = torch.randint(0, 8, (count, 4), generator=torch.Generator().manual_seed(seed)).float()
    return torch.cat([drawn[:, :2], drawn[:, :2] + drawn[:, 2:] + 1], 1)


def by_loop(matcher: Matcher, boxes: Tensor, anchors: Tensor) -> Tensor:
    """As the published code does it."""
    matches = torch.full((len(anchors),), IGNORED)
    if not len(boxes):
        return matches.fill_(NEGATIVE)
    overlap = iou(boxes, anchors)
    best, owner = overlap.max(0)
    matches[best < matcher.negative] = NEGATIVE
    matches[best >= matcher.positive] = owner[best >= matcher.positive]
    for i, own in enumerate(overlap):
        if own.max() >= matcher.min_positive:
            matches[own == own.max()] = i
    return matches


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 40),
    st.integers(0, 1000),
    st.sampled_from([(0.5, 0.4, 0.0), (0.7, 0.3, 0.3), (0.5, 0.5, 0.5)]),
    st.sampled_from([1, 60, 1 << 20]),
)
def test_matches_are_those_of_a_loop(
    objects: int, count: int, seed: int, levels: tuple[float, ...], pairs: int
) -> None:
    matcher = Matcher(*levels)
    boxes, anchors = random_boxes(objects, seed), random_boxes(count, seed + 1)
    valid = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAIRS", pairs)
        assert torch.equal(matcher(boxes, anchors), by_loop(matcher, boxes, anchors))
        some = matcher(boxes, anchors, valid)
    assert (some[~valid] == IGNORED).all()
    if valid.any():
        assert torch.equal(some[valid], by_loop(matcher, boxes, anchors[valid]))


def test_the_last_object_wins_even_anchors_that_it_does_not_touch() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [100, 100, 110, 110]])
    assert Matcher(0.5, 0.4)(boxes, anchors).tolist() == [1, 1, 1]
    assert Matcher(0.5, 0.4, 0.3)(boxes, anchors).tolist() == [0, NEGATIVE, NEGATIVE]


def test_nothing_to_match() -> None:
    none, some = torch.zeros(0, 4), torch.tensor([[0.0, 0, 4, 4]])
    assert Matcher(0.5, 0.4)(some, none).tolist() == []
    assert Matcher(0.5, 0.4)(none, some).tolist() == [NEGATIVE]


def test_iou_is_torchvisions() -> None:
    boxes, others = random_boxes(9, 0), random_boxes(30, 1)
    assert torch.allclose(iou(boxes, others), box_iou(boxes, others))
    assert iou(boxes, others[:0]).shape == (9, 0)


@given(
    matches=st.lists(st.integers(-2, 4), max_size=60),
    size=st.integers(0, 40),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_samples_are_sorted_unique_and_as_many_as_fit(
    matches: list[int], size: int, fraction: float, seed: int
) -> None:
    torch.manual_seed(seed)
    found = Sampler(size, fraction)(torch.tensor(matches, dtype=torch.int64))
    positives, negatives = (indices.tolist() for indices in found)
    assert all(matches[i] >= 0 for i in positives) and all(matches[i] == -1 for i in negatives)
    assert positives == sorted(set(positives)) and negatives == sorted(set(negatives))
    assert len(positives) == min(int(size * fraction), sum(match >= 0 for match in matches))
    assert len(negatives) == min(size - len(positives), matches.count(-1))


def test_samples_follow_torchs_generator() -> None:
    matches = torch.arange(1000) % 3 - 1
    torch.manual_seed(1)
    first = Sampler(64, 0.5)(matches)
    second = Sampler(64, 0.5)(matches)
    torch.manual_seed(1)
    again = Sampler(64, 0.5)(matches)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])


def test_no_random_number_is_drawn_where_everything_fits() -> None:
    before = torch.get_rng_state()
    positives, negatives = Sampler(1_000_000, 0.5)(torch.tensor([0, -1, -2, 3]))
    assert positives.tolist() == [0, 3] and negatives.tolist() == [1]
    assert torch.equal(torch.get_rng_state(), before)
