"""Batch size that memory holds: the peak of a training step grows linearly with the images in it.

On CUDA a copy of the network takes steps of 2, 4, 8, … images until the next would not fit, or does not; on
a CPU the tensors of two small steps are counted, the same each time. A share of the memory is left free.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch

from metaformer.checkpoint.checkpoint import random_state_kept
from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.loader import Stop
from metaformer.distributed import World, all_gather_object, errors_on_all_ranks
from metaformer.errors import ConfigError
from metaformer.models.base import autocast
from metaformer.process import available_memory
from metaformer.tasks.base import StepContext, Task
from metaformer.training.freeze import freeze_stages
from metaformer.training.loop import build_sampler, training_loader
from metaformer.training.optim import build_optimizer
from metaformer.training.tensor_memory import TensorMemory

LEAST: Final = 2
"""Images in the smallest step: batch norm needs two where features are one pixel."""
CUDA_SHARE: Final = 0.8
CPU_SHARE: Final = 0.5
"""Share of the free memory that is taken: images differ in size, and others use a CPU's memory, too."""
CUDA_MOST: Final = 1024
CPU_MOST: Final = 64
"""Images in a pass, at most: more of them make a CPU's steps longer, and no faster by image."""
EPOCH_STEPS: Final = 16
"""Steps that an epoch keeps, unless they would have fewer images than this."""
PREFETCHED: Final = 2
"""Batches that each worker has ready."""
SAMPLE: Final = 4
"""Training images that are repeated to fill a step."""
Measure = Callable[[int], float]
"""Bytes that a training step of so many images takes at most, or OutOfMemoryError."""


