"""Run commands of the command line, each in a forked process, and report how they end.

Reads a JSON list of argument lists from standard input; prints a JSON line per command.
"""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where this is a program

from metaformer.cli import main
from warm import PRELOAD

TIMEOUT = 20.0


def attempt(args: Sequence[str]) -> dict[str, object]:
    """Run one command: its status, output, peak memory and duration."""
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - this process ends with it
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            status = 70
            try:
                status = main(list(args))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                if sys.exc_info()[0] is not None:
                    import traceback

                    os.write(2, traceback.format_exc().encode())
                os._exit(status)
        status, usage = wait(pid)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return {"status": status, "text": text, "megabytes": usage, "seconds": time.monotonic() - started}


def wait(pid: int) -> tuple[int, float]:
    """Status and peak megabytes of a child; one that hangs is killed."""
    limit = time.monotonic() + TIMEOUT
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024
        if time.monotonic() > limit:
            os.kill(pid, 9)
            limit = float("inf")
        time.sleep(0.01)


if __name__ == "__main__":
    for module in PRELOAD:  # before forking, so that memory and time are those of the file
        importlib.import_module(module)
    for line in json.load(sys.stdin):
        print(json.dumps(attempt(line)), flush=True)
