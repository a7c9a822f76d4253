"""One process that works at a study: it does the jobs that no other process does, until none is left."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from metaformer.config import TrainConfig
from metaformer.distributed import World, join
from metaformer.errors import OutputError, TrainingError
from metaformer.process import StopSignals, printable
from metaformer.serialize import Serializable, to_dict
from metaformer.study.arms import arm_task
from metaformer.study.cost import measure_costs
from metaformer.study.diagnostics import Trial, diagnose
from metaformer.study.jobs import Job, donor_name, planned_jobs
from metaformer.study.plan import Plan
from metaformer.study.predict import last_checkpoint, predict_test, trained_task
from metaformer.study.receptive_field import measure_field
from metaformer.study.results import Arm, FieldSize, Robustness, RunResult, Square, TransferResult
from metaformer.study.robustness import measure_robustness
from metaformer.study.runs import Run, run_config
from metaformer.study.study_dir import ArmCosts, StudyDir, read_test_set, write_arrays, write_json
from metaformer.study.transfer import swapped_task, transfer_config
from metaformer.tasks.base import BuildTask, Task
from metaformer.training.train import train

PAUSE: Final = 2.0
"""Seconds until a process looks again for what other processes work at."""


class Worker:
    """One process of those that work at a study.

    Args:
        folder: of the study.
        plan: of the study.
        arms: its networks.
        command: the shell command that goes on with it.
        stop: signals.
        deadline: when it stops, by `time.monotonic`; None for when everything is done.
    """

    def __init__(
        self,
        folder: StudyDir,
        plan: Plan,
        arms: tuple[Arm, ...],
        command: str,
        stop: StopSignals,
        deadline: float | None,
    ) -> None:
        self.folder, self.plan, self.arms, self.command, self.stop = folder, plan, arms, command, stop
        self.deadline = deadline
        self.world: World = join(plan.config().runtime.device)

    def work(self) -> None:
        """Do jobs until none is left that no other process does, or the time is over.

        Raises:
            SystemExit: a signal asked to stop.
        """
        while not self._over():
            done = self._advance()
            if done is None:
                left = [job.name for job in self.jobs() if not self._is_done(job)]
                if left:
                    say(f"left to other processes, which are at work on it: {', '.join(left)}")
                return
            if not done:
                time.sleep(PAUSE)
        if self.stop.requested() and not self._late():
            raise SystemExit(self.stop.exit_status)
        say(f"the time is over; {self.command} goes on here")

    def _over(self) -> bool:
        return self._late() or self.stop.requested()

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _advance(self) -> bool | None:
        """Do the first open job: whether there was one; None where there is nothing to wait for either."""
        jobs = list(self.jobs())
        left = [job for job in jobs if not self._is_done(job)]
        for job in left:
            if job.ready:
                with held(self.folder.lock(job.name)) as ours:
                    if ours and not self._is_done(job):
                        say(f"[{len(jobs) - len(left) + 1} of {len(jobs)}] {job.name}")
                        self._do(job)
                        return True
        return False if any(not job.ready for job in left) else None

    def jobs(self) -> Iterator[Job]:
        """Everything that is to be done, in order."""
        results = {run.name: run for run in self.folder.records("results", RunResult)}
        return planned_jobs(self.plan, self.arms, results)

    def _is_done(self, job: Job) -> bool:
        return self.folder.record(job.kind, job.record).exists()

    def _do(self, job: Job) -> None:
        match job.kind, job.subject:
            case "costs", Arm() as arm:
                costs = measure_costs(self.plan, arm, self._classes(), self.world.device)
                self._record(job, ArmCosts(arm=arm.name, costs=costs))
            case "results", Run() as run:
                self._run(job, run)
            case "robustness", Run() as run:
                self._robustness(job, run)
            case "receptive_fields", Run() as run:
                self._receptive_field(job, run)
            case "diagnostics", Trial() as trial:
                self._record(job, diagnose(self.plan, trial, self.world.device))
            case "transfer", Run() as run:
                self._transfer(job, run)

    def _run(self, job: Job, run: Run) -> None:
        """Train, evaluate and record a run; one that fails is recorded with the reason."""
        result = RunResult(
            name=run.name,
            arm=run.arm.name,
            role=run.role,
            seed=run.seed,
            learning_rate=run.learning_rate or min(self.plan.learning_rates),
        )
        if run.learning_rate is None:
            self._record(job, replace(result, error="it failed at every learning rate"))
            return
        config, build = run_config(self.plan, run), arm_task(self.plan, run.arm)
        try:
            if self._train(config, self.folder.run(run.name), build):
                self._record(job, self._evaluated(result, run, config, build))
        except TrainingError as error:
            self._record(job, replace(result, error=str(error)))
            say(f"{run.name} failed: {error}")

    def _train(self, config: TrainConfig, path: Path, build: BuildTask) -> bool:
        """Train a run, or go on with it: whether it came to its end before the time was over."""
        timer = None
        if self.deadline is not None and threading.current_thread() is threading.main_thread():
            left = max(0.0, self.deadline - time.monotonic())
            # `train` saves and leaves at a signal, as it does when a user stops it
            timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
            timer.daemon = True
            timer.start()
        try:
            train(config, path, "auto", self.command, build=build, explain=False)
        except SystemExit:
            if not self._late():
                raise
            return False
        finally:
            if timer is not None:
                timer.cancel()
        return True

    def _evaluated(self, result: RunResult, run: Run, config: TrainConfig, build: BuildTask) -> RunResult:
        """The result with metrics of the last checkpoint in percent; predictions are saved before."""
        path = self.folder.run(run.name)
        validation = 100 * last_checkpoint(path).state["metrics"][self.plan.metric]
        if run.role == "sweep":
            return replace(result, validation=validation)
        task = trained_task(config, build, path, self.world)
        return replace(result, validation=validation, test=self._accuracy(run, task, config))

    @contextmanager
    def _trained(self, run: Run) -> Iterator[tuple[Task, TrainConfig]]:
        """The task of a run with its trained network, and its configuration."""
        config = run_config(self.plan, run)
        task = trained_task(config, arm_task(self.plan, run.arm), self.folder.run(run.name), self.world)
        try:
            yield task, config
        finally:
            task.close()

    def _robustness(self, job: Job, run: Run) -> None:
        with self._trained(run) as (task, config):
            accuracies = tuple(measure_robustness(self.plan, task, config, self.world))
        self._record(job, Robustness(run=run.name, arm=run.arm.name, seed=run.seed, accuracies=accuracies))

    def _receptive_field(self, job: Job, run: Run) -> None:
        with self._trained(run) as (task, config):
            field = measure_field(task, config, self.plan.data, self.world)
        squares = tuple(Square(**one._asdict()) for one in field.squares())
        write_arrays(self.folder.receptive_field(run.name), scores=field.scores.float().numpy())
        self._record(job, FieldSize(run=run.name, arm=run.arm.name, seed=run.seed, squares=squares))

    def _transfer(self, job: Job, run: Run) -> None:
        """Fine-tune a network after the swap; one that fails is recorded with the reason."""
        donor = self.folder.run(donor_name(self.plan, run))
        config, build = transfer_config(self.plan, run), swapped_task(donor)
        found: dict[str, Any] = {}
        try:
            found["swapped"] = self._accuracy(run, build(config, self.world), config)
            if not self._train(config, self.folder.run(run.name), build):
                return
            task = trained_task(config, build, self.folder.run(run.name), self.world)
            found["tuned"] = self._accuracy(run, task, config)
        except TrainingError as error:
            found["error"] = str(error)
        self._record(job, TransferResult(arm=run.arm.name, seed=run.seed, **found))

    def _accuracy(self, run: Run, task: Task, config: TrainConfig) -> float:
        """Test accuracy in percent; predictions are saved."""
        task.model.eval()
        try:
            found = predict_test(task, config, self.plan.data, self.world)
        finally:
            task.close()
        file = self.folder.predictions(run.name)
        write_arrays(file, predicted=found.predicted, probability=found.probability)
        right = found.predicted == read_test_set(self.folder.test_set).labels
        return 100 * float(np.mean(right))

    def _classes(self) -> int:
        return len(read_test_set(self.folder.test_set).class_names)

    def _record(self, job: Job, record: Serializable) -> None:
        write_json(self.folder.record(job.kind, job.record), to_dict(record))


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Whether this process holds a lock, until the context or the process ends, however that ends.

    Raises:
        OutputError: the lock file cannot be created.
    """
    from filelock import FileLock, Timeout

    held = FileLock(file, timeout=0, fallback_to_soft=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise OutputError(f"{file}: cannot be locked ({error.strerror})") from error
    try:
        yield True
    finally:
        held.release()


def say(line: str) -> None:
    """Print a line of progress."""
    print(printable(f"study: {line}"), file=sys.stderr, flush=True)
