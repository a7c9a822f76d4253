"""Images and label maps through the data loader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from metaformer.data.dataset import Batch
from metaformer.data.loader import Loader
from metaformer.data.sampler import EvalSampler
from metaformer.tasks.segmentation.dataset import SegmentationDataset, open_segmentation
from metaformer.tasks.segmentation.transforms import train_transform


def batches(labeled: Path, workers: int) -> list[Batch]:
    data = SegmentationDataset(open_segmentation(labeled, "train"), train_transform(16, (40, 24)), seed=3)
    return list(Loader(data, EvalSampler(4, batch_size=2), workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_label_maps_are_stacked(labeled: Path, workers: int) -> None:
    first, second = batches(labeled, workers)
    assert first.images.shape == (2, 3, 16, 16)
    assert first.labels.shape == (2, 16, 16) and first.labels.dtype == torch.uint8
    assert second.indices.tolist() == [2, 3]
    assert torch.equal(second.labels, batches(labeled, 0)[1].labels)


def test_an_evaluation_takes_each_image_in_its_own_size(labeled: Path) -> None:
    def whole(image: Image.Image, labels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(3, 32, 32), torch.from_numpy(labels)

    data = SegmentationDataset(open_segmentation(labeled, "val"), whole)
    shapes = [tuple(batch.labels.shape) for batch in Loader(data, EvalSampler(2, batch_size=1))]
    assert shapes == [(1, 20, 24), (1, 21, 24)]
