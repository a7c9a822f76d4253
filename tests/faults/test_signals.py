"""Item 4: a signal stops a run soon, with a checkpoint of the current step and its own exit status."""

import signal
import time
from typing import Any

import pytest

from faults.case import Case
from faults.run import Exit, NewRun, Run, Tally

LIMIT = 10.0
"""Seconds until a run must have ended."""
SLOW = {"kind": "image", "how": "slow", "seconds": 60, "after": 5}
WHERE: dict[str, tuple[int, dict[str, Any]]] = {
    "in an evaluation": (2, {"kind": "slow_evaluation", "seconds": 3, "after": 7}),
    "in training": (0, {}),
    "waiting for data": (2, SLOW),
    "waiting for data of an evaluation": (2, {**SLOW, "after": 7, "split": "val"}),
    "reading without workers": (0, {**SLOW, "seconds": 3, "anywhere": True}),
}
"""What the run is doing at the signal: its workers, and the fault that delays it there."""


def stopped_properly(run: Run, end: Exit, status: int) -> bool:
    """Right status, and the newest checkpoint is of the last step."""
    explained = "--resume auto" in end.text and "Traceback" not in end.text
    return end.status == status and end.seconds <= LIMIT and explained and run.steps[-1:] == [run.steps_done]


@pytest.mark.every_task(0, 1)
@pytest.mark.often(1, len(WHERE))
def test_sigterm_stops_with_a_checkpoint(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    where = list(WHERE)[attempt]
    workers, fault = WHERE[where]
    run = new_run(data={"workers": workers})
    process = run.start(fault=fault, fork=attempt > 0)  # the first also times the interpreter's exit
    if fault:
        process.wait_until(run.faults, where)
    else:
        process.wait_until_step(7)
    process.signal(signal.SIGTERM)
    end = process.wait()
    stopped = stopped_properly(run, end, 143)
    state = (end, run.steps, run.steps_done)
    run.finish()
    tally("4", f"{case.task}: SIGTERM {where}", stopped and run.equals(reference), state)


@pytest.mark.often(0, 2)
def test_sigint_stops_with_a_checkpoint(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    """Ctrl-C signals all processes of the terminal; workers ignore it."""
    run = new_run(data={"workers": (2, 0)[attempt]})
    process = run.start(fork=attempt > 0)
    process.wait_until_step(7)
    process.signal(signal.SIGINT, group=True)
    end = process.wait()
    stopped = stopped_properly(run, end, 130)
    state = (end, run.steps, run.steps_done)
    run.finish()
    tally("4", f"{case.task}: SIGINT to all processes", stopped and run.equals(reference), state)


@pytest.mark.often(1, 2)
def test_a_second_signal_ends_at_once(case: Case, attempt: int, new_run: NewRun, tally: Tally) -> None:
    """During a step that the first signal waits for."""
    number, status = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[attempt]
    run = new_run()
    process = run.start(fault={"kind": "step", "how": "slow", "step": 8, "seconds": 60}, fork=attempt == 0)
    process.wait_until(run.faults, "fault")
    process.signal(number)
    time.sleep(1)
    waited = process.process.poll() is None
    process.signal(number)
    end = process.wait()
    ok = waited and end.status == status and end.seconds <= 2 and run.steps[-1] == 8
    tally("4", f"{case.task}: a second signal", ok, (waited, end))


@pytest.mark.often(0, 4)
def test_a_signal_before_the_first_step(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    """Whatever it leaves can be resumed."""
    run = new_run()
    process = run.start()
    time.sleep(0.4 + attempt * 0.8)
    process.signal(signal.SIGTERM)
    end = process.wait()
    ok = end.status in (143, -signal.SIGTERM) and end.seconds <= LIMIT and "Traceback" not in end.text
    run.finish()
    tally("4", f"{case.task}: SIGTERM while it starts", ok and run.equals(reference), end)
