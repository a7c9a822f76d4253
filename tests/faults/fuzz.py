"""Fuzz a door, or all: `python fuzz.py DOOR SECONDS SEED [NUMBER]`; NUMBER tries one change and shows it.

Tries run one after another in a forked process, which another replaces when it dies or hangs. Prints a JSON
line: tries, errors of ours, accepted files, all other ends, the longest time and the largest memory.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where this is a program

from faults import mutate
from faults.doors import DOORS, Door
from metaformer.errors import MetaFormerError

HANGS = 20.0
"""Seconds after which a try is killed."""
LONGEST = 2.0
"""Seconds of processor time that a try may take: other programs run beside it."""
ROOM = 2 << 30
"""Bytes of address space that a process may take beyond those of its start."""
SPECIAL = 0.04
"""Share of tries with a pipe, a device or the like in place of the file."""


def change(door: Door, valid: Path, folder: Path, seed: int, number: int) -> Path:
    """Write the files of a door into an empty folder, one of them changed; returns that one."""
    draw = random.Random(f"{seed} {door.name} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder, symlinks=True)
    file = folder / (folder / ".changed").read_text()
    (folder / ".changed").unlink()
    if draw.random() < SPECIAL:
        mutate.special(draw, file)
    else:
        file.write_bytes(door.mutate(draw, file.read_bytes()))
    door.changed(folder)
    return file


def attempt(door: Door, folder: Path) -> tuple[str, str, float]:
    """Enter a door: how it ends, the error, and how long it took."""
    started = time.process_time()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            door.enter(folder)
        end, text = "accepted", ""
    except MetaFormerError as error:
        end, text = "ours", str(error)
        try:
            text.encode()
        except UnicodeEncodeError:
            end, text = "other", f"an error that cannot be printed: {text!r}"
    except BaseException:
        end, text = "other", traceback.format_exc()
    return end, text, time.process_time() - started


def tries(door: Door, valid: Path, folder: Path, seed: int, first: int, until: float, pipe: int) -> None:
    """Try from a number on until a time; a line of JSON before and after each goes into the pipe."""
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + ROOM, space + ROOM))
    number = first
    while time.monotonic() < until:
        os.write(pipe, f"{json.dumps([number, 'begins', '', 0.0, 0])}\n".encode())
        change(door, valid, folder, seed, number)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        end, text, seconds = attempt(door, folder)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(pipe, f"{json.dumps([number, end, text[-3000:], seconds, grown])}\n".encode())
        number += 1


def fuzz(door: Door, seconds: float, seed: int) -> dict[str, Any]:
    """Try a door for so many seconds."""
    with tempfile.TemporaryDirectory(prefix="door-") as place:
        valid, folder = Path(place) / "valid", Path(place) / "tried"
        prepare(door, valid, folder)
        result: dict[str, Any] = {"door": door.name, "tries": 0, "ours": 0, "accepted": 0, "others": []}
        result |= {"seconds": 0.0, "slowest": -1, "megabytes": 0.0, "largest": -1}
        number, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            number = _watch(door, valid, folder, seed, number, until, result) + 1
        return result


def prepare(door: Door, valid: Path, folder: Path) -> None:
    """Write the valid files, and read them once, so that what is imported or cached is no part of a try."""
    valid.mkdir()
    file = door.write(valid)
    (valid / ".changed").write_text(str(file.relative_to(valid)))
    shutil.copytree(valid, folder, symlinks=True)
    end, text, _ = attempt(door, folder)
    assert end == "accepted", (door.name, text)
    gc.collect()
    gc.freeze()


def _watch(
    door: Door, valid: Path, folder: Path, seed: int, first: int, until: float, result: dict[str, Any]
) -> int:
    """Count what a forked process tries; returns the number of its last try."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        status = 70
        try:
            tries(door, valid, folder, seed, first, until, send)
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    os.close(send)
    os.set_blocking(receive, False)
    last, rest, running, heard = first, b"", False, time.monotonic()
    while True:
        try:
            read = os.read(receive, 1 << 20)
        except BlockingIOError:
            if time.monotonic() - heard > HANGS:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
            continue
        if not read:
            break
        heard = time.monotonic()
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            last, end, text, seconds, grown = json.loads(line)
            running = end == "begins"
            if not running:
                _count(result, last, end, text, seconds, grown)
    os.close(receive)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if running:
        took = time.monotonic() - heard
        _count(result, last, "other", f"the process ended with {status} after {took:.1f} s", took, 0)
    return last


def _count(result: dict[str, Any], number: int, end: str, text: str, seconds: float, grown: int) -> None:
    result["tries"] += 1
    if end == "other":
        result["others"].append([number, text])
    else:
        result[end] += 1
    if seconds > result["seconds"]:
        result["seconds"], result["slowest"] = seconds, number
    if grown / 1024 > result["megabytes"]:
        result["megabytes"], result["largest"] = grown / 1024, number


def main(name: str, seconds: str, seed: str, number: str = "") -> None:
    """Fuzz a door, or try one change."""
    warnings.simplefilter("ignore")
    doors = list(DOORS.values()) if name == "all" else [DOORS[name]]
    for module in ("metaformer.inference.model", "metaformer.cli.train"):
        importlib.import_module(module)
    if not number:
        for door in doors:
            print(json.dumps(fuzz(door, float(seconds), int(seed))), flush=True)
        return
    (door,) = doors
    with tempfile.TemporaryDirectory(prefix="door-") as place:
        valid, folder = Path(place) / "valid", Path(place) / "tried"
        prepare(door, valid, folder)
        file = change(door, valid, folder, int(seed), int(number))
        print(file.read_bytes()[:4000] if file.is_file() and file.stat().st_size < 1e6 else file.lstat())
        print(attempt(door, folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
