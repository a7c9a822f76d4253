import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from metaformer.process import (
    StopSignals,
    available_memory,
    cores,
    keep_freed_memory,
    memory,
    one_line,
    printable,
    sleep_rather_than_spin,
)

PAGES = """
import resource, torch
from metaformer.process import keep_freed_memory
layers = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 1) for _ in range(3)))
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers(torch.zeros(32, 8, 192, 192)).sum().backward()  # four maps of 36 MB, freed at the end
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for prepare in (lambda: None, keep_freed_memory):
    prepare()
    print([step() for _ in range(4)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_later_step_finds_its_pages_in_place() -> None:
    """Pages that the fourth step of a training loop faults in, before and after."""
    done = subprocess.run([sys.executable, "-c", PAGES], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 4


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


def test_available_memory_is_a_part_of_all() -> None:
    assert 0 < available_memory() <= memory()


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
        signal.raise_signal(signal.SIGTERM)  # to this thread: another may get a signal of os.kill
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


HANG = """
import ctypes, os, signal, sys, threading
from metaformer import process
mutex = ctypes.create_string_buffer(64)
def hang():  # an operation in C that never comes back to Python, and lets other threads run
    print("hangs", flush=True)
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
process.GRACE = {grace}
with process.StopSignals() as stop:
    {body}
"""


def signal_during(body: str, *numbers: int, grace: float) -> tuple[int, str]:
    """Exit status and further output of a process that gets signals while it hangs."""
    command = [sys.executable, "-c", HANG.format(body=body, grace=grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "hangs\n"
            for number in numbers:
                child.send_signal(number)
                time.sleep(0.5)  # equal signals that are pending at once are one
            return child.wait(60), child.stdout.read()
        finally:
            child.kill()


def test_a_second_signal_does_not_wait_for_an_operation() -> None:
    assert signal_during("hang()", signal.SIGTERM, signal.SIGTERM, grace=600) == (143, "")
    assert signal_during("hang()", signal.SIGTERM, signal.SIGINT, grace=600) == (130, "")
    protected = "with stop.protected(): hang()"
    assert signal_during(protected, signal.SIGTERM, signal.SIGTERM, grace=0) == (143, "")


def test_the_first_signal_waits_a_while_for_an_operation() -> None:
    assert signal_during("hang()", signal.SIGTERM, grace=0.1) == (143, "")
    save = "with stop.protected(), stop.interruptible(lambda: print('saved', flush=True)): hang()"
    assert signal_during(save, signal.SIGINT, grace=0.1) == (130, "saved\n")
    fails = "with stop.protected(), stop.interruptible(lambda: 1 / 0): hang()"
    assert signal_during(fails, signal.SIGINT, grace=0.1) == (1, "")


def test_what_is_protected_ends_first() -> None:
    body = """
    with stop.protected():
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(1)
        os.write(1, b"whole ")
        with stop.interruptible(lambda: os.write(1, b"saved ")):
            hang()"""
    done = subprocess.run(
        [sys.executable, "-c", HANG.format(grace=0, body=body)], capture_output=True, text=True, timeout=60
    )
    printed = done.stdout.replace("hangs", "").split()  # by the main thread, somewhere between
    assert (done.returncode, printed) == (143, ["whole", "saved"]), done


def test_a_context_that_ends_in_time_ends_nothing() -> None:
    script = """
import os, signal, threading, time
from metaformer import process
process.GRACE = 0.2
before = signal.set_wakeup_fd(-1)
for _ in range(2):
    with process.StopSignals() as stop, stop.protected():
        os.kill(os.getpid(), signal.SIGTERM)
        timer = stop._timer
    time.sleep(0.5)
print(stop.number, signal.set_wakeup_fd(-1) == before, threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "15 True 1\n"), done.stderr


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_signals_of_a_forked_child_are_its_own() -> None:
    with StopSignals() as stop:
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(stop.number)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # the first of this process
        assert stop.number == signal.SIGTERM


def test_outside_the_main_thread_no_handler_is_set() -> None:
    numbers: list[int] = []

    def enter() -> None:
        with StopSignals() as stop:
            numbers.append(stop.number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert numbers == [0]


def test_control_characters_are_escaped_for_terminals() -> None:
    assert printable("a\tb\nc é\x1b[2J\x9b\x7f\r\u202e") == "a\tb\nc é\\u001b[2J\\u009b\\u007f\\r\\u202e"
    assert one_line("a\tb\nc") == "a\\tb\\nc"
