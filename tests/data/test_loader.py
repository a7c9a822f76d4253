import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from metaformer.color import Color
from metaformer.data.augment import train_transform
from metaformer.data.dataset import AugmentedDataset, Batch, SampleOrError
from metaformer.data.folder import ImageFolder
from metaformer.data.loader import Loader
from metaformer.data.preprocess import Preprocess
from metaformer.data.sampler import EvalSampler, TrainSampler
from metaformer.distributed import Interrupted
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.tasks.detection.dataset import DetectionDataset, open_detection
from metaformer.tasks.detection.transforms import train_transform as detection_transform
from metaformer.tasks.segmentation.dataset import SegmentationDataset, open_segmentation
from metaformer.tasks.segmentation.transforms import train_transform as segmentation_transform


def loader(own_pets: Path, workers: int, **options: object) -> Loader:
    data = AugmentedDataset(ImageFolder(own_pets, "train"), train_transform(32, **options), seed=3)
    return Loader(data, TrainSampler(12, batch_size=4, seed=3, repeated_aug=2), workers=workers)


def epochs(loader: Loader) -> list[Batch]:
    assert isinstance(loader.sampler, TrainSampler)
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
    data = AugmentedDataset(ImageFolder(own_pets, "val"), Preprocess(32).transform())
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
    assert isinstance(rest.sampler, TrainSampler)
    rest.sampler.seek(1, 1)
    assert len(rest) == 2
    for one, other in zip(expected[4:], rest, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.indices, other.indices)


