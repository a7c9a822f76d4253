"""Batches from worker processes, with errors that arrive as what they were."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from metaformer.data.dataset import Augmented, Item
from metaformer.data.sampler import Sample
from metaformer.errors import ConfigError, DataError, MetaFormerError


class Batch(NamedTuple):
    """What a step sees."""

    images: Tensor
    """(B, 3, H, W), or (B, views, 3, H, W); float32, normalised."""
    labels: Tensor
    """(B,) int64."""
    indices: Tensor
    """(B,) int64: places in the source, to name pictures by."""


class Loader:
    """Iterate over a sampler's batches; each iteration starts where the sampler then stands.

    `DataLoader` turns an exception of a worker into a RuntimeError with its traceback as text; here the
    worker hands over the error itself, and it is raised in the main process.

    Args:
        dataset: what makes the samples.
        sampler: what names them, batch by batch.
        workers: processes, at most one per core; 0 makes samples in this one. Results do not depend on it.
        pin_memory: keep batches in page-locked memory, for copies to CUDA.
        timeout: seconds to wait for a worker before giving up.
    """

    def __init__(
        self,
        dataset: Augmented,
        sampler: Sampler[list[Sample]],
        *,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = 120.0,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"data.workers is {workers}: it must be 0 or more")
        self.sampler = sampler
        workers = min(workers, _cores())
        self._loader: DataLoader[Item | MetaFormerError] = DataLoader(
            _Careful(dataset),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            timeout=timeout if workers else 0.0,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_main_process if workers else None,
            generator=torch.Generator(),  # else each iteration would draw from the run's own stream
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            BadImage: a picture cannot be read.
            DataError: a worker died or hung.
        """
        try:
            for batch in self._loader:
                if isinstance(batch, MetaFormerError):
                    raise batch
                yield batch
        except MetaFormerError:
            self.close()
            raise
        except (RuntimeError, OSError, EOFError) as error:
            # A dying worker shows as any of these; an exception in a living one begins with "Caught".
            with contextlib.suppress(RuntimeError):  # its death may be signalled a second time here
                self.close()
            if self._loader.num_workers == 0 or str(error).startswith("Caught"):
                raise
            reason = str(error).strip() or type(error).__name__
            raise DataError(f"a data worker failed ({reason}); data.workers 0 shows where") from error

    def close(self) -> None:
        """Stop the workers now; left to the garbage collector, that can take ten seconds."""
        iterator, self._loader._iterator = self._loader._iterator, None
        stop = getattr(iterator, "_shutdown_workers", None)
        if stop is not None:
            workers = getattr(iterator, "_workers", [])
            stop()
            for worker in workers:
                worker.kill()  # one that hangs would not hear anything gentler


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and schedulers signal whole process groups; the main process decides, after its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Careful(Dataset[Item | MetaFormerError]):
    def __init__(self, dataset: Augmented) -> None:
        self.dataset = dataset

    def __getitem__(self, sample: Sample) -> Item | MetaFormerError:
        try:
            return self.dataset[sample]
        except MetaFormerError as error:
            return error


def _collate(items: list[Item | MetaFormerError]) -> Batch | MetaFormerError:
    good: list[Item] = []
    for item in items:
        if isinstance(item, MetaFormerError):
            return item
        good.append(item)
    images, labels, indices = zip(*good, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(indices))
