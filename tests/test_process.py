import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from metaformer.process import StopSignals, cores, keep_freed_memory, sleep_rather_than_spin

SCRIPT = """
import resource, torch
from metaformer.process import keep_freed_memory
{call}
layers = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 1) for _ in range(8)))
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers(torch.zeros(32, 8, 192, 192)).sum().backward()  # nine maps of 36 MB, freed at the end
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*[step() for _ in range(4)])
"""


def faults(call: str) -> int:
    """Pages faulted in by the fourth step of a training loop."""
    script = SCRIPT.format(call=call)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_later_step_finds_its_pages_in_place() -> None:
    assert faults("keep_freed_memory()") < faults("") / 4


def test_it_says_whether_it_was_possible() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize(("before", "after"), [(None, "passive"), ("active", "active")])
def test_the_environment_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    sleep_rather_than_spin()
    assert os.environ["OMP_WAIT_POLICY"] == after


def test_cores_are_those_that_this_process_may_use() -> None:
    script = (
        "import os; from metaformer.process import cores; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(cores())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n" and cores() >= 1


def test_the_first_signal_is_recorded_and_the_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert stop.number == 0 and not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.number, stop.exit_status) == (signal.SIGTERM, 143) and stop.requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process_at_once() -> None:
    script = (
        "import os, signal; from metaformer.process import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "first\n")


def test_outside_the_main_thread_no_handler_is_set() -> None:
    numbers: list[int] = []

    def enter() -> None:
        with StopSignals() as stop:
            numbers.append(stop.number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert numbers == [0]
