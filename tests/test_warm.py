"""Forks that stand for new processes: what they have of their own, and how they end."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from warm import at_start, python

IS_FORK = "import sys; print('metaformer.training.train' in sys.modules)\n"


def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*python(), *args], capture_output=True, text=True, timeout=60, **options)


def test_arguments_folder_environment_and_streams_are_the_commands(tmp_path: Path) -> None:
    script = (
        "import os; print(__name__, sys.argv, os.getcwd(), os.environ['OWN'], 'PATH' in os.environ)\n"
        "print(sys.stdin.read(), file=sys.stderr)"
    )
    words = {"cwd": tmp_path, "input": "given", "env": {**at_start(os.environ), "OWN": "é"}}
    done = run("-c", IS_FORK + script, "a", "b c", **words)
    assert done.stdout.splitlines() == ["True", f"__main__ ['-c', 'a', 'b c'] {tmp_path} é False"]
    assert (done.returncode, done.stderr) == (0, "given\n")


def test_files_and_modules_find_what_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"{IS_FORK}import beside, own; print(__file__, sys.argv)")
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "own.py").write_text("")
    words = {"env": {**at_start(os.environ), "PYTHONPATH": str(tmp_path / "path")}}
    file = tmp_path / "program.py"
    assert run(file, "x", **words).stdout.splitlines() == ["True", f"{file} {[str(file), 'x']}"]
    assert run("-m", "program", "x", cwd=tmp_path, **words).stdout.splitlines()[0] == "True"


@pytest.mark.parametrize(
    ("script", "status", "out", "error"),
    [
        ("sys.exit(3)", 3, "", ""),
        ("sys.exit('no')", 1, "", "no\n"),
        ("1 / 0", 1, "", "ZeroDivisionError: division by zero\n"),
        ("import atexit; atexit.register(print, 'end')", 0, "end\n", ""),
        ("import threading; threading.Timer(0.1, print, ['end']).start()", 0, "end\n", ""),
        ("import os; os.kill(os.getpid(), 9)", -9, None, ""),
        ("import os; os.kill(os.getpid(), 2)", -2, "", "KeyboardInterrupt\n"),
    ],
)
def test_it_ends_as_an_interpreter_does(script: str, status: int, out: str | None, error: str) -> None:
    done = run("-c", f"{IS_FORK}{script}")
    assert done.returncode == status and done.stderr.endswith(error), done.stderr
    assert out is None or done.stdout == f"True\n{out}"


@pytest.mark.parametrize(
    ("options", "variables"),
    [((), {"OMP_NUM_THREADS": "3"}), ((), {"PYTHONUTF8": "0"}), (("-X", "utf8"), {})],
    ids=["threads", "encoding", "option"],
)
def test_what_is_read_at_the_start_is_left_to_a_real_process(
    options: tuple[str, ...], variables: dict[str, str]
) -> None:
    done = run(*options, "-c", IS_FORK, env=os.environ | variables)
    assert (done.stdout, done.stderr) == ("False\n", "")


STATE = """
import json, os, random, signal, threading, numpy, torch
from metaformer.ops import cpp
json.dump({
    "drawn": [random.random(), numpy.random.rand(), torch.rand(1).item()],
    "signals": [signal.getsignal(n) is signal.default_int_handler for n in (signal.SIGINT, signal.SIGTERM)],
    "wakeup": signal.set_wakeup_fd(-1),
    "threads": [threading.active_count(), len(os.listdir("/proc/self/task"))],
    "session": os.getsid(0) == os.getpid(),
    "files": len(os.listdir("/proc/self/fd")),
    "kernels": cpp.load.cache_info().currsize,
}, sys.stdout)
"""


def test_its_state_is_that_of_a_new_process() -> None:
    one, other = (json.loads(run("-c", IS_FORK + STATE).stdout.splitlines()[1]) for _ in range(2))
    for mine, others in zip(one.pop("drawn"), other.pop("drawn"), strict=True):
        assert mine != others
    assert one == other == {
        "signals": [True, False],
        "wakeup": -1,
        "threads": [1, 1],
        "session": True,
        "files": 4,  # the fourth lists them
        "kernels": 0,
    }  # fmt: skip


SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


ENDING = [
    number
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
    if signal.getsignal(number) is not signal.SIG_IGN  # as `nohup` has it
]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_to_the_command_ends_it(number: signal.Signals) -> None:
    with subprocess.Popen([*python(), "-c", SLEEPS], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        pid = int(command.stdout.readline())
        command.send_signal(number)
        assert command.wait(30) == -number
    while Path(f"/proc/{pid}").exists():  # pytest's timeout ends this
        time.sleep(0.01)


def test_a_handler_of_its_own_gets_the_signal() -> None:
    script = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); {SLEEPS}"
    with subprocess.Popen([*python(), "-c", script], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None and command.stdout.readline()
        command.terminate()
        assert command.wait(30) == 5
