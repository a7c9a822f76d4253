import io
import os
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.data.augment import train_transform
from metaformer.data.dataset import AugmentedDataset, Batch
from metaformer.data.preprocess import Preprocess
from metaformer.data.sampler import TrainSampler
from metaformer.data.shards.index import find_shards
from metaformer.data.shards.stream_loader import StreamLoader
from metaformer.data.shards.tar import TarImages
from metaformer.distributed import Interrupted
from metaformer.errors import BadImage, ConfigError, DataError
from toys import gray_png, write_tar

pytestmark = pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")


def png(number: int) -> bytes:
    return gray_png(number, 12)


def shards(root: Path, *counts: int) -> Path:
    """Tar files of so many images each; the classes are 0 and 1."""
    number = 0
    for file, count in enumerate(counts):
        images = range(number, number + count)
        members = [m for i in images for m in ((f"{i}.png", png(i)), (f"{i}.cls", b"01"[i % 2 :][:1]))]
        write_tar(root / f"train-{file}.tar", *members)
        number += count
    return root


def source(root: Path) -> TarImages:
    found = find_shards(root, "train")
    assert found is not None
    return TarImages(found)


def loader(
    root: Path,
    epochs: float = 1,
    *,
    first: int = 0,
    batch_size: int = 4,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    repeated_aug: int = 1,
    **options: object,
) -> StreamLoader:
    images = source(root)
    sampler = TrainSampler(
        len(images),
        batch_size=batch_size,
        seed=3,
        rank=rank,
        world=world,
        accumulate=accumulate,
        repeated_aug=repeated_aug,
    )
    total = round(sampler.steps * epochs)
    return StreamLoader(AugmentedDataset(images, train_transform(8), 3), sampler, first, total, **options)


def taken(batches: StreamLoader) -> list[Batch]:
    found = list(batches)
    batches.close()
    return found


def indices(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_batches_and_every_image_in_them(workers: int, tmp_path: Path) -> None:
    shards(tmp_path, 9, 3, 12)
    batches = loader(tmp_path, 8, workers=workers)
    assert len(batches) == 48
    found = taken(batches)
    assert len(found) == 48 and all(batch.images.shape == (4, 3, 8, 8) for batch in found)
    counts = Counter(indices(found))
    assert set(counts) == set(range(24)) and sum(counts.values()) == 8 * 24
    if not workers:  # one reader: images of 8 rounds, but for what the buffer still holds
        assert set(counts.values()) <= set(range(6, 10))
    assert all(label == index % 2 for b in found for label, index in zip(b.labels, b.indices, strict=True))


def test_the_order_is_shuffled_and_the_same_again(tmp_path: Path) -> None:
    shards(tmp_path, 30, 30)
    one, again = taken(loader(tmp_path, 2, workers=2)), taken(loader(tmp_path, 2, workers=2))
    assert all(
        torch.equal(a, b) for x, y in zip(one, again, strict=True) for a, b in zip(x[:3], y[:3], strict=True)
    )
    order = indices(one)
    assert order[:60] != order[60:] and order[:60] != sorted(order[:60])
    near = np.mean([abs(a - b) for a, b in pairwise(order)])
    assert near > 10  # of a random order 20


def test_the_augmentation_is_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    shards(tmp_path, 10, 10)
    images: dict[int, set[bytes]] = {}
    for workers in (0, 1, 2):
        for batch in taken(loader(tmp_path, 3, workers=workers)):
            for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
                images.setdefault(index, set()).add(image.numpy().tobytes())
    assert all(len(variants) <= 5 for variants in images.values())  # of epochs 0 … 4 at most


def test_transparent_pixels_are_blended(tmp_path: Path) -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    write_tar(tmp_path / "train-0.tar", ("a.png", clear.getvalue()), ("a.cls", b"0"))
    transform = Preprocess(8, 1.0, mean=(0, 0, 0), std=(1, 1, 1)).transform()
    data = AugmentedDataset(source(tmp_path), transform, background=(255, 0, 255))
    (batch,) = taken(StreamLoader(data, TrainSampler(1, batch_size=1), 0, 1))
    assert batch.images[0, :, 0, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("files", "workers", "world"), [((7,), 2, 2), ((1, 40), 2, 2), ((5, 5, 5, 5, 5), 1, 2)]
)
def test_uneven_files_block_no_rank(files: tuple[int, ...], workers: int, world: int, tmp_path: Path) -> None:
    shards(tmp_path, *files)
    found = [
        taken(loader(tmp_path, 6, batch_size=2, rank=rank, world=world, workers=workers))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in found}) == 1 and len(found[0]) == sum(files) // 2 * 6
    assert set(indices([batch for batches in found for batch in batches])) == set(range(sum(files)))


