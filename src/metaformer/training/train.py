"""Train a configuration into a run directory."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from metaformer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from metaformer.checkpoint.run_dir import RunDir
from metaformer.config import TrainConfig
from metaformer.data.loader import Stop
from metaformer.distributed import (
    Interrupted,
    World,
    all_gather_object,
    any_rank,
    errors_on_all_ranks,
    join,
    merge_connection_errors,
)
from metaformer.errors import ConfigError, DataError, MetaFormerError, OutputError
from metaformer.process import StopSignals, printable
from metaformer.recipes import RECIPES
from metaformer.report.readable import Readable
from metaformer.serialize import differences, from_dict, to_dict
from metaformer.storage import as_path
from metaformer.tasks import TASKS, other_task
from metaformer.tasks.base import BuildTask, Task
from metaformer.training.batch_size import find_batch_size
from metaformer.training.callbacks import Callback
from metaformer.training.check import check_config
from metaformer.training.log import MetricsLog
from metaformer.training.loop import Loop, build_sampler, machine
from metaformer.training.network import describe_network, resolve_network
from metaformer.training.progress import Progress
from metaformer.training.range_test import RangeTest, run_range_test
from metaformer.training.report import write_report
from metaformer.training.schedule import build_schedule
from metaformer.training.summary import describe_run
from metaformer.training.trainer import Trainer


@dataclass(frozen=True, repr=False)
class TrainResult(Readable):
    """Outcome of a run."""

    run: Path
    metric: str
    """Name of the metric by which the best weights were chosen."""
    best: float
    best_step: int
    metrics: dict[str, float]
    """Metrics of the last evaluation."""
    steps: int
    complete: bool

    def text(self) -> str:
        """Best and last metrics, and where the run lies."""
        last = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        lines = [
            f"best {self.metric} {self.best:.4f} at step {self.best_step} of {self.steps:,}",
            f"last evaluation: {last}",
            f"run: {self.run}",
        ]
        return "\n".join(lines)


def find_learning_rate(config: TrainConfig, *, build: BuildTask | None = None) -> RangeTest:
    """Range test of the learning rate, which `optim.lr: auto` runs before training; it writes nothing.

    Args:
        config: a run; its `optim.lr` is not read.
        build: makes network, data and loss in place of the task itself.

    Raises:
        ConfigError, DataError: as of `train`.
        TrainingError: no learning rate lets the loss fall.
        SystemExit: a signal asked to stop.
    """
    config, _ = resolve_network(replace(config, optim=replace(config.optim, lr="auto")))
    check_config(config, int(os.environ.get("WORLD_SIZE", "1")))
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    world = join(config.runtime.device, config.runtime.timeout)
    with StopSignals() as stop, merge_connection_errors(world):
        task = (build or TASKS[config.task].build)(config, world, stop.requested)
        with _ended_by(stop, task, world):
            config = _with_batch_size(config, task, world, stop.requested)[0]
            test = run_range_test(config, task, build_sampler(config, task, world), world, stop.requested)
        task.close()
    return test


def train(
    config: TrainConfig,
    out: str | Path,
    resume: str | None = None,
    command: str | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    build: BuildTask | None = None,
    explain: bool = True,
) -> TrainResult:
    """Train, evaluate, save and report; under torchrun, in all its processes.

    Args:
        config: the run.
        out: the run directory.
        resume: None refuses a directory that holds a run; `auto` resumes from its newest valid checkpoint, or
            starts a run; a checkpoint directory is resumed from, or refused if it is damaged.
        command: the shell command that resumes this run, shown by `metaformer runs`.
        callbacks: called after steps, epochs and evaluations; each may end the run.
        build: makes network, data and loss in place of the task itself.
        explain: show the worst mistakes in the report with class activation maps.

    Raises:
        ConfigError: a field is out of range or contradicts another.
        DataError: the data set is not laid out as it should be, or an image cannot be read.
        OutputError: the directory holds a run or cannot be written to.
        TrainingError: an input, loss or gradient is not finite.
        RankError: another process of the run failed.
        SystemExit: a signal asked to stop; after the first step a checkpoint was written. Status 143 or 130.
    """
    config, network = resolve_network(config)
    check_config(config, int(os.environ.get("WORLD_SIZE", "1")))
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    run = RunDir(as_path(out, "out", OutputError))
    run.check(resume)
    world = join(config.runtime.device, config.runtime.timeout)
    with StopSignals() as stop, merge_connection_errors(world):
        if world.main:
            for line in describe_network(config, network):
                _print(line)
        task = _build_task(build or TASKS[config.task].build, config, run, resume, world, stop)
        with ExitStack() as stack:
            saved = _open_run(run, resume, world, stack)
            if saved is not None:
                _check_task(saved, config)
                config = _recorded(config, saved, world)
            with _ended_by(stop, task, world):
                config, found = _find(config, task, world, stop.requested)
            sampler = build_sampler(config, task, world)
            trainer = Trainer(config, task, build_schedule(config, sampler.steps), world)
            loop = Loop(config, task, trainer, sampler, run, world, stop, callbacks)
            if saved is not None:
                loop.restore(saved)
                _warn_differences(saved, config, world)
            lines = [*describe_run(config, task, sampler.steps, world, saved is not None), *found]
            if world.main:
                for line in lines:
                    _print(line)
            complete = _run(loop, saved, command, lines, found)
            result = TrainResult(
                run.path, task.metric, loop.best.value, loop.best.step, loop.metrics, trainer.step, complete
            )
            _finish(result, world, stop, explain)
    return result


def _build_task(
    build: BuildTask, config: TrainConfig, run: RunDir, resume: str | None, world: World, stop: StopSignals
) -> Task:
    """The task of a run, with its initial weights unless those of a checkpoint will replace them.

    Raises:
        DataError: the data cannot be used; it says so where they look like those of another task.
    """
    if any_rank(run.resumes(resume))[0]:
        config = replace(config, model=replace(config.model, checkpoint=None, pretrained=False))
    try:
        return build(config, world, stop.requested)
    except DataError as error:
        root = Path(config.data.root).expanduser()
        other = other_task(root, config.task) if root.is_dir() else None
        if other is None:
            raise
        raise DataError(f"{error}; it looks like {other.title}: {_recipe(other.name)}") from error


def _recipe(task: str) -> str:
    """Which recipe is for own data of a task."""
    names = (name for name, recipe in RECIPES.items() if recipe.config.task == task)
    return f"train {next(name for name in names if name.startswith('finetune'))}"


def _check_task(saved: Checkpoint, config: TrainConfig) -> None:
    task = saved.state["card"]["task"]
    if task != config.task:
        raise ConfigError(
            f"{saved.directory}: is of a run of task {task}, not {config.task}: choose another run directory"
        )


def _recorded(config: TrainConfig, saved: Checkpoint, world: World) -> TrainConfig:
    """The numbers of the run that is resumed, where the configuration says `auto`: it found them once.

    Raises:
        ConfigError: its configuration cannot be read, or a number contradicts another field.
    """
    if "auto" not in (config.data.batch_size, config.optim.lr):
        return config
    before = from_dict(TrainConfig, saved.state["config"])
    if config.data.batch_size == "auto":
        config = replace(config, data=replace(config.data, batch_size=before.data.batch_size))
    if config.optim.lr == "auto":
        config = replace(config, optim=replace(config.optim, lr=before.optim.lr))
    check_config(config, world.size)
    return config


def _find(config: TrainConfig, task: Task, world: World, stop: Stop) -> tuple[TrainConfig, list[str]]:
    """The configuration with numbers in place of `auto`, and a line for each: first the batch, then its rate.

    Raises:
        ConfigError: no batch fits into memory, or a number that is found contradicts another field.
        TrainingError: no learning rate lets the loss fall.
    """
    config, lines = _with_batch_size(config, task, world, stop)
    if config.optim.lr == "auto":
        if world.main:
            _print("optim.lr auto: a range test of the learning rate comes first")
        test = run_range_test(config, task, build_sampler(config, task, world), world, stop)
        config = replace(config, optim=replace(config.optim, lr=test.lr))
        check_config(config, world.size)
        lines.append(test.text())
    return config, lines


def _with_batch_size(
    config: TrainConfig, task: Task, world: World, stop: Stop
) -> tuple[TrainConfig, list[str]]:
    """The configuration with a number for `data.batch_size`, and a line where it was found."""
    if config.data.batch_size != "auto":
        return config, []
    batch_size, line = find_batch_size(config, task, world, stop)
    config = replace(config, data=replace(config.data, batch_size=batch_size))
    check_config(config, world.size)
    return config, [line]


@contextmanager
def _ended_by(stop: StopSignals, task: Task, world: World) -> Iterator[None]:
    """Context of what comes before the first step, which a signal ends without anything to resume from."""
    try:
        yield
    except Interrupted:
        task.close()
        if world.main:
            _print("stopped before the first step")
        raise SystemExit(stop.exit_status) from None


def _open_run(run: RunDir, resume: str | None, world: World, stack: ExitStack) -> Checkpoint | None:
    """Lock the run directory and open the checkpoint to resume from, found by the first rank."""
    saved = None
    with errors_on_all_ranks(MetaFormerError):
        if world.main:
            stack.enter_context(run.writing())
            run.check(resume)  # again: a process that held the lock may have written a run
            saved = run.open(resume, _print)
    directory = all_gather_object(saved.directory if saved is not None else None)[0]
    if not world.main and directory is not None:
        saved = read_checkpoint(directory, verified=True)
    if world.main:
        _print(f"run directory: {run.path}")
        if saved is not None:
            _print(f"resuming from {saved.directory} (step {saved.state['step']})")
    return saved


def _run(
    loop: Loop, saved: Checkpoint | None, command: str | None, lines: list[str], found: list[str]
) -> bool:
    """Run the loop with its log and progress bar; False if a signal stopped it.

    Args:
        loop: the run.
        saved: what it goes on from.
        command: the shell command that resumes it.
        lines: what it said at its start.
        found: of these, the lines about what was found for `auto`.
    """
    world, run, config = loop.world, loop.run_dir, to_dict(loop.config)
    progress = Progress(loop.total, loop.trainer.step, loop.sampler.batch_size, quiet=not world.main)
    log = None
    with ExitStack() as stack:
        stack.callback(progress.close)
        with errors_on_all_ranks(MetaFormerError):
            if world.main:
                run.write_config(config)
                if command is not None:
                    run.write_command(command)
                log = stack.enter_context(
                    MetricsLog(run.path, progress.write, loop.config.runtime.wandb, config)
                )
                if saved is not None:
                    log.write("resume", loop.trainer.step, loop.epoch)
                else:
                    log.write("start", 0, 0, note="\n".join(lines))
                    for line in found:
                        log.write("auto", 0, 0, note=line)
                for line in dict.fromkeys(loop.task.warnings):  # parts of one split may share some
                    progress.write(f"warning: {line}")
                    log.write("data", loop.trainer.step, loop.epoch, note=line)
        return loop.run(log, progress)


def _warn_differences(saved: Checkpoint, config: TrainConfig, world: World) -> None:
    """Print in what a resumed run differs from the saved one."""
    if not world.main:
        return
    here = machine(world)
    lines = differences(saved.state["config"], to_dict(config))
    there = {name: saved.state.get(name, value) for name, value in here.items()}
    lines += differences(there, here)
    for line in lines:
        _print(f"warning: differs from the checkpoint, so the run will not be bit-for-bit the same: {line}")


def _finish(result: TrainResult, world: World, stop: StopSignals, explain: bool) -> None:
    if world.main and result.complete:
        page = write_report(result.run, explain)
        _print(f"best {result.metric} {result.best:.4f} at step {result.best_step}: {result.run / 'best'}")
        _print(f"report: {page}")
    if not result.complete:
        if world.main:
            _print(f"stopped by signal {stop.number} after step {result.steps}; --resume auto continues here")
        raise SystemExit(stop.exit_status)


def _print(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
