"""Training batches from a stream of tar files, which are read from their beginnings and never sought in."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from metaformer.data.dataset import AugmentedDataset, Batch, Item, SampleOrError
from metaformer.data.image import decode_image
from metaformer.data.loader import ErrorCapturingDataset, Loader, Stop
from metaformer.data.sampler import PureSampler, Sample, hash64, permutation
from metaformer.data.shards.tar import Read, TarImages
from metaformer.errors import ConfigError, DataError, MetaFormerError

Drawn = tuple[int, Read]
"""A round and an image of it."""

BUFFER = 1000
"""Encoded images, at most, of which each worker draws the next one."""
_FRUITLESS = 100
"""Rounds through the files that may give a worker nothing before it gives up."""


class StreamLoader(Loader):
    """The batches of a run from a step on; what `Loader` is to sources that can be sought in.

    The files are dealt out anew in each round, to all workers of all ranks; where there are fewer files than
    workers, several read the same one and each takes its part of the images. Each worker goes through its
    files and begins its next round when they end, so that none waits for another and every rank takes as
    many batches as asked, however uneven the files are. Images come out in an order that a buffer shuffles.

    What that costs: within an epoch, which is as many steps as the data set has batches, an image may come
    twice or not at all; and the order depends on the numbers of ranks and workers and on the step that a run
    is resumed at. The augmentation of an image is a function of seed, round and index.

    Args:
        dataset: images of a `TarImages`, and their augmentation.
        sampler: batch size, seed, rank and world; its order is not used.
        first: step to begin with.
        total: step to end before.
        workers: processes; the order depends on how many there are.
        pin_memory: keep batches in page-locked memory, for copies to CUDA.
        timeout: seconds to wait for a worker before giving up.
        stop: asked again and again; once it says so, waiting ends.
        skip_bad: leave out images that cannot be read, and say so in the batch, rather than raise.
        buffer: images from which each worker draws.

    Raises:
        ConfigError: repeated augmentation, which needs images in any order.
    """

    def __init__(
        self,
        dataset: AugmentedDataset,
        sampler: PureSampler,
        first: int,
        total: int,
        *,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = 120.0,
        stop: Stop | None = None,
        skip_bad: bool = False,
        buffer: int = BUFFER,
    ) -> None:
        if sampler.repeated_aug > 1:
            raise ConfigError(
                f"data.repeated_aug is {sampler.repeated_aug}: a stream of tar files gives each image once "
                "a round; use parquet shards"
            )
        self.batches = max(0, total - first) * sampler.accumulate
        self.first, self.buffer = first, buffer
        super().__init__(
            dataset,
            sampler,
            workers=workers,
            pin_memory=pin_memory,
            timeout=timeout,
            stop=stop,
            skip_bad=skip_bad,
        )

    def __len__(self) -> int:
        return self.batches

    def _parts(self, samples: ErrorCapturingDataset) -> dict[str, Any]:
        return {"dataset": _Batches(self, samples), "batch_size": None, "collate_fn": _as_it_is}


class _Batches(IterableDataset[Batch | MetaFormerError]):
    """A worker's own batches."""

    def __init__(self, loader: StreamLoader, samples: ErrorCapturingDataset) -> None:
        assert isinstance(samples.dataset.source, TarImages) and isinstance(loader.sampler, PureSampler)
        self.samples, self.source, self.sampler = samples, samples.dataset.source, loader.sampler
        self.first, self.batches, self.buffer = loader.first, loader.batches, loader.buffer

    def __iter__(self) -> Iterator[Batch | MetaFormerError]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        size = self.sampler.batch_size // (self.sampler.world * self.sampler.accumulate)
        consumer = self.sampler.rank * workers + worker
        consumers = self.sampler.world * workers
        room = max(1, min(self.buffer, len(self.source) // consumers))  # a round at most
        drawn = self._shuffled(consumer, room, self._read(consumer, consumers))
        for _ in range(worker, self.batches, workers):
            try:
                yield self.samples.dataset.collate([self._made(*next(drawn)) for _ in range(size)])
            except MetaFormerError as error:
                yield error
                return

    def _made(self, epoch: int, read: Read) -> SampleOrError:
        def make() -> Item:
            image = decode_image(read.data, read.name)
            return self.samples.dataset.augment(image, read.label, Sample(epoch, read.place))

        return self.samples.made(read.place, make)

    def _shuffled(self, consumer: int, room: int, images: Iterator[Drawn]) -> Iterator[Drawn]:
        """Fill a buffer, then for each image that comes yield one of it."""
        held: list[Drawn] = []
        for number, image in enumerate(images):
            if len(held) < room:
                held.append(image)
                continue
            place = hash64(self.sampler.seed, consumer, self.first, number) % room
            drawn, held[place] = held[place], image
            yield drawn

    def _read(self, consumer: int, consumers: int) -> Iterator[Drawn]:
        """Read what falls to a worker, round after round."""
        epoch, step = divmod(self.first, self.sampler.steps)
        begin, fruitless = step / self.sampler.steps, 0
        while fruitless < _FRUITLESS:
            shares = self._shares(epoch, consumer, consumers)
            fruitless += 1
            for file, part, parts in shares[int(begin * len(shares)) :]:
                for read in self._file(file):
                    if read.place % parts == part:
                        fruitless = 0
                        yield epoch, read
            epoch, begin = epoch + 1, 0.0
        raise DataError(
            f"{self.source.folder}: too few images for {consumers} workers: take fewer data.workers"
        )

    def _file(self, file: int) -> Iterator[Read]:
        """Read a file, with a note of it for as long as that takes."""
        stream = self.source.stream(file)
        place = self.source.first(file)
        while True:
            with self.samples.watch.reading(place):
                read = next(stream, None)
            if read is None:
                return
            yield read
            place = read.place

    def _shares(self, epoch: int, consumer: int, consumers: int) -> list[tuple[int, int, int]]:
        """Deal the files of a round: to each worker its files, with which part of how many it takes."""
        files = len(self.source.shards.files)
        parts = -(-consumers // files)
        order = permutation(files * parts, self.sampler.seed, epoch).tolist()
        return [(share % files, share // files, parts) for share in order[consumer::consumers]]


def _as_it_is(batch: Batch | MetaFormerError) -> Batch | MetaFormerError:
    return batch
