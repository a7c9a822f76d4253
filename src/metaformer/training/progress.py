"""Where a run stands, on stderr: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

INTERVAL = 10.0
"""Seconds between plain lines."""
WORDS: Final[dict[str, Callable[[float], tuple[str, str]]]] = {
    "data_wait": lambda share: ("wait", f"{share:.0%}"),
    "memory_gb": lambda size: ("memory", f"{size:.1f}GB"),
}
"""How figures are shown that are no plain numbers: name and value."""


class Progress:
    """Steps done of all, images per second, time left, and the latest figures.

    Args:
        total: steps of the whole run.
        done: steps before this process began.
        batch_size: images per step, over all processes.
        quiet: show nothing (every process but the first).
    """

    def __init__(self, total: int, done: int, batch_size: int, *, quiet: bool = False) -> None:
        self.total, self.done, self.batch_size, self.quiet = total, done, batch_size, quiet
        self.first, self.began, self.shown = done, time.perf_counter(), time.perf_counter()
        self.figures: dict[str, str] = {}
        self.bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, leave=False)

    @property
    def rate(self) -> float:
        """Images per second since this process began."""
        passed = time.perf_counter() - self.began
        return (self.done - self.first) * self.batch_size / max(passed, 1e-9)

    def update(self, figures: Mapping[str, float], count: int = 1) -> None:
        """Count steps; figures stay on display till they are given anew."""
        self.done += count
        self.note(figures)
        if self.bar is not None:
            self.bar.set_postfix({"img/s": f"{self.rate:.0f}", **self.figures}, refresh=False)
            self.bar.update(count)
        elif time.perf_counter() - self.shown >= INTERVAL:
            self.shown = time.perf_counter()
            left = (self.total - self.done) * self.batch_size / max(self.rate, 1e-9)
            words = " ".join(f"{name} {value}" for name, value in self.figures.items())
            share, time_left = self.done / self.total, clock(left)
            start = f"step {self.done}/{self.total} ({share:.0%}) {self.rate:.0f} img/s"
            self.say(f"{start}, {time_left} left, {words}")

    def note(self, figures: Mapping[str, float]) -> None:
        """Set figures that are shown from the next step on: `data_wait` as a share, `memory_gb` as a size."""
        plain = {
            name: WORDS[name](value) if name in WORDS else (name, f"{value:.4g}")
            for name, value in figures.items()
        }
        self.figures.update(plain.values())

    def say(self, text: str) -> None:
        """Write a line without disturbing the bar."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
