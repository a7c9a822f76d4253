"""Items 17 and 18 on two hosts: two network namespaces connected by a virtual cable."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from faults.case import Case
from faults.run import NewRun, Process, Run, Tally

pytestmark = pytest.mark.waits


class Hosts:
    """Two network namespaces that reach each other and nothing else."""

    def __init__(self) -> None:
        self.names = [f"mf{os.getpid()}{letter}" for letter in "ab"]

    def open(self) -> str:
        """Create them; returns the reason if that is not possible."""
        if shutil.which("ip") is None:
            return "the command ip is not installed"
        a, b = self.names
        for command in (
            *(f"netns add {name}" for name in self.names),
            f"link add {a} netns {a} type veth peer name {b} netns {b}",
            *(f"-n {name} link set lo up" for name in self.names),
            *(f"-n {name} addr add {self.address(i)}/24 dev {name}" for i, name in enumerate(self.names)),
            *(f"-n {name} link set {name} up" for name in self.names),
        ):
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                return f"network namespaces are not permitted here ({done.stderr.strip()})"
        return ""

    def close(self) -> None:
        """Remove them."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def cable(self, state: str) -> None:
        """Plug it in (`up`) or pull it (`down`)."""
        subprocess.run(["ip", "-n", self.names[1], "link", "set", self.names[1], state], check=True)

    def kill(self, host: int) -> None:
        """Kill all its processes at once."""
        done = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True)
        for pid in done.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host + 1}"

    def start(self, run: Run, port: int, **options: Any) -> list[Process]:
        """Start torchrun on each, as in docs/reliability.md."""
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
                **options,
            )
            for host, name in enumerate(self.names)
        ]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    pair = Hosts()
    try:
        if reason := pair.open():
            pytest.skip(reason)
        yield pair
    finally:
        pair.close()


@pytest.mark.often(0, 1)
def test_two_hosts_train_together(
    case: Case, hosts: Hosts, new_run: NewRun, reference_ddp: Run, tally: Tally
) -> None:
    """With the same bits as two processes of one host."""
    run = new_run()
    ends = [process.wait() for process in hosts.start(run, 29400)]
    same = [end.status for end in ends] == [0, 0] and run.equals(reference_ddp, ranks=2)
    tally("17", f"{case.task}: two hosts equal one", same, ends)


@pytest.mark.often(0, 3)
def test_a_lost_host(
    case: Case, attempt: int, hosts: Hosts, new_run: NewRun, reference_ddp: Run, tally: Tally
) -> None:
    """All its processes are killed, or its cable is pulled; then both hosts resume.

    torchrun itself may take minutes to notice a pulled cable: what counts is that the training processes end.
    """
    what, lost = (("its cable is pulled", 1), ("it is killed", 1), ("it is killed", 0))[attempt]
    run = new_run()
    pause = {"kind": "step", "how": "slow", "step": 6, "seconds": 1}  # so that the run is not over before
    processes = hosts.start(run, 29401, runtime={"timeout": 10}, fault=pause)
    processes[0].wait_until_step(6)
    started = time.monotonic()
    if what == "it is killed":
        hosts.kill(lost)
    else:
        hosts.cable("down")
    while run.processes(training=True) and time.monotonic() < started + 90:
        time.sleep(0.2)
    seconds = time.monotonic() - started
    for process in processes:
        process.destroy()
    texts = "\n".join(process.text for process in processes)
    reported = "lost contact with another process" in texts
    hosts.cable("up")
    ends = [process.wait() for process in hosts.start(run, 29402)]
    same = [end.status for end in ends] == [0, 0] and all(
        run.samples(rank) == reference_ddp.samples(rank) for rank in range(2)
    )
    ok = seconds <= 60 and reported and same
    tally("18", f"{case.task}: one of two hosts is lost: {what}", ok, (seconds, texts, ends))
