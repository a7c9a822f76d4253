"""DataLoader that resumes at any step, names the image at fault and survives dead workers."""

import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from metaformer.data.dataset import AugmentedDataset, BadSample, Batch, Item, SampleOrError
from metaformer.data.sampler import Sample
from metaformer.data.worker_monitor import Watchdog, WorkerMonitor
from metaformer.distributed import Interrupted
from metaformer.errors import BadImage, ConfigError, DataError, MetaFormerError
from metaformer.process import cores, keep_freed_memory, open_files_limit

POLL: Final = 1.0
"""Seconds after which a wait for a batch checks `stop` and the workers."""

DATA_TIMEOUT: Final = 120.0
"""Seconds without a batch after which a run gives up."""

FILES: Final = 16
FILES_PER_WORKER: Final = 6
"""File descriptors that loading takes at least: pipes, and memory that holds batches."""

Stop = Callable[[], bool]
"""Whether the run should stop."""


class Loader:
    """Batches of a sampler; each iteration starts at the sampler's position.

    `DataLoader` turns an exception in a worker into a RuntimeError with the traceback as text; here the
    worker returns the error, and the main process raises it.

    Args:
        dataset: the samples.
        sampler: batches of sample keys.
        workers: processes, at most one per core; 0 loads in this one. Batches do not depend on it.
        pin_memory: put batches in page-locked memory, for copies to CUDA.
        timeout: seconds to wait for a worker before giving up.
        stop: polled while waiting; iteration ends with `Interrupted` once it returns True.
        skip_bad: leave out images that cannot be read and list them in `Batch.bad`, instead of raising.
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
        self.monitor = WorkerMonitor(workers)
        self._watchdog: Watchdog | None = None
        self._loader: DataLoader[SampleOrError] = DataLoader(
            **self._batches(
                ErrorCapturingDataset(dataset, self.monitor, None if workers else stop, skip_bad)
            ),
            num_workers=workers,
            pin_memory=pin_memory,
            timeout=min(POLL, timeout) if workers else 0.0,
            persistent_workers=workers > 0,
            worker_init_fn=_init_worker if workers else None,
            generator=torch.Generator(),  # else each iteration would draw from the run's random stream
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches.

        Raises:
            BadImage: an image cannot be read.
            DataError: a worker died, hung or ran out of memory; the message names its image.
            Interrupted: `stop` returned True.
        """
        try:
            batches = self._start()
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, MetaFormerError):
                    raise batch
                yield batch
        except (MetaFormerError, Interrupted):
            self.close()
            raise

    def close(self) -> None:
        """Stop the workers now; left to the garbage collector, that can take ten seconds."""
        if self._watchdog is not None:
            self._watchdog.close()
        iterator, self._loader._iterator = self._loader._iterator, None
        shut_down = getattr(iterator, "_shutdown_workers", None)
        if shut_down is not None:
            with _default_sigchld():
                for worker in getattr(iterator, "_workers", []):
                    worker.kill()  # one that hangs would not react to anything gentler, and be waited for
                # A worker killed while it checks this event holds its lock forever: take a new one.
                vars(iterator)["_workers_done_event"] = self._spare_event
                shut_down()

    def _batches(self, samples: "ErrorCapturingDataset") -> dict[str, Any]:
        """DataLoader's arguments that say what a batch is."""
        return {"dataset": samples, "batch_sampler": self.sampler, "collate_fn": self.dataset.collate}

    def _start(self) -> Iterator[Any]:
        workers = self._loader.num_workers
        if workers and self._loader._iterator is None:
            needed = FILES + FILES_PER_WORKER * workers
            if open_files_limit(needed)[1] < needed:
                raise _too_few_files(workers)
            self._spare_event = multiprocessing.Event()
        try:
            with _default_sigchld():
                batches = iter(self._loader)
        except RuntimeError:  # the workers of the last iteration did not answer in time: start new ones
            self.close()
            with _default_sigchld():
                batches = iter(self._loader)
        if self._watchdog is not None:
            self._watchdog.close()
        describe = partial(self.monitor.describe, self._workers, self.dataset.source.path)
        timeout = self.timeout + 2 * POLL
        self._watchdog = Watchdog(self._workers, timeout, describe) if self._workers else None
        return batches

    @property
    def _workers(self) -> list[Any]:
        return getattr(self._loader._iterator, "_workers", [])

    def _next(self, batches: Iterator[Any]) -> Batch | MetaFormerError | None:
        """The next batch, or None at the end; `stop` is polled while waiting."""
        start = time.monotonic()
        while True:
            if self.stop():
                raise Interrupted
            try:
                with nullcontext() if self._watchdog is None else self._watchdog.waiting():
                    return next(batches, None)
            except (RuntimeError, OSError, EOFError, MemoryError) as error:
                timed_out = str(error).startswith("DataLoader timed out")
                if not timed_out or time.monotonic() - start >= self.timeout:
                    with _default_sigchld():
                        explained = self._explain(error, timed_out)
                    raise explained from error

    def _explain(self, error: Exception, timed_out: bool) -> Exception:
        """The error with the name of the image, where a worker died or hung."""
        if "Too many open files" in str(error):
            return _too_few_files(self._loader.num_workers)
        # A dying worker shows as any of these; an exception in a living one begins with "Caught".
        if self._loader.num_workers == 0 or str(error).startswith("Caught"):
            return error
        report = self._watchdog.report if self._watchdog is not None else None
        timed_out = timed_out or report is not None
        if not timed_out:
            _wait_for_death(self._workers)
        report = report or self.monitor.describe(self._workers, self.dataset.source.path)
        what = f"no data for {self.timeout:.0f} s" if timed_out else "a data worker ended"
        hint = (
            "check the image, the disk, and the free space of /dev/shm"
            if timed_out
            else "data.workers 0 shows why, fewer need less memory"
        )
        return DataError(f"{what} ({report or str(error).strip() or type(error).__name__}): {hint}")


