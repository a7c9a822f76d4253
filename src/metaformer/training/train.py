"""Train: from a configuration to a run directory."""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaformer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from metaformer.checkpoint.run_dir import RunDir
from metaformer.config import TrainConfig
from metaformer.data.sampler import GroupSampler, PureSampler
from metaformer.distributed import World, all_gather_object, join, merge_connection_errors, raise_on_all_ranks
from metaformer.errors import MetaFormerError
from metaformer.serialize import differences, to_dict
from metaformer.tasks.base import Task
from metaformer.tasks.registry import build_task
from metaformer.training.check import check
from metaformer.training.log import MetricsLog
from metaformer.training.loop import Loop, machine
from metaformer.training.progress import Progress
from metaformer.training.schedule import Schedule
from metaformer.training.signals import StopSignals
from metaformer.training.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run: Path
    metric: str
    """Name of the figure by which the best weights were chosen."""
    best: float
    best_step: int
    metrics: dict[str, float]
    """Figures of the last evaluation."""
    steps: int
    complete: bool


def train(
    config: TrainConfig, out: str | Path, resume: str | None = None, command: str | None = None
) -> TrainResult:
    """Train, evaluate, save and report; under torchrun, on all its processes.

    Args:
        config: the run.
        out: its directory.
        resume: None refuses a directory that holds a run; `auto` goes on from its newest whole checkpoint,
            or begins; a checkpoint directory is taken or refused.
        command: the shell's line that goes on with this run, for `metaformer runs` to show.

    Raises:
        ConfigError: a value that cannot be, or does not fit the others.
        DataError: the data set is not laid out as it should be, or an image cannot be read.
        OutputError: the directory holds a run or cannot be written to.
        TrainingError: an input, loss or gradient is not finite.
        RankError: another process of the run failed.
        SystemExit: a signal asked to stop; a checkpoint was written first. Status 143 or 130.
    """
    check(config, int(os.environ.get("WORLD_SIZE", "1")))
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    run = RunDir(Path(out))
    run.check(resume)
    world = join(config.runtime.device, config.runtime.timeout)
    with StopSignals() as stop, merge_connection_errors(world):
        task = build_task(config, world, stop.asked)
        sampler = _sampler(config, task, world)
        trainer = Trainer(config, task, schedule(config, sampler.steps), world)
        loop = Loop(config, task, trainer, sampler, run, world, stop.asked)
        with ExitStack() as held:
            saved = _open(run, resume, world, held)
            if saved is not None:
                loop.restore(saved)
                _compare(saved, config, world)
            complete = _train(loop, saved, command)
            result = TrainResult(
                run.path, task.metric, loop.best.value, loop.best.step, loop.metrics, trainer.step, complete
            )
            _finish(result, world, stop)
    return result


def _sampler(config: TrainConfig, task: Task, world: World) -> PureSampler:
    """Which image comes when; images of objects in batches of one orientation, if so asked."""
    options: dict[str, Any] = {
        "batch_size": config.data.batch_size,
        "seed": config.seed,
        "rank": world.rank,
        "world": world.size,
        "repeated_aug": config.data.repeated_aug,
        "accumulate": config.optim.accumulate,
    }
    if config.task == "detect" and config.detect.group_by_aspect:
        source: Any = task.train.source
        return GroupSampler([source.aspect(index) > 1 for index in range(len(source))], **options)
    return PureSampler(len(task.train), **options)


def schedule(config: TrainConfig, steps: int) -> Schedule:
    """The learning rate of a run whose epochs have this many steps."""
    plan = config.schedule
    return Schedule(
        config.optim.lr,
        plan.epochs * steps if plan.steps is None else plan.steps,
        plan.warmup_epochs * steps if plan.warmup_steps is None else plan.warmup_steps,
        plan.warmup_lr,
        plan.min_lr,
        plan.cooldown_epochs * steps,
        plan.name,
        plan.power,
        tuple(epoch * steps for epoch in plan.milestones),
        plan.gamma,
    )


def _open(run: RunDir, resume: str | None, world: World, held: ExitStack) -> Checkpoint | None:
    """Let the first process take hold of the run and find the checkpoint, and all read that one."""
    saved, trouble = None, None
    if world.main:
        try:
            held.enter_context(run.writing())
            run.check(resume)  # again: who wrote here just now may have finished
            saved = run.open(resume, _say)
        except MetaFormerError as error:
            trouble = error
    raise_on_all_ranks(trouble)
    found = all_gather_object(saved.directory if saved is not None else None)[0]
    if not world.main and found is not None:
        saved = read_checkpoint(found, verified=True)
    if world.main:
        _say(f"run directory: {run.path}")
        if saved is not None:
            _say(f"going on from {saved.directory} (step {saved.state['step']})")
    return saved


def _train(loop: Loop, saved: Checkpoint | None, command: str | None) -> bool:
    world, run, config = loop.world, loop.run_dir, to_dict(loop.config)
    progress = Progress(loop.total, loop.trainer.step, loop.sampler.batch_size, quiet=not world.main)
    with ExitStack() as held:
        held.callback(progress.close)
        log, trouble = None, None
        if world.main:
            try:
                run.write_config(config)
                if command is not None:
                    run.write_command(command)
                log = MetricsLog(run.path, progress.say, loop.config.runtime.wandb, config)
                held.enter_context(log)
                if saved is not None:
                    log.write("resume", loop.trainer.step, loop.epoch)
            except MetaFormerError as error:
                trouble = error
        raise_on_all_ranks(trouble)
        return loop.run(log, progress)


def _compare(saved: Checkpoint, config: TrainConfig, world: World) -> None:
    """Say in what the run that goes on differs from the one that was saved."""
    if not world.main:
        return
    here = machine(world)
    lines = differences(saved.state["config"], to_dict(config))
    lines += differences({name: saved.state[name] for name in here}, dict(here))
    for line in lines:
        _say(f"warning: not as in the checkpoint, so not bit for bit the same run: {line}")


def _finish(result: TrainResult, world: World, stop: StopSignals) -> None:
    if world.main and result.complete:
        from metaformer.training.report import write_report

        page = write_report(result.run)
        _say(f"best {result.metric} {result.best:.4f} at step {result.best_step}: {result.run / 'best'}")
        _say(f"report: {page}")
    if not result.complete:
        if world.main:
            _say(
                f"stopped by signal {stop.number} after step {result.steps}; --resume auto goes on from here"
            )
        raise SystemExit(stop.exit_status)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
