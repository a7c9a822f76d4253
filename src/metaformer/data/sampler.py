"""Batch samplers whose order is a pure function of seed and epoch, on any number of ranks."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from metaformer.errors import ConfigError, DataError

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


class Sample(NamedTuple):
    """Key of a sample: with the seed it determines the image and its augmentation."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    repeat: int = 0


def sample_seed(seed: int, sample: Sample) -> int:
    """64-bit random seed of a sample, the same on every machine and in every process."""
    return hash64(seed, sample.epoch, sample.index, sample.repeat)


def hash64(*values: int) -> int:
    """Hash integers to 64 bits by chained SplitMix64 steps (https://doi.org/10.1145/2714064.2660195)."""
    state = 0
    for value in values:
        state = _mix((state ^ (value & _MASK)) + _GOLDEN)
    return state


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permutation(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Random permutation of `range(length)`: sorted by hash, which no library's update can change."""
    start = np.uint64(hash64(seed, epoch))
    keys = (np.arange(length, dtype=np.uint64) ^ start) + np.uint64(_GOLDEN)  # wraps around, as intended
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(keys ^ (keys >> np.uint64(31)), kind="stable")


def balanced_order(
    order: NDArray[np.int64], classes: NDArray[np.int64], epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An epoch in which every class comes equally often, of the same length.

    Args:
        order: all images, shuffled.
        classes: class of each image.
        epoch: number of the epoch; where the length is no multiple of the classes, others have one more.

    Returns:
        Images in order, the classes in turn but shuffled, and how often each has come before.
    """
    shuffled = classes[order]
    queues = [order[shuffled == one] for one in np.unique(classes)]
    count = -(-len(order) // len(queues))
    rows = np.stack([np.resize(queue, count) for queue in queues], axis=1)
    times = np.stack([np.arange(count) // len(queue) for queue in queues], axis=1)
    rows, times = (np.roll(part, epoch, axis=1).ravel()[: len(order)] for part in (rows, times))
    mixed = np.argsort(order, kind="stable")  # the inverse of a permutation is one, too
    return rows[mixed], times[mixed]


class TrainSampler(Sampler[list[Sample]]):
    """Shuffled training batches, for `DataLoader(batch_sampler=...)`; each item is a rank's micro-batch.

    The global order of an epoch depends on (length, seed, epoch, repeated_aug) alone. Step `s` takes
    positions `s * batch_size` and following; of these, rank `r` takes every `world`-th from `r` on and cuts
    them into `accumulate` micro-batches. So a step has the same images on any number of ranks. The last
    images of an epoch, fewer than a batch, are dropped.

    Repeated augmentation is DeiT's (https://arxiv.org/abs/2012.12877): each image comes `repeated_aug` times
    in a row, so that its copies go to different ranks, and the epoch is cut to its length without repeats:
    it has one image in `repeated_aug`, that often. DeiT cuts to multiples of 256, this to batches.

    With groups, such as the orientation of an image, a step has images of one group where possible. The
    images of an epoch are the same, in an order that also depends on the batch size: they are queued in the
    order above, one queue per group, and a queue that holds a batch is the next step. What the queues hold
    in the end is concatenated and cut into the last steps, so that images of small groups come as often as
    others. Within a step neighbors go to one rank and one micro-batch, so that only the micro-batches at a
    border of two groups are mixed.

    Args:
        length: number of images.
        batch_size: images per optimizer step, over all ranks and micro-batches.
        seed: seed of the order.
        rank: this process.
        world: number of processes.
        repeated_aug: copies of an image in an epoch.
        accumulate: micro-batches per optimizer step.
        groups: group of each image; none when not given.
        classes: class of each image, to draw every class equally often: an epoch has its length still, images
            of rare classes several times, each time augmented anew, and a share of those of frequent ones.

    Raises:
        ConfigError: a batch that cannot be divided evenly, or a number out of range.
        DataError: fewer images than one batch.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        repeated_aug: int = 1,
        accumulate: int = 1,
        groups: Sequence[int] | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        _check_rank(rank, world)
        for field, value in (
            ("data.batch_size", batch_size),
            ("data.repeated_aug", repeated_aug),
            ("optim.accumulate", accumulate),
        ):
            if value < 1:
                raise ConfigError(f"{field} is {value}: it must be at least 1")
        if batch_size % (world * accumulate):
            raise ConfigError(
                f"data.batch_size {batch_size} cannot be divided among {world} device(s) x {accumulate} "
                f"accumulation step(s): choose a multiple of {world * accumulate}"
            )
        if length < batch_size:
            raise DataError(
                f"{length} training images do not fill one batch of {batch_size}: "
                f"choose a data.batch_size of at most {length}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.repeated_aug, self.accumulate = rank, world, repeated_aug, accumulate
        self.groups = None if groups is None else np.asarray(groups, dtype=np.int64)
        self.classes = None if classes is None else np.asarray(classes, dtype=np.int64)
        self.epoch = 0
        self.start = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.length // self.batch_size

    def __len__(self) -> int:
        """Micro-batches from the position to the end of the epoch."""
        return (self.steps - self.start) * self.accumulate

    def seek(self, epoch: int, start: int = 0) -> None:
        """Set the position of the next iteration: optimizer step `start` of `epoch`.

        Raises:
            ConfigError: the epoch has fewer steps.
        """
        if not 0 <= start <= self.steps or epoch < 0:
            raise ConfigError(f"step {start} of epoch {epoch} does not exist: epochs have {self.steps} steps")
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self.epoch
        order = permutation(self.length, self.seed, epoch)
        times = np.zeros(self.length, np.int64)
        if self.classes is not None:
            order, times = balanced_order(order, self.classes, epoch)
        for step in self._positions(order)[self.start :, :, self.rank]:  # (accumulate, micro-batch)
            for positions in step.tolist():
                yield [
                    Sample(epoch, int(order[row]), int(times[row]) * self.repeated_aug + copy)
                    for row, copy in (divmod(p, self.repeated_aug) for p in positions)
                ]

    def _positions(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the epoch's order: (steps, accumulate, world, micro-batch)."""
        positions = np.arange(self.steps * self.batch_size)
        if self.groups is None:
            return positions.reshape(self.steps, self.accumulate, -1, self.world).swapaxes(2, 3)
        groups = self.groups[order[positions // self.repeated_aug]]
        queues = [positions[groups == group] for group in np.unique(groups)]
        full = [queue[: len(queue) // self.batch_size * self.batch_size] for queue in queues]
        rest = [queue[len(part) :] for queue, part in zip(queues, full, strict=True)]
        steps = np.concatenate(full).reshape(-1, self.batch_size)
        steps = steps[np.argsort(steps[:, -1])]  # a queue's batch is due when its last image is queued
        positions = np.concatenate([steps.ravel(), *rest])
        return positions.reshape(self.steps, self.accumulate, self.world, -1)


class EvalSampler(Sampler[list[Sample]]):
    """Evaluation batches: every image once, in order; rank `r` of `world` takes every `world`-th.

    Args:
        length: number of images.
        batch_size: images per batch and rank.
        rank: this process.
        world: number of processes.
        start: number of this rank's images to skip, because they were done before.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self, length: int, *, batch_size: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        _check_rank(rank, world)
        if batch_size < 1:
            raise ConfigError(f"data.eval_batch_size is {batch_size}: it must be at least 1")
        self.batch_size = batch_size
        self.indices = range(rank, length, world)[start:]
        self.most = -(-len(range(0, length, world)) // batch_size)
        """Largest number of batches of any rank."""

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Sample]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [Sample(0, index) for index in self.indices[first : first + self.batch_size]]


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is outside a world of {world} process(es)")
