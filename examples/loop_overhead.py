"""What surviving costs: an epoch of the training loop against a bare one, over the same network and images.

The bare loop is forward, loss, backward, clipped gradients as the recipe has them, optimizer and evaluation.
Ours adds the checks for numbers that are not finite, a seed for each step, statistics that a refused step can
go back to, the log, and at the end of the epoch a checkpoint and the best weights.
On an idle machine, over all the demo data, in as many pairs as you like: python examples/loop_overhead.py 9
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from metaformer.checkpoint.run_dir import RunDir
from metaformer.data.sampler import TrainSampler
from metaformer.distributed import World
from metaformer.process import StopSignals, keep_freed_memory, sleep_rather_than_spin
from metaformer.recipes import RECIPES
from metaformer.tasks import TASKS
from metaformer.tasks.base import StepContext
from metaformer.tasks.demo import write_demo_data
from metaformer.training.log import MetricsLog
from metaformer.training.loop import Loop
from metaformer.training.optim import build_optimizer
from metaformer.training.progress import Progress
from metaformer.training.schedule import build_schedule
from metaformer.training.trainer import Trainer

PAIRS = int(sys.argv[1]) if len(sys.argv) > 1 else 1
WHOLE = len(sys.argv) > 1
"""Over all of the demo data; without an argument, just to see that it runs, over little of it."""


def main() -> None:
    """Time both in turn, and print the ratio of each pair."""
    keep_freed_memory()
    sleep_rather_than_spin()
    with tempfile.TemporaryDirectory() as place:
        size = {} if WHOLE else {"per_class": 10, "copies": 1}
        write_demo_data(f"{place}/data", **size, scenes=(8, 4))  # digits alone are trained on
        plan = RECIPES["demo/classify"]()
        config = replace(
            plan,
            data=replace(plan.data, root=f"{place}/data/classify"),
            ema=replace(plan.ema, decay=None),  # the bare loop has none
            schedule=replace(plan.schedule, epochs=1),
        )
        torch.set_num_threads(config.runtime.threads or torch.get_num_threads())
        ratios = []
        for number in range(PAIRS + 1):
            pair = [(bare, "bare"), (ours, "ours")][:: 1 if number % 2 else -1]
            taken = {name: run(config, f"{place}/{number}") for run, name in pair}
            if number:  # the first warms up
                ratios.append(taken["bare"] / taken["ours"])
                print(
                    f"bare {taken['bare']:.2f} s  ours {taken['ours']:.2f} s  speed {ratios[-1]:.1%} of bare"
                )
        print(f"median: {statistics.median(ratios):.1%} of the bare loop's speed")


def bare(config, place):
    """Seconds for an epoch as one would write it on one page."""
    task = TASKS[config.task].build(config, World())
    sampler = TrainSampler(len(task.train), batch_size=config.data.step_images, seed=config.seed)
    loader = DataLoader(task.train, batch_sampler=sampler, num_workers=config.data.workers)
    optimizer = build_optimizer(config.optim, task.model)
    forward = Trainer(config, task, build_schedule(config, sampler.steps), World()).forward
    parameters = list(task.model.parameters())
    began = time.perf_counter()
    task.model.train()
    for step, (images, labels, indices) in enumerate(loader):
        loss = task.losses(task.model, ImageList(images, labels, indices), StepContext(step, 0))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
    task.evaluate(forward)
    taken = time.perf_counter() - began
    task.close()
    return taken


def ours(config, place):
    """Seconds for the same with all that a run of the library does."""
    task, run = TASKS[config.task].build(config, World()), RunDir(Path(place))
    sampler = TrainSampler(len(task.train), batch_size=config.data.step_images, seed=config.seed)
    trainer = Trainer(config, task, build_schedule(config, sampler.steps), World())
    loop = Loop(config, task, trainer, sampler, run, World(), StopSignals())
    with run.writing(), MetricsLog(run.path, print) as log:
        began = time.perf_counter()
        loop.run(log, Progress(loop.total, 0, sampler.batch_size, quiet=True))
        return time.perf_counter() - began


class ImageList:
    """A batch, as a task reads it."""

    def __init__(self, images, labels, indices):
        self.images, self.labels, self.indices = images, labels, indices


if __name__ == "__main__":
    main()
