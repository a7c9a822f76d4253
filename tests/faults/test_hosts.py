"""Two hosts, each a network name space of its own with a cable between them, and what befalls them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.case import Case
from faults.run import End, Run, Victim

Tally = Callable[[str, str, bool], None]
NewRun = Callable[..., Run]
pytestmark = pytest.mark.waits


class Hosts:
    """Two network name spaces that see each other and nothing else."""

    def __init__(self) -> None:
        self.names = [f"mf{os.getpid()}{letter}" for letter in "ab"]

    def open(self) -> str:
        """Make them; gives the reason where that is not possible."""
        if shutil.which("ip") is None:
            return "the command ip is not installed"
        a, b = self.names
        for words in (
            *(f"netns add {name}" for name in self.names),
            f"link add {a} netns {a} type veth peer name {b} netns {b}",
            *(f"-n {name} link set lo up" for name in self.names),
            *(f"-n {name} addr add {self.address(i)}/24 dev {name}" for i, name in enumerate(self.names)),
            *(f"-n {name} link set {name} up" for name in self.names),
        ):
            done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
            if done.returncode:
                return f"network name spaces are not permitted here ({done.stderr.strip()})"
        return ""

    def close(self) -> None:
        """Remove them."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def cable(self, state: str) -> None:
        """Plug it in (`up`) or pull it (`down`)."""
        subprocess.run(["ip", "-n", self.names[1], "link", "set", self.names[1], state], check=True)

    def kill(self, host: int) -> None:
        """End all its processes at once."""
        done = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True)
        for pid in done.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host + 1}"

    def start(self, run: Run, port: int, **how: Any) -> list[Victim]:
        """One torchrun on each, as docs/reliability.md says."""
        return [
            run.start(
                launcher=(
                    *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"),
                    *("--nnodes", "2", "--nproc-per-node", "1"),
                    *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.address(0)}:{port}"),
                    *(
                        "--rdzv-conf",
                        f"is_host={1 - host},read_timeout=10",
                        "--local-addr",
                        self.address(host),
                    ),
                ),
                environment={"GLOO_SOCKET_IFNAME": name},
                **how,
            )
            for host, name in enumerate(self.names)
        ]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    try:
        if reason := made.open():
            pytest.skip(reason)
        yield made
    finally:
        made.close()


def equal(run: Run, together: Run) -> bool:
    return run.fingerprint() == together.fingerprint() and all(
        run.samples(rank) == together.samples(rank) for rank in range(2)
    )


def told(ends: list[End]) -> str:
    return "\n".join(f"host {n}: status {e.status}, {e.seconds:.1f} s\n{e.text}" for n, e in enumerate(ends))


@pytest.mark.often(0, 1)
def test_two_hosts_train_together(
    case: Case, hosts: Hosts, new_run: NewRun, together: Run, tally: Tally
) -> None:
    """As two processes of one host, to the bit."""
    run = new_run()
    ends = [victim.wait() for victim in hosts.start(run, 29400)]
    same = [end.status for end in ends] == [0, 0] and equal(run, together)
    tally("17", f"{case.task}: two hosts equal one", same)
    assert same, told(ends)


@pytest.mark.often(0, 3)
def test_a_host_that_is_lost(
    case: Case, attempt: int, hosts: Hosts, new_run: NewRun, together: Run, tally: Tally
) -> None:
    """All its processes killed at once, or its cable pulled; then both hosts go on where they were.

    torchrun itself may take minutes to see that a cable is pulled: what counts is that nobody trains on.
    """
    what, lost = (("its cable is pulled", 1), ("it is killed", 1), ("it is killed", 0))[attempt]
    run = new_run()
    pause = {"kind": "step", "how": "slow", "step": 6, "seconds": 1}  # the run must not be over before
    victims = hosts.start(run, 29401, runtime={"timeout": 10}, fault=pause)
    victims[0].until_step(6)
    began = time.monotonic()
    if what == "it is killed":
        hosts.kill(lost)
    else:
        hosts.cable("down")
    while run.processes("train") and time.monotonic() < began + 90:
        time.sleep(0.2)
    seconds = time.monotonic() - began
    for victim in victims:
        victim.destroy()
    texts = "\n".join(victim.text for victim in victims)
    said = "lost contact with another process" in texts
    hosts.cable("up")
    ends = [victim.wait() for victim in hosts.start(run, 29402)]
    same = [end.status for end in ends] == [0, 0] and all(
        run.samples(rank) == together.samples(rank) for rank in range(2)
    )
    tally("18", f"{case.task}: one of two hosts is lost: {what}", seconds <= 60 and said and same)
    assert seconds <= 60 and said and same, f"{seconds} s:\n{texts}\n{told(ends)}"