def test_an_epochs_files_are_distributed_over_ranks(tmp_path: Path) -> None:
    shards(tmp_path, 8, 8, 8, 8)
    images = source(tmp_path)
    rounds = []
    for rank in range(2):
        batches = loader(tmp_path, rank=rank, world=2, batch_size=8)
        rounds.append({files for files, _, _ in batches._loader.dataset._shares(0, rank, 2)})
    assert not rounds[0] & rounds[1] and rounds[0] | rounds[1] == {0, 1, 2, 3}
    assert len(images) == 32


def test_accumulation_cuts_the_batch(tmp_path: Path) -> None:
    shards(tmp_path, 12)
    found = taken(loader(tmp_path, 2, batch_size=4, accumulate=2))
    assert len(found) == 12 and all(len(batch.labels) == 2 for batch in found)


def test_a_resumed_run_takes_the_rest(tmp_path: Path) -> None:
    shards(tmp_path, 6, 6, 6, 6)
    assert len(taken(loader(tmp_path, 2, first=9))) == 3
    assert not taken(loader(tmp_path, 1, first=6))
    shares = loader(tmp_path)._loader.dataset._shares(0, 0, 1)
    begun = loader(tmp_path, 1, first=3)._loader.dataset._read(0, 1)
    epoch, read = next(begun)
    assert epoch == 0 and read.index // 6 == shares[2][0]  # half of the files are skipped


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_follow_the_policy(workers: int, tmp_path: Path) -> None:
    shards(tmp_path, 8)
    data = (tmp_path / "train-0.tar").read_bytes()
    (tmp_path / "train-0.tar").write_bytes(data.replace(png(5), b"x" * len(png(5))))
    batches = loader(tmp_path, workers=workers)
    with pytest.raises(BadImage, match=r"train-0\.tar: 5\.png: not a JPEG"):
        list(batches)
    found = taken(loader(tmp_path, 4, workers=workers, skip_bad=True))
    bad = [one for batch in found for one in batch.bad]
    assert bad and {one.index for one in bad} == {5} and "5.png" in bad[0].reason
    assert all(len(batch.labels) + len(batch.bad) == 4 for batch in found)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_damaged_after_opening(workers: int, tmp_path: Path) -> None:
    shards(tmp_path, 8, 8)
    batches = loader(tmp_path, 20, workers=workers)
    data = (tmp_path / "train-1.tar").read_bytes()
    (tmp_path / "train-1.tar").write_bytes(data[:3000])
    with pytest.raises(DataError, match=r"train-1\.tar: (damaged|holds \d images)"):
        list(batches)


def test_a_killed_worker_is_reported_with_its_image(tmp_path: Path) -> None:
    shards(tmp_path, 8)
    batches = loader(tmp_path, 500, workers=1)
    taking = iter(batches)
    next(taking)
    began = time.monotonic()
    os.kill(batches._loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"SIGKILL.*train-0\.tar: \d\.png"):
        list(taking)
    assert time.monotonic() - began < 10


def test_stop_ends_the_stream(tmp_path: Path) -> None:
    shards(tmp_path, 8)
    wishes = iter([False, False, False])
    with pytest.raises(Interrupted):
        list(loader(tmp_path, 100, stop=lambda: next(wishes, True)))


def test_more_workers_than_images_still_get_some(tmp_path: Path) -> None:
    shards(tmp_path, 2)
    for rank in range(2):
        assert len(taken(loader(tmp_path, 9, batch_size=2, rank=rank, world=2, workers=2))) == 9


def test_repeated_augmentation_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"data\.repeated_aug is 3: .* use parquet"):
        loader(tmp_path, repeated_aug=3, batch_size=2)
