"""Items 17, 18 and 19: a process that dies, hangs or is signalled takes the job along, and is named."""

import os
import re
import shutil
import signal
from collections.abc import Callable

import pytest

from faults.case import Case
from faults.run import Run, torchrun

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]
pytestmark = pytest.mark.waits


def blamed(text: str) -> list[int]:
    """The ranks that torchrun names as the root cause."""
    return [int(rank) for rank in re.findall(r"Root Cause.*?rank\s*:\s*(\d+)", text, re.DOTALL)]


def equal(run: Run, straight: Run) -> bool:
    return run.fingerprint() == straight.fingerprint() and all(
        run.samples(rank) == straight.samples(rank) for rank in range(2)
    )


# How a rank ends, and a word of the message that only its error has.
ENDS = [
    ("killed", 1, "SIGKILL"),
    ("raises", 1, "a bug in somebody's transform"),
    ("killed", 0, "SIGKILL"),
    ("raises", 0, "a bug in somebody's transform"),
    ("exits", 1, "exitcode  : 3"),
]


@pytest.mark.often(1, len(ENDS))
def test_a_rank_that_fails_takes_the_job_down(
    case: Case, attempt: int, new_run: NewRun, full: bool, request: pytest.FixtureRequest, tally: Tally
) -> None:
    """Whether it is killed, raises or leaves; all of them then go on where they were."""
    how, rank, word = ENDS[attempt]
    run = new_run()
    victim = run.start(fault={"kind": "step", "how": how, "step": 6, "rank": rank}, launcher=torchrun())
    victim.until(run.marks, "the fault")
    victim.mark()
    end = victim.wait()
    soon, alone = end.seconds <= 30, not run.processes()
    right = blamed(end.text) == [rank] and re.search(word, end.text) is not None
    same = True
    if full:
        run.finish(ranks=2)
        same = equal(run, request.getfixturevalue("together"))
    well = end.status != 0 and soon and alone and right and same
    tally("17", f"{case.task}: one of two ranks {how}", well)
    assert well, f"{end.seconds} s, gone {alone}, blamed {blamed(end.text)}, same {same}:\n{end.text}"


@pytest.mark.often(0, 2)
def test_a_data_worker_of_one_rank_is_killed(
    case: Case, attempt: int, new_run: NewRun, together: Run, tally: Tally
) -> None:
    """All ranks stop together, with a checkpoint, and the file's name is what is read."""
    run = new_run()
    fault = {"kind": "image", "how": "killed", "index": case.index, "after": 6}
    victim = run.start(fault=fault, launcher=torchrun(), data={"workers": 2})
    victim.until(run.marks, "the fault")
    victim.mark()
    end = victim.wait()
    told = case.image in end.text and end.status != 0 and end.seconds <= 30
    kept = run.steps[-1:] == [run.reached]
    run.finish(ranks=2)
    same = equal(run, together)
    tally("17", f"{case.task}: a data worker of one rank is killed", told and kept and same)
    assert told and kept and same, f"{end.seconds} s, kept {kept}, same {same}:\n{end.text}"


@pytest.mark.often(0, 3)
def test_a_rank_that_hangs_is_not_waited_for(
    case: Case, attempt: int, new_run: NewRun, together: Run, tally: Tally
) -> None:
    """Stopped, or busy with something else: with a time-out of 10 s all is over within 60."""
    how, rank = [("stopped", 1), ("waits", 1), ("stopped", 0)][attempt]
    run = new_run(runtime={"timeout": 10})
    victim = run.start(fault={"kind": "step", "how": how, "step": 6, "rank": rank}, launcher=torchrun())
    victim.until(run.marks, "the fault")
    victim.mark()
    end = victim.wait(90)
    alone = not run.processes()
    told = "lost contact with another process" in end.text
    run.finish(ranks=2, runtime={"timeout": 60})
    well = end.status != 0 and end.seconds <= 60 and alone and told
    same = all(run.samples(rank) == together.samples(rank) for rank in range(2))
    tally("18", f"{case.task}: one of two ranks hangs", well and same)
    assert well and same, f"{end.seconds} s, gone {alone}, same {same}:\n{end.text}"


@pytest.mark.often(0, 4)
def test_a_signal_to_one_rank_stops_all_at_one_step(
    case: Case, attempt: int, new_run: NewRun, together: Run, tally: Tally
) -> None:
    """Whichever gets it, also torchrun itself, or all at once."""
    whom = ("rank 1", "torchrun", "rank 0", "all")[attempt]
    run = new_run()
    # the step tells which process is which rank, and makes sure that the run is not over
    fault = {"kind": "step", "how": "slow", "step": 6, "seconds": 1}
    victim = run.start(fault=fault, launcher=torchrun())
    victim.until(lambda: len(run.marks()) == 2, "the step")
    pids = {f"rank {mark['rank']}": mark["pid"] for mark in run.marks()}
    victim.mark()
    if whom in pids:
        os.kill(pids[whom], signal.SIGTERM)
    else:
        victim.signal(signal.SIGTERM, group=whom == "all")
    end = victim.wait()
    once = [len(run.sample_log(rank)) for rank in range(2)]
    common = run.steps[-1:] == [run.reached] and once[0] == once[1] and run.reached < run.total
    told = end.status != 0 and "--resume auto goes on" in end.text and end.seconds <= 30
    run.finish(ranks=2)
    same = equal(run, together)
    tally("19", f"{case.task}: SIGTERM to one of two ranks", common and told and same)
    assert common and told and same, f"{whom}, {end.seconds} s, {run.steps} {once}, {same}:\n{end.text}"


@pytest.mark.often(0, 1)
def test_torchrun_starts_again_by_itself(case: Case, new_run: NewRun, together: Run, tally: Tally) -> None:
    """With --max-restarts and --resume auto the loss of a process needs nobody.

    PyTorch 2.15 would let the new processes read the addresses of the old ones, but for this variable.
    """
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run = new_run()
    fault = {"kind": "step", "how": "killed", "step": 9, "rank": 1, "once": True}
    end = run.go(fault=fault, launcher=torchrun(2, "--max-restarts", "1"), environment=environment)
    same = len(run.marks()) == 1 and end.status == 0 and equal(run, together)
    tally("17", f"{case.task}: torchrun goes on after a rank's death", same)
    assert same, end.text


@pytest.mark.often(0, 1)
def test_another_number_of_processes_is_said(
    case: Case, new_run: NewRun, together: Run, tally: Tally
) -> None:
    """Item 3: so are threads and settings; the run goes on all the same."""
    told = []
    for name, sections, words in (
        ("world", {}, "world_size: 2 → 1"),
        ("threads", {"runtime": {"threads": 2}}, "threads: 1 → 2"),
        ("config", {"optim": {"lr": 2e-3}}, "optim.lr: 0.001 → 0.002"),
    ):
        run = new_run(name)
        shutil.copytree(together.path, run.path)
        shutil.rmtree(run.last)
        end = run.go(**sections, warm=True)
        told.append(end.status == 0 and f"not bit for bit the same run: {words}" in _warnings(end.text))
        tally("3", f"{case.task}: another {name} is said", told[-1])
    assert all(told), told


def _warnings(text: str) -> str:
    return "\n".join(line.replace("runtime.threads", "threads") for line in text.splitlines())
