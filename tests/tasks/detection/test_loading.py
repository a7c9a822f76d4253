"""Images and objects through the data loader."""

from pathlib import Path

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from metaformer.data.dataset import Batch
from metaformer.data.loader import Loader
from metaformer.data.sampler import EvalSampler
from metaformer.tasks.detection.dataset import DetectionDataset, open_detection
from metaformer.tasks.detection.transforms import train_transform


def batches(objects: Path, workers: int, masks: bool = True) -> list[Batch]:
    source = open_detection(objects, "train", masks=masks)
    data = DetectionDataset(source, train_transform((20, 40), 60), seed=3, masks=masks)
    return list(Loader(data, EvalSampler(5, batch_size=3), workers=workers))


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("masks", [False, True])
def test_scenes_of_many_sizes_are_padded_and_keep_their_objects(objects: Path, masks: bool) -> None:
    found = batches(objects, 0, masks)
    assert [batch.indices.tolist() for batch in found] == [[0, 1, 2], [3, 4]]
    for batch in found:
        assert batch.labels.tolist() == [0] * len(batch.images)
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
        for image, targets, (height, width) in zip(batch.images, batch.targets, batch.sizes, strict=True):
            assert not image[:, height:].any() and not image[:, :, width:].any()
            assert image[:, height - 1, width - 1].any()
            assert (targets.boxes <= torch.tensor([width, height, width, height])).all()
            assert (targets.masks is not None) == masks
            if targets.masks is not None:
                assert targets.masks.shape == (len(targets), *batch.images.shape[2:])
    assert [len(targets) for batch in found for targets in batch.targets] == [2, 2, 0, 2, 2]
    assert [bool(t.crowd.any()) for batch in found for t in batch.targets] == [False] * 3 + [True, False]
    for workers in (1, 2):
        for one, other in zip(found, batches(objects, workers, masks), strict=True):
            assert torch.equal(one.images, other.images) and one.sizes == other.sizes
            for old, new in zip(one.targets, other.targets, strict=True):
                for name, value in vars(old).items():
                    same = getattr(new, name)
                    assert same is None if value is None else torch.equal(same, value)


def test_a_batch_moves_as_a_whole_after_page_locking(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's thread makes lists of tuples."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = batches(objects, 0)[0]
    moved = pin_memory(batch).to(torch.device("cpu"))
    assert isinstance(moved, Batch) and moved.sizes == batch.sizes and isinstance(moved.targets, tuple)
    for old, new in zip(batch.targets, moved.targets, strict=True):
        assert torch.equal(old.boxes, new.boxes) and torch.equal(old.masks, new.masks)
    assert {targets.boxes.device.type for targets in batch.to(torch.device("meta")).targets} == {"meta"}
