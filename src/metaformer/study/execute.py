"""Carry out a study: open it by its plan, then do the jobs that no other process does, until none is left."""

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

from metaformer.bench.timing import Machine
from metaformer.config import TrainConfig
from metaformer.data.split import need_two_classes, open_split
from metaformer.distributed import World, join
from metaformer.errors import ConfigError, DataError, OutputError, TrainingError
from metaformer.process import StopSignals, printable
from metaformer.serialize import Serializable, differences, to_dict
from metaformer.storage import as_path, lock, read_text, write_text
from metaformer.study.arms import arm_task, build_arms
from metaformer.study.cost import measure_costs
from metaformer.study.diagnostics import diagnose, planned_diagnostics
from metaformer.study.mechanism import measure_mechanism
from metaformer.study.plan import Plan, parse_plan
from metaformer.study.predict import (
    describe_test,
    last_checkpoint,
    open_test,
    predict_test,
    save_arrays,
    trained_task,
)
from metaformer.study.results import Arm, RunResult, TestSet, TransferResult
from metaformer.study.runs import Run, planned_runs, run_config
from metaformer.study.study_dir import (
    SCHEMA,
    ArmCosts,
    Kind,
    Study,
    StudyDir,
    chosen_rates,
    read_head,
    read_study,
    read_test_set,
    tuned_as,
)
from metaformer.study.transfer import swapped_task, transfer_config, transfer_run
from metaformer.tasks.base import BuildTask, Task
from metaformer.training.train import train

STUDIES: Final = "studies"
"""Folder of studies, where none is named."""
PACKAGES: Final = ("metaformer", "torch", "torchvision", "timm", "numpy", "pillow")
"""Packages whose versions a study keeps."""
PROBED_SEEDS: Final = 3
"""Seeds whose trained networks are looked into, and of the diagnostic tasks."""
OPENING: Final = 600.0
"""Seconds to wait for another process that opens the study: it may match latencies."""
PAUSE: Final = 2.0
"""Seconds until a process looks again for what other processes work at."""


def run_study(
    plan: str | Path,
    out: str | Path | None = None,
    *,
    hours: float | None = None,
    command: str | None = None,
) -> Study:
    """Carry out the plan of a study, or go on with it; several processes and machines may share the folder.

    Args:
        plan: a YAML file.
        out: folder of the study; by default `studies/` and the plan's name.
        hours: stop after this time; a run that is under way goes on from there the next time.
        command: the shell command that goes on with it, shown by `metaformer runs`.

    Returns:
        The study as far as it has come.

    Raises:
        ConfigError: the plan is wrong, or another than that of the study in `out`.
        DataError: the data set is not laid out as it should be.
        OutputError: the folder cannot be written to.
        SystemExit: a signal asked to stop.
    """
    if hours is not None and not hours > 0:
        raise ConfigError(f"hours is {hours}: it must be above 0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a study runs in one process each: start several, without torchrun, to share it")
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    file = as_path(plan, "plan")
    text = read_text(file, ConfigError, largest=1 << 20)
    parsed = parse_plan(text, file)
    folder = StudyDir(Path(STUDIES) / file.stem if out is None else as_path(out, "out", OutputError))
    command = command or shlex.join(["metaformer", "study", str(file), "--out", str(folder.path)])
    with StopSignals() as stop:
        arms = open_study(folder, parsed, text)
        try:
            Worker(folder, parsed, arms, command, stop, deadline).work()
        except SystemExit:
            _say(f"stopped; {command} goes on here")
            raise
    return read_study(folder.path)


def open_study(folder: StudyDir, plan: Plan, text: str) -> tuple[Arm, ...]:
    """The networks of a study: those of its folder, or new ones, fitted to the budget.

    Raises:
        ConfigError: the folder holds a study of another plan, or a network cannot be trained or matched.
        DataError: the data set is not laid out as it should be, or has other test images than before.
    """
    data = plan.data
    train_split = open_split(data.root, data.train)
    need_two_classes(train_split)
    classes = train_split.classes
    open_split(data.root, data.val, classes)
    test = describe_test(data, open_test(data, classes))
    # the lock makes the folder: data that fail leave none
    with lock(folder.lock("study"), str(folder.path), OPENING):
        if folder.head.is_file():
            _check_same(folder, plan, test)
        else:
            device = join(plan.config().runtime.device).device
            arms = build_arms(plan, len(classes), device, _say)
            write_text(folder.plan, text)
            _write_json(folder.test_set, test.to_dict())
            head = {
                "schema": SCHEMA,
                "plan_sha256": plan.sha256,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": asdict(Machine.here(device)),
                "versions": {name: metadata.version(name) for name in PACKAGES},
                "arms": [to_dict(arm) for arm in arms],
            }
            _write_json(folder.head, head)  # last: what a killed process leaves is no study
        return tuple(read_head(folder)["arms"])