def _too_few_files(workers: int) -> ConfigError:
    limit, _ = open_files_limit()
    return ConfigError(
        f"the limit of {limit} open files (ulimit -n) is too low for {workers} data workers: raise it, for "
        "example by ulimit -n 1024, or set fewer workers; data.workers 0 needs none"
    )


@contextmanager
def _default_sigchld() -> Iterator[None]:
    """Suspend PyTorch's handler of SIGCHLD.

    It raises wherever the main thread is, in the middle of a step or a checkpoint; our polls find a dead
    worker when its batch is waited for. Another `DataLoader` of this process may have installed it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous if previous is not None else signal.SIG_DFL)


def _wait_for_death(workers: list[Any]) -> None:
    """Wait up to a second until a worker is seen dead."""
    for _ in range(50):
        if any(not worker.is_alive() for worker in workers):
            return
        time.sleep(0.02)


def _init_worker(worker: int) -> None:
    """Ignore SIGINT and SIGTERM, and keep the memory of one image for the next.

    Ctrl-C and schedulers signal whole process groups; the main process decides, after its step.
    """
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _never() -> bool:
    return False


class ErrorCapturingDataset(Dataset[SampleOrError]):
    """Samples, or in their place the error of loading them."""

    def __init__(
        self, dataset: AugmentedDataset, monitor: WorkerMonitor, stop: Stop | None, skip_bad: bool
    ) -> None:
        self.dataset, self.monitor, self.stop, self.skip_bad = dataset, monitor, stop, skip_bad

    def __getitem__(self, sample: Sample) -> SampleOrError:
        return self.capture(sample.index, lambda: self.dataset[sample])

    def capture(self, index: int, load: Callable[[], Item]) -> SampleOrError:
        """Load the image at an index, or return the error."""
        if self.stop is not None and self.stop():
            raise Interrupted
        with self.monitor.reading(index):
            try:
                return load()
            except BadImage as error:
                return BadSample(index, str(error)) if self.skip_bad else error
            except MetaFormerError as error:
                return error
            except Exception as error:
                return _with_name(error, self.dataset.source.path(index))


def _with_name(error: Exception, name: str | Path) -> DataError:
    """The error with the image's name; its traceback is a note, which survives pickling."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return DataError(f"{name}: not enough memory for it: fewer data.workers or a smaller batch need less")
    named = DataError(f"{name}: {type(error).__name__} while it was read or transformed: {error}")
    named.add_note("".join(traceback.format_exception(error)))
    return named
