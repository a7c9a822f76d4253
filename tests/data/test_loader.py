import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from metaformer.data.dataset import AugmentedDataset, Batch, SampleOrError
from metaformer.data.folder import ImageFolder
from metaformer.data.loader import Loader
from metaformer.data.sampler import EvalSampler, PureSampler
from metaformer.distributed import Interrupted
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.tasks.classification.transforms import eval_transform, train_transform
from metaformer.tasks.detection.dataset import DetectionDataset, open_detection
from metaformer.tasks.detection.transforms import train_transform as detection_transform
from metaformer.tasks.segmentation.dataset import SegmentationDataset, open_segmentation
from metaformer.tasks.segmentation.transforms import train_transform as segmentation_transform


def loader(own_pets: Path, workers: int, **options: object) -> Loader:
    data = AugmentedDataset(ImageFolder(own_pets, "train"), train_transform(32, **options), seed=3)
    return Loader(data, PureSampler(12, batch_size=4, seed=3, repeated_aug=2), workers=workers)


def epochs(loader: Loader) -> list[Batch]:
    assert isinstance(loader.sampler, PureSampler)
    batches = []
    for epoch in range(2):
        loader.sampler.seek(epoch)
        batches += list(loader)
    return batches


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
def test_batches_do_not_depend_on_the_workers(own_pets: Path) -> None:
    expected = epochs(loader(own_pets, 0))
    assert len(expected) == 6
    assert expected[0].images.shape == (4, 3, 32, 32)
    assert expected[0].labels.dtype == expected[0].indices.dtype == torch.int64
    for workers in (1, 2):
        random.seed(workers)
        torch.manual_seed(workers)
        got = epochs(loader(own_pets, workers))
        assert all(
            torch.equal(a, b)
            for one, other in zip(expected, got, strict=True)
            for a, b in zip(one[:3], other[:3], strict=True)
        )


def _is_handed_over_uncopied(items: list[SampleOrError]) -> bool:
    batch = AugmentedDataset.collate(AugmentedDataset([], lambda image: image), items)  # type: ignore[arg-type]
    return isinstance(batch, Batch) and batch.images.is_shared()


def test_workers_write_batches_where_the_main_process_reads_them(own_pets: Path) -> None:
    data = AugmentedDataset(ImageFolder(own_pets, "val"), eval_transform(32))
    for workers in (0, 1):
        shared = DataLoader(
            data,
            batch_sampler=EvalSampler(12, batch_size=4),
            num_workers=workers,
            collate_fn=_is_handed_over_uncopied,
        )
        assert list(shared) == [workers > 0] * 3


