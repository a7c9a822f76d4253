"""Items 1, 2 and 3: killed at any moment, a run ends in the same bits."""

import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from faults.case import Case
from faults.run import Run, Victim

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]
MOMENTS = ("while it starts", "while it saves", "anywhere")


def equal(run: Run, straight: Run) -> bool:
    """Bit for bit: weights, moments, average, scheduler, best weights; and the samples of every step."""
    return (
        run.fingerprint() == straight.fingerprint()
        and run.samples() == straight.samples()
        and sorted(run.samples()) == list(range(run.total))
        and not run.leftovers()
    )


def strike(victim: Victim, moment: str, step: int, draw: np.random.RandomState) -> str:
    """Kill at some moment; tells where that was."""
    run = victim.run
    if moment == "while it starts":
        time.sleep(draw.uniform(0, 4))
    else:
        victim.until_step(step)
        time.sleep(draw.uniform(0, 0.15))
        if moment == "while it saves":
            victim.until(lambda: any(run.checkpoints.glob(".tmp-*")) or run.reached >= run.total, "a save")
            time.sleep(draw.uniform(0, 0.03))
    victim.signal(signal.SIGKILL, group=bool(draw.randint(2)))  # the workers are left alone every other time
    victim.wait()
    if not run.steps:
        return "before the first checkpoint"
    return "while a checkpoint is written" if run.leftovers() else "between two checkpoints"


@pytest.mark.epochs(4, 15)
@pytest.mark.every_task(1, 4)
@pytest.mark.often(1, 20)
def test_killed_at_random_moments(
    case: Case,
    attempt: int,
    straight: Run,
    new_run: NewRun,
    often: Callable[[int, int], int],
    tally: Tally,
) -> None:
    draw = np.random.RandomState(attempt)
    run, places = new_run(), []
    for number, step in enumerate(sorted(draw.randint(0, straight.total - 4, often(2, 3)).tolist())):
        workers = int(draw.randint(3))
        moment = MOMENTS[0] if number == 0 and attempt % 3 == 0 else MOMENTS[1 + draw.randint(2)]
        victim = run.start(data={"workers": workers}, warm=moment != MOMENTS[0])
        places.append(strike(victim, moment, step, draw))
    run.finish(data={"workers": attempt % 3})
    same = equal(run, straight)
    for place in places:
        tally("1", f"{case.task}: kill -9 {place}", same)
    assert same, places


# In the order of a save; `time` is the occurrence, so that there is something older to lose.
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
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    point, occurrence = POINTS[attempt]
    run = new_run()
    end = run.go(fault={"kind": "point", "point": point, "time": occurrence}, warm=True)
    assert end.status == -signal.SIGKILL, f"{point} was never reached:\n{end.text}"
    run.finish()
    same = equal(run, straight)
    tally("2", f"{case.task}: kill -9 at a named point of a save", same)
    assert same, point


@pytest.mark.every_task(0, 1)
@pytest.mark.often(0, 3)
def test_a_run_does_not_depend_on_its_workers(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    workers = (2, 1, 0)[attempt]
    run = new_run()
    run.finish(data={"workers": workers}, warm=True)
    same = equal(run, straight)
    tally("3", f"{case.task}: other workers, the same bits", same)
    assert same
