from pathlib import Path

import pytest
import torch

from metaformer.data.dataset import AugmentedDataset
from metaformer.data.folder import ImageFolder
from metaformer.data.loader import Loader
from metaformer.data.sampler import TrainSampler
from metaformer.data.shards.parquet import ParquetImages
from metaformer.data.shards.tar import TarImages
from metaformer.data.shards.write import write_shards
from metaformer.data.split import open_split
from metaformer.errors import DataError
from metaformer.tasks.classification.transforms import train_transform


def test_each_kind_is_recognized(own_pets: Path, tmp_path: Path) -> None:
    for kind, made in (("parquet", ParquetImages), ("tar", TarImages)):
        write_shards(own_pets, tmp_path / kind, kind=kind, workers=1, progress=False)
        assert isinstance(open_split(tmp_path / kind, "train"), made)
        assert isinstance(open_split(f"file://{tmp_path / kind}", "train"), made)
    assert isinstance(open_split(own_pets, "train"), ImageFolder)
    assert open_split(own_pets, "train", ["cat", "bee", "ant"]).classes == ("cat", "bee", "ant")


def test_places_without_data_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_split(tmp_path / "none", "train")
    with pytest.raises(DataError, match="no parquet or tar files of split 'train'"):
        open_split(f"file://{tmp_path}", "train")


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_parquet_is_training_on_the_folder(workers: int, own_pets: Path, tmp_path: Path) -> None:
    write_shards(own_pets, tmp_path / "out", shard_size=0.02, workers=1, progress=False)

    def batches(root: Path, workers: int) -> list[torch.Tensor]:
        data = AugmentedDataset(open_split(root, "train"), train_transform(32), seed=3)
        sampler = TrainSampler(len(data), batch_size=5, seed=3, repeated_aug=2)
        found = []
        for epoch in range(2):
            sampler.seek(epoch)
            found += [part for batch in Loader(data, sampler, workers=workers) for part in batch[:3]]
        return found

    expected, got = batches(own_pets, 0), batches(tmp_path / "out", workers)
    assert len(expected) == 12 and all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
