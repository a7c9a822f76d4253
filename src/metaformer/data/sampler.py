"""Which image comes when: a pure function of seed, epoch and position, on any number of ranks."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from metaformer.errors import ConfigError, DataError

_MASK: Final = (1 << 64) - 1


_GOLDEN: Final = 0x9E3779B97F4A7C15


class Sample(NamedTuple):
    """One use of one image; with the seed it decides the augmentation."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    repeat: int = 0


def sample_seed(seed: int, sample: Sample) -> int:
    """Hash seed and sample to 64 well mixed bits, the same on every machine and in every process."""
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
    """Shuffle `range(length)`: sorted by hash, so that no library's random stream can change it."""
    start = np.uint64(hash64(seed, epoch))
    keys = (np.arange(length, dtype=np.uint64) ^ start) + np.uint64(_GOLDEN)  # wraps around, as meant
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(keys ^ (keys >> np.uint64(31)), kind="stable")


class PureSampler(Sampler[list[Sample]]):
    """Shuffled training batches, for `DataLoader(batch_sampler=...)`; each item is a rank's micro-batch.

    The global order of an epoch depends on (length, seed, epoch, repeated_aug) alone. Step `s` takes
    positions `s * batch_size` and following; of these, rank `r` takes every `world`-th from `r` on and cuts
    them into `accumulate` micro-batches. So a step sees the same images on any number of ranks. Images
    left over at the end, fewer than a batch, wait for another epoch's order.

    Repeated augmentation is DeiT's (https://arxiv.org/abs/2012.12877): each image stands `repeated_aug` times
    in a row, so that its copies go to different ranks, and the epoch is cut to the length it has without
    repeats: it shows one image in `repeated_aug`, that often. DeiT cuts to multiples of 256, this to batches.

    Args:
        length: number of images.
        batch_size: images per optimizer step, over all ranks and micro-batches.
        seed: what the order is a function of, with the epoch.
        rank: this process.
        world: number of processes.
        repeated_aug: copies of an image in an epoch.
        accumulate: micro-batches per optimizer step.

    Raises:
        ConfigError: a batch that cannot be shared out evenly, or a number out of range.
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
                f"data.batch_size {batch_size} cannot be shared by {world} device(s) x {accumulate} "
                f"accumulation step(s): choose a multiple of {world * accumulate}"
            )
        if length < batch_size:
            raise DataError(
                f"{length} training images do not fill one batch of {batch_size}: "
                f"choose a data.batch_size of at most {length}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world, self.repeated_aug, self.accumulate = rank, world, repeated_aug, accumulate
        self.epoch = 0
        self.start = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.length // self.batch_size

    def __len__(self) -> int:
        """Count the micro-batches from the start position to the end of the epoch."""
        return (self.steps - self.start) * self.accumulate

    def seek(self, epoch: int, start: int = 0) -> None:
        """Let the next iteration begin at optimizer step `start` of `epoch`.

        Raises:
            ConfigError: the epoch has fewer steps.
        """
        if not 0 <= start <= self.steps or epoch < 0:
            raise ConfigError(f"step {start} of epoch {epoch} does not exist: epochs have {self.steps} steps")
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self.epoch
        order = permutation(self.length, self.seed, epoch)
        share = self.batch_size // self.world
        micro = share // self.accumulate
        for step in range(self.start, self.steps):
            positions = [step * self.batch_size + self.rank + i * self.world for i in range(share)]
            samples = [
                Sample(epoch, int(order[p // self.repeated_aug]), p % self.repeated_aug) for p in positions
            ]
            for first in range(0, share, micro):
                yield samples[first : first + micro]


class EvalSampler(Sampler[list[Sample]]):
    """Every image once, in order; rank `r` of `world` takes every `world`-th, and none is padded.

    Args:
        length: number of images.
        batch_size: images at once, per rank.
        rank: this process.
        world: number of processes.
        start: how many of this rank's images are left out because they were done before.

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
        """Batches of the rank that has the most."""

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Sample]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [Sample(0, index) for index in self.indices[first : first + self.batch_size]]


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is outside a world of {world} process(es)")


class GroupSampler(PureSampler):
    """Shuffled training batches of one group where possible; steps, resuming and sharing as `PureSampler`.

    An epoch shows the same images as `PureSampler`'s, in another order that depends on (groups, seed,
    epoch, repeated_aug, batch size) alone. They are dealt out, in its order, to one heap per group; a heap
    that holds a batch is the next step. What the heaps hold in the end, less than a batch each, makes the
    last steps: these lie side by side, group after group, and are cut into batches. Within a step neighbors
    go to one rank and one micro-batch, so that of a mixed step only the micro-batches on a border are mixed.
    So a group smaller than a batch is seen as often as others, and a step holds the same images on any
    number of ranks.

    Args:
        groups: a number for each image, the same for those that belong together.
        batch_size: images per optimizer step, over all ranks and micro-batches.
        seed: what the order is a function of, with the epoch.
        rank: this process.
        world: number of processes.
        repeated_aug: copies of an image in an epoch.
        accumulate: micro-batches per optimizer step.

    Raises:
        ConfigError: a batch that cannot be shared out evenly, or a number out of range.
        DataError: fewer images than one batch.
    """

    def __init__(
        self,
        groups: Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        repeated_aug: int = 1,
        accumulate: int = 1,
    ) -> None:
        super().__init__(
            len(groups),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world=world,
            repeated_aug=repeated_aug,
            accumulate=accumulate,
        )
        self.groups = np.asarray(groups, dtype=np.int64)

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self.epoch
        order = permutation(self.length, self.seed, epoch)
        micro = self.batch_size // (self.world * self.accumulate)
        for positions in self._dealt(order)[self.start :]:
            samples = [
                Sample(epoch, int(order[p // self.repeated_aug]), int(p % self.repeated_aug))
                for p in positions
            ]
            for number in range(self.accumulate):
                first = (number * self.world + self.rank) * micro
                yield samples[first : first + micro]

    def _dealt(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the epoch's order by step: (steps, batch size)."""
        positions = np.arange(self.steps * self.batch_size)
        groups = self.groups[order[positions // self.repeated_aug]]
        heaps = [positions[groups == group] for group in np.unique(groups)]
        full = [heap[: len(heap) // self.batch_size * self.batch_size] for heap in heaps]
        rest = [heap[len(part) :] for heap, part in zip(heaps, full, strict=True)]
        steps = np.concatenate(full).reshape(-1, self.batch_size)
        steps = steps[np.argsort(steps[:, -1])]
        return np.concatenate([steps, np.concatenate(rest).reshape(-1, self.batch_size)])
