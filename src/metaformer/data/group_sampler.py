"""Batches of pictures of one group, such as all wide or all tall, so that little of a batch is filled up."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from metaformer.data.sampler import PureSampler, Sample, permutation


class GroupSampler(PureSampler):
    """Shuffled training batches of one group where possible; steps, resuming and sharing as `PureSampler`.

    An epoch shows the same pictures as `PureSampler`'s, in another order that depends on (groups, seed,
    epoch, repeats, batch size) alone. They are dealt out, in its order, to one heap per group; a heap that
    holds a batch is the next step. What the heaps hold in the end, less than a batch each, makes the last
    steps: these lie side by side, group after group, and are cut into batches. Within a step neighbours go
    to one rank and one micro-batch, so that of a mixed step only the micro-batches on a border are mixed.
    So a group smaller than a batch is seen as often as others, and a step holds the same pictures on any
    number of ranks.

    Args:
        groups: a number for each picture, the same for those that belong together.
        batch_size: pictures per optimiser step, over all ranks and micro-batches.
        seed: what the order is a function of, with the epoch.
        rank: this process.
        world: number of processes.
        repeats: copies of a picture in an epoch.
        accumulate: micro-batches per optimiser step.

    Raises:
        ConfigError: a batch that cannot be shared out evenly, or a number out of range.
        DataError: fewer pictures than one batch.
    """

    def __init__(
        self,
        groups: Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        accumulate: int = 1,
    ) -> None:
        super().__init__(
            len(groups),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world=world,
            repeats=repeats,
            accumulate=accumulate,
        )
        self.groups = np.asarray(groups, dtype=np.int64)

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self.epoch
        order = permutation(self.length, self.seed, epoch)
        micro = self.batch_size // (self.world * self.accumulate)
        for positions in self._dealt(order)[self.start :]:
            samples = [Sample(epoch, int(order[p // self.repeats]), int(p % self.repeats)) for p in positions]
            for number in range(self.accumulate):
                first = (number * self.world + self.rank) * micro
                yield samples[first : first + micro]

    def _dealt(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the epoch's order by step: (steps, batch size)."""
        positions = np.arange(self.steps * self.batch_size)
        groups = self.groups[order[positions // self.repeats]]
        heaps = [positions[groups == group] for group in np.unique(groups)]
        full = [heap[: len(heap) // self.batch_size * self.batch_size] for heap in heaps]
        rest = [heap[len(part) :] for heap, part in zip(heaps, full, strict=True)]
        steps = np.concatenate(full).reshape(-1, self.batch_size)
        steps = steps[np.argsort(steps[:, -1])]
        return np.concatenate([steps, np.concatenate(rest).reshape(-1, self.batch_size)])
