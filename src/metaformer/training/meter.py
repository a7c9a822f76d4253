"""What the steps since the last line of the log came to."""

import resource
import sys
import time
from collections import Counter

import torch

from metaformer.distributed import all_reduce_sum


class Meter:
    """Sums of the steps since the last line of the log."""

    def __init__(self) -> None:
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0
        self.sums: dict[str, float] = {}
        self.times: Counter[str] = Counter()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.perf_counter() - self.began

    def add(self, figures: dict[str, float]) -> None:
        """Count a step."""
        self.steps += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.times[name] += 1

    def figures(self, ranks: int) -> dict[str, float]:
        """Means over steps and ranks, with the share of time in which data was waited for."""
        names = sorted(self.sums)
        means = [self.sums[name] / self.times[name] for name in names]
        shared = (
            all_reduce_sum(torch.tensor([*means, self.waited / self.seconds], dtype=torch.float64)) / ranks
        )
        return dict(zip([*names, "data_wait"], shared.tolist(), strict=True))


def peak_memory(device: torch.device) -> float:
    """The most memory that was in use so far, in GiB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
