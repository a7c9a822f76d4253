"""Speed of this library's data loader beside timm's and torchvision's, and of the model that they feed."""

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.loaders import FEEDS, OURS, PIPELINES, Feed, LoadingConfig, write_image_folder
from benchmarks.program import run_program
from benchmarks.suite.measuring import one_line
from metaformer.bench.run import BenchConfig, bench, table
from metaformer.bench.timing import Machine, Timing, ratios
from metaformer.distributed import find_device
from metaformer.errors import DataError, MetaFormerError, MissingPackage
from metaformer.process import cores
from metaformer.storage import write_text

STEP_ROUNDS = 5
"""Measurements of a training step."""
DESCRIPTION = (
    "Images per second of our loader, timm's and torchvision's in turn, and whether a model waits for them."
)
EXAMPLE = """  python -m benchmarks.loading
  python -m benchmarks.loading --root imagenet/val --workers 8 --batch 128
  python -m benchmarks.loading --pipelines train --model-speed 2500 --json data.json"""
HEAD = (
    "loader",
    "best images/s",
    "median",
    "core ms each",
    "ours by it: best",
    "median of pairs",
    "quartiles",
)


@dataclass(frozen=True)
class Measured:
    """Times of one loader in one pipeline."""

    timing: Timing | None = None
    """Seconds per epoch, one value for each round."""
    core_seconds: tuple[float, ...] = ()
    """Processor time per epoch, of all processes together; empty where there is no /proc."""
    failure: str = ""
    """Reason for a missing timing."""


@dataclass(frozen=True)
class LoadingReport:
    """Speed of loaders, and of the model that they feed."""

    loaders: Mapping[str, Mapping[str, Measured]]
    """By pipeline, then by loader."""
    model_speed: float
    """Images per second of the model's training."""
    config: LoadingConfig
    machine: Machine

    def text(self) -> str:
        """The report as text."""
        config, machine = self.config, self.machine
        what = "generated images of 500×375" if config.root is None else str(config.root)
        lines = [
            f"{machine.device}; PyTorch {machine.pytorch}; {config.processes} workers; {config.size}×"
            f"{config.size}; batch {config.batch}; {what}",
        ]
        for pipeline, loaders in self.loaders.items():
            rows = [
                _cells(name, measured, loaders[OURS]) for name, measured in loaders.items() if measured.timing
            ]
            lines += ["", f"{pipeline}: {PIPELINES[pipeline]}", *table(HEAD, rows)]
            lines += [f"{name}: {measured.failure}" for name, measured in loaders.items() if measured.failure]
        if "train" in self.loaders:
            lines += ["", self.verdict()]
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether the loader is the bottleneck, and how many workers would suffice."""
        speed, rate = self.model_speed, self._rate()
        model = self.config.model if self.config.model_speed is None else "the model"
        text = f"{model} trains on {speed:.0f} images/s, our loader gives {rate:.0f}: "
        each = rate / max(1, self.config.processes)
        needed = math.ceil(speed / each)
        if rate < speed:
            return f"{text}it IS the bottleneck; about {needed} workers, each with a core, would keep up"
        text += f"not the bottleneck; {needed} of {max(1, self.config.processes)} workers would do"
        if self.machine.device.startswith("cpu") and self.config.model_speed is None:
            share = 1 / (1 + cores() * each / speed)
            text += f", and take {100 * share:.1f} % of the time of the cores that they share with the model"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "machine": asdict(self.machine),
            "settings": {name: _plain(value) for name, value in asdict(self.config).items()},
            "pipelines": {
                pipeline: {name: self._row(loaders, name) for name in loaders}
                for pipeline, loaders in self.loaders.items()
            },
            "model_images_per_second": self.model_speed,
            "verdict": self.verdict() if "train" in self.loaders else None,
        }

    def _rate(self) -> float:
        timing = self.loaders["train"][OURS].timing
        assert timing is not None
        return timing.images_per_second

    def _row(self, loaders: Mapping[str, Measured], name: str) -> dict[str, Any]:
        ours, timing = loaders[OURS].timing, loaders[name].timing
        if timing is None or ours is None:
            return {"failure": loaders[name].failure}
        pairs = ratios(ours, timing)
        return {
            "seconds_per_epoch": list(timing.seconds),
            "core_seconds_per_epoch": list(loaders[name].core_seconds),
            "images": timing.batch,
            "images_per_second": timing.images_per_second,
            "best_images_per_second": timing.batch / timing.minimum,
            "ours_by_it": {"best": timing.minimum / ours.minimum, "median": median(pairs), "pairs": pairs},
        }


def measure_loading(config: LoadingConfig) -> LoadingReport:
    """Measure the loaders of each pipeline, and the training step of the model.

    Raises:
        ConfigError: an unknown device or model.
        DataError: too few images, or one that cannot be read.
        MissingPackage: timm, torchvision or scikit-learn is not installed.
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
        count = write_image_folder(folder, wanted, config.root)
        if count < wanted:
            raise DataError(f"{config.root}: {count} images: images is {wanted}, more than there are")
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
                feed.epoch(0)  # starts the workers, and reads each file once
            except Exception as error:  # whatever other libraries raise
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
    """Time whole epochs, so that no worker of one loader is busy while another is timed."""
    seconds: dict[str, list[float]] = {name: [] for name in feeds}
    core_time: dict[str, list[float]] = {name: [] for name in feeds}
    images = 0
    for turn in range(1, rounds + 1):
        for name in sorted(feeds, reverse=turn % 2 == 0):
            used, start = core_seconds(), time.perf_counter()
            images = feeds[name].epoch(turn)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            if used is not None:
                core_time[name].append((core_seconds() or used) - used)
    return {name: Measured(Timing(tuple(seconds[name]), images), tuple(core_time[name])) for name in feeds}