def _check_same(folder: StudyDir, plan: Plan, test: TestSet) -> None:
    """Refuse another plan, or other test images, than a study began with."""
    if read_head(folder)["plan_sha256"] != plan.sha256:
        before = parse_plan(read_text(folder.plan), folder.plan)
        changed = "; ".join(differences(to_dict(before), to_dict(plan))[:5]) or "by another version"
        raise ConfigError(
            f"{folder.path}: holds a study of another plan ({changed}): a changed plan is another study, "
            "choose another --out"
        )
    known = read_test_set(folder.test_set)
    if known.to_dict() != test.to_dict():
        raise DataError(f"{folder.test_set}: the data set has other test images than when the study began")


@dataclass(frozen=True)
class Job:
    """Something that one process does."""

    name: str
    done: Path
    """File that is there when it is done."""
    do: Callable[[], None]
    ready: bool = True
    """Whether what it needs is there."""


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
                left = [job.name for job in self.jobs() if not job.done.exists()]
                if left:
                    _say(f"left to other processes, which are at work on it: {', '.join(left)}")
                return
            if not done:
                time.sleep(PAUSE)
        if self.stop.requested() and not self._late():
            raise SystemExit(self.stop.exit_status)
        _say(f"the time is over; {self.command} goes on here")

    def _over(self) -> bool:
        return self._late() or self.stop.requested()

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _advance(self) -> bool | None:
        """Do the first open job: whether there was one; None where there is nothing to wait for either."""
        jobs = list(self.jobs())
        left = [job for job in jobs if not job.done.exists()]
        for job in left:
            if job.ready:
                with held(self.folder.lock(job.name)) as ours:
                    if ours and not job.done.exists():
                        _say(f"[{len(jobs) - len(left) + 1} of {len(jobs)}] {job.name}")
                        job.do()
                        return True
        return False if any(not job.ready for job in left) else None

    def jobs(self) -> Iterator[Job]:
        """Everything that is to be done, in order: costs, runs, then what is measured beside them."""
        results = {run.name: run for run in self.folder.records("results", RunResult)}
        rates = chosen_rates(tuple(results.values()), self.plan)
        runs = list(planned_runs(self.plan, self.arms, rates))
        for arm in [arm for arm in self.arms if tuned_as(arm, self.plan) == arm.name]:
            yield Job(f"costs-{arm.name}", self.folder.record("costs", arm.name), partial(self._costs, arm))
        for run in runs:
            ready = run.learning_rate is not None or run.tuned_as in rates
            yield Job(run.name, self.folder.record("results", run.name), partial(self._run, run), ready)
        failed = {name for name, result in results.items() if result.error is not None}
        finals = [run for run in runs if run.role == "final" and run.name not in failed]
        yield from self._mechanisms(finals, results)
        yield from self._diagnostics()
        yield from self._transfers(finals, results)

    def _mechanisms(self, finals: Sequence[Run], known: Container[str]) -> Iterator[Job]:
        """A look into the trained networks of a few seeds."""
        if {*self.plan.probes} - {"diagnostics"}:
            for run in finals:
                if run.seed in self.plan.seeds[:PROBED_SEEDS]:
                    done = self.folder.record("mechanism", run.name)
                    do = partial(self._mechanism, run)
                    yield Job(f"mechanism-{run.name}", done, do, run.name in known)

    def _diagnostics(self) -> Iterator[Job]:
        """Synthetic tasks, on which networks of their own are trained."""
        if "diagnostics" in self.plan.probes:
            tasks = list(planned_diagnostics(self.plan.config().data.image_size))
            for seed, arm, (task, demand) in product(self.plan.seeds[:PROBED_SEEDS], self._mixer_arms, tasks):
                name = f"{arm.name}-{task}-{demand}-seed{seed}"
                do = partial(self._diagnose, name, arm, task, demand, seed)
                yield Job(f"diagnostics-{name}", self.folder.record("diagnostics", name), do)

    def _transfers(self, finals: Sequence[Run], known: Container[str]) -> Iterator[Job]:
        """Every mixer in each trained network of the baseline."""
        donors = [run for run in finals if run.arm.name == self.plan.baseline] if self.plan.transfer else []
        for donor, arm in product(donors, self._mixer_arms):
            run = transfer_run(self.plan, arm, donor.seed)
            do = partial(self._transfer, run, self.folder.run(donor.name))
            yield Job(run.name, self.folder.record("transfer", run.name), do, donor.name in known)

    @property
    def _mixer_arms(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.control is None]

    def _costs(self, arm: Arm) -> None:
        costs = measure_costs(self.plan, arm, self._classes(), self.world.device)
        self._record("costs", arm.name, ArmCosts(arm=arm.name, costs=costs))

    def _run(self, run: Run) -> None:
        """Train, evaluate and record a run; one that fails is recorded with the reason."""
        if run.learning_rate is None:
            rate = min(self.plan.learning_rates)
            self._record_run(run, learning_rate=rate, error="it failed at every learning rate")
            return
        config, build = run_config(self.plan, run), arm_task(self.plan, run.arm)
        path = self.folder.run(run.name)
        try:
            if self._train(config, path, build):
                self._record_run(run, learning_rate=run.learning_rate, **self._evaluate(run, config, build))
        except TrainingError as error:
            self._record_run(run, learning_rate=run.learning_rate, error=str(error))
            _say(f"{run.name} failed: {error}")

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

    def _evaluate(self, run: Run, config: TrainConfig, build: BuildTask) -> dict[str, float]:
        """Metrics of a run's last checkpoint in percent; predictions are saved before."""
        path = self.folder.run(run.name)
        validation = 100 * last_checkpoint(path).state["metrics"][self.plan.metric]
        if run.role == "sweep":
            return {"validation": validation}
        task = trained_task(config, build, path, self.world)
        return {"validation": validation, "test": self._accuracy(run, task, config)}

    def _mechanism(self, run: Run) -> None:
        config = run_config(self.plan, run)
        task = trained_task(config, arm_task(self.plan, run.arm), self.folder.run(run.name), self.world)
        try:
            found, field = measure_mechanism(self.plan, run, task, config, self.world)
        finally:
            task.close()
        if field is not None:
            save_arrays(self.folder.field(run.name), scores=field.scores.float().numpy())
        self._record("mechanism", run.name, found)

    def _diagnose(self, name: str, arm: Arm, task: str, demand: int, seed: int) -> None:
        self._record("diagnostics", name, diagnose(self.plan, arm, task, demand, seed, self.world.device))

    def _transfer(self, run: Run, donor: Path) -> None:
        """Fine-tune a network after the swap; one that fails is recorded with the reason."""
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
        self._record("transfer", run.name, TransferResult(arm=run.arm.name, seed=run.seed, **found))

    def _accuracy(self, run: Run, task: Task, config: TrainConfig) -> float:
        """Test accuracy in percent; predictions are saved."""
        task.model.eval()
        try:
            found = predict_test(task, config, self.plan.data, self.world)
        finally:
            task.close()
        arrays = {"predicted": found.predicted, "probability": found.probability}
        save_arrays(self.folder.predictions(run.name), **arrays)
        right = found.predicted == read_test_set(self.folder.test_set).labels
        return 100 * float(np.mean(right))

    def _classes(self) -> int:
        return len(read_test_set(self.folder.test_set).class_names)

    def _record_run(self, run: Run, **values: Any) -> None:
        result = RunResult(name=run.name, arm=run.arm.name, role=run.role, seed=run.seed, **values)
        self._record("results", run.name, result)

    def _record(self, kind: Kind, name: str, record: Serializable) -> None:
        _write_json(self.folder.record(kind, name), to_dict(record))


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


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    write_text(file, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _say(line: str) -> None:
    print(printable(f"study: {line}"), file=sys.stderr, flush=True)
