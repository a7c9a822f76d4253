"""Items 1 and 6 for a model that processes share out (FSDP): each writes its part of a checkpoint."""

import os
import shutil
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from faults.case import Case
from faults.run import Run, torchrun

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]
SHARED_OUT = {"runtime": {"parallel": "fsdp"}}
pytestmark = pytest.mark.epochs(4, 8)


@pytest.fixture
def sharded(quiet_run: Callable[..., Run]) -> Run:
    """A run of two processes that share out the model, to which nothing happens; not to be changed."""
    return quiet_run("sharded", torchrun(), **SHARED_OUT)


def equal(run: Run, sharded: Run) -> bool:
    return (
        run.fingerprint() == sharded.fingerprint()
        and all(run.samples(rank) == sharded.samples(rank) for rank in range(2))
        and not run.leftovers()
    )


@pytest.mark.often(0, 6)
def test_a_sharded_run_killed_at_a_random_moment(
    case: Case, attempt: int, new_run: NewRun, sharded: Run, tally: Tally
) -> None:
    """Both processes at once, or one of them; a save is written by both."""
    draw = np.random.RandomState(100 + attempt)
    run = new_run(**SHARED_OUT)
    victim = run.start(launcher=torchrun())
    victim.until_step(int(draw.randint(1, run.total - 4)))
    if attempt % 2 == 0:
        victim.until(lambda: any(run.checkpoints.glob(".tmp-*")) or run.reached >= run.total, "a save")
    time.sleep(draw.uniform(0, 0.05))
    doomed = run.processes("train")[: 1 + attempt // 2 % 2]
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    victim.wait()
    run.finish(ranks=2)
    same = equal(run, sharded)
    tally("1", f"{case.task}: kill -9 of processes that share out a model", same)
    assert same


@pytest.mark.often(0, 1)
def test_a_sharded_checkpoint_that_is_damaged(
    case: Case, new_run: NewRun, sharded: Run, tally: Tally
) -> None:
    """Any part of any process."""
    run = new_run(**SHARED_OUT)
    shutil.copytree(sharded.path, run.path)
    shards = sorted(run.last.glob("*/*.safetensors"))
    assert len(shards) >= 4, sorted(run.last.rglob("*"))
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1])
    named = run.go(resume=str(run.last), launcher=torchrun())
    refused = named.status != 0 and f"{run.last.name}/{shards[-1].relative_to(run.last)}" in named.text
    run.finish(ranks=2)
    well = refused and run.fingerprint() == sharded.fingerprint() and not run.leftovers()
    tally("6", f"{case.task}: a sharded checkpoint with a part cut short", well)
    assert well, named.text
