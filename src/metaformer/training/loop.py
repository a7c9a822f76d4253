"""Training loop: load batches, take steps, log, evaluate, save checkpoints; the same for every task."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler

from metaformer.checkpoint.checkpoint import (
    Checkpoint,
    prune,
    random_state,
    restoring,
    set_random_state,
    step_directory,
    write_checkpoint,
)
from metaformer.checkpoint.run_dir import RunDir
from metaformer.config import TrainConfig
from metaformer.data.dataset import BAD_SHARE, Batch
from metaformer.data.divide import check_division, digest
from metaformer.data.loader import DATA_TIMEOUT, Loader, Stop
from metaformer.data.sampler import Sample, TrainSampler
from metaformer.data.shards.stream_loader import StreamLoader
from metaformer.data.shards.tar import TarImages
from metaformer.distributed import (
    Interrupted,
    World,
    all_gather_list,
    all_gather_object,
    any_rank,
    errors_on_all_ranks,
    lockstep,
)
from metaformer.errors import ConfigError, DataError, MetaFormerError, OutputError, TrainingError
from metaformer.ops.describe import describe
from metaformer.process import GRACE, StopSignals
from metaformer.serialize import from_dict, to_dict
from metaformer.tasks.base import Task
from metaformer.tasks.report import thumbnail
from metaformer.training.callbacks import Callback, TrainState
from metaformer.training.diagnose import nonfinite_weight
from metaformer.training.log import MetricsLog
from metaformer.training.progress import Meter, Progress, device_name, peak_memory
from metaformer.training.report import write_report
from metaformer.training.trainer import NonFiniteError, Trainer

MAX_SKIPPED = 3
"""Consecutive steps that `runtime.on_nonfinite skip` skips at most."""
REPORT_EVERY = 60.0
"""Seconds between two versions of the report while training goes on, at least; the first comes early."""
SAMPLES = 8
"""Training samples in the report."""
SAMPLE_SIDE = 384
"""Longer side of one, in pixels."""


@dataclass
class Best:
    """Value of the metric and step of the best evaluation so far."""

    value: float = float("-inf")
    step: int = 0


class RemainingBatches(Sampler[list[Sample]]):
    """Batch sampler from a step to the end of the run, across epochs, so that workers never pause there."""

    def __init__(self, sampler: TrainSampler, first: int, total: int) -> None:
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


def build_sampler(config: TrainConfig, task: Task, world: World) -> TrainSampler:
    """Order of the training images."""
    options: dict[str, Any] = {
        "batch_size": config.data.step_images,
        "seed": config.seed,
        "rank": world.rank,
        "world": world.size,
        "repeated_aug": config.data.repeated_aug,
        "accumulate": config.optim.accumulate,
    }
    return task.sampler(**options)


def training_loader(
    config: TrainConfig, task: Task, sampler: TrainSampler, steps: range, world: World, stop: Stop
) -> Loader:
    """Micro-batches of these steps of a run, `sampler.accumulate` to each; `stop` cuts them."""
    options: dict[str, Any] = {
        "workers": config.data.workers,
        "pin_memory": world.device.type == "cuda",
        "timeout": min(DATA_TIMEOUT, config.runtime.timeout),
        "stop": stop,
        "skip_bad": config.data.on_bad_image == "skip",
    }
    data = task.train
    if isinstance(data.source, TarImages):  # a stream: its order changes when a run is resumed
        return StreamLoader(data, sampler, steps.start, steps.stop, **options)
    return Loader(data, RemainingBatches(sampler, steps.start, steps.stop), **options)


class Loop:
    """A run from its first or restored step to the end, or to a signal."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        trainer: Trainer,
        sampler: TrainSampler,
        run: RunDir,
        world: World,
        signals: StopSignals,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.task, self.trainer, self.sampler = config, task, trainer, sampler
        self.run_dir, self.world, self.signals, self.callbacks = run, world, signals, callbacks
        self.total = trainer.schedule.total
        """Steps of the run; those done, where it ended early."""
        self.ended: str | None = None
        """Why the run ended before its planned end."""
        self.since_best = 0
        """Evaluations since the best one."""
        self.best = Best()
        self.metrics: dict[str, float] = {}
        """Metrics of the last evaluation."""
        self.bad_images: set[int] = set()
        self.skipped = 0
        """Consecutive steps that were skipped as not finite."""
        self.evaluation_pending = False
        """The evaluation after this step has not finished."""
        self.saved_step = -1
        source: Any = task.evaluation.loader.dataset.source  # of a folder where the run divides it
        self.held_out = None if config.data.val_fraction is None else digest(source)
        """Which images the run holds out of its training split, where it does."""
        self.samples: list[tuple[str, str]] | None = None
        self.reported: float | None = None
        """When the report was last written."""
        self.meter = Meter()
        self.log: MetricsLog | None = None
        self.progress: Progress

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            WeightsError: it does not fit this run.
        """
        with restoring(saved):
            self._restore(saved)

    def _restore(self, saved: Checkpoint) -> None:
        state = saved.state
        before = state.get("held_out")  # not in the checkpoints of an earlier development version
        if before is not None and self.held_out is not None:
            held_out: Any = self.task.evaluation.loader.dataset.source
            check_division(held_out, before)
        self.trainer.restore(saved)
        self.task.restore(saved.state["card"])
        self.best = from_dict(Best, state["best"], "best") if state["best"] else Best()
        self.metrics = dict(state["metrics"])
        self.bad_images, self.skipped = set(state["bad_images"]), state["skipped_steps"]
        self.evaluation_pending = state["evaluation_pending"]
        self.since_best, self.ended = state.get("since_best", 0), state.get("ended")
        self.total = self.trainer.step if self.ended else self.total
        self.saved_step = self.trainer.step
        if any_rank(self.world.main and self.best.step > 0 and not self.run_dir.best.is_dir())[0]:
            # `best` was removed: the next evaluation is the best, or this step's if it had one
            self.best, self.evaluation_pending = Best(), self._evaluation_due()
        if state["world_size"] == self.world.size:
            tensors, prefix = saved.tensors("random"), f"rank_{self.world.rank}."
            own = {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}
            set_random_state(own, self.world.device)

    def run(self, log: MetricsLog | None, progress: Progress) -> bool:
        """Train; False if a signal stopped the run before its end."""
        if self.complete:
            if self.ended:
                progress.write(
                    f"the run has ended, {self.ended}: to train on, start another from its weights"
                )
            return True
        self.log, self.progress = log, progress
        with self.signals.protected():
            return self._run()

    def _run(self) -> bool:
        self.trainer.interruptible = self._interruptible
        steps = range(self.trainer.step, self.total)
        loader = training_loader(
            self.config, self.task, self.sampler, steps, self.world, self.signals.requested
        )
        try:
            if self.evaluation_pending:
                self._end_step()
            self._train(loader)
        except Interrupted:
            pass
        finally:
            with self._interruptible():
                loader.close()
                self.task.close()
        self._save_once()
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether the last step and its evaluation are done."""
        return self.trainer.step >= self.total and not self.evaluation_pending

    @property
    def epoch(self) -> int:
        """Epoch of the next step."""
        return self.trainer.step // self.sampler.steps

    def _train(self, loader: Loader) -> None:
        every, started = self.config.runtime.log_every, time.perf_counter()
        for batches in self._fetch(loader):
            self.meter.waited += time.perf_counter() - started
            self._record_bad_images(batches)
            metrics = self._step(batches)
            self.progress.update({"loss": metrics["loss"]} if "loss" in metrics else {})
            if self.trainer.step % every == 0 or self.trainer.step == self.total:
                self._log_metrics()
            self._end_step(metrics)
            if self.complete:
                return
            started = time.perf_counter()

    def _fetch(self, loader: Loader) -> Iterator[list[Batch]]:
        """The micro-batches of each step, once every rank has its own."""
        batches = iter(loader)
        steps = iter(lambda: list(islice(batches, self.sampler.accumulate)), [])
        together = lockstep(steps, self.total - self.trainer.step)
        try:
            while (step := self._next(together)) is not None:
                yield step
        except MetaFormerError:
            self._save_once()  # raised on all ranks together: the steps so far are not lost
            raise

    def _next(self, steps: Iterator[list[Batch]]) -> list[Batch] | None:
        with self._interruptible():
            return next(steps, None)

    def _interruptible(self) -> AbstractContextManager[None]:
        """Context of what takes long and leaves the state as it was after the last complete step."""
        return self.signals.interruptible(self._save_and_explain)

    def _save_and_explain(self) -> None:
        """Save what can be saved when a signal ends the process during a step or an evaluation."""
        if self.world.size == 1:  # else a save needs the other processes
            self._save_once()
        if self.world.main:
            self.progress.write(
                f"stopped by signal {self.signals.number} after step {max(self.saved_step, 0)}, without "
                f"waiting for what takes more than {GRACE:.0f} s; --resume auto continues here"
            )

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        """Take a step; gives nothing for one that is not finite and is skipped."""
        try:
            metrics = self.trainer.take_step(batches, self.epoch)
        except ConfigError:
            self._save_once()
            raise
        except NonFiniteError as error:
            self.skipped += 1
            skip = self.config.runtime.on_nonfinite == "skip"
            if not skip or self.skipped > MAX_SKIPPED:
                self._save_once()
                text = f"{error}; {self.skipped} such steps in a row" if skip else str(error)
                raise NonFiniteError(text) from error
            self._note("nonfinite", f"skipped: {error}")
            self.trainer.skip_step()
            return {}
        self.skipped = 0
        self.meter.update(metrics)
        return metrics

    def _record_bad_images(self, batches: list[Batch]) -> None:
        """Log images that could not be read; too many of them are an error."""
        if self.config.data.on_bad_image != "skip":
            return
        bad = [image for batch in batches for image in batch.bad if image.index not in self.bad_images]
        if not any_rank(bool(bad))[0]:
            return
        for index, reason in sorted({(image.index, image.reason) for image in all_gather_list(bad)}):
            self.bad_images.add(index)
            self._note("bad_image", f"skipped: {reason}")
        bad_count, images = len(self.bad_images), len(self.task.train)
        if bad_count > BAD_SHARE * images:
            self._save_once()
            raise DataError(
                f"{self.config.data.root}: {bad_count} of {images} training images cannot be read, "
                f"more than {BAD_SHARE:.1%}: metaformer data check lists them"
            )

    def _note(self, kind: str, text: str) -> None:
        self.progress.write(text)
        if self.log is not None:
            self.log.write(kind, self.trainer.step, self.epoch, note=text)

    def _log_metrics(self) -> None:
        meter, self.meter = self.meter, Meter()
        if not meter.steps:
            return
        metrics = meter.means(self.world.size)
        metrics["images_per_second"] = meter.steps * self.sampler.batch_size / meter.seconds
        metrics["memory_gb"] = peak_memory(self.world.device)
        self.progress.set_postfix({name: metrics[name] for name in ("data_wait", "memory_gb")})
        if self.log is not None:
            self.log.write("train", self.trainer.step, (self.trainer.step - 1) // self.sampler.steps, metrics)

    def _end_step(self, metrics: Mapping[str, float] | None = None) -> None:
        """Evaluate and save, each if it is due; call callbacks; end the run where one asks for it.

        Args:
            metrics: of the step; None where a resumed run makes up for what its last step left undone.
        """
        step, every = self.trainer.step, self.config.runtime.save_every
        epoch_done, due = step % self.sampler.steps == 0, self._evaluation_due()
        stops = [] if metrics is None else [self._call(c.on_step, metrics) for c in self.callbacks]
        if due:
            self._evaluate()
            stops += [self._call(c.on_evaluate, self.metrics) for c in self.callbacks]
        if epoch_done:
            stops += [self._call(c.on_epoch, self.metrics) for c in self.callbacks]
        self._end_early(any(stops), evaluated=due)
        if due or epoch_done or self.ended or (every and step % every == 0):
            self._save()
        if due and step < self.total:
            self._report()

    def _call(self, method: Callable[[TrainState], bool | None], metrics: Mapping[str, float]) -> bool:
        """Whether a callback asks for the end of the run."""
        step = self.trainer.step
        epoch = -(-step // self.sampler.steps)
        best, model, main = self.best.value, self.task.model, self.world.main
        state = TrainState(self.run_dir.path, step, self.total, epoch, metrics, best, model, main)
        return bool(method(state))

    def _end_early(self, asked: bool, evaluated: bool) -> None:
        """Make this step the last one, where a callback asks for it or `schedule.patience` is over."""
        patience, step = self.config.schedule.patience, self.trainer.step
        if step >= self.total:
            return
        if patience is not None and self.since_best >= patience:
            self.ended = f"no better {self.task.metric} in {self.since_best} evaluations"
        elif self.callbacks and any_rank(asked)[0]:
            self.ended = "a callback asked for it"
        if self.ended:
            if not evaluated:
                self._evaluate()
                for callback in self.callbacks:
                    self._call(callback.on_evaluate, self.metrics)
            self._note("ended", f"ended after step {step} of {self.total}: {self.ended}")
            self.total = step

    def _report(self) -> None:
        """Write the report as far as the run has come, which must not end it; at the end `train` does."""
        now, last = time.monotonic(), self.reported
        if not self.world.main or (last is not None and now - last < REPORT_EVERY):
            return
        self.reported = now
        try:
            page = write_report(self.run_dir.path, explain=False)
        except MetaFormerError as error:
            self.progress.write(f"warning: no report for now: {error}")
        else:
            if last is None:
                self.progress.write(f"report, renewed as the run goes on: {page}")

    def _evaluation_due(self) -> bool:
        step, plan = self.trainer.step, self.config.evaluate
        if step >= self.total:
            return True
        if plan.every_steps:
            return step % plan.every_steps == 0
        # the first epoch's is there, so that there is a figure early
        return step % self.sampler.steps == 0 and (self.epoch % plan.every == 0 or self.epoch == 1)

    def _evaluate(self) -> None:
        self.evaluation_pending = True
        with self.trainer.evaluating(), self._interruptible():
            report = self.task.evaluate(self.trainer.forward)
        self.evaluation_pending = False
        self.metrics = report.metrics
        value = self.metrics[self.task.metric]
        if self.log is not None:
            self.log.write("eval", self.trainer.step, self.epoch, self.metrics)
        text = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        when = f"step {self.trainer.step}" if self.config.evaluate.every_steps else f"epoch {self.epoch}"
        self.progress.write(f"{when}: {text}")
        self.progress.postfix[self.task.metric] = f"{value:.4f}"
        self.since_best += 1
        if value > self.best.value:
            self.since_best = 0
            self.best = Best(value, self.trainer.step)
            # saved before the step's checkpoint: a process killed in between does both again
            tensors = {"model": self.trainer.eval_state_dict()}
            state = {**self._state(), "evaluation": report.to_dict(), "samples": self._training_samples()}
            with errors_on_all_ranks(OutputError):
                if self.world.main:
                    write_checkpoint(self.run_dir.best, tensors, state, self.task.hub_card())

    def _training_samples(self) -> list[tuple[str, str]]:
        """Caption and data URI of some training samples for the report; none of tar shards, which stream."""
        if self.samples is None:
            few = [] if isinstance(self.task.train.source, TarImages) else self.task.training_samples(SAMPLES)
            self.samples = [(caption, thumbnail(image, SAMPLE_SIDE)) for caption, image in few]
        return self.samples

    def _save_once(self) -> None:
        if self.saved_step != self.trainer.step:
            self._save()

    def _save(self) -> None:
        weight = nonfinite_weight(self.task.model)
        if any_rank(weight is not None)[0]:
            raise TrainingError(
                f"step {self.trainer.step}: weights are not finite ({weight or 'on another rank'}), so they "
                "are not saved: resume from the last checkpoint with a smaller optim.lr"
            )
        tensors, plain = self.trainer.state_dicts()
        tensors["random"] = {
            f"rank_{rank}.{name}": value
            for rank, state in enumerate(all_gather_object(random_state(self.world.device)))
            for name, value in state.items()
        }
        target = step_directory(self.run_dir.checkpoints, self.trainer.step)
        state = {**self._state(), **plain}
        if self.trainer.parallel.sharded:
            write_checkpoint(target, tensors, state)  # all ranks together, each its own shards
            self._prune()
        else:
            with errors_on_all_ranks(OutputError):
                if self.world.main:
                    write_checkpoint(target, tensors, state)
                    self._prune()
        self.saved_step = self.trainer.step

    def _prune(self) -> None:
        if self.world.main:
            prune(self.run_dir.checkpoints, self.config.runtime.keep)

    def _state(self) -> dict[str, Any]:
        return {
            "card": self.task.card(),
            "config": to_dict(self.config),
            "step": self.trainer.step,
            "total": self.total,
            "epoch": self.epoch,
            "position": self.trainer.step % self.sampler.steps,
            "metric": self.task.metric,
            "metrics": self.metrics,
            "best": asdict(self.best) if self.best.step else None,
            "bad_images": sorted(self.bad_images),
            "skipped_steps": self.skipped,
            "since_best": self.since_best,
            "ended": self.ended,
            "evaluation_pending": self.evaluation_pending,
            "held_out": self.held_out,
            "device": device_name(self.world.device),
            **machine(self.world),
        }


def machine(world: World) -> dict[str, Any]:
    """What must be equal for a resumed run to be bit-for-bit the same, besides the configuration."""
    return {
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "operations": describe(world.device),
    }
