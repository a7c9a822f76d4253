"""The loop: batches in, steps taken, figures logged, weights measured and saved; any task."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler

from metaformer.checkpoint.checkpoint import Checkpoint, prune, step_directory, write_checkpoint
from metaformer.checkpoint.random_state import random_state, set_random_state
from metaformer.checkpoint.run_dir import RunDir
from metaformer.config import TrainConfig
from metaformer.data.dataset import BAD_SHARE, Batch
from metaformer.data.loader import DATA_TIMEOUT, Loader, Stop
from metaformer.data.sampler import PureSampler, Sample
from metaformer.data.shards.stream_loader import StreamLoader
from metaformer.data.shards.tar import TarImages
from metaformer.distributed import (
    Interrupted,
    World,
    all_gather_object,
    any_rank,
    lockstep,
    raise_on_all_ranks,
)
from metaformer.errors import DataError, MetaFormerError, OutputError, TrainingError
from metaformer.serialize import to_dict
from metaformer.tasks.base import Task
from metaformer.training.diagnose import bad_weight
from metaformer.training.log import MetricsLog
from metaformer.training.meter import Meter, peak_memory
from metaformer.training.progress import Progress
from metaformer.training.trainer import Refused, Trainer

REFUSED_IN_A_ROW = 3
"""Steps that `runtime.on_nonfinite skip` leaves out at most, one after another."""


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
        stop: Stop,
    ) -> None:
        self.config, self.task, self.trainer, self.sampler = config, task, trainer, sampler
        self.run_dir, self.world = run, world
        self.total = trainer.schedule.total
        self.stop = stop
        self.best = Best()
        self.metrics: dict[str, float] = {}
        self.bad: set[int] = set()
        self.refused = 0
        self.cut = False
        """An evaluation that was due at this step has not been finished."""
        self.saved = -1
        self.meter = Meter()

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state = saved.state
        self.trainer.restore(saved)
        self.best = Best(**state["best"]) if state["best"] else Best()
        self.metrics = dict(state["metrics"])
        self.bad, self.refused, self.cut = set(state["bad_images"]), state["refused"], state["cut"]
        self.saved = self.trainer.step
        if any_rank(self.world.main and self.best.step > 0 and not self.run_dir.best.is_dir())[0]:
            # somebody has removed it: what is measured next is the best, and where that is due it is this
            self.best, self.cut = Best(), self._due()
        if state["world_size"] == self.world.size:
            own, prefix = saved.tensors("random"), f"rank_{self.world.rank}."
            mine = {k.removeprefix(prefix): value for k, value in own.items() if k.startswith(prefix)}
            set_random_state(mine, self.world.device)

    def run(self, log: MetricsLog | None, progress: Progress) -> bool:
        """Train; tells whether the end was reached, rather than stopped before by a signal."""
        if self.trainer.step >= self.total and not self.cut:
            return True
        loader = self._loader()
        try:
            if self.cut:
                self._end_of_step(log, progress)
            self._steps(loader, log, progress)
        except Interrupted:
            pass
        finally:
            loader.close()
            self.task.close()
        self._save_once()
        return self.trainer.step >= self.total and not self.cut

    def _loader(self) -> Loader:
        data, step = self.task.train, self.trainer.step
        options: dict[str, Any] = {
            "workers": self.config.data.workers,
            "pin_memory": self.world.device.type == "cuda",
            "timeout": min(DATA_TIMEOUT, self.config.runtime.timeout),
            "stop": self.stop,
            "skip_bad": self.config.data.on_bad_image == "skip",
        }
        if isinstance(data.source, TarImages):  # a stream: another order after each stop
            return StreamLoader(data, self.sampler, step, self.total, **options)
        return Loader(data, Remaining(self.sampler, step, self.total), **options)

    def _steps(self, loader: Loader, log: MetricsLog | None, progress: Progress) -> None:
        every, began = self.config.runtime.log_every, time.perf_counter()
        for parts in self._fetch(loader):
            self.meter.waited += time.perf_counter() - began
            self._leave_out_bad(parts, log, progress)
            figures = self._take(parts, log, progress)
            progress.update({"loss": figures["loss"]} if "loss" in figures else {})
            if self.trainer.step % every == 0 or self.trainer.step == self.total:
                self._log_steps(log, progress)
            self._end_of_step(log, progress)
            began = time.perf_counter()

    def _fetch(self, loader: Loader) -> Iterator[list[Batch]]:
        """Each step's micro-batches, once every rank has its own."""
        batches = iter(loader)
        parts = iter(lambda: list(islice(batches, self.sampler.accumulate)), [])
        try:
            yield from lockstep(parts, self.total - self.trainer.step)
        except MetaFormerError:
            self._save_once()  # ranks stop here together: what was learned so far is kept
            raise

    def _take(self, parts: list[Batch], log: MetricsLog | None, progress: Progress) -> dict[str, float]:
        """Take a step, or leave it out where it is not finite and that is wanted."""
        try:
            figures = self.trainer.take_step(parts, self.epoch)
        except Refused as error:
            self.refused += 1
            skip = self.config.runtime.on_nonfinite == "skip"
            if not skip or self.refused > REFUSED_IN_A_ROW:
                self._save_once()
                raise Refused(
                    f"{error}; {self.refused} such steps in a row" if skip else str(error)
                ) from error
            self._note("refused", f"left out: {error}", log, progress)
            self.trainer.leave_out()
            return {}
        self.refused = 0
        self.meter.add(figures)
        return figures

    def _leave_out_bad(self, parts: list[Batch], log: MetricsLog | None, progress: Progress) -> None:
        """Tell of images that no rank met before, and give up where they are too many."""
        if self.config.data.on_bad_image != "skip":
            return
        new = {bad.index: bad.reason for batch in parts for bad in batch.bad if bad.index not in self.bad}
        if not any_rank(bool(new))[0]:
            return
        for index, reason in sorted(
            {k: v for told in all_gather_object(new) for k, v in told.items()}.items()
        ):
            self.bad.add(index)
            self._note("bad_image", f"left out: {reason}", log, progress)
        images = len(self.task.train)
        if len(self.bad) > BAD_SHARE * images:
            self._save_once()
            raise DataError(
                f"{self.config.data.root}: {len(self.bad)} of {images} training images cannot be read, "
                f"more than {BAD_SHARE:.1%}: metaformer data check names them all"
            )

    def _note(self, kind: str, words: str, log: MetricsLog | None, progress: Progress) -> None:
        progress.say(words)
        if log is not None:
            log.write(kind, self.trainer.step, self.epoch, note=words)

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to."""
        return self.trainer.step // self.sampler.steps

    def _end_of_step(self, log: MetricsLog | None, progress: Progress) -> None:
        step, every = self.trainer.step, self.config.runtime.save_every
        due = self._due()
        if due:
            self._evaluate(log, progress)
        if due or step % self.sampler.steps == 0 or (every and step % every == 0):
            self._save()

    def _due(self) -> bool:
        """Whether the step that was just taken is to be followed by an evaluation."""
        step, plan = self.trainer.step, self.config.evaluate
        if step >= self.total:
            return True
        if plan.every_steps:
            return step % plan.every_steps == 0
        return step % self.sampler.steps == 0 and self.epoch % plan.every == 0

    def _evaluate(self, log: MetricsLog | None, progress: Progress) -> None:
        self.cut = True
        with self.trainer.measuring():
            report = self.task.evaluate(self.trainer.forward)
        self.cut = False
        self.metrics = report.metrics
        value = self.metrics[self.task.metric]
        if log is not None:
            log.write("eval", self.trainer.step, self.epoch, self.metrics)
        words = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        when = f"step {self.trainer.step}" if self.config.evaluate.every_steps else f"epoch {self.epoch}"
        progress.say(f"{when}: {words}")
        progress.figures[self.task.metric] = f"{value:.4f}"
        if value > self.best.value:
            self.best = Best(value, self.trainer.step)
            # before the step's checkpoint: a process killed in between does both again
            tensors = {"model": self.trainer.published()}
            state = {**self._state(), "evaluation": report.to_dict()}
            self._write(lambda: write_checkpoint(self.run_dir.best, tensors, state, self.task.hub_card()))

    def _save_once(self) -> None:
        if self.saved != self.trainer.step:
            self._save()

    def _save(self) -> None:
        bad = bad_weight(self.task.model)
        if any_rank(bad is not None)[0]:
            raise TrainingError(
                f"step {self.trainer.step}: weights are not finite ({bad or 'on another rank'}), so they "
                "are not saved: go on from the last checkpoint with a smaller optim.lr"
            )
        groups, plain = self.trainer.groups()
        folder, device = self.run_dir.checkpoints, self.world.device
        groups["random"] = {
            f"rank_{rank}.{name}": value
            for rank, state in enumerate(all_gather_object(random_state(device)))
            for name, value in state.items()
        }

        def write() -> None:
            write_checkpoint(step_directory(folder, self.trainer.step), groups, {**self._state(), **plain})
            if self.world.main:
                prune(folder, self.config.runtime.keep)

        self._write(write, together=self.trainer.parallel.sharded)
        self.saved = self.trainer.step

    def _write(self, write: Callable[[], object], together: bool = False) -> None:
        """Let the first rank write while the others wait, and fail with it; or all of them, as one."""
        if together:
            write()
            return
        trouble = None
        if self.world.main:
            try:
                write()
            except OutputError as error:
                trouble = error
        raise_on_all_ranks(trouble)

    def _state(self) -> dict[str, Any]:
        best = {"value": self.best.value, "step": self.best.step} if self.best.step else None
        return {
            "card": self.task.card(),
            "config": to_dict(self.config),
            "step": self.trainer.step,
            "total": self.total,
            "epoch": self.epoch,
            "position": self.trainer.step % self.sampler.steps,
            "metric": self.task.metric,
            "metrics": self.metrics,
            "best": best,
            "bad_images": sorted(self.bad),
            "refused": self.refused,
            "cut": self.cut,
            **machine(self.world),
        }

    def _log_steps(self, log: MetricsLog | None, progress: Progress) -> None:
        meter, self.meter = self.meter, Meter()
        if not meter.steps:
            return
        figures = meter.figures(self.world.size)
        figures["images_per_second"] = meter.steps * self.sampler.batch_size / meter.seconds
        figures["memory_gb"] = peak_memory(self.world.device)
        progress.note({name: figures[name] for name in ("data_wait", "memory_gb")})
        if log is not None:
            log.write("train", self.trainer.step, (self.trainer.step - 1) // self.sampler.steps, figures)


def machine(world: World) -> dict[str, int]:
    """What a bit-for-bit repetition needs to be the same, beside the configuration."""
    return {"world_size": world.size, "threads": torch.get_num_threads()}
