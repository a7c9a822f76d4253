import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from metaformer.data.augment import train_transform
from metaformer.data.dataset import AugmentedDataset
from metaformer.data.folder import ImageFolder
from metaformer.data.loader import Loader
from metaformer.data.sampler import TrainSampler
from metaformer.data.shards.index import FORMATS
from metaformer.data.shards.parquet import ParquetImages
from metaformer.data.shards.tar import TarImages
from metaformer.data.split import need_two_classes, open_split
from metaformer.errors import DataError

KINDS = {"folder": ImageFolder, "parquet": ParquetImages, "tar": TarImages}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def root(kind: str, own_pets: Path, shard_pets: Callable[[str], Path]) -> Path:
    """The same images as a folder, as parquet and as tar files."""
    return own_pets if kind == "folder" else shard_pets(kind)


def test_each_kind_has_the_images_of_the_folder(kind: str, root: Path, own_pets: Path) -> None:
    train, folder = open_split(root, "train"), ImageFolder(own_pets, "train")
    assert isinstance(train, KINDS[kind])
    assert train.classes == ("ant", "bee", "cat") and len(train) == len(train.paths) == 12
    expected = {path.relative_to(folder.folder).as_posix(): i for i, path in enumerate(folder.paths)}
    for i, path in enumerate(train.paths):
        index = expected.pop("/".join(str(path).rpartition(": ")[2].split("/")[-2:]))
        assert str(path) == str(train.path(i)) and str(path).startswith(str(root))
        assert train.labels[i] == folder.labels[index]
        assert train.image(i).tobytes() == folder.image(index).tobytes()
    assert not expected
    need_two_classes(train)


def test_labels_follow_the_given_classes(root: Path) -> None:
    val, plain = open_split(root, "val", ["cat", "ant", "bee"]), open_split(root, "val")
    assert val.classes == ("cat", "ant", "bee")
    assert [val.classes[label] for label in val.labels] == [plain.classes[label] for label in plain.labels]
    classes = ["cat", "ant", "bee", "dog"]
    with pytest.raises(DataError, match=r"val: no .*'dog'"):
        open_split(root, "val", classes)
    assert open_split(root, "val", classes, allow_missing=True).classes[3] == "dog"
    with pytest.raises(DataError, match="'bee' not among the 2 known classes"):
        open_split(root, "val", ["cat", "ant"])


def test_a_source_can_be_sent_to_another_process(root: Path) -> None:
    train = open_split(root, "train")
    again = pickle.loads(pickle.dumps(train))
    assert again.image(7).tobytes() == train.image(7).tobytes() and again.path(7) == train.path(7)


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_have_urls(root: Path, memory: str) -> None:
    fsspec.filesystem("memory").put(f"{root}/", "/bucket/", recursive=True)
    local = open_split(root, "train")
    for url in (memory, f"file://{root}"):
        remote = open_split(url, "train")
        assert str(remote.path(3)) == str(local.path(3)).replace(str(root), url)
        assert all(remote.image(i).tobytes() == local.image(i).tobytes() for i in range(12))


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_split(tmp_path / "none", "train")
    with pytest.raises(DataError, match="no parquet or tar files of split 'train'"):
        open_split(f"file://{tmp_path}", "train")


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_parquet_is_training_on_the_folder(
    workers: int, own_pets: Path, shard_pets: Callable[[str], Path]
) -> None:
    shards = shard_pets("parquet")

    def batches(root: Path, workers: int) -> list[torch.Tensor]:
        data = AugmentedDataset(open_split(root, "train"), train_transform(32), seed=3)
        sampler = TrainSampler(len(data), batch_size=5, seed=3, repeated_aug=2)
        found = []
        for epoch in range(2):
            sampler.seek(epoch)
            found += [part for batch in Loader(data, sampler, workers=workers) for part in batch[:3]]
        return found

    expected, got = batches(own_pets, 0), batches(shards, workers)
    assert len(expected) == 12 and all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