def test_a_run_can_go_on_with_another_number_of_workers(own_pets: Path) -> None:
    expected = epochs(loader(own_pets, 2))
    rest = loader(own_pets, 0)
    assert isinstance(rest.sampler, PureSampler)
    rest.sampler.seek(1, 1)
    assert len(rest) == 2
    for one, other in zip(expected[4:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.indices, other.indices)


def test_iterating_draws_nothing_from_the_run(own_pets: Path) -> None:
    batches = loader(own_pets, 1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(batches)
    assert torch.equal(torch.rand(3), expected)


def test_views_stay_together(own_pets: Path) -> None:
    batch = next(iter(loader(own_pets, 0, aug_splits=3)))
    assert batch.images.shape == (4, 3, 3, 32, 32)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_bad_image_arrives_as_what_it_is(own_pets: Path, workers: int) -> None:
    bad = own_pets / "val/bee/2.png"
    bad.write_bytes(b"no image")
    data = AugmentedDataset(ImageFolder(own_pets, "val"), eval_transform(32))
    batches = Loader(data, EvalSampler(12, batch_size=5), workers=workers)
    with pytest.raises(BadImage) as caught:
        list(batches)
    assert caught.value.path == bad
    assert str(caught.value).startswith(str(bad)) and "\n" not in str(caught.value)


class Faulty(ImageFolder):
    """A folder whose eighth image is the end of the worker that reads it."""

    def __init__(self, root: Path, how: str) -> None:
        super().__init__(root, "val")
        self.how = how

    def image(self, index: int) -> Image.Image:
        if index == 7:
            match self.how:
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "status 3":
                    os._exit(3)
                case "status 0":
                    os._exit(0)
                case "reads":
                    time.sleep(600)
                case "not enough memory":
                    raise MemoryError
                case "not enough memory for it":
                    torch.empty(1 << 60)
        return super().image(index)


class Buggy(ImageFolder):
    def image(self, index: int) -> Image.Image:
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "how", ["killed", "status 3", "status 0", "reads", "not enough memory", "not enough memory for it"]
)
def test_the_end_of_a_worker_is_told_with_its_image_in_bounded_time(own_pets: Path, how: str) -> None:
    source = Faulty(own_pets, how)
    batches = Loader(
        AugmentedDataset(source, eval_transform(32)), EvalSampler(12, batch_size=4), workers=1, timeout=2
    )
    began = time.monotonic()
    with pytest.raises(DataError, match=how) as caught:
        list(batches)
    assert time.monotonic() - began < 60  # it would be 600
    assert str(source.path(7)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_where_that_is_wanted(own_pets: Path, workers: int) -> None:
    bad = own_pets / "val/bee/2.png"
    bad.write_bytes(b"no image")
    source = ImageFolder(own_pets, "val")
    place = source.paths.index(bad)
    data = AugmentedDataset(source, eval_transform(32))
    batches = list(Loader(data, EvalSampler(12, batch_size=5), workers=workers, skip_bad=True))
    kept = [int(index) for batch in batches for index in batch.indices]
    assert kept == [index for index in range(12) if index != place]
    (left_out,) = (one for batch in batches for one in batch.bad)
    assert left_out.index == place and left_out.reason.startswith(str(bad))


def test_a_batch_of_bad_images_only_is_an_error(own_pets: Path) -> None:
    for file in (own_pets / "val/bee").iterdir():
        file.write_bytes(b"")
    data = AugmentedDataset(ImageFolder(own_pets, "val"), eval_transform(32))
    with pytest.raises(DataError, match=r"none of the 2 images of a batch can be read; the first: .*bee"):
        list(Loader(data, EvalSampler(12, batch_size=2), skip_bad=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wish_to_stop_ends_the_wait(own_pets: Path, workers: int) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    data = AugmentedDataset(Faulty(own_pets, "reads"), eval_transform(32))
    sampler = EvalSampler(7 if workers == 0 else 12, batch_size=1)
    with pytest.raises(Interrupted):
        list(Loader(data, sampler, workers=workers, stop=stop))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_told_with_its_image_and_where_it_is(own_pets: Path, workers: int) -> None:
    source = Buggy(own_pets, "val")
    with pytest.raises(DataError, match="RuntimeError while it was read or transformed: a bug") as caught:
        list(
            Loader(
                AugmentedDataset(source, eval_transform(32)), EvalSampler(12, batch_size=4), workers=workers
            )
        )
    assert str(source.path(0)) in str(caught.value) and "\n" not in str(caught.value)
    assert "test_loader.py" in caught.value.__notes__[0]


def test_workers_are_counted_from_zero_and_bounded_by_the_cores(own_pets: Path) -> None:
    with pytest.raises(ConfigError, match="workers is -1"):
        loader(own_pets, -1)
    assert len(list(loader(own_pets, 500))) == 3


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_signals_to_the_main_process(own_pets: Path, number: int) -> None:
    """A scheduler, `timeout` or Ctrl-C signals the whole process group."""
    batches = loader(own_pets, 2)
    taken = iter(batches)
    first = next(taken)
    for worker in batches._loader._iterator._workers:
        os.kill(worker.pid, number)
    assert len([first, *taken]) == 3
    batches.close()


def test_closing_ends_workers_that_hang(own_pets: Path) -> None:
    batches = loader(own_pets, 1)
    next(iter(batches))
    worker = batches._loader._iterator._workers[0]
    os.kill(worker.pid, signal.SIGSTOP)
    batches.close()
    worker.join(5)
    assert not worker.is_alive()


class Stopping(dict[int, object]):
    """What a worker has to hand over: it is stopped as it is asked for it."""

    def pop(self, *key: int) -> object:  # type: ignore[override]
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(5)  # another thread may be the first to stop, and this one run on for a moment
        return super().pop(*key)


class Held(ImageFolder):
    """A folder whose reader is stopped in the middle of handing over its last batch."""

    def image(self, index: int) -> Image.Image:
        if index == len(self) - 1:
            sharer = resource_sharer._resource_sharer  # type: ignore[attr-defined]
            sharer._cache = Stopping(sharer._cache)
        return super().image(index)


@pytest.mark.timeout(60)
def test_closing_asks_nothing_of_a_lock_that_a_killed_worker_may_hold(own_pets: Path) -> None:
    batches = loader(own_pets, 1)
    next(iter(batches))
    event = batches._loader._iterator._workers_done_event  # type: ignore[union-attr]
    assert event._cond.acquire(timeout=10)  # a worker that asks whether it is done holds it for a moment
    batches.close()
    assert not batches._workers


def test_a_worker_held_while_it_hands_over_a_batch_ends_the_wait(own_pets: Path) -> None:
    source = Held(own_pets, "val")
    batches = Loader(
        AugmentedDataset(source, eval_transform(32)), EvalSampler(12, batch_size=4), workers=1, timeout=1
    )
    with pytest.raises(DataError, match="is held by a signal") as caught:
        list(batches)
    assert str(source.path(11)) in str(caught.value)


@pytest.fixture
def others_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """What PyTorch's own loader brings: it raises wherever the main thread is when a worker ends."""
    before = signal.getsignal(signal.SIGCHLD)
    # it comes once in a process, and an earlier test may have had that
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    list(DataLoader(torch.arange(4), num_workers=1))  # type: ignore[arg-type]
    handler = signal.getsignal(signal.SIGCHLD)
    assert callable(handler)
    yield handler
    signal.signal(signal.SIGCHLD, before)


def test_closing_is_no_death_for_another_loader_of_the_process(
    own_pets: Path, others_handler: Callable[..., object]
) -> None:
    batches = loader(own_pets, 1)
    next(iter(batches))
    iterator = batches._loader._iterator
    shut_down, during = iterator._shutdown_workers, []  # type: ignore[union-attr]

    def watched() -> None:
        during.append(signal.getsignal(signal.SIGCHLD))
        shut_down()

    iterator._shutdown_workers = watched  # type: ignore[union-attr]
    batches.close()
    assert during == [signal.SIG_DFL] and signal.getsignal(signal.SIGCHLD) is others_handler


def test_a_death_is_told_with_a_name_beside_another_loader_too(
    own_pets: Path, others_handler: Callable[..., object]
) -> None:
    taking = iter(batches := loader(own_pets, 1))
    next(taking)
    os.kill(batches._loader._iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"SIGKILL (at|after) .*\.png"):
        list(taking)
    assert signal.getsignal(signal.SIGCHLD) is others_handler


def labeled_batches(labeled: Path, workers: int, skip_bad: bool = False) -> list[Batch]:
    data = SegmentationDataset(
        open_segmentation(labeled, "train"), segmentation_transform(16, (40, 24)), seed=3
    )
    return list(Loader(data, EvalSampler(4, batch_size=2), workers=workers, skip_bad=skip_bad))


@pytest.mark.parametrize("workers", [0, 1])
def test_label_maps_are_stacked(labeled: Path, workers: int) -> None:
    first, second = labeled_batches(labeled, workers)
    assert first.images.shape == (2, 3, 16, 16)
    assert first.labels.shape == (2, 16, 16) and first.labels.dtype == torch.uint8
    assert second.indices.tolist() == [2, 3]
    assert torch.equal(second.labels, labeled_batches(labeled, 0)[1].labels)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("part", ["images", "annotations"])
def test_a_bad_image_or_label_map_is_raised_or_left_out(labeled: Path, workers: int, part: str) -> None:
    bad = labeled / part / "train/1.png"
    if part == "images":
        bad.write_bytes(b"no image")
    else:
        Image.new("L", (24, 21), 77).save(bad)
    with pytest.raises(BadImage, match=str(bad)) as caught:
        labeled_batches(labeled, workers)
    assert caught.value.path == bad
    first, second = labeled_batches(labeled, workers, skip_bad=True)
    assert [(one.index, str(bad) in one.reason) for one in first.bad] == [(1, True)]
    assert first.labels.shape == (1, 16, 16) and second.bad == ()


def test_an_evaluation_takes_each_image_in_its_own_size(labeled: Path) -> None:
    def whole(image: Image.Image, labels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(3, 32, 32), torch.from_numpy(labels)

    data = SegmentationDataset(open_segmentation(labeled, "val"), whole)
    shapes = [tuple(batch.labels.shape) for batch in Loader(data, EvalSampler(2, batch_size=1))]
    assert shapes == [(1, 20, 24), (1, 21, 24)]


def scene_batches(objects: Path, workers: int, masks: bool = True, skip_bad: bool = False) -> list[Batch]:
    source = open_detection(objects, "train", masks=masks)
    data = DetectionDataset(source, detection_transform((20, 40), 60), seed=3, masks=masks)
    return list(Loader(data, EvalSampler(5, batch_size=3), workers=workers, skip_bad=skip_bad))


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("masks", [False, True])
def test_scenes_of_many_sizes_are_filled_up_and_keep_their_objects(objects: Path, masks: bool) -> None:
    batches = scene_batches(objects, 0, masks)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    for batch in batches:
        assert batch.labels.tolist() == [0] * len(batch.images)
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
        for image, targets, (height, width) in zip(batch.images, batch.targets, batch.sizes, strict=True):
            assert not image[:, height:].any() and not image[:, :, width:].any()
            assert image[:, height - 1, width - 1].any()
            assert (targets.boxes <= torch.tensor([width, height, width, height])).all()
            assert (targets.masks is not None) == masks
            if targets.masks is not None:
                assert targets.masks.shape == (len(targets), *batch.images.shape[2:])
    assert [len(targets) for batch in batches for targets in batch.targets] == [2, 2, 0, 2, 2]
    assert [bool(t.crowd.any()) for batch in batches for t in batch.targets] == [False] * 3 + [True, False]
    for workers in (1, 2):
        for one, other in zip(batches, scene_batches(objects, workers, masks), strict=True):
            assert torch.equal(one.images, other.images) and one.sizes == other.sizes
            for old, new in zip(one.targets, other.targets, strict=True):
                for name, value in vars(old).items():
                    assert (
                        value is None
                        if getattr(new, name) is None
                        else torch.equal(getattr(new, name), value)
                    )


def test_a_batch_moves_as_a_whole_after_page_locking(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's thread makes lists of tuples."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = scene_batches(objects, 0)[0]
    moved = pin_memory(batch).to(torch.device("cpu"))
    assert isinstance(moved, Batch) and moved.sizes == batch.sizes and isinstance(moved.targets, tuple)
    for old, new in zip(batch.targets, moved.targets, strict=True):
        assert torch.equal(old.boxes, new.boxes) and torch.equal(old.masks, new.masks)  # type: ignore[arg-type]
    assert {targets.boxes.device.type for targets in batch.to(torch.device("meta")).targets} == {"meta"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_scene_is_raised_or_left_out(objects: Path, workers: int) -> None:
    bad = objects / "train2017/2.png"
    bad.write_bytes(b"no image")
    with pytest.raises(BadImage) as caught:
        scene_batches(objects, workers)
    assert caught.value.path == bad
    first, _ = scene_batches(objects, workers, skip_bad=True)
    assert first.indices.tolist() == [0, 2] and len(first.targets) == len(first.sizes) == 2
    assert [one.index for one in first.bad] == [1]
