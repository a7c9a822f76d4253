"""The suite: rows chosen and measured one by one, the results written after each."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.suite.page import claims_table, page, plot, summary
from benchmarks.suite.process import Order, run_row
from benchmarks.suite.processor import KEPT_TO, kind, possible
from benchmarks.suite.record import write_record
from benchmarks.suite.result import RowResult, Verdict, judge
from benchmarks.suite.rows import QUICK, TABLE, Device, Row, grid
from metaformer.bench.catalog import matches
from metaformer.bench.timing import instructions, processor
from metaformer.distributed import find_device
from metaformer.errors import ConfigError, OutputError, UnknownName
from metaformer.storage import cache_dir, write_text

Log = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Rows of a run and its settings."""

    rows: str = ""
    """Part of a row's name, or a pattern with * and ?; all rows when empty."""
    grid: bool = False
    """The grid of all families and conditions instead of the table that the library is judged by."""
    quick: bool = False
    """The few rows and contenders that tell a user, in minutes, what `metaformer.optimize` gives here; the
    compilers' caches are kept for the next time."""
    instructions: str = "all"
    """Newest instructions that contenders may use, a key of `processor.KEPT_TO`; fewer than all leave out
    bfloat16, as does a processor that has no instructions for it."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`: each row is for one of the two."""
    rounds: int = 10
    """Measurements of each contender."""
    threads: int | None = None
    """CPU threads; PyTorch's choice by default."""
    limit: float = 3600.0
    """Seconds after which a row is abandoned."""

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")
        if self.quick and self.grid:
            raise ConfigError("quick: the grid has no quick form; choose one of the two")
        if self.instructions not in KEPT_TO:
            raise UnknownName("instructions", self.instructions, KEPT_TO)


@dataclass(frozen=True)
class SuiteReport:
    """Result of a run of the suite."""

    config: SuiteConfig
    results: tuple[RowResult, ...]

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each claim of each row, in order."""
        return [judge(claim, result) for result in self.results for claim in result.row.claims]

    def text(self) -> str:
        """The page in Markdown."""
        return page(self.results, self.verdicts, self.config.rounds, self.config.instructions)

    def summary(self) -> str:
        """The page's beginning: machine, table, kernels."""
        lines = summary(self.results, self.verdicts, self.config.rounds, self.config.instructions)
        return "\n".join(lines)

    def table(self) -> str:
        """The page's first table."""
        return "\n".join(claims_table(self.results, self.verdicts))

    def record(self, folder: Path) -> Path:
        """Write the figures to a dated file for this kind of processor; see `record.write_record`."""
        return write_record(self.results, self.verdicts, asdict(self.config), folder)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "settings": asdict(self.config),
            "claims": [verdict.to_dict() for verdict in self.verdicts],
            "rows": [result.to_dict() for result in self.results],
        }


def choose(config: SuiteConfig) -> tuple[Row, ...]:
    """The rows of a configuration.

    Raises:
        UnknownName: no row matches.
        ConfigError: no such device.
    """
    device: Device = "cuda" if find_device(config.device).type == "cuda" else "cpu"
    table = grid(device) if config.grid else QUICK if config.quick else TABLE
    rows_here = (row for row in table if row.device == device)
    all_rows = (possible(row, config.instructions, instructions()) for row in rows_here)
    known = [row for row in all_rows if row is not None]
    rows = tuple(row for row in known if matches(row.name, config.rows))
    if not rows:
        raise UnknownName("row", config.rows, [row.name for row in known])
    return rows


def run_suite(
    config: SuiteConfig | None = None,
    out: str | Path = "runs/bench-suite",
    *,
    rows: Sequence[Row] | None = None,
    log: Log = lambda line: print(line, file=sys.stderr),
) -> SuiteReport:
    """Measure rows and write `suite.json`, `suite.md`, `suite.png` and the compilers' logs.

    Args:
        config: rows and settings.
        out: directory to write to.
        rows: rows in place of the configuration's.
        log: called with each line of progress.

    Raises:
        UnknownName: no row matches.
        ConfigError: no such device.
        OutputError: the directory cannot be written to.
    """
    config = config or SuiteConfig()
    rows = choose(config) if rows is None else rows
    out = Path(out)
    logs = _make_directory(out / "logs")
    results: list[RowResult] = []
    report = SuiteReport(config, ())
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-suite-") as folder:
        temporary = Path(folder)
        caches = _kept_caches(config) if config.quick else temporary
        order = Order(config.rounds, config.threads, config.limit, caches, temporary, config.instructions)
        for number, row in enumerate(rows, 1):
            done = number - 1
            left = (time.monotonic() - start) / done * (len(rows) - done) if done else None
            log(f"row {number} of {len(rows)}: {row.name}{_remaining(left)}")
            file = logs / f"{row.name}.log"
            file.unlink(missing_ok=True)
            results.append(run_row(row, order, file, lambda event: _log_event(event, log)))
            report = SuiteReport(config, tuple(results))
            _write(report, out)
            for verdict in report.verdicts[-len(row.claims) :]:
                log(f"  {verdict.claim.title}: {_summary(verdict)}")
            for line in _profiles(results[-1]):
                log(line)
    log(plot(report.verdicts, out / "suite.png"))
    log(f"took {(time.monotonic() - start) / 60:.1f} min")
    return report


def _kept_caches(config: SuiteConfig) -> Path:
    """Directory of the compilers' caches for this processor, PyTorch and instructions."""
    name = kind(processor(), " ".join(instructions()), config.instructions)
    return _make_directory(cache_dir() / "bench-suite" / f"{name}-torch-{torch.__version__}", 0o700)


def _make_directory(folder: Path, mode: int = 0o777) -> Path:
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created ({error.strerror})") from error
    return folder


def _write(report: SuiteReport, out: Path) -> None:
    """Write after each row, so that an interrupted run has its results."""
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    write_text(out / "suite.json", text)
    write_text(out / "suite.md", report.text())


def _remaining(seconds: float | None) -> str:
    return "" if seconds is None else f" (about {seconds / 60:.0f} min to go)"


def _summary(verdict: Verdict) -> str:
    if verdict.minima is None or verdict.median is None:
        return verdict.text
    ratios = f"{verdict.minima:.3f} by minima, {verdict.median:.3f} by median"
    return f"{ratios} ({verdict.claim.goal}): {verdict.text}"


def _profiles(result: RowResult) -> Iterator[str]:
    """Profiles of our best contenders."""
    for outcome in result.outcomes:
        if outcome.profile is not None:
            share = result.gemm_share(outcome)
            ceiling = "" if share is None else f"; {share:.0%} of the product ceiling"
            yield f"  {outcome.name}: {outcome.profile}{ceiling}"


def _log_event(event: Mapping[str, Any], log: Log) -> None:
    """Log an event inside a row."""
    if "prepared" in event:
        log(f"  {event['prepared']}: ready after {event['seconds']} s")
    elif "failed" in event:
        log(f"  {event['failed']}: left out: {event['reason']}")
    elif "round" in event:
        log(f"  round {event['round']} of {event['of']}")