def find_batch_size(config: TrainConfig, task: Task, world: World, stop: Stop) -> tuple[int, str]:
    """The largest batch that memory holds, and a line that says what limits it.

    Network, optimizer and random state of the run stay as they are.

    Args:
        config: the run; its `data.batch_size` is not read.
        task: network, data and losses.
        world: the run's devices; under torchrun all processes call this, and the smallest batch counts.
        stop: asked while data are waited for.

    Raises:
        ConfigError: not even two images in each pass fit.
        DataError: an image cannot be read, or there are fewer than devices and accumulation steps.
        Interrupted: `stop` returned True.
    """
    cuda = world.device.type == "cuda"
    passes, images = world.size * config.optim.accumulate, len(task.train)
    limits = {
        f"an epoch of {images} images": max(images // EPOCH_STEPS, min(images, EPOCH_STEPS)) // passes,
        "the most that is tried" if cuda else "what is useful on a CPU": CUDA_MOST if cuda else CPU_MOST,
    }
    most = min(limits.values())
    sizes = [size for size in (LEAST << power for power in range(10)) if size < 2 * max(most, LEAST)]
    with random_state_kept(world.device), errors_on_all_ranks(Exception):
        with (_on_cuda if cuda else _on_cpu)(config, task, world, stop) as (measure, budget):
            peaks = measure_peaks(measure, budget, sizes if cuda else sizes[:2])
        fitting = largest_fitting(peaks, budget)
        if fitting < LEAST:
            raise ConfigError(
                f"data.batch_size auto: {LEAST} images in each pass do not fit into {_gigabytes(budget)} of "
                f"memory on {world.device}: choose a smaller data.image_size or model, or "
                "model.grad_checkpointing true"
            )
    limits["memory"] = min(all_gather_object(fitting))
    limit = min(limits, key=lambda name: limits[name])
    each = max(1, limits[limit])
    each -= each % 8 if each > 8 else 0
    return each * passes, f"data.batch_size {each * passes}: {each} images in each pass, limited by {limit}"


def measure_peaks(measure: Measure, budget: float, sizes: Iterable[int]) -> dict[int, float]:
    """Bytes of steps of these sizes, ascending, as far as they fit; infinite where one ran out of memory."""
    peaks: dict[int, float] = {}
    for size in sizes:
        if len(peaks) > 1 and size > largest_fitting(peaks, budget):
            break
        try:
            peaks[size] = measure(size)
        except torch.OutOfMemoryError:
            peaks[size] = float("inf")
            break
    return peaks


def largest_fitting(peaks: dict[int, float], budget: float) -> int:
    """Number of images whose step takes at most this many bytes; 0 where none does.

    Args:
        peaks: bytes by number of images, ascending; a line through the last two gives the others.
        budget: bytes that a step may take.
    """
    size, peak = list(peaks.items())[-1]
    if len(peaks) == 1:
        return size if peak <= budget else 0
    smaller, below = list(peaks.items())[-2]
    if below > budget:
        return 0
    if peak <= below:  # the images hardly count
        return sys.maxsize
    return int(smaller + (budget - below) * (size - smaller) / (peak - below))


@contextmanager
def _on_cuda(config: TrainConfig, task: Task, world: World, stop: Stop) -> Iterator[tuple[Measure, float]]:
    """What measures steps on CUDA, by what PyTorch reserves, and the bytes that one may take."""
    device = world.device
    torch.cuda.empty_cache()
    budget, before = CUDA_SHARE * torch.cuda.mem_get_info(device)[0], torch.cuda.memory_reserved(device)
    trial = _Trial(config, task, world, stop)

    def measure(images: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        trial.step(images)
        return torch.cuda.max_memory_reserved(device) - before + trial.average_bytes

    try:
        yield measure, budget
    finally:
        trial.clear()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def _on_cpu(config: TrainConfig, task: Task, world: World, stop: Stop) -> Iterator[tuple[Measure, float]]:
    """What measures steps on the CPU, by their tensors, and the bytes that one may take."""
    budget = CPU_SHARE * available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    trial = _Trial(config, task, world, stop)
    waiting = trial.sample.images[0].nbytes * PREFETCHED * config.data.workers
    with TensorMemory() as memory:

        def measure(images: int) -> float:
            memory.peak = memory.live
            trial.step(images)
            return memory.peak + images * waiting + trial.average_bytes

        yield measure, budget


class _Trial:
    """A copy of a run's network with an optimizer of its own, and some images."""

    def __init__(self, config: TrainConfig, task: Task, world: World, stop: Stop) -> None:
        self.task, self.device, self.amp = task, world.device, config.runtime.amp
        self.sample = _sample(config, task, world, stop)
        self.model = copy.deepcopy(task.model).train()
        for part in freeze_stages(self.model, config.model.freeze):
            part.eval()
        self.optimizer = build_optimizer(replace(config.optim, lr=1e-9), self.model)
        averaged = self.model.state_dict().values() if config.ema.decay is not None else ()
        self.average_bytes = sum(tensor.nbytes for tensor in averaged)
        """Those of the averaged weights of the run."""

    def step(self, images: int) -> None:
        """Take a training step; the first one is taken twice, since it makes the optimizer's state."""
        batch = _repeated(self.sample, images).to(self.device)
        for _ in range(1 if self.optimizer.state else 2):
            with autocast(self.device, self.amp):
                loss = self.task.losses(self.model, batch, StepContext(0, 0))["loss"]
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def clear(self) -> None:
        """Free what a step that ran out of memory may have left."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.model.to("meta")


def _sample(config: TrainConfig, task: Task, world: World, stop: Stop) -> Batch:
    """Some training images of the first epoch."""
    passes = world.size * config.optim.accumulate
    each = max(1, min(SAMPLE, len(task.train) // passes))
    few = replace(config, data=replace(config.data, batch_size=each * passes, workers=0))
    loader = training_loader(few, task, build_sampler(few, task, world), range(1), world, stop)
    try:
        return next(iter(loader))
    finally:
        loader.close()


def _repeated(batch: Batch, images: int) -> Batch:
    """A batch of so many images, those of another one again and again."""
    rows = torch.arange(images) % len(batch.indices)
    targets, sizes = (tuple(part[row] for row in rows.tolist()) if part else () for part in batch[4:])
    return Batch(batch.images[rows], batch.labels[rows], batch.indices[rows], (), targets, sizes)


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GB"
