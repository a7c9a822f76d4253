"""Measurement of a row in a process of its own, so that memory, compilers' state and crashes stay in it.

The process reads the row from standard input. Its standard output carries one JSON object a line: events, and
at the end the result. What compilers and libraries print goes to standard error.
"""

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

import torch

from benchmarks.suite.measuring import Report, measure_row
from benchmarks.suite.processor import KEPT_TO
from benchmarks.suite.result import Outcome, RowResult
from benchmarks.suite.rows import Claim, Row
from metaformer.bench.timing import Machine
from metaformer.process import keep_freed_memory

WORKER = (sys.executable, "-m", "benchmarks.suite.process")


@dataclass(frozen=True)
class Order:
    """Settings of a measurement."""

    rounds: int
    threads: int | None
    """PyTorch's threads; None for its own choice."""
    limit: float
    """Seconds after which a row is abandoned."""
    caches: Path
    """Directory of the compilers' caches."""
    temporary: Path
    """Directory of temporary files."""
    kept_to: str = "all"
    """Newest instructions that contenders may use, a key of `processor.KEPT_TO`."""


def run_row(row: Row, order: Order, log: Path, report: Report) -> RowResult:
    """Measure a row; a contender that crashes the process is left out, and the row measured again.

    Args:
        row: the row.
        order: settings.
        log: file for what compilers and libraries print.
        report: called with each event, as by `measure_row`.
    """
    skip: dict[str, str] = {}
    while True:
        end = _once(row, order, skip, log, report)
        if isinstance(end, RowResult):
            return end
        culprit, reason = end
        if not culprit or culprit in skip:
            return RowResult(row, (), failure=reason)
        skip[culprit] = reason
        report({"failed": culprit, "reason": reason})


def _once(
    row: Row, order: Order, skip: Mapping[str, str], log: Path, report: Report
) -> RowResult | tuple[str, str]:
    """The result, or the contender being prepared when the process ended, and the reason."""
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
                report(event)
        status = process.wait()
    if result is not None:
        return result
    if overdue.is_set():
        return preparing, f"took longer than {order.limit:.0f} s"
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return preparing, f"its process {how}; {_last_line(log) or 'it printed nothing'}"


@contextmanager
def _started(order: Order, errors: IO[str]) -> Iterator[tuple["subprocess.Popen[str]", threading.Event]]:
    """The process, killed at the time limit or the end of the block, and whether it reached the limit."""
    overdue = threading.Event()
    pipe, environment = subprocess.PIPE, _environment(order)
    with subprocess.Popen(
        WORKER, stdin=pipe, stdout=pipe, stderr=errors, env=environment, text=True
    ) as process:

        def abandon() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(order.limit, abandon)
        timer.start()
        try:
            yield process, overdue
        finally:
            timer.cancel()
            process.kill()


def _environment(order: Order) -> dict[str, str]:
    """Threads wait as in any program that imports torch, not as our command line sets it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    folders = {
        "TORCHINDUCTOR_CACHE_DIR": order.caches / "inductor",
        "TRITON_CACHE_DIR": order.caches / "triton",
        "TMPDIR": order.temporary,
    }
    return environment | {name: str(path) for name, path in folders.items()} | KEPT_TO[order.kept_to]


def _send(process: "subprocess.Popen[str]", values: Mapping[str, Any]) -> None:
    """Send a line; the pipe stays open, as its end ends the process."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # the process has ended, and its status says why
        print(json.dumps(values), file=process.stdin, flush=True)


def _events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def row_of(values: Mapping[str, Any]) -> Row:
    """Undo `dataclasses.asdict` of a row, after JSON."""
    claims = tuple(
        Claim(**{**claim, "ours": tuple(claim["ours"]), "theirs": tuple(claim["theirs"])})
        for claim in values["claims"]
    )
    return Row(**{**values, "claims": claims})


def main() -> int:
    """Run as the process of a row."""
    keep_freed_memory()
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if order["threads"]:
        torch.set_num_threads(order["threads"])

    def report(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=events)

    result = measure_row(row_of(order["row"]), order["rounds"], skip=order["skip"], report=report)
    machine = asdict(result.machine) if result.machine else None
    report({"outcomes": [asdict(outcome) for outcome in result.outcomes], "machine": machine})
    return 0


def _end_with_parent() -> None:
    """End this process when standard input ends, as it does when the parent is gone."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
