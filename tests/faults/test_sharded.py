"""Items 1 and 6 for FSDP: each rank writes its shards of a checkpoint."""

import os
import shutil
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from faults.case import Case
from faults.run import NewRun, Run, Tally, torchrun

FSDP = {"runtime": {"parallel": "fsdp"}}
pytestmark = pytest.mark.epochs(4, 8)


@pytest.fixture
def sharded(reference_run: Callable[..., Run]) -> Run:
    """A run of two ranks with FSDP and without faults; not to be changed."""
    return reference_run("sharded", torchrun(), **FSDP)


@pytest.mark.often(0, 6)
def test_a_sharded_run_killed_at_a_random_moment(
    case: Case, attempt: int, new_run: NewRun, sharded: Run, tally: Tally
) -> None:
    """Both ranks at once, or one of them."""
    draw = np.random.RandomState(100 + attempt)
    run = new_run(**FSDP)
    process = run.start(launcher=torchrun())
    process.wait_until_step(int(draw.randint(1, run.total - 4)))
    if attempt % 2 == 0:
        process.wait_until(
            lambda: any(run.checkpoints.glob(".tmp-*")) or run.steps_done >= run.total, "a save"
        )
    time.sleep(draw.uniform(0, 0.05))
    killed = run.processes(training=True)[: 1 + attempt // 2 % 2]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    run.finish(ranks=2)
    same = run.equals(sharded, ranks=2)
    tally("1", f"{case.task}: kill -9 of ranks with FSDP", same)


@pytest.mark.often(0, 1)
def test_a_sharded_checkpoint_that_is_damaged(
    case: Case, new_run: NewRun, sharded: Run, tally: Tally
) -> None:
    """Any shard of any rank."""
    run = new_run(**FSDP)
    shutil.copytree(sharded.path, run.path)
    shards = sorted(run.last.glob("*/*.safetensors"))
    assert len(shards) >= 4, sorted(run.last.rglob("*"))
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1])
    explicit = run.go(resume=str(run.last), launcher=torchrun())
    refused = explicit.status != 0 and f"{run.last.name}/{shards[-1].relative_to(run.last)}" in explicit.text
    run.finish(ranks=2)
    ok = refused and run.fingerprint() == sharded.fingerprint() and not run.leftovers()
    tally("6", f"{case.task}: a sharded checkpoint with a shard cut short", ok, explicit.text)
