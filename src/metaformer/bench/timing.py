"""Timing of networks in alternating rounds, so that a busy machine slows all of them alike."""

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.ops.describe import describe

SAMPLE_SECONDS = 0.05
"""Seconds that a measurement lasts at least, by repetition."""
MAX_DISAGREEMENT = 1.3
"""Factor between the ratio of medians and that of the fastest rounds from which on neither is given."""
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
)
"""Instructions that decide how fast networks are, by Linux's names."""
MAX_SPREAD = 2.0
"""Factor between the quartiles of the rounds' ratios from which on no ratio is given."""


@dataclass(frozen=True)
class Timing:
    """Seconds per batch, one value for each round."""

    seconds: tuple[float, ...]
    batch: int
    peak_bytes: int | None = None
    """Peak GPU memory; None on a CPU."""

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return median(self.seconds)

    @property
    def minimum(self) -> float:
        """Fastest round."""
        return min(self.seconds)

    @property
    def images_per_second(self) -> float:
        """Throughput by the median."""
        return self.batch / self.median


@dataclass(frozen=True)
class Machine:
    """Machine and software that something was measured on."""

    device: str
    threads: int
    pytorch: str
    python: str
    operations: str
    """Backends of this library's operations here, and why."""
    instructions: str = ""
    """Which of `INSTRUCTIONS` the processor has, with spaces between."""
    level: str = ""
    """The level of PyTorch's own kernels for CPUs, such as `AVX2`; empty on CUDA."""

    @classmethod
    def here(cls, device: torch.device) -> "Machine":
        """Describe this machine."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        threads = torch.get_num_threads()
        versions = torch.__version__, platform.python_version()
        level = torch.backends.cpu.get_cpu_capability()
        cpu = (" ".join(instructions()), level) if device.type == "cpu" else ()
        return cls(f"{device.type}: {name}", threads, *versions, describe(device), *cpu)


def measure(
    models: Sequence[Callable[[Tensor], object]],
    images: Sequence[Tensor],
    *,
    rounds: int = 10,
    warmup: int = 3,
    gradients: bool = False,
    after_round: Callable[[int], object] = lambda turn: None,
) -> list[Timing]:
    """Time `model(images)` for each pair: all of them in each round, in alternating order."""
    runs = [_runner(model, batch) for model, batch in zip(models, images, strict=True)]
    device = images[0].device
    seconds: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode(not gradients):
        for run in runs:
            for _ in range(warmup):
                run(1)
        repeats = [max(1, math.ceil(SAMPLE_SECONDS / run(1))) for run in runs]
        peaks = [_peak(run, device) for run in runs]
        for turn in range(rounds):
            order = range(len(runs)) if turn % 2 == 0 else range(len(runs) - 1, -1, -1)
            for i in order:
                seconds[i].append(runs[i](repeats[i]))
            after_round(turn)
    return [
        Timing(tuple(times), batch.shape[0], peak)
        for times, batch, peak in zip(seconds, images, peaks, strict=True)
    ]


def ratios(model: Timing, other: Timing) -> tuple[float, ...]:
    """Speed relative to another model, round by round."""
    return tuple(theirs / ours for ours, theirs in zip(model.seconds, other.seconds, strict=True))


def agreed_ratio(model: Timing, other: Timing) -> float | None:
    """Median of `ratios`; None where the rounds disagree, since something else ran on the machine.

    They do where the ratio of the fastest rounds is another one, or the rounds' quartiles are far apart.
    """
    values = ratios(model, other)
    typical, fastest = median(values), other.minimum / model.minimum
    low, _, high = quantiles(values) if len(values) > 3 else (1.0, 1.0, 1.0)
    disagree = max(typical / fastest, fastest / typical) > MAX_DISAGREEMENT or high / low > MAX_SPREAD
    return None if disagree else typical


def _runner(model: Callable[[Tensor], object], images: Tensor) -> Callable[[int], float]:
    """A function that runs the model a number of times and returns seconds per batch."""
    cuda = images.device.type == "cuda"

    def run(repeats: int) -> float:
        if cuda:
            torch.cuda.synchronize(images.device)
        start = time.perf_counter()
        for _ in range(repeats):
            model(images)
        if cuda:
            torch.cuda.synchronize(images.device)
        return (time.perf_counter() - start) / repeats

    return run


def _peak(run: Callable[[int], float], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run(1)
    return torch.cuda.max_memory_allocated(device)


def processor() -> str:
    """The processor's name by /proc/cpuinfo, else by Python, and its number of cores."""
    name = _cpuinfo("model name")
    return f"{name}, {os.cpu_count()} cores" if name else platform.processor() or platform.machine()


def instructions() -> tuple[str, ...]:
    """Which of `INSTRUCTIONS` the processor has."""
    flags = _cpuinfo("flags").split()
    return tuple(name for name in INSTRUCTIONS if name in flags)


def _cpuinfo(key: str) -> str:
    """A line of the first core in /proc/cpuinfo; empty where there is none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(key))
    return next(found, "")


class TrainingStep(nn.Module):
    """Forward pass, cross-entropy and backward pass of a classifier or segmenter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> None:
        """Compute gradients."""
        self.model.zero_grad(set_to_none=True)
        logits = self.model(images)
        labels = torch.zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.long, device=logits.device)
        F.cross_entropy(logits.float(), labels).backward()
