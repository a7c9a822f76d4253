"""Item 4: a signal to stop leaves a checkpoint of the current step, soon, and says so by the exit status."""

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from faults.case import Case
from faults.run import End, Run

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]
SOON = 10.0
"""Seconds within which a run has to be gone."""
SLOW = {"kind": "image", "how": "slow", "seconds": 60, "after": 5}
WHERE: dict[str, tuple[int, dict[str, Any]]] = {
    "in an evaluation": (2, {"kind": "slow_evaluation", "seconds": 3, "after": 7}),
    "in training": (0, {}),
    "waiting for data": (2, SLOW),
    "waiting for data of an evaluation": (2, {**SLOW, "after": 7, "split": "val"}),
    "reading without workers": (0, {**SLOW, "seconds": 3, "anywhere": True}),
}
"""Where a signal finds a run: its workers, and what holds it up there."""


def well_stopped(run: Run, end: End, status: int) -> bool:
    """The status says why, and the newest checkpoint is of the last step that was taken."""
    told = "--resume auto goes on" in end.text and "Traceback" not in end.text
    return end.status == status and end.seconds <= SOON and told and run.steps[-1:] == [run.reached]


def equal(run: Run, straight: Run) -> bool:
    return run.fingerprint() == straight.fingerprint() and run.samples() == straight.samples()


@pytest.mark.every_task(0, 1)
@pytest.mark.often(1, len(WHERE))
def test_sigterm_stops_with_a_checkpoint(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    where = list(WHERE)[attempt]
    workers, fault = WHERE[where]
    run = new_run(data={"workers": workers})
    victim = run.start(fault=fault)
    if fault:
        victim.until(run.marks, where)
    else:
        victim.until_step(7)
    victim.signal(signal.SIGTERM)
    end = victim.wait()
    stopped = well_stopped(run, end, 143)
    state = (end, run.steps, run.reached)
    run.finish()
    tally("4", f"{case.task}: SIGTERM {where}", stopped and equal(run, straight))
    assert stopped, str(state)
    assert equal(run, straight)


@pytest.mark.often(0, 2)
def test_sigint_stops_with_a_checkpoint(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    """As Ctrl-C does, to all processes of the terminal; workers leave it to the main process."""
    run = new_run(data={"workers": (2, 0)[attempt]})
    victim = run.start()
    victim.until_step(7)
    victim.signal(signal.SIGINT, group=True)
    end = victim.wait()
    stopped = well_stopped(run, end, 130)
    state = (end, run.steps, run.reached)
    run.finish()
    tally("4", f"{case.task}: SIGINT to all processes", stopped and equal(run, straight))
    assert stopped, str(state)
    assert equal(run, straight)


@pytest.mark.often(1, 2)
def test_a_second_signal_ends_at_once(case: Case, attempt: int, new_run: NewRun, tally: Tally) -> None:
    """While the step that the first one waits for goes on."""
    number, status = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[attempt]
    run = new_run()
    victim = run.start(fault={"kind": "step", "how": "slow", "step": 8, "seconds": 60})
    victim.until(run.marks, "a slow step")
    victim.signal(number)
    time.sleep(1)
    waited = victim.process.poll() is None
    victim.signal(number)
    end = victim.wait()
    well = waited and end.status == status and end.seconds <= 2 and run.steps[-1] == 8
    tally("4", f"{case.task}: a second signal", well)
    assert well, str((waited, end))


@pytest.mark.often(0, 4)
def test_a_signal_before_the_first_step(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    """Whatever it finds, what is left can be gone on from."""
    run = new_run()
    victim = run.start()
    time.sleep(0.4 + attempt * 0.8)
    victim.signal(signal.SIGTERM)
    end = victim.wait()
    well = end.status in (143, -signal.SIGTERM) and end.seconds <= SOON and "Traceback" not in end.text
    run.finish()
    tally("4", f"{case.task}: SIGTERM while it starts", well and equal(run, straight))
    assert well, str(end)
    assert equal(run, straight)
