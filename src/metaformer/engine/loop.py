"""The loop: batches in, steps taken, figures logged, weights measured and saved; any task."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from metaformer.data.loader import Batch, Loader
from metaformer.data.sampler import PureSampler, Sample
from metaformer.engine.checkpoint import Saved, prune, step_directory, write_checkpoint
from metaformer.engine.config import TrainConfig
from metaformer.engine.distributed import World
from metaformer.engine.log import MetricsLog
from metaformer.engine.progress import Progress
from metaformer.engine.run_dir import RunDir
from metaformer.engine.settings import to_dict
from metaformer.engine.signals import StopSignals
from metaformer.engine.trainer import Trainer
from metaformer.tasks.task import Task


@dataclass
class Best:
    """The best evaluation so far."""

    value: float = float("-inf")
    step: int = 0


class Remaining(Sampler[list[Sample]]):
    """All batches of a run from a step on, over the ends of epochs, so that workers never pause there."""

    def __init__(self, sampler: PureSampler, first: int, total: int) -> None:
        self.sampler, self.first, self.total = sampler, first, total

    def __len__(self) -> int:
        return (self.total - self.first) * self.sampler.accumulate

    def __iter__(self) -> Iterator[list[Sample]]:
        step = self.first
        while step < self.total:
            epoch, start = divmod(step, self.sampler.steps)
            self.sampler.seek(epoch, start)
            yield from self.sampler
            step = (epoch + 1) * self.sampler.steps


class Loop:
    """A run from its first or its saved step to the end, or to a signal."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        trainer: Trainer,
        sampler: PureSampler,
        run: RunDir,
        world: World,
    ) -> None:
        self.config, self.task, self.trainer, self.sampler = config, task, trainer, sampler
        self.run_dir, self.world = run, world
        self.total = trainer.schedule.total
        self.best = Best()
        self.metrics: dict[str, float] = {}
        self.saved = -1
        self.sums: dict[str, float] = {}
        self.counted = 0

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint."""
        self.trainer.restore(saved)
        self.best = Best(**saved.state["best"]) if saved.state["best"] else Best()
        self.metrics = dict(saved.state["metrics"])
        self.saved = self.trainer.step

    def run(self, log: MetricsLog | None, progress: Progress, stop: StopSignals) -> bool:
        """Train; tells whether the end was reached, rather than stopped before by a signal."""
        if self.trainer.step >= self.total:
            return True
        loader = Loader(
            self.task.train,
            Remaining(self.sampler, self.trainer.step, self.total),
            workers=self.config.data.workers,
            pin_memory=self.world.device.type == "cuda",
        )
        try:
            self._steps(iter(loader), log, progress, stop)
        finally:
            loader.close()
            self.task.close()
        if self.saved != self.trainer.step:
            self._save()
        return self.trainer.step >= self.total

    def _steps(
        self, batches: Iterator[Batch], log: MetricsLog | None, progress: Progress, stop: StopSignals
    ) -> None:
        trainer, every = self.trainer, self.config.runtime.log_every
        since, waited = time.perf_counter(), 0.0
        while trainer.step < self.total:
            began = time.perf_counter()
            parts = [next(batches) for _ in range(self.sampler.accumulate)]
            waited += time.perf_counter() - began
            figures = trainer.take_step(parts, self.epoch)
            self._count(figures)
            progress.update({"loss": figures["loss"]})
            if trainer.step % every == 0 or trainer.step == self.total:
                self._log_steps(log, time.perf_counter() - since, waited)
                since, waited = time.perf_counter(), 0.0
            self._end_of_step(log, progress)
            if self.world.any(bool(stop.number))[0]:
                return

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.trainer.step // self.sampler.steps

    def _end_of_step(self, log: MetricsLog | None, progress: Progress) -> None:
        step, every = self.trainer.step, self.config.runtime.save_every
        ended = step % self.sampler.steps == 0
        if ended and (self.epoch % self.config.evaluate.every == 0 or step >= self.total):
            self._evaluate(log, progress)
        if ended or (every and step % every == 0):
            self._save()

    def _evaluate(self, log: MetricsLog | None, progress: Progress) -> None:
        report = self.task.evaluate(self.trainer.forward)
        self.metrics = report.metrics
        value = self.metrics[self.task.metric]
        if log is not None:
            log.write("eval", self.trainer.step, self.epoch, self.metrics)
        words = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        progress.say(f"epoch {self.epoch}: {words}")
        progress.figures[self.task.metric] = f"{value:.4f}"
        if value > self.best.value:
            self.best = Best(value, self.trainer.step)
            if self.world.main:
                # before the step's checkpoint: a process killed in between does both again
                tensors = {"model": self.trainer.evaluated.state_dict()}
                state = {**self._state(), "evaluation": report.to_dict()}
                write_checkpoint(self.run_dir.best, tensors, state, self.task.hub_card())

    def _save(self) -> None:
        if self.world.main:
            groups, plain = self.trainer.groups()
            folder = self.run_dir.checkpoints
            write_checkpoint(step_directory(folder, self.trainer.step), groups, {**self._state(), **plain})
            prune(folder, self.config.runtime.keep)
        self.saved = self.trainer.step
        self.world.barrier()

    def _state(self) -> dict[str, Any]:
        best = {"value": self.best.value, "step": self.best.step} if self.best.step else None
        return {
            "card": self.task.card(),
            "config": to_dict(self.config),
            "step": self.trainer.step,
            "epoch": self.epoch,
            "position": self.trainer.step % self.sampler.steps,
            "metric": self.task.metric,
            "metrics": self.metrics,
            "best": best,
            "random": "a function of seed, step and rank",
            **machine(self.world),
        }

    def _count(self, figures: dict[str, float]) -> None:
        self.counted += 1
        for name, value in figures.items():
            self.sums[name] = value if name == "lr" else self.sums.get(name, 0.0) + value

    def _log_steps(self, log: MetricsLog | None, seconds: float, waited: float) -> None:
        names = sorted(self.sums)
        means = [self.sums[name] / (1 if name == "lr" else self.counted) for name in names]
        shared = self.world.mean(torch.tensor([*means, waited / seconds], dtype=torch.float64))
        *values, wait = shared.tolist()
        figures = dict(zip(names, values, strict=True))
        figures["images_per_second"] = self.counted * self.sampler.batch_size / seconds
        figures["data_wait"] = wait
        if self.world.device.type == "cuda":
            figures["memory_gb"] = torch.cuda.max_memory_allocated(self.world.device) / 2**30
        if log is not None:
            log.write("train", self.trainer.step, (self.trainer.step - 1) // self.sampler.steps, figures)
        self.sums, self.counted = {}, 0


def machine(world: World) -> dict[str, int]:
    """What a bit-for-bit repetition needs to be the same, beside the configuration."""
    return {"world_size": world.size, "threads": torch.get_num_threads()}
