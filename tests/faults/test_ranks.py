"""Items 17, 18 and 19: a rank that dies, hangs or is signalled ends the job, and is named."""

import os
import re
import shutil
import signal

import pytest

from faults.case import Case
from faults.run import NewRun, Run, Tally, torchrun

pytestmark = pytest.mark.waits


def root_causes(text: str) -> list[int]:
    """Ranks that torchrun names as the root cause."""
    return [int(rank) for rank in re.findall(r"Root Cause.*?rank\s*:\s*(\d+)", text, re.DOTALL)]


# How a rank ends, its number, and a part of the message.
ENDS = [
    ("killed", 1, "SIGKILL"),
    ("raises", 1, "a bug in somebody's transform"),
    ("killed", 0, "SIGKILL"),
    ("raises", 0, "a bug in somebody's transform"),
    ("exits", 1, "exitcode  : 3"),
]


@pytest.mark.often(1, len(ENDS))
def test_a_failing_rank_ends_the_job(
    case: Case, attempt: int, new_run: NewRun, full: bool, request: pytest.FixtureRequest, tally: Tally
) -> None:
    """Whether it is killed, raises or exits; then the job resumes."""
    how, rank, word = ENDS[attempt]
    run = new_run()
    fault = {"kind": "step", "how": how, "step": 6, "rank": rank}
    process = run.start(fault=fault, launcher=torchrun(), fork=True)
    process.wait_until_fault()
    end = process.wait()
    soon, ended = end.seconds <= 30, not run.processes()
    right = root_causes(end.text) == [rank] and re.search(word, end.text) is not None
    same = True
    if full:
        run.finish(ranks=2)
        same = run.equals(request.getfixturevalue("reference_ddp"), ranks=2)
    ok = end.status != 0 and soon and ended and right and same
    tally("17", f"{case.task}: one of two ranks {how}", ok, (end, ended, root_causes(end.text), same))


@pytest.mark.often(0, 2)
def test_a_data_worker_of_one_rank_is_killed(
    case: Case, attempt: int, new_run: NewRun, reference_ddp: Run, tally: Tally
) -> None:
    """All ranks stop together with a checkpoint, and the image is named."""
    run = new_run()
    fault = {"kind": "image", "how": "killed", "index": case.index, "after": 6}
    process = run.start(fault=fault, launcher=torchrun(), data={"workers": 2})
    process.wait_until_fault()
    end = process.wait()
    reported = case.image in end.text and end.status != 0 and end.seconds <= 30
    saved = run.steps[-1:] == [run.steps_done]
    run.finish(ranks=2)
    same = run.equals(reference_ddp, ranks=2)
    ok = reported and saved and same
    tally("17", f"{case.task}: a data worker of one rank is killed", ok, (end, saved, same))


@pytest.mark.often(0, 3)
def test_a_hanging_rank_times_out(
    case: Case, attempt: int, new_run: NewRun, reference_ddp: Run, tally: Tally
) -> None:
    """Whether stopped or busy: with a timeout of 10 s the job ends within 60."""
    how, rank = [("stopped", 1), ("waits", 1), ("stopped", 0)][attempt]
    run = new_run(runtime={"timeout": 10})
    process = run.start(fault={"kind": "step", "how": how, "step": 6, "rank": rank}, launcher=torchrun())
    process.wait_until_fault()
    end = process.wait(90)
    ended = not run.processes()
    reported = "lost contact with another process" in end.text
    run.finish(ranks=2, runtime={"timeout": 60})
    ok = end.status != 0 and end.seconds <= 60 and ended and reported
    same = all(run.samples(rank) == reference_ddp.samples(rank) for rank in range(2))
    tally("18", f"{case.task}: one of two ranks hangs", ok and same, (end, ended, same))


@pytest.mark.often(0, 4)
def test_a_signal_to_one_rank_stops_all_at_one_step(
    case: Case, attempt: int, new_run: NewRun, reference_ddp: Run, tally: Tally
) -> None:
    """Whichever process gets it, torchrun itself, or all at once."""
    target = ("rank 1", "torchrun", "rank 0", "all")[attempt]
    run = new_run()
    # its records say which process is which rank; it also keeps the run from ending
    fault = {"kind": "step", "how": "slow", "step": 6, "seconds": 1}
    process = run.start(fault=fault, launcher=torchrun())
    process.wait_until(lambda: len(run.faults()) == 2, "the step")
    pids = {f"rank {record['rank']}": record["pid"] for record in run.faults()}
    process.restart_clock()
    if target in pids:
        os.kill(pids[target], signal.SIGTERM)
    else:
        process.signal(signal.SIGTERM, group=target == "all")
    end = process.wait()
    counts = [len(run.sample_log(rank)) for rank in range(2)]
    common = run.steps[-1:] == [run.steps_done] and counts[0] == counts[1] and run.steps_done < run.total
    reported = end.status != 0 and "--resume auto" in end.text and end.seconds <= 30
    run.finish(ranks=2)
    same = run.equals(reference_ddp, ranks=2)
    ok = common and reported and same
    tally("19", f"{case.task}: SIGTERM to one of two ranks", ok, (target, end, counts, same))


@pytest.mark.often(0, 1)
def test_torchrun_restarts_the_job(case: Case, new_run: NewRun, reference_ddp: Run, tally: Tally) -> None:
    """With --max-restarts and --resume auto.

    PyTorch 2.15 would let the new processes read the addresses of the old ones, but for this variable.
    """
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run = new_run()
    fault = {"kind": "step", "how": "killed", "step": 9, "rank": 1, "once": True}
    end = run.go(fault=fault, launcher=torchrun(2, "--max-restarts", "1"), environment=environment)
    same = len(run.faults()) == 1 and end.status == 0 and run.equals(reference_ddp, ranks=2)
    tally("17", f"{case.task}: torchrun goes on after a rank's death", same, end.text)


@pytest.mark.often(0, 1)
def test_differences_from_the_checkpoint_are_printed(
    case: Case, new_run: NewRun, reference_ddp: Run, tally: Tally
) -> None:
    """Item 3: number of processes, of threads, other settings; the run continues."""
    for name, sections, difference in (
        ("world", {}, "world_size: 2 → 1"),
        ("threads", {"runtime": {"threads": 2}}, "threads: 1 → 2"),
        ("config", {"optim": {"lr": 2e-3}}, "optim.lr: 0.001 → 0.002"),
    ):
        run = new_run(name)
        shutil.copytree(reference_ddp.path, run.path)
        shutil.rmtree(run.last)
        end = run.go(**sections, fork=True)
        ok = end.status == 0 and any(difference in line for line in _warnings(end.text))
        tally("3", f"{case.task}: another {name} is printed", ok, end)


def _warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("warning:")]
