import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metaformer.models.detection.structures import Targets
from metaformer.tasks.detection.preprocess import DetectionPreprocess, stack, stack_targets


def image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((640, 480), (1067, 800)),
        ((480, 640), (800, 1067)),
        ((640, 426), (1202, 800)),
        ((640, 360), (1333, 750)),
        ((500, 375), (1067, 800)),
        ((4000, 3000), (1067, 800)),
        ((1, 1), (800, 800)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_sizes_are_those_of_the_published_test_pipeline(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert DetectionPreprocess().size(*size) == fitted


def test_the_tensor_is_the_image_resized_once_and_normalized() -> None:
    preprocess = DetectionPreprocess(133, 80)
    given = image(50, 37)
    tensor = preprocess.transform()(given)
    assert tensor.shape == (3, 80, 108)
    assert torch.equal(tensor, preprocess.to_tensor(given.resize((108, 80), Image.Resampling.BILINEAR)))
    assert DetectionPreprocess(None, None).transform()(given).shape == (3, 37, 50)


def test_scales_change_the_box_and_it_is_kept_in_a_checkpoint() -> None:
    double = DetectionPreprocess().scaled(2.0)
    assert double.size(640, 480) == (2133, 1600) and isinstance(double, DetectionPreprocess)
    for preprocess in (double, DetectionPreprocess(None, None, std=(1.0, 2.0, 3.0))):
        assert DetectionPreprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4), st.booleans())
def test_a_batch_is_filled_up_at_the_right_and_bottom(sizes: list[tuple[int, int]], masked: bool) -> None:
    images, targets = [], []
    for number, (height, width) in enumerate(sizes):
        images.append(torch.ones(3, height, width))
        count = number % 3
        targets.append(
            Targets(
                torch.tensor([0.0, 0.0, width, height]).repeat(count, 1),
                torch.full((count,), number),
                torch.ones(count, height, width, dtype=torch.bool) if masked else None,
                torch.ones(count, dtype=torch.bool),
            )
        )
    batch = stack(images)
    height, width = batch.shape[2:]
    assert height % 32 == width % 32 == 0
    assert 0 <= height - max(h for h, _ in sizes) < 32 and 0 <= width - max(w for _, w in sizes) < 32
    filled = stack_targets(targets, (height, width))
    for (h, w), image, place, old, new in zip(sizes, images, batch, targets, filled, strict=True):
        assert torch.equal(place[:, :h, :w], image) and place.sum() == image.sum()
        assert torch.equal(new.boxes, old.boxes) and torch.equal(new.labels, old.labels)
        assert torch.equal(new.crowd, old.crowd)
        assert (new.masks is not None) == masked
        if new.masks is not None and old.masks is not None:
            assert new.masks.shape == (len(old), height, width)
            assert torch.equal(new.masks[:, :h, :w], old.masks) and new.masks.sum() == old.masks.sum()
    tensors = {new.boxes.untyped_storage().data_ptr() for new in filled}
    assert len(tensors) == 1


def test_a_batch_without_objects() -> None:
    none = Targets(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5, 7, dtype=torch.bool)
    )
    first, second = stack_targets([none, none], (32, 64))
    assert len(first) == len(second) == 0
    assert first.masks is not None and first.masks.shape == (0, 32, 64)
