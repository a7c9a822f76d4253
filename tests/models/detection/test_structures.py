"""Boxes: structures, anchors, matching and suppression."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import ops
from torchvision.ops import box_iou

from metaformer.errors import ConfigError
from metaformer.models.detection import matcher as module
from metaformer.models.detection import nms as suppression
from metaformer.models.detection import structures as results
from metaformer.models.detection.anchors import MAX_LOG_SCALE, Anchors, BoxCoder, clip_boxes, rescale_boxes
from metaformer.models.detection.matcher import IGNORED, NEGATIVE, Matcher, Sampler, iou
from metaformer.models.detection.nms import batched_nms, nonempty, stable_topk, topk_logits
from metaformer.models.detection.structures import Detections, Targets

BOXES = torch.tensor([[1.0, 2, 9, 8], [0, 0, 4, 4], [3, 3, 5, 9]])
LABELS = torch.tensor([4, 0, 2])


def found(boxes: Tensor = BOXES, masks: Tensor | None = None) -> Detections:
    count = len(boxes)
    return Detections(boxes, torch.ones(count), torch.zeros(count, dtype=torch.int64), masks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": BOXES[0]}, r"tensor \(N, 4\)"),
        ({"boxes": BOXES.tolist()}, r"tensor \(N, 4\)"),
        ({"boxes": BOXES.double()}, "boxes: torch.float64"),
        ({"boxes": BOXES[:, :3]}, r"boxes: .*\(3, 3\) should be .*\(3, 4\)"),
        ({"boxes": BOXES / 0}, "a box is not finite"),
        ({"labels": LABELS[:2]}, r"labels: .*\(2,\)"),
        ({"labels": LABELS.int()}, "labels: torch.int32"),
        ({"masks": torch.zeros(3, 8)}, "masks: "),
    ],
)
@pytest.mark.parametrize("kind", [Detections, Targets])
def test_refused_of_both(kind: Any, fields: dict[str, Any], message: str) -> None:
    whole = {"boxes": BOXES, "labels": LABELS, **({"scores": torch.ones(3)} if kind is Detections else {})}
    with pytest.raises(ConfigError, match=message):
        kind(**{**whole, **fields})


def test_refused_of_one() -> None:
    with pytest.raises(ConfigError, match="score is not finite"):
        Detections(BOXES, torch.tensor([0.5, torch.nan, 0.1]), LABELS)
    with pytest.raises(ConfigError, match="scores: "):
        Detections(BOXES, torch.ones(3).double(), LABELS)
    with pytest.raises(ConfigError, match=r"masks: .*should be torch.float32"):
        Detections(BOXES, torch.ones(3), LABELS, torch.ones(3, 28, 28).bool())
    with pytest.raises(ConfigError, match="no area"):
        Targets(BOXES[:, [2, 1, 0, 3]], LABELS)
    with pytest.raises(ConfigError, match="negative"):
        Targets(BOXES, LABELS - 1)
    with pytest.raises(ConfigError, match="crowd: "):
        Targets(BOXES, LABELS, crowd=torch.ones(3))
    with pytest.raises(ConfigError, match=r"masks: .*should be torch.bool"):
        Targets(BOXES, LABELS, torch.zeros(3, 5, 5))


@pytest.mark.parametrize("index", [slice(1, None), torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_choosing(index: Any) -> None:
    whole = Detections(BOXES, torch.rand(3), LABELS, torch.rand(3, 28, 28))
    some = whole[index]
    assert len(whole) == 3 and len(some) == 2
    assert all(torch.equal(vars(some)[name], value[index]) for name, value in vars(whole).items())
    assert found()[index].masks is None


def test_moving() -> None:
    masks = torch.ones(3, 10, 10, dtype=torch.bool)
    target = Targets(BOXES, LABELS, masks, torch.tensor([False, True, False]))
    assert target.to("meta", non_blocking=True).crowd.device.type == "meta"
    assert found().to("meta").boxes.device.type == "meta"
    assert not Targets(BOXES, LABELS).crowd.any() and len(target) == 3
    single = target.without_crowd()
    assert single.masks is not None and len(single.masks) == 2
    assert torch.equal(single.labels, LABELS[[0, 2]]) and not single.crowd.any()


@pytest.mark.gpu
def test_pinned_memory() -> None:
    assert Targets(BOXES, LABELS).pin_memory().crowd.is_pinned()


def test_without_masks_there_is_nothing_to_paste() -> None:
    with pytest.raises(ConfigError, match="masks is None"):
        found().paste((10, 10))


SIDES = st.floats(-20, 60, width=32)


@settings(max_examples=40, deadline=None)
@given(
    corners=st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), max_size=4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    block=st.sampled_from([1, 37, 10_000]),
)
def test_pasting_in_parts_is_pasting(
    corners: list[tuple[float, ...]], size: tuple[int, int], block: int
) -> None:
    """Every pixel by the rule itself, on the whole image."""
    boxes = torch.tensor(corners).reshape(-1, 4)
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], 1)
    masks = torch.rand(len(boxes), 28, 28, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for i, (left, top, right, bottom) in enumerate(boxes):
        if right > left and bottom > top:
            y, x = (torch.arange(side) + 0.5 for side in size)
            x, y = (x - left) / (right - left) * 2 - 1, (y - top) / (bottom - top) * 2 - 1
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
            shares = torch.nn.functional.grid_sample(masks[i][None, None], grid, align_corners=False)
            expected[i] = shares[0, 0] >= 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "BLOCK", block)
        pasted = found(boxes, masks).paste(size)
    assert torch.equal(pasted, expected)


def test_a_mask_fills_its_box_and_a_box_without_area_has_no_pixels() -> None:
    boxes = torch.tensor([[2.0, 3, 7, 5], [4, 4, 4, 9], [-9, -9, -1, -1]])
    pasted = found(boxes, torch.ones(3, 28, 28)).paste((10, 8))
    assert pasted[0, 3:5, 2:7].all() and pasted[0].sum() == 10
    assert not pasted[1:].any()
    assert found(boxes[:0], torch.ones(0, 28, 28)).paste((4, 5)).shape == (0, 4, 5)


ANCHORS = Anchors((8, 64), (4, 8))


def test_order_and_caching() -> None:
    first, second = ANCHORS.per_level([(3, 5), (1, 1)])
    assert ANCHORS.per_cell == 6 and first.shape == (90, 4) and second.shape == (6, 4)
    assert ANCHORS.per_level([(3, 5), (2, 1)])[0] is first
    cells = first.view(3, 5, 6, 4)
    centers = (cells[..., :2] + cells[..., 2:]) / 2
    assert torch.equal(centers[1, 2], torch.tensor([[16.0, 8]]).expand(6, 2))
    width, height = (cells[0, 0, :, 2:] - cells[0, 0, :, :2]).unbind(1)
    assert torch.allclose(height / width, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    assert torch.allclose((height * width).sqrt(), torch.tensor([32.0, 64] * 3))


def test_anchors_cached_in_inference_can_be_used_in_training() -> None:
    with torch.inference_mode():
        (level,) = Anchors((7,), (3,)).per_level([(2, 2)])
    assert not level.is_inference()


def test_valid_flags_end_at_an_images_own_padding() -> None:
    shapes = [(16, 24), (2, 3)]
    assert ANCHORS.valid_flags(shapes, (128, 161)).all()  # padded to 192
    fine, coarse = ANCHORS.valid_flags(shapes, (65, 33)).split([16 * 24 * 6, 36])
    assert fine.view(16, 24, 6)[:12, :8].all() and fine.sum() == 12 * 8 * 6
    assert coarse.view(2, 3, 6)[:2, :1].all() and coarse.sum() == 2 * 6


def boxes(seed: int, count: int = 20) -> Tensor:
    corner, size = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([corner * 100, corner * 100 + size * 50 + 1], 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(1.0,) * 4, (0.1, 0.1, 0.2, 0.2)]))
def test_decoding_undoes_encoding(seed: int, stds: tuple[float, ...]) -> None:
    coder, wanted, anchors = BoxCoder(stds), boxes(seed), boxes(seed + 1)
    assert torch.allclose(coder.decode(coder.encode(wanted, anchors), anchors), wanted, atol=1e-3)


def test_boxes_grow_and_shrink_within_limits() -> None:
    deltas = torch.tensor([[0.0, 0, 100, 100], [0, 0, -100, -100]])
    anchors = torch.tensor([[0.0, 0, 10, 10]]).expand(2, 4)
    sides = (decoded := BoxCoder().decode(deltas, anchors))[:, 2:] - decoded[:, :2]
    assert torch.allclose(sides, torch.tensor([[625.0], [0.16]]).expand(2, 2)) and MAX_LOG_SCALE > 4.13
    low = BoxCoder().decode(deltas.bfloat16(), anchors, (20, 8))
    assert low.dtype == torch.float32 and torch.equal(low[0], torch.tensor([0.0, 0, 8, 20]))


def test_clipping() -> None:
    outside = torch.tensor([[-5.0, -1, 30, 12], [90, 95, 99, 98]])
    assert clip_boxes(outside, (10, 20)).tolist() == [[0, 0, 20, 10], [20, 10, 20, 10]]


@given(*(st.tuples(st.integers(1, 1333), st.integers(1, 1333)) for _ in range(2)))
def test_rescaling_keeps_the_whole_image(size: tuple[int, int], other: tuple[int, int]) -> None:
    whole = torch.tensor([[0.0, 0, size[1], size[0]]])
    assert rescale_boxes(whole, size, other).tolist() == [[0, 0, other[1], other[0]]]


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
