"""A row in a process of its own, so that memory, compilers' state and crashes stay with it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.suite.measuring import Tell
from benchmarks.suite.outcome import Outcome, RowResult
from benchmarks.suite.row import Row
from metaformer.bench.timing import Machine

CHILD = (sys.executable, "-m", "benchmarks.suite.child")


@dataclass(frozen=True)
class Order:
    """How rows are measured."""

    rounds: int
    threads: int | None
    """PyTorch's threads; its own choice when None."""
    limit: float
    """Seconds after which a row is given up."""
    caches: Path
    """Where compilers put what they make."""


def run_row(row: Row, order: Order, log: Path, tell: Tell) -> RowResult:
    """Measure a row; a contender that takes the process down is left out, and the row begun anew.

    Args:
        row: what to measure.
        order: how.
        log: file for what compilers and libraries print.
        tell: is given each event, as by `measure_row`.
    """
    skip: dict[str, str] = {}
    while True:
        end = _once(row, order, skip, log, tell)
        if isinstance(end, RowResult):
            return end
        culprit, reason = end
        if not culprit or culprit in skip:
            return RowResult(row, (), failure=reason)
        skip[culprit] = reason
        tell({"failed": culprit, "reason": reason})


def _once(
    row: Row, order: Order, skip: Mapping[str, str], log: Path, tell: Tell
) -> RowResult | tuple[str, str]:
    """The result, or the contender in preparation when the process ended, and why it did."""
    result: RowResult | None = None
    preparing = ""
    with log.open("a") as errors, _started(order, errors) as (process, overdue):
        _send(process, {"row": asdict(row), "rounds": order.rounds, "threads": order.threads, "skip": skip})
        for event in _events(process):
            preparing = event.get("preparing", "")
            if "outcomes" in event:
                outcomes = tuple(Outcome.from_dict(values) for values in event["outcomes"])
                result = RowResult(row, outcomes, Machine(**event["machine"]))
            else:
                tell(event)
        status = process.wait()
    if result is not None:
        return result
    if overdue.is_set():
        return preparing, f"took longer than {order.limit:.0f} s"
    what = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return preparing, f"its process {what}; {_last_line(log) or 'it said nothing'}"


@contextmanager
def _started(order: Order, errors: IO[str]) -> Iterator[tuple["subprocess.Popen[str]", threading.Event]]:
    """The child, killed when its time is over or ours is."""
    overdue = threading.Event()
    pipe, environment = subprocess.PIPE, _environment(order)
    with subprocess.Popen(
        CHILD, stdin=pipe, stdout=pipe, stderr=errors, env=environment, text=True
    ) as process:

        def give_up() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(order.limit, give_up)
        timer.start()
        try:
            yield process, overdue
        finally:
            timer.cancel()
            process.kill()


def _environment(order: Order) -> dict[str, str]:
    """Threads wait as in any program that imports torch, not as our command line has them wait."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for name, folder in (
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("TRITON_CACHE_DIR", "triton"),
        ("TMPDIR", ""),
    ):
        environment[name] = str(order.caches / folder)
    return environment


def _send(process: "subprocess.Popen[str]", values: Mapping[str, Any]) -> None:
    """One line; the pipe stays open, since its end tells the child that we are gone."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already, and its status says why
        print(json.dumps(values), file=process.stdin, flush=True)


def _events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
