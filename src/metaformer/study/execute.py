"""Carry out a study: open it by its plan, then work at it."""

import os
import shlex
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from metaformer.bench.timing import Machine
from metaformer.data.split import need_two_classes, open_split
from metaformer.distributed import join
from metaformer.errors import ConfigError, DataError, OutputError
from metaformer.process import StopSignals
from metaformer.serialize import differences, errors_at, to_dict
from metaformer.storage import as_path, lock, read_text, write_text
from metaformer.study.arms import build_arms
from metaformer.study.jobs import planned_jobs
from metaformer.study.plan import Plan, parse_plan, read_plan
from metaformer.study.predict import describe_test, open_test
from metaformer.study.results import Arm, TestSet
from metaformer.study.runs import check_run
from metaformer.study.study_dir import (
    SCHEMA,
    Study,
    StudyDir,
    read_head,
    read_study,
    read_test_set,
    write_json,
)
from metaformer.study.worker import Worker, say

STUDIES: Final = "studies"
"""Folder of studies, where none is named."""
PACKAGES: Final = ("metaformer", "torch", "torchvision", "timm", "numpy", "pillow")
"""Packages whose versions a study keeps."""
OPENING: Final = 600.0
"""Seconds to wait for another process that opens the study: it may match latencies."""


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
    _set_threads(parsed)
    folder = StudyDir(Path(STUDIES) / file.stem if out is None else as_path(out, "out", OutputError))
    command = command or shlex.join(["metaformer", "study", str(file), "--out", str(folder.path)])
    with StopSignals() as stop:
        arms = open_study(folder, parsed, text)
        try:
            Worker(folder, parsed, arms, command, stop, deadline).work()
        except SystemExit:
            say(f"stopped; {command} goes on here")
            raise
    return read_study(folder.path)


def preview_study(plan: str | Path) -> list[str]:
    """What a plan would do: every check of its beginning is made, and nothing is written.

    Args:
        plan: a YAML file.

    Returns:
        The names of all jobs, in order.

    Raises:
        ConfigError: the plan is wrong, or a network cannot be trained or matched.
        DataError: the data set is not laid out as it should be.
    """
    parsed = read_plan(as_path(plan, "plan"))
    _set_threads(parsed)
    return [job.name for job in planned_jobs(parsed, fit_arms(parsed, check_data(parsed)), {})]


def check_data(plan: Plan) -> TestSet:
    """The test images of a study.

    Raises:
        ConfigError: an expression for groups that is none, or leaves one group.
        DataError: the data set is not laid out as it should be.
    """
    data = plan.data
    train_split = open_split(data.root, data.train)
    need_two_classes(train_split)
    open_split(data.root, data.val, train_split.classes)
    return describe_test(data, open_test(data, train_split.classes))


def fit_arms(plan: Plan, test: TestSet) -> list[Arm]:
    """The networks of a study, fitted to the budget; each has taken a step on its data.

    Raises:
        ConfigError: a network cannot be trained or matched, or the recipe cannot be.
        DataError: data that cannot be read, or too few for a batch.
        TrainingError: something in a step is not finite.
    """
    world = join(plan.config().runtime.device)
    arms = build_arms(plan, len(test.class_names), world.device, say)
    for arm in arms:
        with errors_at(f"network {arm.name}"):
            check_run(plan, arm, world)
    return arms


def open_study(folder: StudyDir, plan: Plan, text: str) -> tuple[Arm, ...]:
    """The networks of a study: those of its folder, or new ones, fitted to the budget.

    Raises:
        ConfigError: the folder holds a study of another plan, or a network cannot be trained or matched.
        DataError: the data set is not laid out as it should be, or has other test images than before.
    """
    test = check_data(plan)
    # the lock makes the folder: data that fail leave none
    with lock(folder.lock("study"), str(folder.path), OPENING):
        if folder.head.is_file():
            _check_same(folder, plan, test)
        else:
            arms = fit_arms(plan, test)
            device = join(plan.config().runtime.device).device
            write_text(folder.plan, text)
            write_json(folder.test_set, test.to_dict())
            head = {
                "schema": SCHEMA,
                "plan_sha256": plan.sha256,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": asdict(Machine.here(device)),
                "versions": {name: metadata.version(name) for name in PACKAGES},
                "arms": [to_dict(arm) for arm in arms],
            }
            write_json(folder.head, head)  # last: what a killed process leaves is no study
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


def _set_threads(plan: Plan) -> None:
    """Measure costs with the threads that runs train with."""
    if (threads := plan.config().runtime.threads) is not None:
        torch.set_num_threads(threads)