def test_iterating_leaves_the_runs_random_stream_alone(own_pets: Path) -> None:
    batches = loader(own_pets, 1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(batches)
    assert torch.equal(torch.rand(3), expected)


def test_views_are_stacked(own_pets: Path) -> None:
    batch = next(iter(loader(own_pets, 0, aug_splits=3)))
    assert batch.images.shape == (4, 3, 3, 32, 32)


@pytest.fixture(params=["image", "image of a pair", "label map", "scene"])
def with_bad_file(request: pytest.FixtureRequest) -> tuple[AugmentedDataset, Path, int]:
    """Data with a file that cannot be used, and its index."""
    if request.param == "image":
        bad = request.getfixturevalue("own_pets") / "val/bee/2.png"
        bad.write_bytes(b"no image")
        source = ImageFolder(bad.parents[2], "val")
        return AugmentedDataset(source, Preprocess(32).transform()), bad, source.paths.index(bad)
    if request.param == "scene":
        root = request.getfixturevalue("objects")
        scenes = open_detection(root, "train", masks=True)
        bad = scenes.path(1)
        bad.write_bytes(b"no image")
        return DetectionDataset(scenes, detection_transform((20, 40), 60), masks=True), bad, 1
    pairs = open_segmentation(request.getfixturevalue("labeled"), "train")
    if request.param == "label map":
        bad = pairs.label_path(1)
        Image.new("L", (24, 21), 77).save(bad)
    else:
        bad = pairs.path(1)
        bad.write_bytes(b"no image")
    return SegmentationDataset(pairs, segmentation_transform(16, (40, 24))), bad, 1


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_bad_file_raises_bad_image(with_bad_file: tuple[AugmentedDataset, Path, int], workers: int) -> None:
    data, bad, _ = with_bad_file
    with pytest.raises(BadImage) as caught:
        list(Loader(data, EvalSampler(len(data), batch_size=2), workers=workers))
    assert caught.value.path == bad
    assert str(caught.value).startswith(str(bad)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_left_out_on_request(
    with_bad_file: tuple[AugmentedDataset, Path, int], workers: int
) -> None:
    data, bad, place = with_bad_file
    batches = list(Loader(data, EvalSampler(len(data), batch_size=2), workers=workers, skip_bad=True))
    indices = [index for batch in batches for index in batch.indices.tolist()]
    assert indices == [index for index in range(len(data)) if index != place]
    (left_out,) = (one for batch in batches for one in batch.bad)
    assert left_out.index == place and left_out.reason.startswith(str(bad))
    for batch in batches:
        assert len(batch.images) == len(batch.labels) == len(batch.indices)
        assert len(batch.targets) == len(batch.sizes) in (0, len(batch.images))


class Faulty(ImageFolder):
    """A folder whose eighth image is the end of the worker that reads it."""

    def __init__(self, root: Path, how: str) -> None:
        super().__init__(root, "val")
        self.how = how

    def image(self, index: int, background: Color | None = None) -> Image.Image:
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
        return super().image(index, background)


class Buggy(ImageFolder):
    def image(self, index: int, background: Color | None = None) -> Image.Image:
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "how", ["killed", "status 3", "status 0", "reads", "not enough memory", "not enough memory for it"]
)
def test_a_dead_or_hung_worker_is_reported_with_its_image_in_bounded_time(own_pets: Path, how: str) -> None:
    source = Faulty(own_pets, how)
    batches = Loader(
        AugmentedDataset(source, Preprocess(32).transform()),
        EvalSampler(12, batch_size=4),
        workers=1,
        timeout=2,
    )
    began = time.monotonic()
    with pytest.raises(DataError, match=how) as caught:
        list(batches)
    assert time.monotonic() - began < 60  # it would be 600
    assert str(source.path(7)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_of_bad_images_only_is_an_error(own_pets: Path) -> None:
    for file in (own_pets / "val/bee").iterdir():
        file.write_bytes(b"")
    data = AugmentedDataset(ImageFolder(own_pets, "val"), Preprocess(32).transform())
    with pytest.raises(DataError, match=r"none of the 2 images of a batch can be read; the first: .*bee"):
        list(Loader(data, EvalSampler(12, batch_size=2), skip_bad=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_ends_the_wait(own_pets: Path, workers: int) -> None:
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 2

    data = AugmentedDataset(Faulty(own_pets, "reads"), Preprocess(32).transform())
    sampler = EvalSampler(7 if workers == 0 else 12, batch_size=1)
    with pytest.raises(Interrupted):
        list(Loader(data, sampler, workers=workers, stop=stop))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_reported_with_its_image_and_traceback(own_pets: Path, workers: int) -> None:
    source = Buggy(own_pets, "val")
    with pytest.raises(DataError, match="RuntimeError while it was read or transformed: a bug") as caught:
        list(
            Loader(
                AugmentedDataset(source, Preprocess(32).transform()),
                EvalSampler(12, batch_size=4),
                workers=workers,
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
    first = [next(taken), next(taken)]  # one of each worker: both have set up their signals
    for worker in batches._loader._iterator._workers:
        os.kill(worker.pid, number)
    assert len([*first, *taken]) == 3
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
    """Batches that a worker hands over; it is stopped when one is fetched."""

    def pop(self, *key: int) -> object:  # type: ignore[override]
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(5)  # another thread may be the first to stop, and this one run on for a moment
        return super().pop(*key)


class Held(ImageFolder):
    """A folder whose reader is stopped in the middle of handing over its last batch."""

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        if index == len(self) - 1:
            sharer = resource_sharer._resource_sharer  # type: ignore[attr-defined]
            sharer._cache = Stopping(sharer._cache)
        return super().image(index, background)


@pytest.mark.timeout(60)
def test_closing_does_not_take_a_lock_that_a_killed_worker_may_hold(own_pets: Path) -> None:
    batches = loader(own_pets, 1)
    next(iter(batches))
    event = batches._loader._iterator._workers_done_event  # type: ignore[union-attr]
    assert event._cond.acquire(timeout=10)  # a worker that asks whether it is done holds it for a moment
    batches.close()
    assert not batches._workers


def test_a_worker_held_while_it_hands_over_a_batch_ends_the_wait(own_pets: Path) -> None:
    source = Held(own_pets, "val")
    batches = Loader(
        AugmentedDataset(source, Preprocess(32).transform()),
        EvalSampler(12, batch_size=4),
        workers=1,
        timeout=1,
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


def test_closing_leaves_another_loaders_signal_handler_alone(
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


def test_a_death_is_reported_with_a_name_beside_another_loader_too(
    own_pets: Path, others_handler: Callable[..., object]
) -> None:
    taking = iter(batches := loader(own_pets, 1))
    next(taking)
    os.kill(batches._loader._iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"SIGKILL (at|after) .*\.png"):
        list(taking)
    assert signal.getsignal(signal.SIGCHLD) is others_handler
