"""Detections and targets: what is refused, choosing, moving, and masks drawn."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.models.detection import structures as results
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
