"""Items 1, 2 and 3: a run that is killed at any moment and resumed ends with the same bits."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.case import Case
from faults.run import NewRun, Process, Run, Tally
from warm import python

MOMENTS = ("while it starts", "while it saves", "anywhere")


def kill(process: Process, moment: str, step: int, draw: np.random.RandomState) -> str:
    """Kill at some moment; returns what the run was doing."""
    run = process.run
    if moment == "while it starts":
        time.sleep(draw.uniform(0, 4))
    else:
        process.wait_until_step(step)
        time.sleep(draw.uniform(0, 0.15))
        if moment == "while it saves":
            process.wait_until(
                lambda: any(run.checkpoints.glob(".tmp-*")) or run.steps_done >= run.total, "a save"
            )
            time.sleep(draw.uniform(0, 0.03))
    process.signal(signal.SIGKILL, group=bool(draw.randint(2)))  # with its workers every other time
    process.wait()
    if not run.steps:
        return "before the first checkpoint"
    return "while a checkpoint is written" if run.leftovers() else "between two checkpoints"


@pytest.mark.epochs(4, 15)
@pytest.mark.every_task(1, 4)
@pytest.mark.often(1, 20)
def test_killed_at_random_moments(
    case: Case,
    attempt: int,
    reference: Run,
    new_run: NewRun,
    often: Callable[[int, int], int],
    tally: Tally,
) -> None:
    draw = np.random.RandomState(attempt)
    run, states = new_run(), []
    for number, step in enumerate(sorted(draw.randint(0, reference.total - 4, often(2, 3)).tolist())):
        workers = int(draw.randint(3))
        moment = MOMENTS[0] if number == 0 and attempt % 3 == 0 else MOMENTS[1 + draw.randint(2)]
        process = run.start(data={"workers": workers}, fork=moment != MOMENTS[0])
        states.append(kill(process, moment, step, draw))
    run.finish(data={"workers": attempt % 3})
    same = run.equals(reference)
    for state in states:
        tally("1", f"{case.task}: kill -9 {state}", same, states)


# Point and occurrence: there is an older checkpoint to lose from the second one on.
POINTS = [
    ("before_manifest", 3),
    ("before_rename", 5),
    ("between_renames", 1),
    ("during_retention", 2),
    ("before_write", 1),
    ("before_manifest", 1),
    ("before_rename", 1),
    ("before_rename", 8),
    ("before_best", 1),
    ("before_retention", 1),
    ("during_retention", 6),
]


@pytest.mark.every_task(0, 3)
@pytest.mark.often(1, len(POINTS))
def test_killed_at_a_point_of_a_save(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    point, occurrence = POINTS[attempt]
    run = new_run()
    end = run.go(fault={"kind": "point", "point": point, "time": occurrence}, fork=True)
    assert end.status == -signal.SIGKILL, f"{point} was never reached:\n{end.text}"
    run.finish()
    same = run.equals(reference)
    tally("2", f"{case.task}: kill -9 at a named point of a save", same, point)


@pytest.mark.every_task(0, 1)
@pytest.mark.often(0, 3)
def test_the_number_of_workers_does_not_matter(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    workers = (2, 1, 0)[attempt]
    run = new_run()
    run.finish(data={"workers": workers}, fork=True)
    same = run.equals(reference)
    tally("3", f"{case.task}: other workers, the same bits", same)


def test_killed_before_each_file_operation_of_a_save(tmp_path: Path, tally: Tally) -> None:
    script = Path(__file__).with_name("sweep.py")
    done = subprocess.run(
        [*python(), str(script), str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["operations"] >= 30, found
    for number in range(found["operations"]):
        tally("2", "kill -9 before each file operation of a save", number >= len(found["problems"]), found)
