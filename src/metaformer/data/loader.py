"""Batches from worker processes, with errors that arrive as what they were."""

import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from metaformer.data.dataset import AugmentedDataset, BadSample, Batch, Item, SampleOrError
from metaformer.data.sampler import Sample
from metaformer.data.worker_monitor import Watchdog, WorkerMonitor
from metaformer.distributed import Interrupted
from metaformer.errors import BadImage, ConfigError, DataError, MetaFormerError
from metaformer.process import cores, keep_freed_memory

POLL = 1.0
"""Seconds between looks at whether a stop is wished for and the workers are alive, while no batch comes."""


DATA_TIMEOUT = 120.0
"""Seconds without a batch after which a run gives up."""


Stop = Callable[[], bool]


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
        stop: asked again and again; once it says so, waiting ends.
        skip_bad: leave out images that cannot be read, and say so in the batch, rather than raise.
    """

    def __init__(
        self,
        dataset: AugmentedDataset,
        sampler: Sampler[list[Sample]],
        *,
        workers: int = 0,
        pin_memory: bool = False,
        timeout: float = DATA_TIMEOUT,
        stop: Stop | None = None,
        skip_bad: bool = False,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"data.workers is {workers}: it must be 0 or more")
        self.dataset, self.sampler, self.timeout = dataset, sampler, timeout
        self.stop: Stop = stop or _never
        workers = min(workers, cores())
        self.watch = WorkerMonitor(workers)
        self._release: Watchdog | None = None
        self._loader: DataLoader[SampleOrError] = DataLoader(
            **self._parts(ErrorCapturingDataset(dataset, self.watch, None if workers else stop, skip_bad)),
            num_workers=workers,
            pin_memory=pin_memory,
            timeout=min(POLL, timeout) if workers else 0.0,
            persistent_workers=workers > 0,
            worker_init_fn=_begin_worker if workers else None,
            generator=torch.Generator(),  # else each iteration would draw from the run's own stream
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            BadImage: an image cannot be read.
            DataError: a worker died, hung or ran out of memory; the message names its image.
            Interrupted: `stop` said so.
        """
        try:
            batches = self._begin()
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, MetaFormerError):
                    raise batch
                yield batch
        except (MetaFormerError, Interrupted):
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers now; left to the garbage collector, that can take ten seconds."""
        if self._release is not None:
            self._release.close()
        iterator, self._loader._iterator = self._loader._iterator, None
        stop = getattr(iterator, "_shutdown_workers", None)
        if stop is not None:
            with _deaths_told_in_time():
                for worker in getattr(iterator, "_workers", []):
                    worker.kill()  # one that hangs would not hear anything gentler, and be waited for
                # One killed while it asked whether it is done keeps that event's lock for ever.
                vars(iterator)["_workers_done_event"] = multiprocessing.Event()
                stop()

    def _parts(self, samples: "ErrorCapturingDataset") -> dict[str, Any]:
        """What `DataLoader` makes batches from."""
        return {"dataset": samples, "batch_sampler": self.sampler, "collate_fn": self.dataset.collate}

    def _begin(self) -> Iterator[Any]:
        try:
            with _deaths_told_in_time():
                batches = iter(self._loader)
        except RuntimeError:  # the workers of the last iteration did not answer in time: take new ones
            self.close()
            with _deaths_told_in_time():
                batches = iter(self._loader)
        if self._release is not None:
            self._release.close()
        tell = partial(self.watch.tell, self._workers, self.dataset.source.path)
        self._release = Watchdog(self._workers, self.timeout + 2 * POLL, tell) if self._workers else None
        return batches

    @property
    def _workers(self) -> list[Any]:
        return getattr(self._loader._iterator, "_workers", [])

    def _next(self, batches: Iterator[Any]) -> Batch | MetaFormerError | None:
        """The next batch, or None at the end; a wait is cut into pieces, to look up between them."""
        began = time.monotonic()
        while True:
            if self.stop():
                raise Interrupted
            try:
                with nullcontext() if self._release is None else self._release.waiting():
                    return next(batches, None)
            except (RuntimeError, OSError, EOFError, MemoryError) as error:
                waiting = str(error).startswith("DataLoader timed out")
                if not waiting or time.monotonic() - began >= self.timeout:
                    with _deaths_told_in_time():
                        told = self._explained(error, waiting)
                    raise told from error

    def _explained(self, error: Exception, waiting: bool) -> Exception:
        """The error with the name of the image, where a worker's end is behind it."""
        # A dying worker shows as any of these; an exception in a living one begins with "Caught".
        if self._loader.num_workers == 0 or str(error).startswith("Caught"):
            return error
        told = self._release.told if self._release is not None else None
        waiting = waiting or told is not None
        if not waiting:
            _wait_for_the_end_of_any(self._workers)
        told = told or self.watch.tell(self._workers, self.dataset.source.path)
        what = f"no data for {self.timeout:.0f} s" if waiting else "a data worker ended"
        hint = (
            "look at the image, the disk, and the room in /dev/shm"
            if waiting
            else "data.workers 0 shows why, fewer need less memory"
        )
        return DataError(f"{what} ({told or str(error).strip() or type(error).__name__}): {hint}")


@contextmanager
def _deaths_told_in_time() -> Iterator[None]:
    """Keep PyTorch's handler of SIGCHLD out.

    It raises in the main thread wherever that is, in the middle of a step or a checkpoint; our polls see the
    death of a worker when its batch is waited for. Another `DataLoader` of this process may have brought it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _wait_for_the_end_of_any(workers: list[Any]) -> None:
    for _ in range(50):
        if any(not worker.is_alive() for worker in workers):
            return
        time.sleep(0.02)


def _begin_worker(worker: int) -> None:
    """Leave signals to the main process, and keep the memory of one image for the next.

    Ctrl-C and schedulers signal whole process groups; the main process decides, after its step.
    """
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _never() -> bool:
    return False


class ErrorCapturingDataset(Dataset[SampleOrError]):
    """Samples, or what was wrong with them."""

    def __init__(
        self, dataset: AugmentedDataset, watch: WorkerMonitor, stop: Stop | None, skip_bad: bool
    ) -> None:
        self.dataset, self.watch, self.stop, self.skip_bad = dataset, watch, stop, skip_bad

    def __getitem__(self, sample: Sample) -> SampleOrError:
        return self.made(sample.index, lambda: self.dataset[sample])

    def made(self, index: int, make: Callable[[], Item]) -> SampleOrError:
        """Make a sample of the image at this index."""
        if self.stop is not None and self.stop():
            raise Interrupted
        with self.watch.reading(index):
            try:
                return make()
            except BadImage as error:
                return BadSample(index, str(error)) if self.skip_bad else error
            except MetaFormerError as error:
                return error
            except Exception as error:
                return _named(error, self.dataset.source.path(index))


def _named(error: Exception, name: str | Path) -> DataError:
    """The error with the image's name; where it came from is a note, which crosses between processes."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return DataError(f"{name}: not enough memory for it: fewer data.workers or a smaller batch need less")
    told = DataError(f"{name}: {type(error).__name__} while it was read or transformed: {error}")
    told.add_note("".join(traceback.format_exception(error)))
    return told
