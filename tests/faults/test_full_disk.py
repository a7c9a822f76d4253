"""Item 5: a disk that is full, or a file that may not grow, leaves the last checkpoint as it was."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.case import Case
from faults.run import Run, fingerprint

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own that is soon full."""
    place.mkdir(parents=True)
    size = f"size={megabytes}m"
    mounted = shutil.which("mount") and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", str(place)], capture_output=True
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def told_well(text: str, place: Path, reason: str) -> bool:
    """One line with the place, the reason, the bytes needed and those free."""
    line = next((line for line in text.splitlines() if "metaformer: error:" in line), "")
    return (
        str(place) in line
        and reason in line
        and bool(re.search(r"[\d,]{7,} bytes", line))
        and bool(re.search(r"[\d,]+ bytes are free", line))
        and "Traceback" not in text
    )


@pytest.mark.often(0, 1)
def test_a_full_disk(case: Case, straight: Run, new_run: NewRun, tally: Tally) -> None:
    run = new_run()
    with small_disk(run.path, 200):
        kept = sum(file.stat().st_size for file in straight.path.rglob("*") if file.is_file())
        one = sum(file.stat().st_size for file in straight.last.iterdir())
        # room for all that is kept, and half of the checkpoint that is written beside it
        (run.path / "others").write_bytes(bytes(200 * 2**20 - kept - one // 2))
        end = run.go(warm=True)
        before = fingerprint(run.last)
        again = run.go(warm=True)  # still full: what is there is not touched
        untouched = fingerprint(run.last) == before
        told = told_well(end.text, run.path, "No space left on device") and again.status == 1
        clean = not run.leftovers()
        (run.path / "others").unlink()
        run.finish()
        same = run.fingerprint() == straight.fingerprint() and run.samples() == straight.samples()
    well = end.status == 1 and told and clean and untouched and same
    tally("5", f"{case.task}: disk full in a save", well)
    assert well, str((end, again, run.leftovers(), untouched, same))


@pytest.mark.often(1, 3)
def test_a_file_that_may_not_grow(
    case: Case, attempt: int, straight: Run, new_run: NewRun, tally: Tally
) -> None:
    """`ulimit -f`, which says what a full disk says to one file: model, optimizer or average."""
    largest = max(file.stat().st_size for file in straight.last.iterdir())
    limit = (largest - 1, largest // 3, 10**6)[attempt]
    run = new_run()
    victim = run.start(warm=True)
    victim.until_step(5)
    victim.signal(15)
    victim.wait()
    before = {step: fingerprint(run.checkpoints / f"step_{step}") for step in run.steps}
    limited = (sys.executable, "-c", LIMITED, str(limit), sys.executable)
    end = run.go(launcher=limited)
    after = {step: fingerprint(run.checkpoints / f"step_{step}") for step in run.steps}
    told = told_well(end.text, run.path, os.strerror(27))
    clean = not run.leftovers()
    run.finish()
    same = run.fingerprint() == straight.fingerprint() and run.samples() == straight.samples()
    well = end.status == 1 and told and clean and before == after and same
    tally("5", f"{case.task}: a file may not grow (ulimit -f)", well)
    assert well, str((end, told, clean, before == after, same))


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.often(0, 1)
def test_a_log_that_cannot_be_written(case: Case, straight: Run, new_run: NewRun, tally: Tally) -> None:
    """The disk may as well be full for the figures, between two saves."""
    run = new_run()
    run.path.mkdir(parents=True)
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    end = run.go(warm=True)
    told = "metrics.jsonl" in end.error and "No space left on device" in end.error
    (run.path / "metrics.jsonl").unlink()
    run.finish()
    same = run.fingerprint() == straight.fingerprint()
    tally("5", f"{case.task}: disk full for the log", end.status == 1 and told and same)
    assert end.status == 1 and told and same, str(end)
