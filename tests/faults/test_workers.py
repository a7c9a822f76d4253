"""Item 12: a data worker that dies, hangs or runs out of memory ends the run soon, naming the image."""

import pytest

from faults.case import Case
from faults.run import NewRun, Run, Tally

TIMEOUT = 4.0
"""`runtime.timeout` of these runs, in seconds."""
# How a worker ends; seconds that the run may take after that.
ENDS = {
    "killed": 5.0,
    "hangs": TIMEOUT + 5,
    "stopped": TIMEOUT + 8,
    "stopped late": TIMEOUT + 8,
    "memory": 5.0,
    "exits": 5.0,
    "raises": 5.0,
}


@pytest.mark.often(1, 2 * len(ENDS))
def test_a_failing_worker_is_reported_with_its_image(
    case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally
) -> None:
    """In the middle of an epoch or at the first batch; then the run resumes."""
    how, after = list(ENDS)[attempt % len(ENDS)], 0 if attempt >= len(ENDS) else 6
    run = new_run(data={"workers": 2}, runtime={"timeout": TIMEOUT})
    fault = {"kind": "image", "how": how, "index": case.index, "after": after}
    process = run.start(fault=fault, fork=attempt > 0)  # the first also times the interpreter's exit
    process.wait_until_fault()
    end = process.wait()
    # a worker hands over a batch while it reads the next, so the image is of no use there
    named = (case.image if how != "stopped late" else "is held by a signal") in (end.error or end.text)
    soon = end.seconds <= ENDS[how]
    reported = end.status == 1 and named and soon and (how == "raises" or "Traceback" not in end.text)
    saved = run.steps[-1:] == [run.steps_done] or not run.steps_done
    found = f"{run.steps} {run.steps_done} {end}"
    run.finish(runtime={"timeout": 60})
    same = run.samples() == reference.samples()
    tally("12", f"{case.task}: a data worker {DESCRIPTIONS[how]}", reported and saved and same, found)


DESCRIPTIONS = {
    "killed": "is killed",
    "hangs": "hangs",
    "stopped": "is held by SIGSTOP",
    "stopped late": "is held by SIGSTOP as it hands over a batch",
    "memory": "runs out of memory",
    "exits": "exits",
    "raises": "raises",
}


@pytest.mark.often(0, 1)
def test_a_failing_worker_in_an_evaluation(case: Case, reference: Run, new_run: NewRun, tally: Tally) -> None:
    run = new_run(data={"workers": 2})
    fault = {"kind": "image", "how": "killed", "index": case.index, "split": "val"}
    process = run.start(fault=fault, fork=True)
    process.wait_until_fault()
    end = process.wait()
    ok = end.status == 1 and end.seconds <= 5 and case.image in end.error and "val" in end.error
    run.finish()
    same = run.fingerprint() == reference.fingerprint()
    tally("12", f"{case.task}: a data worker is killed in an evaluation", ok and same, end)