def _speed(config: LoadingConfig, device: torch.device) -> float:
    """Images per second of the model's training step alone."""
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run` reads."""
    add, config = parser.add_argument, LoadingConfig()
    add("--root", type=Path, metavar="DIR", help="images in it and below (default: some are generated)")
    add("--images", type=int, default=config.images, metavar="N", help="read in a round (default 512)")
    add(
        "--pipelines",
        nargs="+",
        default=list(PIPELINES),
        metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in PIPELINES.items()),
    )
    add("--batch", type=int, default=config.batch, metavar="N", help="images in a batch (default 64)")
    add("--size", type=int, default=config.size, metavar="N", help="height and width (default 224)")
    add("--workers", type=int, metavar="N", help="processes that make them (default: one for each core)")
    add("--rounds", type=int, default=config.rounds, metavar="N", help="measurements (default 10)")
    add("--device", default=config.device, help="where batches go and the model is: auto, cpu, cuda, cuda:N")
    add("--model", default=config.model, help="whose training step is measured (default poolformer_s12)")
    add("--model-speed", type=float, metavar="X", help="images per second, instead of measuring a model")
    add("--step-batch", type=int, metavar="N", help="images of a step (default: 8 on a CPU, else --batch)")
    add("--json", metavar="FILE", help="write everything there; - for standard output, without the page")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status, which is 0 also where the loader is the bottleneck.

    Raises:
        MetaFormerError: something that the user can correct.
    """
    report = measure_loading(
        LoadingConfig(
            root=args.root,
            images=args.images,
            pipelines=tuple(args.pipelines),
            batch=args.batch,
            size=args.size,
            workers=args.workers,
            rounds=args.rounds,
            device=args.device,
            model=args.model,
            model_speed=args.model_speed,
            step_batch=args.step_batch,
        )
    )
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    print(text if args.json == "-" else report.text())
    if args.json and args.json != "-":
        write_text(Path(args.json), text)
    return 0


def core_seconds() -> float | None:
    """Processor time of this process and of the workers that are alive; None where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return None
    ticks = sum(_ticks(child.pid) for child in multiprocessing.active_children() if child.pid)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> int:
    """User and system time of a process: fields 14 and 15 of proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    return int(fields[11]) + int(fields[12])


def _cells(name: str, measured: Measured, ours: Measured) -> list[str]:
    timing = measured.timing
    assert timing is not None and ours.timing is not None
    core_time = f"{1e3 * median(measured.core_seconds) / timing.batch:.2f}" if measured.core_seconds else "-"
    speeds = [f"{timing.batch / timing.minimum:.0f}", f"{timing.images_per_second:.0f}", core_time]
    if measured is ours:
        return [name, *speeds, "", "", ""]
    pairs = ratios(ours.timing, timing)
    low, _, high = quantiles(pairs, n=4) if len(pairs) > 1 else (pairs * 3)
    return [
        name,
        *speeds,
        f"{timing.minimum / ours.timing.minimum:.2f}",
        f"{median(pairs):.2f}",
        f"{low:.2f} to {high:.2f}",
    ]


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | str | None | tuple) else str(value)


if __name__ == "__main__":
    sys.exit(run_program("benchmarks.loading", DESCRIPTION, EXAMPLE, add_options, run))
