import os
import signal
import subprocess
import sys
import threading

from metaformer.training.signals import StopSignals


def test_the_first_signal_is_noted_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.number, stop.exit_status) == (signal.SIGTERM, 143)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process_at_once() -> None:
    script = (
        "import os, signal; from metaformer.training.signals import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('never')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "noted\n")


def test_outside_the_main_thread_no_handler_is_set() -> None:
    seen: list[int] = []

    def enter() -> None:
        with StopSignals() as stop:
            seen.append(stop.number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [0]
