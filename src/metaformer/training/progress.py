"""Training metrics between two log lines, and the progress bar."""

import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

from metaformer.distributed import all_reduce_sum
from metaformer.process import printable

INTERVAL = 10.0
"""Seconds between progress lines where there is no terminal."""
FORMATTERS: Final[dict[str, Callable[[float], tuple[str, str]]]] = {
    "data_wait": lambda share: ("wait", f"{share:.0%}"),
    "memory_gb": lambda size: ("memory", f"{size:.1f}GB"),
}
"""Displayed name and value of metrics that are not plain numbers."""


class Meter:
    """Running means of the metrics since the last line of the log."""

    def __init__(self) -> None:
        self.started, self.waited, self.steps = time.perf_counter(), 0.0, 0
        self.sums: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.started

    def update(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        self.steps += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] += 1

    def means(self, ranks: int) -> dict[str, float]:
        """Means over steps and ranks, and `data_wait`: the share of time spent waiting for data."""
        names = sorted(self.sums)
        own = [self.sums[name] / self.counts[name] for name in names]
        own.append(self.waited / self.seconds)
        values = all_reduce_sum(torch.tensor(own, dtype=torch.float64)) / ranks
        return dict(zip([*names, "data_wait"], values.tolist(), strict=True))


def peak_memory(device: torch.device) -> float:
    """Peak memory so far in GiB: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_name(device: torch.device) -> str:
    """What people call a device: the GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Progress:
    """Progress on stderr: a bar on a terminal, a line every few seconds elsewhere.

    Shows steps done, images per second, time left and the latest metrics.

    Args:
        total: steps of the whole run.
        done: steps done before this process started.
        batch_size: images per step, over all processes.
        quiet: print nothing (every process but the first).
    """

    def __init__(self, total: int, done: int, batch_size: int, *, quiet: bool = False) -> None:
        self.total, self.done, self.batch_size, self.quiet = total, done, batch_size, quiet
        self.initial, self.started, self.printed = done, time.perf_counter(), time.perf_counter()
        self.postfix: dict[str, str] = {}
        self.bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, leave=False)

    @property
    def rate(self) -> float:
        """Images per second since this process started."""
        elapsed = time.perf_counter() - self.started
        return (self.done - self.initial) * self.batch_size / max(elapsed, 1e-9)

    def update(self, metrics: Mapping[str, float], count: int = 1) -> None:
        """Advance by `count` steps; metrics stay on display until they are set again."""
        self.done += count
        self.set_postfix(metrics)
        if self.bar is not None:
            self.bar.set_postfix({"img/s": f"{self.rate:.0f}", **self.postfix}, refresh=False)
            self.bar.update(count)
        elif time.perf_counter() - self.printed >= INTERVAL:
            self.printed = time.perf_counter()
            left = (self.total - self.done) * self.batch_size / max(self.rate, 1e-9)
            metrics_text = " ".join(f"{name} {value}" for name, value in self.postfix.items())
            start = f"step {self.done}/{self.total} ({self.done / self.total:.0%}) {self.rate:.0f} img/s"
            self.write(f"{start}, {format_time(left)} left, {metrics_text}")

    def set_postfix(self, metrics: Mapping[str, float]) -> None:
        """Set metrics to show from the next step on: `data_wait` as a percentage, `memory_gb` in GB."""
        for name, value in metrics.items():
            shown, text = FORMATTERS[name](value) if name in FORMATTERS else (name, f"{value:.4g}")
            self.postfix[shown] = text

    def write(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self.quiet:
            return
        text = printable(text)
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def format_time(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
