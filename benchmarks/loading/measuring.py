"""All loaders in turn, round after round, then the model that they feed."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.loading.effort import core_seconds
from benchmarks.loading.feed import FEEDS, OURS, Feed
from benchmarks.loading.images import lay_out
from benchmarks.loading.report import LoadingReport, Measured
from benchmarks.loading.settings import LoadingConfig
from benchmarks.suite.measuring import one_line
from metaformer.bench.run import BenchConfig, bench
from metaformer.bench.timing import Machine, Timing
from metaformer.distributed import find_device
from metaformer.errors import DataError, MetaFormerError, MissingPackage

STEP_ROUNDS = 5
"""Measurements of a training step."""


def measure_loading(config: LoadingConfig) -> LoadingReport:
    """Measure the loaders of each pipeline, and the training step of the model.

    Raises:
        ConfigError: a device that is not there, or a model that is unknown.
        DataError: too few images, or one that cannot be read.
        MissingPackage: images cannot be read or made without it.
    """
    device = find_device(config.device)
    try:
        import timm.data  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise MissingPackage("timm and torchvision", "demo", "`python -m benchmarks.loading`") from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = config.images // config.batch * config.batch
        count = lay_out(folder, wanted, config.root)
        if count < wanted:
            raise DataError(f"{config.root}: {count} images: ask for no more (images), now {wanted}")
        loaders = {pipeline: _pipeline(pipeline, folder, config, device) for pipeline in config.pipelines}
    return LoadingReport(loaders, _speed(config, device), config, Machine.here(device))


def _pipeline(
    pipeline: str, folder: Path, config: LoadingConfig, device: torch.device
) -> dict[str, Measured]:
    ready: dict[str, Feed] = {}
    failed: dict[str, Measured] = {}
    try:
        for name, build in FEEDS.items():
            try:
                feed = build(pipeline, folder, config, device)
                ready[name] = feed
                feed.epoch(0)  # starts its workers, and reads each file once
            except Exception as error:  # of other libraries: anything
                if name == OURS or isinstance(error, MetaFormerError):
                    raise
                failed[name] = Measured(failure=one_line(error))
                ready.pop(name, feed).close()
        timed = _timed(ready, config.rounds, device)
    finally:
        for feed in ready.values():
            feed.close()
    return {name: timed.get(name) or failed[name] for name in FEEDS}


def _timed(feeds: Mapping[str, Feed], rounds: int, device: torch.device) -> dict[str, Measured]:
    """Whole epochs, so that no worker is at work on one loader while another is measured."""
    seconds: dict[str, list[float]] = {name: [] for name in feeds}
    effort: dict[str, list[float]] = {name: [] for name in feeds}
    images = 0
    for turn in range(1, rounds + 1):
        for name in sorted(feeds, reverse=turn % 2 == 0):
            worked, start = core_seconds(), time.perf_counter()
            images = feeds[name].epoch(turn)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            if worked is not None:
                effort[name].append((core_seconds() or worked) - worked)
    return {name: Measured(Timing(tuple(seconds[name]), images), tuple(effort[name])) for name in feeds}


def _speed(config: LoadingConfig, device: torch.device) -> float:
    """Images per second in the model's training step, no loader beside it."""
    if config.model_speed is not None:
        return config.model_speed
    on_cpu = device.type == "cpu"
    settings = BenchConfig(
        train=True,
        batch=config.step_batch or (8 if on_cpu else config.batch),
        size=config.size,
        dtype="fp32" if on_cpu else "bf16",
        device=str(device),
        rounds=STEP_ROUNDS,
        warmup=2,
    )
    (row,) = bench([config.model], settings).rows
    assert row.timing is not None
    return row.timing.batch / row.timing.minimum
