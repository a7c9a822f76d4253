"""Train a configuration into a run directory."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metaformer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from metaformer.checkpoint.run_dir import RunDir
from metaformer.config import TrainConfig
from metaformer.data.sampler import TrainSampler
from metaformer.distributed import (
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
from metaformer.serialize import differences, to_dict
from metaformer.storage import as_path
from metaformer.tasks import TASKS, other_task
from metaformer.tasks.base import BuildTask, Task
from metaformer.training.callbacks import Callback
from metaformer.training.check import check_config
from metaformer.training.log import MetricsLog
from metaformer.training.loop import Loop, machine
from metaformer.training.network import describe_network, resolve_network
from metaformer.training.progress import Progress
from metaformer.training.report import write_report
from metaformer.training.schedule import build_schedule
from metaformer.training.summary import describe_run
from metaformer.training.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
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
        SystemExit: a signal asked to stop, after a checkpoint was written. Status 143 or 130.
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
        sampler = build_sampler(config, task, world)
        trainer = Trainer(config, task, build_schedule(config, sampler.steps), world)
        loop = Loop(config, task, trainer, sampler, run, world, stop, callbacks)
        with ExitStack() as stack:
            saved = _open_run(run, resume, world, stack)
            if saved is not None:
                _check_task(saved, config)
                loop.restore(saved)
                _warn_differences(saved, config, world)
            lines = describe_run(config, task, sampler.steps, world, saved is not None)
            if world.main:
                for line in lines:
                    _print(line)
            complete = _run(loop, saved, command, lines)
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


def build_sampler(config: TrainConfig, task: Task, world: World) -> TrainSampler:
    """Sampler of the training images."""
    options: dict[str, Any] = {
        "batch_size": config.data.batch_size,
        "seed": config.seed,
        "rank": world.rank,
        "world": world.size,
        "repeated_aug": config.data.repeated_aug,
        "accumulate": config.optim.accumulate,
    }
    return task.sampler(**options)


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


def _run(loop: Loop, saved: Checkpoint | None, command: str | None, lines: list[str]) -> bool:
    """Run the loop with its log and progress bar; False if a signal stopped it."""
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
