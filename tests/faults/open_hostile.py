"""Open files by the command line, each in a forked process of its own, and tell what came of it.

Reads a JSON list of word lists from standard input; prints a JSON line per entry.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence

import metaformer.models  # noqa: F401
from metaformer.cli import main

SECONDS = 20.0


def attempt(words: Sequence[str]) -> dict[str, object]:
    """Run one command; its status, what it printed, its largest memory and how long it took."""
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - this process ends with it
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            status = 70
            try:
                status = main(list(words))
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
    return {"status": status, "text": text, "megabytes": usage, "seconds": time.monotonic() - began}


def wait(pid: int) -> tuple[int, float]:
    """Status and megabytes of a child; one that hangs is killed."""
    limit = time.monotonic() + SECONDS
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024
        if time.monotonic() > limit:
            os.kill(pid, 9)
            limit = float("inf")
        time.sleep(0.01)


if __name__ == "__main__":
    for line in json.load(sys.stdin):
        print(json.dumps(attempt(line)), flush=True)
