"""Item 5: a full disk or a file size limit leaves the last checkpoint as it was."""

import os
import re
import sys
from pathlib import Path

import pytest

from disks import small_disk
from faults.case import Case
from faults.run import NewRun, Run, Tally, fingerprint


def is_good_error(text: str, path: Path, reason: str) -> bool:
    """One line with the path, the reason, the bytes needed and the bytes free."""
    line = next((line for line in text.splitlines() if "metaformer: error:" in line), "")
    return (
        str(path) in line
        and reason in line
        and bool(re.search(r"[\d,]{7,} bytes", line))
        and bool(re.search(r"[\d,]+ bytes are free", line))
        and "Traceback" not in text
    )


@pytest.mark.often(0, 1)
def test_a_full_disk(case: Case, reference: Run, new_run: NewRun, tally: Tally) -> None:
    run = new_run()
    with small_disk(run.path, 200):
        kept = sum(file.stat().st_size for file in reference.path.rglob("*") if file.is_file())
        one = sum(file.stat().st_size for file in reference.last.iterdir())
        # space for everything that is kept, and half of the temporary checkpoint
        (run.path / "others").write_bytes(bytes(200 * 2**20 - kept - one // 2))
        end = run.go(fork=True)
        before = fingerprint(run.last)
        again = run.go(fork=True)  # still full
        unchanged = fingerprint(run.last) == before
        reported = is_good_error(end.text, run.path, "No space left on device") and again.status == 1
        clean = not run.leftovers()
        (run.path / "others").unlink()
        run.finish()
        same = run.equals(reference)
    ok = end.status == 1 and reported and clean and unchanged and same
    tally("5", f"{case.task}: disk full in a save", ok, (end, again, run.leftovers(), unchanged, same))


@pytest.mark.often(1, 3)
def test_a_file_size_limit(case: Case, attempt: int, reference: Run, new_run: NewRun, tally: Tally) -> None:
    """`ulimit -f` reached in one file of a checkpoint: model, optimizer or EMA."""
    largest = max(file.stat().st_size for file in reference.last.iterdir())
    limit = (largest - 1, largest // 3, 10**6)[attempt]
    run = new_run()
    process = run.start(fork=True)
    process.wait_until_step(5)
    process.signal(15)
    process.wait()
    before = {step: fingerprint(run.checkpoints / f"step_{step}") for step in run.steps}
    limited = (sys.executable, "-c", LIMITED, str(limit), sys.executable)
    end = run.go(launcher=limited)
    after = {step: fingerprint(run.checkpoints / f"step_{step}") for step in run.steps}
    reported = is_good_error(end.text, run.path, os.strerror(27))
    clean = not run.leftovers()
    run.finish()
    same = run.equals(reference)
    ok = end.status == 1 and reported and clean and before == after and same
    tally("5", f"{case.task}: a file may not grow (ulimit -f)", ok, (end, before, after, same))


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.often(0, 1)
def test_a_log_that_cannot_be_written(case: Case, reference: Run, new_run: NewRun, tally: Tally) -> None:
    """The disk is full for metrics.jsonl, between two checkpoints."""
    run = new_run()
    end = run.go(fault={"kind": "step", "how": "log full", "step": 2}, fork=True)
    reported = "metrics.jsonl" in end.error and "No space left on device" in end.error
    run.finish()
    same = run.fingerprint() == reference.fingerprint()
    tally("5", f"{case.task}: disk full for the log", end.status == 1 and reported and same, end)
