"""Item 12: a data worker that dies, hangs or runs out of memory ends the run soon, with the image named."""

from collections.abc import Callable

import pytest

from faults.case import Case
from faults.run import Run

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]
PATIENCE = 4.0
"""`runtime.timeout` of these runs, in seconds: after it a worker that gives nothing is given up."""
# How a worker ends; seconds the run may last after that.
ENDS = {
    "killed": 5.0,
    "hangs": PATIENCE + 5,
    "stopped": PATIENCE + 8,
    "stopped late": PATIENCE + 8,
    "memory": 5.0,
    "exits": 5.0,
    "raises": 5.0,
}


@pytest.mark.often(1, 2 * len(ENDS))
def test_a_worker_that_fails_is_told_with_its_image(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    """Whether in the middle of an epoch or at the first batch; then the run goes on from what it saved."""
    how, after = list(ENDS)[attempt % len(ENDS)], 0 if attempt >= len(ENDS) else 6
    run = new_run(data={"workers": 2}, runtime={"timeout": PATIENCE})
    fault = {"kind": "image", "how": how, "index": case.index, "after": after}
    victim = run.start(fault=fault, warm=attempt > 0)  # the first counts the interpreter's own end too
    victim.until(run.marks, "the fault")
    victim.mark()
    end = victim.wait()
    # it hands over a batch while it reads the next: the image it is at stands for the place
    named = (case.image if how != "stopped late" else "is held by a signal") in (end.error or end.text)
    soon = end.seconds <= ENDS[how]
    told = end.status == 1 and named and soon and (how == "raises" or "Traceback" not in end.text)
    kept = run.steps[-1:] == [run.reached] or not run.reached
    found = f"{run.steps} {run.reached} {end}"
    run.finish(runtime={"timeout": 60})
    same = run.samples() == straight.samples()
    tally("12", f"{case.task}: a data worker {WORDS[how]}", told and kept and same)
    assert told and kept, found
    assert same


WORDS = {
    "killed": "is killed",
    "hangs": "hangs",
    "stopped": "is held by SIGSTOP",
    "stopped late": "is held by SIGSTOP as it hands over a batch",
    "memory": "runs out of memory",
    "exits": "leaves",
    "raises": "raises",
}


@pytest.mark.often(0, 1)
def test_a_worker_that_fails_in_an_evaluation(
    case: Case, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    run = new_run(data={"workers": 2})
    fault = {"kind": "image", "how": "killed", "index": case.index, "split": "val"}
    victim = run.start(fault=fault, warm=True)
    victim.until(run.marks, "the fault")
    victim.mark()
    end = victim.wait()
    well = end.status == 1 and end.seconds <= 5 and case.image in end.error and "val" in end.error
    run.finish()
    same = run.fingerprint() == straight.fingerprint()
    tally("12", f"{case.task}: a data worker is killed in an evaluation", well and same)
    assert well, str(end)
    assert same
