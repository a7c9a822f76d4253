"""Loader of training batches from tar shards, which are streamed without seeking."""

from collections.abc import Iterator
from typing import Any, Final

from torch.utils.data import IterableDataset, get_worker_info

from metaformer.data.dataset import AugmentedDataset, Batch, Item, SampleOrError
from metaformer.data.image import decode_image
from metaformer.data.loader import ErrorCapturingDataset, Loader
from metaformer.data.sampler import Sample, TrainSampler, hash64, permutation
from metaformer.data.shards.tar import EncodedImage, TarImages
from metaformer.errors import ConfigError, DataError, MetaFormerError

EpochImage = tuple[int, EncodedImage]
"""An image and the epoch that it belongs to."""

BUFFER: Final = 1000
"""Largest size of a worker's shuffle buffer, in encoded images."""
_MAX_EMPTY_EPOCHS: Final = 100
"""Epochs in a row that may give a worker no image before it gives up."""


class StreamLoader(Loader):
    """Batches of a run from a step on, for sources without random access.

    In each epoch the files are distributed anew over all workers of all ranks; where there are fewer files
    than workers, several read the same one and each takes its part of the images. Each worker starts its
    next epoch when its files end, so that none waits for another and every rank gets the requested number
    of batches, however uneven the files are. A buffer shuffles the images.

    The cost: within an epoch, which is as many steps as the data set has batches, an image may come twice or
    not at all; and the order depends on the numbers of ranks and workers and on the step that a run resumes
    at. The augmentation of an image is a function of seed, epoch and index.

    Args:
        dataset: images of a `TarImages`, and their augmentation.
        sampler: batch size, seed, rank and world; its order is not used.
        first: first step.
        total: step to stop before.
        buffer: size of each worker's shuffle buffer, in images.
        options: of `Loader`; here the order depends on the number of workers.

    Raises:
        ConfigError: repeated augmentation, which needs images in any order.
    """

    def __init__(
        self,
        dataset: AugmentedDataset,
        sampler: TrainSampler,
        first: int,
        total: int,
        *,
        buffer: int = BUFFER,
        **options: Any,
    ) -> None:
        if sampler.repeated_aug > 1:
            raise ConfigError(
                f"data.repeated_aug is {sampler.repeated_aug}: a stream of tar files has each image once "
                "an epoch; use parquet shards"
            )
        self.batches = max(0, total - first) * sampler.accumulate
        self.first, self.buffer = first, buffer
        super().__init__(dataset, sampler, **options)

    def __len__(self) -> int:
        return self.batches

    def _batches(self, samples: ErrorCapturingDataset) -> dict[str, Any]:
        return {"dataset": _BatchStream(self, samples), "batch_size": None, "collate_fn": _identity}


class _BatchStream(IterableDataset[Batch | MetaFormerError]):
    """Batches of one worker."""

    def __init__(self, loader: StreamLoader, samples: ErrorCapturingDataset) -> None:
        assert isinstance(samples.dataset.source, TarImages) and isinstance(loader.sampler, TrainSampler)
        self.samples, self.source, self.sampler = samples, samples.dataset.source, loader.sampler
        self.first, self.batches, self.buffer = loader.first, loader.batches, loader.buffer

    def __iter__(self) -> Iterator[Batch | MetaFormerError]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        size = self.sampler.batch_size // (self.sampler.world * self.sampler.accumulate)
        consumer = self.sampler.rank * workers + worker
        consumers = self.sampler.world * workers
        buffer_size = max(1, min(self.buffer, len(self.source) // consumers))  # an epoch at most
        images = self._shuffle(consumer, buffer_size, self._read(consumer, consumers))
        for _ in range(worker, self.batches, workers):
            try:
                yield self.samples.dataset.collate([self._sample(*next(images)) for _ in range(size)])
            except MetaFormerError as error:
                yield error
                return

    def _sample(self, epoch: int, image: EncodedImage) -> SampleOrError:
        def load() -> Item:
            decoded = decode_image(image.data, image.name, background=self.samples.dataset.background)
            return self.samples.dataset.augment(decoded, image.label, Sample(epoch, image.index))

        return self.samples.capture(image.index, load)

    def _shuffle(self, consumer: int, size: int, images: Iterator[EpochImage]) -> Iterator[EpochImage]:
        """Fill a buffer, then yield a random image of it for each that comes."""
        buffer: list[EpochImage] = []
        for number, image in enumerate(images):
            if len(buffer) < size:
                buffer.append(image)
                continue
            slot = hash64(self.sampler.seed, consumer, self.first, number) % size
            chosen, buffer[slot] = buffer[slot], image
            yield chosen

    def _read(self, consumer: int, consumers: int) -> Iterator[EpochImage]:
        """Images of a worker, epoch after epoch."""
        epoch, step = divmod(self.first, self.sampler.steps)
        start, empty = step / self.sampler.steps, 0
        while empty < _MAX_EMPTY_EPOCHS:
            shares = self._shares(epoch, consumer, consumers)
            empty += 1
            for file, part, parts in shares[int(start * len(shares)) :]:
                for image in self._read_file(file):
                    if image.index % parts == part:
                        empty = 0
                        yield epoch, image
            epoch, start = epoch + 1, 0.0
        raise DataError(
            f"{self.source.folder}: too few images for {consumers} workers: take fewer data.workers"
        )

    def _read_file(self, file: int) -> Iterator[EncodedImage]:
        """Images of a file, each read under the monitor."""
        stream = self.source.stream(file)
        index = self.source.first(file)
        while True:
            with self.samples.monitor.reading(index):
                image = next(stream, None)
            if image is None:
                return
            yield image
            index = image.index

    def _shares(self, epoch: int, consumer: int, consumers: int) -> list[tuple[int, int, int]]:
        """A worker's files of an epoch, each with the part that it takes of how many."""
        files = len(self.source.shards.files)
        parts = -(-consumers // files)
        order = permutation(files * parts, self.sampler.seed, epoch).tolist()
        return [(share % files, share // files, parts) for share in order[consumer::consumers]]


def _identity(batch: Batch | MetaFormerError) -> Batch | MetaFormerError:
    return batch
