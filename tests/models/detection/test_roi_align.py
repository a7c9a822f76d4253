"""Features of boxes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from metaformer.models.detection.roi_align import levels_of, pool, rows_of

UNITS = load_file(Path(__file__).parents[2] / "golden_dense" / "units.safetensors")
STRIDES = (4, 8, 16, 32)


def pyramid(images: int = 2, dim: int = 3, side: int = 64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(images, dim, side >> i, side >> i, requires_grad=True) for i in range(4)]


def test_levels_are_mmdetections() -> None:
    """Fact 21: also just below a doubling, where torchvision takes the next level."""
    side = UNITS["levels.side"]
    boxes = torch.stack([torch.zeros_like(side), torch.zeros_like(side), side, side], dim=1)
    assert torch.equal(levels_of(boxes, 4), UNITS["levels.level"])
    theirs = LevelMapper(2, 5)([boxes])
    assert not torch.equal(theirs, UNITS["levels.level"])


@pytest.mark.parametrize("side", [7, 14])
def test_pooling_is_mmdetections(side: int) -> None:
    rows, features = UNITS["roialign.rois"], UNITS["roialign.feat"]
    boxes = [rows[rows[:, 0] == i, 1:] for i in range(2)]
    order = torch.cat([(rows[:, 0] == i).nonzero()[:, 0] for i in range(2)])
    ours = pool([features], boxes, [4], side)
    assert torch.equal(ours, UNITS[f"roialign.out{side}.scale0.25"][order])


def test_each_box_is_pooled_from_its_own_image_and_level() -> None:
    maps = pyramid()
    torch.manual_seed(1)
    corner, size = torch.rand(20, 2) * 100, torch.rand(20, 2) * 500 + 1
    both = torch.cat([corner, corner + size], dim=1)
    boxes = [both[:12], both[12:]]
    found = pool(maps, boxes, STRIDES, 7)
    levels = levels_of(both, 4)
    assert len(levels.unique()) > 2
    for i, row in enumerate(rows_of(boxes)):
        level = int(levels[i])
        alone = roi_align(maps[level], row[None], 7, 1 / STRIDES[level], sampling_ratio=0, aligned=True)
        assert torch.equal(found[i], alone[0])


def test_torchvisions_pooling_with_its_settings_is_another() -> None:
    """Fact 22."""
    maps, boxes = pyramid(1), [torch.tensor([[10.0, 20, 60, 50]])]
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    other = theirs({str(i): level for i, level in enumerate(maps)}, boxes, [(256, 256)])
    assert not torch.allclose(pool(maps, boxes, STRIDES, 7), other, atol=1e-2)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (2, 0)])
def test_images_without_a_box(counts: tuple[int, int]) -> None:
    maps = pyramid()
    found = pool(maps, [torch.tensor([[0.0, 0, 9, 9]]).expand(n, 4) for n in counts], STRIDES, 7)
    assert found.shape == (sum(counts), 3, 7, 7)
    found.sum().backward()
    assert all(level.grad is not None for level in maps)


def test_boxes_of_no_size_give_finite_features() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [0, 0, 1e-4, 300], [255, 255, 256, 256]])
    assert pool(pyramid(1), [boxes], STRIDES, 7).isfinite().all()


def test_half_precision_keeps_the_boxes_places() -> None:
    maps = [level.detach().bfloat16() for level in pyramid(1)]
    boxes = [torch.tensor([[200.3, 100.7, 230.1, 140.9]])]
    found = pool(maps, boxes, STRIDES, 7)
    assert found.dtype == torch.float32
    assert torch.equal(found, pool([level.float() for level in maps], boxes, STRIDES, 7))
